"""The derivative by the sharpness, of which the rays' parts nearly cancel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ponder_kernels import render_rays
from ponder_kernels.render.fused import RAY_MULTIPLE
from ponder_kernels.render.opacity import MODELS, opacity
from tests.kernels.render_cases import Case, make_case
from tests.kernels.test_render_kernels import on

RAYS, SAMPLES = 64, 132
HARD = 2.0**20


def _by_sharpness(model: str, inputs: list[Tensor], weights_bar: Tensor) -> Tensor:
    sharpness = inputs[0].new_tensor(0.1 if model.startswith("volsdf") else 20.0)
    found = opacity(model, *inputs, sharpness, 1.0)
    found.weights()
    return found.backward(weights_bar, None).sharpness


@pytest.mark.parametrize("model", MODELS)
def test_rays_that_cancel_leave_the_others_their_digits(model: str) -> None:
    """They pull a million times as hard, in opposite directions."""
    g = torch.Generator().manual_seed(0)
    along = torch.rand(RAYS, SAMPLES, generator=g).sort(1).values
    sdf = 0.5 - along + 0.1 * torch.randn(RAYS, SAMPLES, generator=g)
    inputs = [sdf, -torch.rand(RAYS, SAMPLES, generator=g), torch.rand(RAYS, SAMPLES, generator=g) / SAMPLES]
    weights_bar = torch.rand(RAYS, SAMPLES, generator=g)
    alone = _by_sharpness(model, inputs, weights_bar)
    hard = weights_bar * HARD
    every = _by_sharpness(model, [value.repeat(3, 1) for value in inputs], torch.cat([hard, weights_bar, -hard]))
    torch.testing.assert_close(every, alone, rtol=1e-6, atol=0.0)


def _gradient(case: Case, weights_bar: Tensor, backend: str) -> Tensor:
    found = case.call(render_rays, per_sample=True, chunk_bytes=1, backend=backend)
    assert found.samples is not None
    (gradient,) = torch.autograd.grad((found.samples.weights * weights_bar).sum(), case.sharpness)
    return gradient


def _thrice(case: Case) -> Case:
    """Every ray of the one scene three times."""
    rays = tuple(value.repeat(1, 3, 1) for value in case.rays)
    depth, slope = (value.repeat(1, 3) for value in case.targets[:2])
    assert case.hit is not None
    return case._replace(
        rays=rays, hit=case.hit.repeat(1, 3), targets=case.targets._replace(ray_depth=depth, slope=slope)
    )


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_chunks_that_cancel_leave_the_others_their_digits(backend: str, device: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    case = on(make_case(dtype=torch.float32, batch=1, rays=RAY_MULTIPLE), device)
    weights_bar = torch.rand(case.rays[2][..., 1:].shape, generator=torch.Generator().manual_seed(0)).to(device)
    every = torch.cat([weights_bar * HARD, weights_bar, -weights_bar * HARD], 1)
    alone = _gradient(case, weights_bar, backend)
    torch.testing.assert_close(_gradient(_thrice(case), every, backend), alone, rtol=1e-5, atol=0.0)
