"""Trilinear sampling on a CPU by rows of channels: the numbers of the formula to third order, at less memory."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor

from ponder_kernels.volume_sample import rows, volume_sample
from ponder_kernels.volume_sample.layout import Options
from ponder_kernels.volume_sample.reference import volume_sample_reference
from tests.kernels.harness import rand
from tests.kernels.volume_sample_cases import LAYOUTS, MODES, case, mode_id, relaid

SHAPES = [(2, 3, 4, 5, 6, 40), (1, 5, 1, 2, 3, 60), (1, 1, 3, 4, 2, 30), (1, 1, 1, 1, 1, 9), (3, 4, 3, 3, 3, 1)]


def inputs_of(shape: tuple[int, ...], layout: str = "") -> dict[str, Tensor]:
    """A volume and points around it, in it and on its grid planes."""
    inputs = {name: value.double() for name, value in case(shape, "cpu", reach=2.3).items()}
    nan, inf = torch.nan, torch.inf
    special = torch.tensor([[nan, 0, 0], [inf, 0.1, 0], [0, -inf, 0], [-1, -1, -1], [1, 1, 1], [0, 0, 0]])
    inputs["points"][0, : len(special)] = special[: shape[-1]]
    return inputs | {"volume": relaid(inputs["volume"], layout)}


def three_orders(sample: object, volume: Tensor, points: Tensor, mode: Options) -> dict[str, Tensor]:
    """Values, and the derivatives by everything of mixtures of those before."""
    batch, channels, count = *volume.shape[:2], points.shape[1]
    draw = lambda *shape, seed: rand(*shape, seed=seed).double()  # noqa: E731
    upstream = draw(batch, count, channels, seed=3).requires_grad_()
    volume, points = volume.detach().requires_grad_(), points.detach().requires_grad_()
    leaves = {"upstream": upstream, "volume": volume, "points": points}
    out = sample(volume, points, *mode)
    found = {"values": out}
    first = torch.autograd.grad(out, (volume, points), upstream, create_graph=True)
    found |= {f"first by {name}": g for name, g in zip(("volume", "points"), first, strict=True)}
    along = {"volume's": draw(*volume.shape, seed=4), "points'": draw(*points.shape, seed=5)}
    mixed = sum((g * by.requires_grad_()).sum() for g, by in zip(first, along.values(), strict=True))
    second = torch.autograd.grad(mixed, tuple(leaves.values()), create_graph=True)
    found |= {f"second by {name}": g for name, g in zip(leaves, second, strict=True)}
    leaves |= along
    third = torch.autograd.grad(sum(g.square().sum() for g in second), tuple(leaves.values()))
    return found | {f"third by {name}": g for name, g in zip(leaves, third, strict=True)}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name in want:
        message = functools.partial("{}: {}".format, name)
        torch.testing.assert_close(got[name], want[name], rtol=1e-11, atol=1e-11, msg=message)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES, ids=mode_id)
def test_equals_the_formula(shape: tuple[int, ...], mode: Options) -> None:
    inputs = inputs_of(shape)
    want = three_orders(volume_sample_reference, **inputs, mode=mode)
    got = three_orders(rows.volume_sample_rows, **inputs, mode=mode)
    assert_equal(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    inputs = inputs_of(SHAPES[0], layout)
    want = three_orders(volume_sample_reference, **inputs, mode=MODES[0])
    got = three_orders(rows.volume_sample_rows, **inputs, mode=MODES[0])
    assert_equal(got, want)


@pytest.mark.parametrize("wanted", [w for w in itertools.product([True, False], repeat=2) if any(w)])
def test_only_the_wanted_gradients(wanted: tuple[bool, bool]) -> None:
    """To first and second order, where a cotangent may be missing too."""
    results = []
    for sample in (volume_sample_reference, rows.volume_sample_rows):
        leaves = [x.requires_grad_(want) for x, want in zip(inputs_of(SHAPES[0]).values(), wanted, strict=True)]
        out = sample(*leaves, *MODES[0])
        upstream = rand(*out.shape, seed=3).double().requires_grad_()
        sources = [x for x in leaves if x.requires_grad]
        first = torch.autograd.grad(out, sources, upstream, create_graph=True)
        loss = sum(g.square().sum() for g in first)
        results.append([*first, *torch.autograd.grad(loss, [upstream, *sources], allow_unused=True)])
    for want, got in zip(*results, strict=True):
        assert (want is None) == (got is None) or not (got if want is None else want).any()
        if want is not None and got is not None:
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_wide_row_numbers_and_deterministic_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(SHAPES[0])
    want = three_orders(rows.volume_sample_rows, **inputs, mode=MODES[0])
    monkeypatch.setattr(rows, "row_type", lambda count: torch.int64)
    torch.use_deterministic_algorithms(True)
    try:
        got = three_orders(rows.volume_sample_rows, **inputs, mode=MODES[0])
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal(got, want)


def test_derivatives_by_finite_differences() -> None:
    mode = Options("reflection", False, True)
    volume, points = (x.requires_grad_() for x in case((1, 2, 3, 2, 4, 3), "cpu").values())
    volume, points = volume.detach().double().requires_grad_(), points.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: rows.volume_sample_rows(*x, *mode), (volume, points))
    assert torch.autograd.gradgradcheck(lambda *x: rows.volume_sample_rows(*x, *mode), (volume, points))


def test_nothing_comes_from_outside() -> None:
    """NaN of a voxel that a point does not see, or of the gradient of a point that sees nothing, stays where it is."""
    volume = rand(1, 2, 3, 3, 3, seed=0).requires_grad_()
    with torch.no_grad():
        volume[0, :, 0, 0, 0] = torch.nan
    points = torch.tensor([[[5.0, 5.0, 5.0], [0.5, 0.5, 0.5]]], requires_grad=True)
    out = volume_sample(volume, points)
    assert torch.equal(out[0, 0], torch.zeros(2)) and bool(out.isfinite().all())
    out.backward(torch.tensor([[[torch.nan, 1.0], [1.0, 1.0]]]))
    assert volume.grad is not None and bool(volume.grad.isfinite().all())
    assert points.grad is not None and bool(points.grad.isfinite().all())


def test_a_cpu_keeps_only_the_inputs() -> None:
    inputs = case((2, 8, 4, 5, 6, 50), "cpu")
    volume, points = (x.requires_grad_() for x in inputs.values())
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        volume_sample(volume, points)
    assert {x.data_ptr() for x in kept} == {volume.data_ptr(), points.data_ptr()}


def test_a_derivative_that_is_not_asked_for_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though both inputs require one: an SDF's gradient by the points, then a loss on it by the volume."""
    made: list[str] = []

    def noted(name: str) -> None:
        method = getattr(rows._Bags, name)
        monkeypatch.setattr(rows._Bags, name, lambda *x: made.append(name) or method(*x))

    for name in ("gather", "scatter", "slopes", "bends"):
        noted(name)
    volume, points = (x.requires_grad_() for x in case((1, 4, 3, 4, 5, 20), "cpu").values())
    values = volume_sample(volume, points)
    (slopes,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    assert made == ["gather", "slopes"]
    made.clear()
    torch.autograd.grad(slopes.square().sum() + values.square().sum(), volume)
    assert sorted(made) == ["scatter", "scatter"]


def test_the_result_may_be_changed_in_place() -> None:
    volume, points = (x.requires_grad_() for x in case((1, 4, 3, 4, 5, 20), "cpu").values())
    want = torch.autograd.grad((volume_sample(volume, points) * 2).square().sum(), (volume, points))
    got = torch.autograd.grad(volume_sample(volume, points).mul_(2).square_().sum(), (volume, points))
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


def test_no_points_and_no_channels() -> None:
    for shape in ((2, 3, 2, 2, 2, 0), (2, 0, 2, 2, 2, 4), (0, 3, 2, 2, 2, 4)):
        volume, points = (x.requires_grad_() for x in case(shape, "cpu").values())
        out = volume_sample(volume, points)
        assert out.shape == (shape[0], shape[-1], shape[1])
        found = torch.autograd.grad(out.sum(), (volume, points), create_graph=True)
        assert [g.shape for g in found] == [volume.shape, points.shape] and not any(g.any() for g in found)
        torch.autograd.grad(found[1].sum(), volume)
