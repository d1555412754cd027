"""Trilinear sampling on generated inputs: first derivatives, and second ones, against float64 formulas.

The rule for numbers: where the float64 formula is finite the kernel's result is finite too and near it, by the rounding
of numbers as large as the inputs allow; where it is NaN or infinite, or where terms may overflow the result's dtype,
the kernel may give anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ponder_kernels.volume_sample import op as op_module
from ponder_kernels.volume_sample import volume_sample
from ponder_kernels.volume_sample.layout import Options
from ponder_kernels.volume_sample.reference import double_backward_reference, volume_sample_reference
from tests.kernels.harness import rand
from tests.kernels.strategies import PROPERTY, half_dtypes, numbers, seeds
from tests.kernels.volume_sample_cases import LAYOUTS, MODES, relaid
from tests.tolerance import bound

REACH = 3.0
layouts = st.sampled_from(["contiguous", *LAYOUTS])


class Case(NamedTuple):
    """A generated call; `deterministic` only for few points, whose scatter is a program per corner."""

    volume: Tensor
    points: Tensor
    options: Options
    deterministic: bool
    seed: int


@st.composite
def cases(draw: st.DrawFn, most_points: int = 257) -> Case:
    """Sizes 0 and 1, odd, a block of channels or points and one more; special numbers; planes; layouts; dtypes."""
    batch, seed = draw(st.sampled_from([1, 1, 1, 1, 2, 0])), draw(seeds)
    channels = draw(st.sampled_from([0, 1, 1, 2, 2, 3, 4, 5, 65]))
    sizes = draw(st.tuples(*[st.integers(1, 5)] * 3))
    # A block is 256 points of 1 or 2 channels, 8 of 64 or more (4 in the second order of scattered channels).
    block_and_one = [] if 2 < channels < 65 else [9] if channels == 65 else [256, 257]
    n_points = min(draw(st.one_of(st.integers(0, 7), st.sampled_from([7, *block_and_one]))), most_points)
    volume = numbers((batch, channels, *sizes), seed, -1.0, 1.0, draw(st.sampled_from([0, 0, 1, 3])))
    volume = relaid(volume.to(draw(half_dtypes)), draw(layouts))
    points = numbers((batch, n_points, 3), seed + 1, -REACH, REACH, draw(st.sampled_from([0, 2, 5])))
    if draw(st.booleans()):
        points = _on_planes(points, sizes)
    if draw(st.booleans()):
        points = points.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    deterministic = draw(st.booleans()) and n_points <= 2
    return Case(volume, points, draw(st.sampled_from(MODES)), deterministic, seed)


def _on_planes(points: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Every other point moved to quarters, which are grid planes, faces or mirrors of axes of 1, 2, 3 and 5 voxels.

    Of 4 voxels the planes are no binary fractions: float32 and float64 would take different cells.
    """
    moved = (points * 4).round() / 4
    exact = torch.tensor([size != 4 for size in reversed(sizes)])
    every_other = torch.arange(points.shape[1])[:, None] % 2 == 0
    return torch.where(every_other & exact & points.isfinite(), moved, points)


@contextlib.contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def largest(*tensors: Tensor | None) -> float:
    """Product of the largest finite magnitudes."""
    product = 1.0
    for t in tensors:
        finite = None if t is None else t.detach().double()[t.isfinite()].abs()
        product *= float(finite.max()) if finite is not None and finite.numel() else 1.0
    return product


def assert_near(got: Tensor, want: Tensor, size: float, n_terms: int, case: Case, name: str) -> None:
    """The rule above; `size` is the largest term that may occur."""
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    if size * n_terms > torch.finfo(got.dtype).max:
        return
    finite = want.isfinite()
    values, truths = got.detach().cpu().double()[finite], want[finite]
    assert values.isfinite().all(), f"{name}: not finite where the formula is"
    condition = REACH * max(case.volume.shape[2:]) * (6.0 if case.options.smoothstep else 1.0)
    allowed = bound(torch.tensor([size], dtype=torch.float64), n_terms, got.dtype, condition)
    assert ((values - truths).abs() <= allowed).all(), (
        f"{name}: error {(values - truths).abs().max():.3e} > {allowed:.3e}"
    )


def in_double(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().cpu().double() for t in tensors]


@PROPERTY
@given(case=cases(), differentiated=st.booleans())
def test_values_and_first_derivatives(case, differentiated, device):
    """Derivatives of every other case, for the sake of time."""
    volume, points = (t.detach().to(device).requires_grad_() for t in (case.volume, case.points))
    with determinism(case.deterministic):
        out = volume_sample(volume, points, **case.options._asdict(), backend="triton")
        upstream = rand(*out.shape, seed=case.seed).to(device)
        got = torch.autograd.grad(out, (volume, points), upstream) if differentiated else ()
    right_volume, right_points = (t.requires_grad_() for t in in_double(volume, points))
    right = volume_sample_reference(right_volume, right_points, *case.options)
    assert out.dtype == points.dtype
    assert_near(out, right, largest(volume), 8, case, "value")
    if not differentiated:
        return
    want = torch.autograd.grad(right, (right_volume, right_points), upstream.cpu().double())
    assert got[0].dtype == volume.dtype and got[1].dtype == points.dtype
    size, n_points = max(volume.shape[2:]), points.shape[1]
    assert_near(got[0], want[0], 1.0, 1 + 8 * n_points, case, "gradient of volume")
    assert_near(got[1], want[1], size * largest(volume), 8 * volume.shape[1], case, "gradient of points")


@settings(PROPERTY, max_examples=250)
@given(
    case=cases(most_points=9),
    given_cotangents=st.sampled_from([(True, True), (True, False), (False, True)]),
    wanted=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    cotangent_layout=layouts,
    special=st.sampled_from([0, 0, 2]),
)
def test_second_derivatives(case, given_cotangents, wanted, cotangent_layout, special, device):
    """The registered operator on its own: any cotangents, any gradients wanted."""
    volume, points = case.volume.to(device), case.points.to(device)
    upstream = rand(*points.shape[:2], volume.shape[1], seed=case.seed + 2).to(device)
    gg_volume = relaid(rand(*volume.shape, seed=case.seed + 3).to(volume.dtype), cotangent_layout).to(device)
    gg_points = numbers(tuple(points.shape), case.seed + 4, -1.0, 1.0, special).to(device)
    cotangents = [t if have else None for t, have in zip((gg_volume, gg_points), given_cotangents, strict=True)]
    inputs = (*cotangents, upstream, volume, points)
    with determinism(case.deterministic):
        got = op_module._volume_sample_double_backward(*inputs, *case.options, list(wanted))
    want = double_backward_reference(*in_double(*inputs), *case.options)
    size = float(max(volume.shape[2:]))
    along = size * largest(cotangents[1])
    sizes = (
        1.0 + along * largest(volume),
        along,
        size + 6 * size * along * largest(volume),
    )
    n_terms = (16, 1 + 8 * points.shape[1], 32 * volume.shape[1])
    for k, (name, like) in enumerate(zip(("upstream", "volume", "points"), inputs[2:], strict=True)):
        assert got[k].dtype == like.dtype
        if wanted[k]:
            assert_near(got[k], want[k], sizes[k], n_terms[k], case, f"second derivative by {name}")
        else:
            assert got[k].numel() == 0
