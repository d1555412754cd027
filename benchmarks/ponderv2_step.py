"""A training step of PonderV2's indoor renderer: the drop-in against an eager implementation, on the machine at hand.

``python -m benchmarks.ponderv2_step time`` interleaves the renderers in one process and prints the median seconds of
forward, losses and backward, and how many times faster the drop-in is. ``... memory`` runs one step per process and
prints peak resident memory per ray: the slope between two numbers of rays. Renderers: `ponder`, the drop-in; `eager`,
PonderV2's formulas with torch's grid_sample; `eager2`, the same with a hand-written second-order sampler.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.baselines import ponderv2 as baseline
from benchmarks.baselines.ponderv2 import configs
from benchmarks.baselines.second_order_trilinear import second_order_trilinear
from ponder.compat.ponderv2 import RayBundle, build_renderer

VOLUME = (128, 32, 128, 128)
CLASSES = 20
RENDERERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "ponder": lambda: (build_renderer(configs.indoor()), RayBundle),
    "eager": lambda: (baseline.build_renderer(configs.indoor()), baseline.RayBundle),
    "eager2": lambda: (baseline.build_renderer(configs.indoor(), second_order_trilinear), baseline.RayBundle),
}


class Step:
    """Forward, all losses and backward of one renderer on generated rays, volume and targets.

    Args:
        name: one of RENDERERS.
        rays: how many.
        volume: [C, D, H, W] leaf, channels last, shared by the renderers of a process.
    """

    def __init__(self, name: str, rays: int, volume: torch.Tensor) -> None:
        torch.manual_seed(0)
        self.model, bundle = RENDERERS[name]()
        directions = F.normalize(torch.randn(rays, 3), dim=-1)
        self.bundle = bundle(torch.rand(rays, 3) * 0.8 - 0.4, directions)
        table = F.normalize(torch.randn(CLASSES, 512), dim=-1)
        self.targets = {
            "depth": torch.rand(rays, 1) * 0.5,
            "rgb": torch.rand(rays, 3),
            "semantic": table[torch.randint(0, CLASSES, (rays,))],
        }
        self.volume = volume

    def __call__(self) -> float:
        """Seconds of one step."""
        self.volume.grad = None
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        start = time.perf_counter()
        losses = self.model.get_loss(self.model(self.bundle, [self.volume]), self.targets)
        sum(value for key, value in losses.items() if "loss" in key).backward()
        return time.perf_counter() - start


def make_volume() -> torch.Tensor:
    """A smooth enough random volume, channels last."""
    volume = (torch.randn(VOLUME) * 0.1)[None]
    return volume.contiguous(memory_format=torch.channels_last_3d)[0].requires_grad_()


def time_steps(names: list[str], rays: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every step, interleaved, after one warm-up of each."""
    volume = make_volume()
    steps = {name: Step(name, rays, volume) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            taken = step()
            if repeat:
                seconds[name].append(taken)
    return seconds


def peak_kilobytes(name: str, rays: int) -> float:
    """Peak resident memory of a process that does one step."""
    command = [sys.executable, "-m", "benchmarks.ponderv2_step", "once", "--renderers", name, "--rays", str(rays)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["peak_kilobytes"])


def hardware() -> str:
    """What the figures belong to."""
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.ponderv2_step", description=__doc__)
    parser.add_argument("what", choices=["time", "memory", "once"])
    parser.add_argument("--renderers", nargs="+", choices=list(RENDERERS), default=list(RENDERERS))
    parser.add_argument("--rays", nargs="+", type=int, default=[1024])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)
    if options.what == "once":
        Step(options.renderers[0], options.rays[0], make_volume())()
        print(json.dumps({"peak_kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
        return
    print(hardware())
    if options.what == "time":
        for rays in options.rays:
            seconds = time_steps(options.renderers, rays, options.repeats)
            ours = statistics.median(seconds.get("ponder", [float("nan")]))
            for name, taken in seconds.items():
                median = statistics.median(taken)
                spread = f"{min(taken):.3f} to {max(taken):.3f}"
                print(f"{rays} rays  {name:7} {median:7.3f} s ({spread})  {median / ours:5.1f} x ponder", flush=True)
        return
    few, many = min(options.rays), max(options.rays)
    if few == many:
        parser.error("memory: expected two numbers of rays")
    for name in options.renderers:
        low, high = peak_kilobytes(name, few), peak_kilobytes(name, many)
        slope = (high - low) / (many - few)
        print(
            f"{name:7} peak {low / 1024:.0f} MiB at {few} rays, {high / 1024:.0f} MiB at {many}: {slope:.1f} KiB a ray"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
