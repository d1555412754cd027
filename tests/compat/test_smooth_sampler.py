"""smooth_sampler's names and numbers: against torch's grid_sample, and against a hand formula of the smoothstep."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder_kernels.compat.smooth_sampler import SmoothSampler
from tests.kernels.harness import rand
from tests.tolerance import assert_close_to_reference

MODES = [(p, a) for p in ("zeros", "border", "reflection") for a in (True, False)]
BY_MODE = pytest.mark.parametrize(
    ("padding", "align"), MODES, ids=[f"{p}-{'corners' if a else 'faces'}" for p, a in MODES]
)


def case(device: str, dtype: torch.dtype = torch.float64, reach: float = 1.4) -> tuple[Tensor, Tensor]:
    """A volume [2, 3, 2, 3, 5] and a grid [2, 2, 1, 5, 3], both with gradients."""
    volume = rand(2, 3, 2, 3, 5, seed=1).to(device, dtype)
    grid = rand(2, 2, 1, 5, 3, seed=2, low=-reach, high=reach).to(device, dtype)
    return volume.requires_grad_(), grid.requires_grad_()


def two_orders(sample, volume: Tensor, grid: Tensor) -> list[Tensor]:
    """The value, its gradients, and gradients of a function of those and the upstream gradient."""
    out = sample(volume, grid)
    upstream = rand(*out.shape, seed=3).to(out).requires_grad_()
    first = torch.autograd.grad(out, (volume, grid), upstream, create_graph=True)
    cotangents = [rand(*g.shape, seed=4 + k).to(g) for k, g in enumerate(first)]
    return [out, *first, *torch.autograd.grad(first, (volume, grid, upstream), cotangents)]


NAMES = ("value", "input", "grid", "second input", "second grid", "second upstream")


@BY_MODE
def test_value_and_two_derivatives_are_those_of_grid_sample(padding, align, device):
    volume, grid = case(device)
    ours = two_orders(lambda v, g: SmoothSampler.apply(v, g, padding, align, False), volume, grid)
    theirs = two_orders(
        lambda v, g: F.grid_sample(v, g, padding_mode=padding, align_corners=align),
        *(t.detach().cpu().requires_grad_() for t in (volume, grid)),
    )
    for name, got, want in zip(NAMES, ours, theirs, strict=True):
        assert_close_to_reference(got, want, 24, scale=5.0, name=name)


@BY_MODE
def test_single_precision(padding, align, device):
    """On a GPU this runs on the kernels."""
    volume, grid = case(device, torch.float32)
    ours = two_orders(lambda v, g: SmoothSampler.apply(v, g, padding, align, False), volume, grid)
    double = (t.detach().cpu().double().requires_grad_() for t in (volume, grid))
    theirs = two_orders(lambda v, g: F.grid_sample(v, g, padding_mode=padding, align_corners=align), *double)
    for name, got, want in zip(NAMES, ours, theirs, strict=True):
        assert got.dtype == torch.float32
        assert_close_to_reference(got, want, 24, scale=10.0, name=name)


def smoothstep_by_hand(volume: Tensor, grid: Tensor, align: bool) -> Tensor:
    """Plain trilinear sampling at the place that the smoothstep moves each point to."""
    size = torch.tensor(volume.shape[:1:-1], dtype=grid.dtype)
    index = (grid + 1) / 2 * (size - 1) if align else ((grid + 1) * size - 1) / 2
    t = index - index.detach().floor()
    moved = index.detach().floor() + 3 * t**2 - 2 * t**3
    place = 2 * moved / (size - 1) - 1 if align else (2 * moved + 1) / size - 1
    return F.grid_sample(volume, place, padding_mode="zeros", align_corners=align)


@pytest.mark.parametrize("align", [True, False], ids=["corners", "faces"])
def test_smoothstep(align, device):
    volume, grid = case(device)
    ours = two_orders(lambda v, g: SmoothSampler.apply(v, g, "zeros", align, True), volume, grid)
    cpu = (t.detach().cpu().requires_grad_() for t in (volume, grid))
    theirs = two_orders(lambda v, g: smoothstep_by_hand(v, g, align), *cpu)
    for name, got, want in zip(NAMES, ours, theirs, strict=True):
        assert_close_to_reference(got, want, 24, scale=30.0, name=name)


@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_smoothstep_where_coordinates_are_folded_back(padding, device):
    """Outside, the value is that of the place where the coordinate is clamped or mirrored to."""
    volume = case(device)[0].detach()
    x = torch.tensor([-1.9, -1.2, 1.3, 1.75], dtype=torch.float64, device=device)
    folded = x.clamp(-1, 1) if padding == "border" else torch.sign(x) * (2 - x.abs())
    grids = [torch.zeros(2, 1, 1, 4, 3, dtype=torch.float64, device=device) for _ in range(2)]
    for grid, values in zip(grids, (x, folded), strict=True):
        grid[..., 0] = values
    outside, inside = (SmoothSampler.apply(volume, grid, padding, True, True) for grid in grids)
    torch.testing.assert_close(outside, inside)


@pytest.mark.parametrize(("padding", "align", "smooth"), [("zeros", True, True), ("reflection", False, True)])
def test_first_and_second_derivatives_by_differences(padding, align, smooth):
    volume = rand(1, 2, 2, 2, 3, seed=1).double().requires_grad_()
    grid = rand(1, 1, 2, 1, 3, seed=2).double().requires_grad_()
    arguments = (volume, grid, padding, align, smooth)
    assert torch.autograd.gradcheck(SmoothSampler.apply, arguments)
    assert torch.autograd.gradgradcheck(SmoothSampler.apply, arguments)


def test_a_loss_on_values_and_slopes_trains(device):
    """The use that grid_sample long had no derivative for: one backward through values and their gradients."""
    gradients = []
    for sample in (SmoothSampler.apply, lambda v, g: F.grid_sample(v, g, align_corners=True)):
        volume, grid = case(device)
        out = sample(volume, grid)
        to_volume, to_grid = torch.autograd.grad(out, (volume, grid), torch.ones_like(out), create_graph=True)
        (out.sum() + to_volume.square().sum() + to_grid.square().sum()).backward()
        gradients.append((volume.grad, grid.grad))
    torch.testing.assert_close(*gradients)


def test_the_signature_is_the_extensions():
    parameters = inspect.signature(SmoothSampler.apply).parameters
    assert {k: p.default for k, p in parameters.items()} == {
        "input": inspect.Parameter.empty,
        "grid": inspect.Parameter.empty,
        "padding_mode": "zeros",
        "align_corners": True,
        "apply_smoothstep": False,
    }
    assert all(p.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters.values())


def test_the_call_of_a_renderer(device):
    """Rays times samples in one batch entry, as PonderV2's field asks for features."""
    features, points = rand(4, 3, 2, 5, seed=1).to(device), rand(6, 7, 3, seed=2).to(device)
    got = SmoothSampler.apply(features.unsqueeze(0).to(points.dtype), points[None, None], "zeros", True, False)
    assert got.shape == (1, 4, 1, 6, 7) and got.is_contiguous()
    got = got.squeeze(0).squeeze(1).permute(1, 2, 0)
    want = F.grid_sample(features[None], points[None, None], align_corners=True)[0, :, 0].permute(1, 2, 0)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("kind", "grid_kind"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(kind, grid_kind, device):
    """The result has the input's dtype, and is computed in float32 or better."""
    volume, grid = (t.detach() for t in case(device))
    volume, grid = volume.to(kind), grid.to(grid_kind)
    got = SmoothSampler.apply(volume, grid)
    assert got.dtype == kind
    want = F.grid_sample(volume.double(), grid.double(), align_corners=True)
    assert_close_to_reference(got, want.cpu(), 8, scale=5.0)


@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 5, 0), (0, 3, 2, 3, 5, 4), (2, 0, 2, 3, 5, 4)])
def test_nothing_to_sample(shape, device):
    *volume_shape, n = shape
    volume = torch.ones(volume_shape, device=device, requires_grad=True)
    grid = torch.zeros(shape[0], 2, n, 1, 3, device=device, requires_grad=True)
    out = SmoothSampler.apply(volume, grid)
    assert out.shape == (*shape[:2], 2, n, 1)
    out.sum().backward()
    assert not volume.grad.any() and not grid.grad.any()


VOLUME, GRID = torch.zeros(2, 3, 4, 4, 4), torch.zeros(2, 1, 1, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((VOLUME, GRID, "wrap"), ValueError, "padding_mode: expected one of zeros, border, reflection, got 'wrap'"),
        ((VOLUME.int(), GRID), TypeError, "input: expected dtype .*, got int32"),
        ((VOLUME, GRID.long()), TypeError, "grid: expected dtype .*, got int64"),
        ((VOLUME, None), TypeError, "grid: expected a torch.Tensor, got NoneType"),
        ((VOLUME[0], GRID), ValueError, r"input: expected shape \[B, C, D, H, W\], got \[3, 4, 4, 4\]"),
        ((VOLUME, GRID[0]), ValueError, r"grid: expected shape \[B, d, h, w, 3\].*got \[1, 1, 5, 3\]"),
        ((VOLUME, GRID[:1]), ValueError, r"grid: expected shape \[B, d, h, w, 3\] with B=2, got \[1, 1, 1, 5, 3\]"),
        ((VOLUME[..., :0], GRID), ValueError, "input: expected D, H and W of at least 1"),
        ((VOLUME, GRID.to("meta")), ValueError, "grid: expected device cpu as input, got meta"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SmoothSampler.apply(*arguments)
