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
