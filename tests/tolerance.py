"""The one place that says how close is close: error against a float64 reference, by rounding theory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Rounding errors of n accumulated terms grow like sqrt(n) eps; the factor covers the chain of operations that
# makes each term (positions, weights, exponentials).
SAFETY = 16.0


def bound(reference: Tensor, n_terms: int, dtype: torch.dtype, scale: float = 1.0) -> float:
    """Largest allowed absolute error: SAFETY scale eps(dtype) sqrt(n_terms) RMS(reference).

    Args:
        reference: float64 values; NaN and infinities are left out of the RMS.
        n_terms: how many terms each value sums.
        dtype: the dtype of the arithmetic under test.
        scale: condition number of the operation, e.g. inv_s for a gradient through a steep sigmoid.
    """
    finite = reference[torch.isfinite(reference)]
    rms = float(finite.square().mean().sqrt()) if finite.numel() else 0.0
    return SAFETY * scale * torch.finfo(dtype).eps * math.sqrt(max(n_terms, 1)) * rms


def assert_close_to_reference(
    actual: Tensor | None,
    reference: Tensor | None,
    n_terms: int,
    *,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
    name: str = "value",
) -> None:
    """Require `actual` to match a float64 `reference` in shape, finiteness and value.

    Args:
        actual: the tensor under test; its dtype sets eps unless `dtype` is given.
        reference: float64 truth of the same shape.
        n_terms, scale: see `bound`.
        dtype: dtype of the arithmetic, where the output's dtype is finer than its inputs'.
        name: for the message.
    """
    assert actual is not None, f"{name}: missing (None)"
    assert reference is not None, f"{name}: the reference is missing (None)"
    assert reference.dtype == torch.float64, f"{name}: the reference must be float64, got {reference.dtype}"
    assert actual.shape == reference.shape, f"{name}: shape {list(actual.shape)}, expected {list(reference.shape)}"
    got, want = actual.detach().cpu().double(), reference.detach().cpu()
    if got.numel() == 0:
        return
    assert torch.equal(torch.isfinite(got), torch.isfinite(want)), f"{name}: NaN or infinity in other places"
    error = torch.where(torch.isfinite(want), got - want, 0.0).abs()
    allowed = bound(want, n_terms, dtype or actual.dtype, scale)
    worst = int(error.argmax())
    assert error.max() <= allowed, (
        f"{name}: error {error.max():.3e} > {allowed:.3e} at flat index {worst}: "
        f"got {got.flatten()[worst]:.9g}, expected {want.flatten()[worst]:.9g}"
    )


def assert_no_worse_than_torch(
    actual: Tensor,
    single: Tensor,
    reference: Tensor,
    *,
    n_terms: int = 1,
    magnitude: float = 0.0,
    name: str = "value",
) -> None:
    """Require each element to be as near to a float64 reference as twice the same formula in float32, plus rounding.

    The rule for extreme inputs, where errors have no common scale. Elements that are not finite in either torch result
    (overflow, NaN) are left out.

    Args:
        actual: float32 values under test.
        single: the formula evaluated in float32.
        reference: the formula evaluated in float64.
        n_terms: how many terms each value sums.
        magnitude: sum of the terms' absolute values, where they may cancel.
        name: for the message.
    """
    assert actual.shape == reference.shape, f"{name}: shape {list(actual.shape)}, expected {list(reference.shape)}"
    got, other, want = (t.detach().cpu().double() for t in (actual, single, reference))
    comparable = torch.isfinite(want) & torch.isfinite(other)
    if not comparable.any():
        return
    got, other, want = got[comparable], other[comparable], want[comparable]
    rounding = SAFETY * torch.finfo(torch.float32).eps * math.sqrt(max(n_terms, 1))
    allowed = 2 * (other - want).abs() + rounding * (want.abs() + want.abs().median() + magnitude)
    # A float32 result below the smallest normal number may be flushed to zero.
    allowed = allowed + torch.finfo(torch.float32).tiny
    excess = (got - want).abs() - allowed
    excess = torch.where(torch.isnan(excess), float("inf"), excess)
    worst = int(excess.argmax())
    assert excess[worst] <= 0, f"{name}: got {got[worst]:.9g}, float32 {other[worst]:.9g}, float64 {want[worst]:.9g}"


def assert_within_rounding(
    actual: Tensor, reference: Tensor, magnitude: Tensor, *, n_terms: int, dtype: torch.dtype, name: str = "value"
) -> None:
    """Require each element to be within the rounding of its own terms: SAFETY eps(dtype) sqrt(n_terms) magnitude.

    The rule for sums that may cancel and have no common scale. Where the reference is NaN or infinite the value must
    not be a finite number; terms too large for float32 are left out.

    Args:
        actual: values under test.
        reference: float64 truth of the same shape.
        magnitude: float64, the same sums with every term made positive.
        n_terms: how many terms each value sums.
        dtype: of the arithmetic or, if coarser, of the stored values.
        name: for the message.
    """
    assert actual.shape == reference.shape, f"{name}: shape {list(actual.shape)}, expected {list(reference.shape)}"
    got, want, size = (t.detach().cpu().double() for t in (actual, reference, magnitude))
    invented = torch.isfinite(got) & ~torch.isfinite(want)
    assert not invented.any(), f"{name}: finite where the reference is {want[invented][0]}"
    comparable = torch.isfinite(want) & (size < torch.finfo(dtype).max / 2)
    got, want, size = got[comparable], want[comparable], size[comparable]
    if not got.numel():
        return
    # Numbers below the smallest normal one have fewer digits, or none.
    allowed = SAFETY * (torch.finfo(dtype).eps * math.sqrt(max(n_terms, 1)) * size + torch.finfo(dtype).tiny)
    excess = (got - want).abs() - allowed
    excess = torch.where(torch.isnan(excess), float("inf"), excess)
    worst = int(excess.argmax())
    assert excess[worst] <= 0, f"{name}: got {got[worst]:.9g}, expected {want[worst]:.9g} +- {allowed[worst]:.3g}"
