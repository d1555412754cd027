"""A whole pre-training step of PonderV2's indoor model, stage by stage: with our renderer and with an eager one.

``python -m benchmarks.pretrain_step`` takes one generated room through the sparse network, the unit cube, the dense
volume and network, rendering, losses, all of it backwards, and PonderV2's optimiser. Sizes are those of the shipped
configurations unless options say otherwise. In every round each renderer has its step, in turns; both share the
networks. The peak memory of a step is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.competitors import COMPETITORS, OURS
from benchmarks.contenders import Contender
from benchmarks.measure import WHOLE, Rounds, ratios, spread, time_parts
from benchmarks.memory import PRELOAD, RSS_UNIT
from benchmarks.pretrain_case import BACKBONES, CASE, RENDERERS, Setting, build, make_batch
from benchmarks.provenance import provenance
from ponder.models.ponderv2.dense_volume import points_to_volume
from ponder.models.ponderv2.indoor import PonderIndoor
from ponder.render.memory import keep_at_most

# Losses of two renderers on the same rays; a sample on the border of two voxels takes the slope of either.
AGREEMENT = 0.05
CHILD_SECONDS = 1800


class Step:
    """A training step whose stages can be run, and timed, one after the other, forwards and backwards.

    The optimiser's learning rate is 0: it does its work, and every step starts from the same weights.
    """

    def __init__(self, model: PonderIndoor, batch: dict[str, Any], setting: Setting) -> None:
        keep_at_most(0)  # as in training
        self.model, self.batch, self.setting = model, batch, setting
        self.optimiser = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9, nesterov=True, weight_decay=1e-4)
        self.made: dict[str, Any] = {}
        forward: dict[str, Callable[[], Any]] = {
            "backbone": lambda: self.model.extract_features(self.batch),
            "cube and rays": lambda: self.model.prepare_rays(self.batch),
            "scatter": self._scatter,
            "dense net": lambda: self.model.proj_net(self.made["scatter leaf"]),
            "render": lambda: self.model.render(self.made["dense net leaf"], self.made["cube and rays"][1]),
            "losses": self._losses,
        }
        self.parts: dict[str, Callable[[], None]] = {name: self._forward(name, work) for name, work in forward.items()}
        for name in ("losses", "render", "dense net", "scatter", "backbone"):
            self.parts[f"{name}, backward"] = self._backward(name)
        self.parts["optimiser"] = self.optimiser.step

    def reset(self) -> None:
        """Drop what the last step made."""
        self.made = {}
        self.optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(1)

    def results(self) -> dict[str, Tensor]:
        """The losses."""
        return {name: value.detach() for name, value in self.made["losses"].items()}

    def contender(self) -> Contender:
        """The step in parts."""
        return Contender(self.reset, self.parts, self.results)

    def _forward(self, name: str, work: Callable[[], Any]) -> Callable[[], None]:
        """Run a stage; the next one starts from a leaf, so that backward can be run by stages too."""

        def run() -> None:
            with torch.autocast(self.setting.device, dtype=torch.float16, enabled=self.setting.amp):
                self.made[name] = found = work()
            if isinstance(found, Tensor):
                self.made[f"{name} leaf"] = found.detach().requires_grad_()
            elif name == "render":
                self.made["render leaf"] = {
                    key: value.detach().requires_grad_(value.requires_grad) for key, value in found.items()
                }

        return run

    def _backward(self, name: str) -> Callable[[], None]:
        def run() -> None:
            made = self.made[name]
            if name == "losses":
                torch.stack([value.sum() for key, value in made.items() if "loss" in key]).sum().backward()
                return
            leaf = self.made[f"{name} leaf"]
            pairs = [(made, leaf)] if isinstance(made, Tensor) else [(made[key], leaf[key]) for key in made]
            pairs = [(value, copy) for value, copy in pairs if copy.grad is not None]
            torch.autograd.backward([value for value, _ in pairs], [copy.grad for _, copy in pairs])

        return run

    def _scatter(self) -> Tensor:
        cube, _ = self.made["cube and rays"]
        return points_to_volume(self.made["backbone leaf"], cube, self.model.grid_shape, self.model.grid_size)

    def _losses(self) -> dict[str, Tensor]:
        return self.model.losses(self.made["render leaf"], self.made["cube and rays"][1], self.batch)


def time_steps(names: list[str], setting: Setting, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every stage of every step, after one step each that is not counted and whose losses must agree.

    Raises:
        RuntimeError: renderers that give different losses.
    """
    batch = make_batch(setting)
    models = {name: build(name, setting) for name in names}
    shared = models[names[0]]
    for model in models.values():
        model.backbone, model.proj_net, model.embedding_table = shared.backbone, shared.proj_net, shared.embedding_table
    rounds = Rounds({name: Step(model, batch, setting).contender() for name, model in models.items()}, _device(setting))
    check_agreement({name: losses_of(contender, setting) for name, contender in rounds.contenders.items()})
    for _ in range(repeats + 1):
        rounds()
    return rounds.seconds


def losses_of(contender: Contender, setting: Setting) -> dict[str, float]:
    """The losses of one step."""
    time_parts(contender, _device(setting))
    found = {name: float(value) for name, value in contender.results().items()}
    contender.reset()
    return found


def check_agreement(losses: Mapping[str, Mapping[str, float]]) -> None:
    """Require that all renderers have the losses of the first, within a few per cent."""
    (first, wanted), *others = losses.items()
    for name, found in others:
        for key, value in wanted.items():
            if abs(found[key] - value) > AGREEMENT * max(abs(value), 1e-3):
                raise RuntimeError(f"{key}: {first} has {value:.4g}, {name} has {found[key]:.4g}")


def peak_memory(name: str, setting: Setting) -> tuple[int, int]:
    """Bytes before and at the peak of one step, in a process of its own: resident on a CPU, else allocated on the GPU.

    Raises:
        RuntimeError: the process failed, or did not end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sending, name, setting, torch.get_num_threads()))
    child.start()
    sending.close()
    try:
        if not receiving.poll(CHILD_SECONDS):
            raise RuntimeError(f"memory of {name}: no answer within {CHILD_SECONDS} s")
        before, peak = receiving.recv()
        return int(before), int(peak)
    except EOFError:
        child.join()
        raise RuntimeError(f"memory of {name}: the process ended with {child.exitcode}") from None
    finally:
        child.kill()
        child.join()


def _measure(sending: Any, name: str, setting: Setting, threads: int) -> None:
    torch.set_num_threads(threads)
    contender = Step(build(name, setting), make_batch(setting), setting).contender()
    before = _peak(setting)
    time_parts(contender, _device(setting))
    sending.send((before, _peak(setting)))


def _peak(setting: Setting) -> int:
    if setting.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def _device(setting: Setting) -> torch.device:
    return torch.device(setting.device)


def print_times(seconds: Mapping[str, Mapping[str, list[float]]]) -> None:
    """A line for each stage: medians, and how many times faster the first renderer is."""
    names = list(seconds)
    ours = seconds[names[0]]
    print(f"{'stage':22}" + "".join(f"{name:>12} s" for name in names) + "".join(f"{n:>12} x" for n in names[1:]))
    for part in [*(part for part in ours if part != WHOLE), WHOLE]:
        medians = "".join(f"{spread(taken[part]).median:14.3f}" for taken in seconds.values())
        factors = "".join(f"{spread(ratios(seconds[n][part], ours[part])).median:14.2f}" for n in names[1:])
        print(f"{part:22}{medians}{factors}")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Setting]:
    """Options, and the setting that they describe."""
    parser = argparse.ArgumentParser(prog="benchmarks.pretrain_step", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["time", "memory", "both"], default="both")
    parser.add_argument("--renderers", nargs="+", choices=RENDERERS, default=[OURS, "eager"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="also append a line with everything to a file")
    default = Setting()
    parser.add_argument("--backbone", choices=BACKBONES, default=default.backbone)
    for name in ("points", "views", "rays", "width", "height"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--grid", type=int, nargs=3, metavar=("X", "Y", "Z"), default=default.grid)
    parser.add_argument("--channels", type=int, nargs=8, metavar="C", default=default.channels)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default.device)
    parser.add_argument("--amp", action="store_true", help="float16 in the networks, as PonderV2 trains; CUDA only")
    options = parser.parse_args(arguments)
    given = {field.name: getattr(options, field.name) for field in fields(Setting)}
    setting = replace(default, **given | {"grid": tuple(options.grid), "channels": tuple(options.channels)})
    sizes = (setting.points, setting.views, setting.rays, setting.width, setting.height, options.repeats)
    if min(*sizes, *setting.grid, *setting.channels) < 1:
        parser.error("expected numbers of at least 1")
    if setting.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    if setting.amp and setting.device == "cpu":
        parser.error("--amp: only with --device cuda")
    for name in options.renderers:
        if reason := COMPETITORS[name].refuses(CASE, setting.device):
            parser.error(f"--renderers: {name}: {reason}")
    return options, setting


def main(arguments: list[str]) -> None:
    """Measure and print."""
    options, setting = parse(arguments)
    facts = provenance(setting.device)
    print(f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}")
    print(", ".join(f"{key} {value}" for key, value in asdict(setting).items()), flush=True)
    line: dict[str, Any] = {"provenance": facts, "setting": asdict(setting)}
    if options.what != "memory":
        line["seconds"] = seconds = time_steps(options.renderers, setting, options.repeats)
        print_times(seconds)
    if options.what != "time":
        line["bytes"] = {}
        for name in options.renderers:
            before, peak = peak_memory(name, setting)
            line["bytes"][name] = {"before": before, "peak": peak}
            print(f"{name:8} peak {peak / 1e9:.2f} GB, of which the step {(peak - before) / 1e9:.2f} GB", flush=True)
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
