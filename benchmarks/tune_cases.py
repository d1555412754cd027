"""Workloads whose kernels are tuned: the suite's indoor and camera steps, and trilinear sampling to second order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import RENDER_CASES
from benchmarks.competitors import COMPETITORS, OURS
from benchmarks.contenders import render_contender
from benchmarks.inputs import make_inputs, make_volume
from ponder_kernels import volume_sample

# What a run returns: enough to tell whether another tile changed the result.
Run = Callable[[], list[Tensor]]
POINTS = 1 << 18


def _step(name: str, device: str, tiny: bool) -> Run:
    """Forward, losses and backward; the same samples every time."""
    case = RENDER_CASES[name]
    step = render_contender(
        COMPETITORS[OURS].build(case), case, make_inputs(case, case.sizes["tiny" if tiny else "full"], device)
    )

    def run() -> list[Tensor]:
        step.reset()
        for work in step.parts.values():
            work()
        found = step.results()
        return [value for key, value in found.items() if key.startswith("loss") or key == "gradient volume 0"]

    return run


def _sampling(device: str, tiny: bool) -> Run:
    """Values, first and second derivatives at independent points."""
    volume = make_volume(RENDER_CASES["indoor"].sizes["tiny" if tiny else "full"].volume, device)[None]
    points = (torch.rand(1, 40 if tiny else POINTS, 3) * 2 - 1).to(device).requires_grad_()

    def run() -> list[Tensor]:
        values = volume_sample(volume, points)
        slopes = torch.autograd.grad(values.sum(), points, create_graph=True)[0]
        gradients = torch.autograd.grad(values.square().sum() + slopes.square().sum(), (volume, points))
        return [values.detach(), *gradients]

    return run


def make(name: str, device: str, tiny: bool) -> Run:
    """A workload: the name of a training case, or "sampling"."""
    torch.manual_seed(0)
    return _sampling(device, tiny) if name == "sampling" else _step(name, device, tiny)


def differs(got: list[Tensor], want: list[Tensor], limit: float = 5e-3) -> bool:
    """Whether a result is off by more than the rounding of tf32 products, in the Euclidean norm."""
    pairs = zip(got, want, strict=True)
    return not all(float((g - w).norm()) <= limit * float(w.norm()) + 1e-12 for g, w in pairs)
