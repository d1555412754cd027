"""The baseline's hand-written sampler against torch's."""

from __future__ import annotations

import torch

from benchmarks.baselines.ponderv2.trilinear import torch_trilinear
from benchmarks.baselines.second_order_trilinear import second_order_trilinear


def test_values_and_both_orders_equal_those_of_torch() -> None:
    volume = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(2, 50, 3, dtype=torch.float64) * 2.4 - 1.2).requires_grad_()
    mix, pull = torch.randn(2, 50, 3, dtype=torch.float64), torch.randn(2, 50, 3, dtype=torch.float64)
    found = []
    for sampler in (torch_trilinear, second_order_trilinear):
        value = sampler(volume, points)
        (slope,) = torch.autograd.grad((value.square() * mix).sum(), points, create_graph=True)
        (by_volume,) = torch.autograd.grad((slope * pull).sum() + (value * mix).sum(), volume)
        found.append((value, slope, by_volume))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
