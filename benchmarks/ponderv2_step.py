"""A training step of PonderV2's indoor renderer: the drop-in against an eager implementation, on the machine at hand.

``python -m benchmarks.ponderv2_step time`` interleaves the renderers in one process and prints the median seconds of
forward, losses and backward, and how many times faster the drop-in is. ``... memory`` runs one step per process and
prints peak resident memory per ray: the slope between two numbers of rays. Renderers: `ponder`, the drop-in; `eager`,
PonderV2's formulas with torch's grid_sample; `eager2`, the same with a hand-written second-order sampler. With
``--device cuda`` steps are timed on the GPU and memory is what torch allocated there.
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
        volume: [C, D, H, W] leaf, channels last, shared by the renderers of a process; everything goes to its device.
    """

    def __init__(self, name: str, rays: int, volume: torch.Tensor) -> None:
        torch.manual_seed(0)
        model, bundle = RENDERERS[name]()
        device = volume.device
        directions = F.normalize(torch.randn(rays, 3), dim=-1)
        table = F.normalize(torch.randn(CLASSES, 512), dim=-1)
        targets = {
            "depth": torch.rand(rays, 1) * 0.5,
            "rgb": torch.rand(rays, 3),
            "semantic": table[torch.randint(0, CLASSES, (rays,))],
        }
        self.model, self.volume = model.to(device), volume
        self.bundle = bundle((torch.rand(rays, 3) * 0.8 - 0.4).to(device), directions.to(device))
        self.targets = {name: value.to(device) for name, value in targets.items()}

    def __call__(self) -> float:
        """Seconds of one step."""
        self.volume.grad = None
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        _wait(self.volume.device)
        start = time.perf_counter()
        losses = self.model.get_loss(self.model(self.bundle, [self.volume]), self.targets)
        sum(value for key, value in losses.items() if "loss" in key).backward()
        _wait(self.volume.device)
        return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_volume(device: str) -> torch.Tensor:
    """Independent random features, channels last."""
    volume = (torch.randn(VOLUME) * 0.1)[None].to(device)
    return volume.contiguous(memory_format=torch.channels_last_3d)[0].requires_grad_()


def time_steps(names: list[str], rays: int, repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every step, interleaved, after one warm-up of each."""
    volume = make_volume(device)
    steps = {name: Step(name, rays, volume) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            taken = step()
            if repeat:
                seconds[name].append(taken)
    return seconds


def peak_kilobytes(name: str, rays: int, device: str) -> float:
    """Peak memory of a process that does one step: resident, or allocated by torch on a GPU."""
    command = [sys.executable, "-m", "benchmarks.ponderv2_step", "once", "--renderers", name, "--rays", str(rays)]
    command += ["--device", device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["peak_kilobytes"])


def once(name: str, rays: int, device: str) -> None:
    """Do one step and print the peak of this process' memory."""
    Step(name, rays, make_volume(device))()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated() // 1024
    print(json.dumps({"peak_kilobytes": peak}))


def hardware(device: str) -> str:
    """What the figures belong to."""
    chip = platform.processor() or platform.machine()
    name = f"{chip}, {torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    return f"{name}, torch {torch.__version__}"


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.ponderv2_step", description=__doc__)
    parser.add_argument("what", choices=["time", "memory", "once"])
    parser.add_argument("--renderers", nargs="+", choices=list(RENDERERS), default=list(RENDERERS))
    parser.add_argument("--rays", nargs="+", type=int, default=[1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)
    if options.what == "once":
        once(options.renderers[0], options.rays[0], options.device)
        return
    print(hardware(options.device))
    if options.what == "time":
        for rays in options.rays:
            print_times(time_steps(options.renderers, rays, options.repeats, options.device), rays)
        return
    few, many = min(options.rays), max(options.rays)
    if few == many:
        parser.error("--rays: expected two numbers of rays")
    for name in options.renderers:
        low, high = (peak_kilobytes(name, rays, options.device) for rays in (few, many))
        peaks = f"peak {low / 1024:.0f} MiB at {few} rays, {high / 1024:.0f} MiB at {many}"
        print(f"{name:7} {peaks}: {(high - low) / (many - few):.1f} KiB a ray", flush=True)


def print_times(seconds: dict[str, list[float]], rays: int) -> None:
    """A line for each renderer."""
    ours = statistics.median(seconds.get("ponder", [float("nan")]))
    for name, taken in seconds.items():
        median, spread = statistics.median(taken), f"{min(taken):.3f} to {max(taken):.3f}"
        print(f"{rays} rays  {name:7} {median:7.3f} s ({spread})  {median / ours:5.1f} x ponder", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
