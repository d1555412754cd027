"""A training step of PonderV2's indoor renderer with the whole volume: the drop-in against eager implementations.

``python -m benchmarks.ponderv2_step time`` interleaves the renderers in one process and prints the median seconds of
forward, losses and backward, and how many times faster the drop-in is. ``... memory`` runs one step per process and
prints peak resident memory per ray: the slope over numbers of rays. With ``--device cuda`` steps are timed on the GPU
and memory is what torch allocated there. The renderers are those of `benchmarks.competitors`, the step is the suite's
case "indoor"; here rays are chosen freely, and the volume has its full size on a CPU too.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks import memory
from benchmarks.cases import RENDER_CASES, Sizes
from benchmarks.competitors import COMPETITORS, OURS
from benchmarks.conditions import Conditions
from benchmarks.contenders import render_contender
from benchmarks.inputs import make_inputs, make_volume
from benchmarks.measure import WHOLE, Rounds, ratios, spread, time_parts
from benchmarks.provenance import provenance

CASE = RENDER_CASES["indoor"]
# Everywhere at hand; others are asked for by name.
RENDERERS = ("ponder", "eager", "eager2")


def sizes(rays: int, *memory_rays: int) -> Sizes:
    """The full volume, seen through some rays of one camera."""
    return replace(CASE.sizes["full"], views=1, rays=rays, memory_rays=memory_rays)


class Step:
    """Forward, all losses and backward of one renderer on generated rays and targets.

    Args:
        name: one of competitors.COMPETITORS.
        rays: how many.
        volume: [C, D, H, W] leaf, channels last, shared by the renderers of a process; everything goes to its device.
    """

    def __init__(self, name: str, rays: int, volume: torch.Tensor) -> None:
        renderer = COMPETITORS[name].build(CASE)
        # Of the drawn inputs all but the volume.
        inputs = make_inputs(CASE, replace(sizes(rays), volume=(1, 1, 1, 1)), volume.device.type)
        inputs = replace(inputs, volumes=[volume])
        self.contender = render_contender(renderer, CASE, inputs)
        self.model, self.volume, self.targets = renderer.model, volume, inputs.targets
        self.bundle = renderer.bundle(inputs.origins[0], inputs.directions[0])

    def __call__(self) -> float:
        """Seconds of one step."""
        return time_parts(self.contender, self.volume.device)[WHOLE]


class Steps(NamedTuple):
    """Seconds by renderer, one per round, and what the machine was like in each."""

    seconds: dict[str, list[float]]
    conditions: Conditions


def time_steps(names: list[str], rays: int, repeats: int, device: str = "cpu") -> Steps:
    """Every step, interleaved, after one warm-up of each."""
    volume = make_volume(CASE.sizes["full"].volume, device, torch.Generator(device).manual_seed(0))
    rounds = Rounds({name: Step(name, rays, volume).contender for name in names}, torch.device(device))
    for _ in range(repeats + 1):
        rounds()
    return Steps({name: parts[WHOLE] for name, parts in rounds.seconds.items()}, rounds.conditions)


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.ponderv2_step", description=__doc__)
    parser.add_argument("what", choices=["time", "memory"])
    parser.add_argument("--renderers", nargs="+", choices=list(COMPETITORS), default=list(RENDERERS))
    parser.add_argument("--rays", nargs="+", type=int, default=[1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(arguments)
    if min(*options.rays, options.repeats) < 1:
        parser.error("--rays, --repeats: expected numbers of at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    if options.what == "memory" and len(set(options.rays)) < 2:
        parser.error("--rays: expected two numbers of rays")
    for name in options.renderers:
        if reason := COMPETITORS[name].refuses(CASE, options.device):
            parser.error(f"--renderers: {name}: {reason}")
    facts = provenance(options.device)
    print(f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}")
    if options.what == "time":
        for rays in options.rays:
            print_times(time_steps(options.renderers, rays, options.repeats, options.device), rays)
        return
    for name in options.renderers:
        print_peaks(name, memory.peaks(CASE.name, name, sizes(max(options.rays), *options.rays), options.device))


def print_times(steps: Steps, rays: int) -> None:
    """A line for each renderer, of the rounds that count."""
    numbers = steps.conditions.counted()
    print(f"{rays} rays  {steps.conditions.words()}")
    seconds = {name: [taken[number] for number in numbers] for name, taken in steps.seconds.items()}
    for name, taken in seconds.items():
        line = f"{rays} rays  {name:7} {spread(taken).median:7.3f} s ({min(taken):.3f} to {max(taken):.3f})"
        if OURS in seconds:
            line += f"  {spread(ratios(taken, seconds[OURS])).median:5.1f} x {OURS}"
        print(line, flush=True)


def print_peaks(name: str, peaks: dict[int, int]) -> None:
    """One renderer's line."""
    found = ", ".join(f"{peak >> 20} MiB at {rays}" for rays, peak in sorted(peaks.items()))
    print(f"{name:7} peak {found} rays: {memory.slope(peaks) / 1024:.1f} KiB a ray", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
