"""Hundreds of pre-training steps with PonderV2's ScanNet settings on generated rooms: does a number become NaN?

``python -m benchmarks.long_run --precision bfloat16`` trains the indoor model with the shipped renderer, losses,
optimiser and schedule; networks, volume and images are small unless options say otherwise. It ends with 1 at the first
loss or gradient that is not finite.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import torch

from benchmarks.competitors import OURS
from benchmarks.pretrain_case import BACKBONES, Setting, build, make_batch
from benchmarks.provenance import provenance
from ponder.train.ponderv2.optim import build_optimizer
from ponder.train.ponderv2.schedule import build_schedule
from ponder.train.ponderv2.step import Learner, StepResult, seed_step, train_step

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
SMALL = Setting(
    points=2_000, views=3, rays=32, width=80, height=60, grid=(48, 48, 16), channels=(16, 16, 24, 24, 24, 24, 16, 16)
)
# PonderV2's for ScanNet alone, with its batch of 8 scenes.
RATE = 5e-4
OPTIMISER = {"type": "SGD", "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
SCHEDULE = {
    "type": "OneCycleLR", "pct_start": 0.05, "anneal_strategy": "cos", "div_factor": 10.0,
    "final_div_factor": 1e4,
}  # fmt: skip
ROOMS = 24


def train(setting: Setting, precision: str, steps: int, rate: float, rooms: int = ROOMS) -> Iterator[StepResult]:
    """Result of each step.

    Args:
        setting: of the model and its rooms.
        precision: one of PRECISIONS, of the networks and the volume.
        steps: of the whole schedule.
        rate: times PonderV2's learning rate.
        rooms: number of distinct ones.
    """
    device = torch.device(setting.device)
    batches = [make_batch(setting, seed) for seed in range(min(rooms, steps))]
    model = build(OURS, setting)
    peak = rate * RATE
    optimiser = build_optimizer(model, OPTIMISER | {"lr": peak})
    schedule = build_schedule(SCHEDULE | {"max_lr": peak}, optimiser, steps)
    learner = Learner(model, optimiser, device, amp=PRECISIONS[precision])
    for step in range(steps):
        schedule.apply(optimiser, step)
        seed_step(0, step, 0)
        yield train_step(learner, [batches[step % len(batches)]])


def main(arguments: Sequence[str]) -> int:
    """Train, and print means now and then."""
    options, setting = parse(arguments)
    facts = provenance(setting.device)
    print(f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}")
    print(", ".join(f"{key} {value}" for key, value in asdict(setting).items()), flush=True)
    seen: list[dict[str, float]] = []
    for number, result in enumerate(train(setting, options.precision, options.steps, options.rate), 1):
        # A perfect image has an infinite one.
        wrong = [name for name, value in result.values.items() if not math.isfinite(value) and name != "psnr"]
        if wrong or not result.applied:
            print(f"step {number}: {', '.join(wrong) or 'a gradient'} is not finite: {result.values}")
            return 1
        seen.append(result.values)
        if number % options.every == 0 or number == options.steps:
            recent = seen[-options.every :]
            means = {name: statistics.fmean(values[name] for values in recent) for name in seen[0]}
            print(f"{number:5} " + ", ".join(f"{name} {value:.3g}" for name, value in means.items()), flush=True)
    largest = max(values["grad_norm"] for values in seen)
    print(f"{options.precision}: {len(seen)} steps, all finite, largest gradient norm {largest:.3g}")
    return 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Setting]:
    """Options, and the setting that they describe."""
    parser = argparse.ArgumentParser(prog="benchmarks.long_run", description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=50, metavar="N", help="print means over so many steps")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--rate", type=float, default=1.0, help="times PonderV2's learning rate")
    parser.add_argument("--backbone", choices=BACKBONES, default=SMALL.backbone)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=SMALL.device)
    parser.add_argument("--full", action="store_true", help="networks, volume, rays and images of PonderV2's size")
    options = parser.parse_args(arguments)
    if min(options.steps, options.every) < 1:
        parser.error("expected numbers of at least 1")
    if not options.rate > 0:
        parser.error("--rate: expected more than 0")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    base = Setting() if options.full else SMALL
    return options, replace(base, backbone=options.backbone, device=options.device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
