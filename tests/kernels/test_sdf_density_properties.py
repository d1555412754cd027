"""Generated cases for the SDF-to-density operators: any size, layout and number, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ponder_kernels.sdf_density import alpha_from_density, laplace_density, neus_alpha
from ponder_kernels.sdf_density.reference import (
    alpha_from_density_reference,
    laplace_density_reference,
    neus_alpha_reference,
)
from tests.kernels.strategies import PROPERTY, layouts, numbers, relayout, seeds, sizes
from tests.tolerance import assert_no_worse_than_torch

shapes = st.one_of(st.tuples(sizes(32), sizes(32)), st.tuples(sizes(32)), st.just((1, 1025)))
specials = st.integers(0, 3)


def run(operator: Callable[..., Tensor], inputs: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients for an upstream gradient of ones that alternate in sign."""
    leaves = {k: v.to(dtype).detach().requires_grad_() for k, v in inputs.items()}
    out = operator(**leaves)
    upstream = torch.ones(out.numel(), dtype=out.dtype, device=out.device)
    upstream[::2] = -1
    return [out, *torch.autograd.grad(out, list(leaves.values()), upstream.view(out.shape))]


def check(operator: Callable[..., Any], reference: Callable[..., Any], inputs: dict[str, Tensor]) -> None:
    """The kernels in float32 against the formula in float64, judged by the same formula in float32."""
    got = run(operator, inputs, torch.float32)
    single = run(reference, inputs, torch.float32)
    double = run(reference, {k: v.cpu() for k, v in inputs.items()}, torch.float64)
    first = next(iter(inputs.values()))
    assert got[0].shape == first.shape and got[0].dtype == torch.float32
    defined = torch.isfinite(double[0])
    for name, ours, theirs, truth in zip(("value", *inputs), got, single, double, strict=True):
        if truth.shape == defined.shape:
            # A value that is NaN or infinite has no derivative to compare.
            truth = torch.where(defined, truth, float("nan"))
        elif not defined.all():
            continue
        size = magnitude(reference, inputs, name) if truth.dim() == 0 else 0.0
        assert_no_worse_than_torch(ours, theirs, truth, n_terms=max(first.numel(), 1), magnitude=size, name=name)


def magnitude(reference: Callable[..., Tensor], inputs: dict[str, Tensor], name: str) -> float:
    """Sum over the samples of |d value / d scalar|, by a difference: the terms of a gradient, which may cancel."""
    fixed = {k: v.double().cpu() for k, v in inputs.items()}
    scalar = fixed.pop(name)
    step = 1e-6 * scalar
    change = reference(**fixed, **{name: scalar + step}) - reference(**fixed, **{name: scalar - step})
    return float((change / (2 * step)).abs().sum())


@PROPERTY
@given(shapes, seeds, layouts, layouts, specials, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1.0, 20.0, 400.0]))
def test_neus_alpha(device, shape, seed, layout, other_layout, n_special, ratio, inv_s):
    inputs = {
        "sdf": relayout(numbers(shape, seed, -3 / inv_s, 3 / inv_s, n_special).to(device), layout),
        "cosine": relayout(numbers(shape, seed + 1, -1.5, 1.5, n_special).to(device), other_layout),
        "delta": numbers(shape, seed + 2, 0.0, 1 / inv_s, n_special).to(device),
        "inv_s": torch.tensor(inv_s, device=device),
    }
    check(
        lambda **x: neus_alpha(**x, cos_anneal_ratio=ratio, backend="triton"),
        lambda **x: neus_alpha_reference(**x, cos_anneal_ratio=ratio),
        inputs,
    )


@PROPERTY
@given(shapes, seeds, layouts, specials, st.sampled_from([1e-4, 0.01, 0.1, 1.0]))
def test_laplace_density(device, shape, seed, layout, n_special, beta):
    sdf = relayout(numbers(shape, seed, -5 * beta, 5 * beta, n_special).to(device), layout)
    inputs = {"sdf": sdf, "beta": torch.tensor(beta, device=device)}
    check(lambda **x: laplace_density(**x, backend="triton"), laplace_density_reference, inputs)


@PROPERTY
@given(shapes, seeds, layouts, layouts, specials)
def test_alpha_from_density(device, shape, seed, layout, other_layout, n_special):
    inputs = {
        "density": relayout(numbers(shape, seed, 0.0, 40.0, n_special).to(device), layout),
        "delta": relayout(numbers(shape, seed + 1, 0.0, 0.1, n_special).to(device), other_layout),
    }
    check(lambda **x: alpha_from_density(**x, backend="triton"), alpha_from_density_reference, inputs)
