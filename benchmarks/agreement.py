"""Nobody is timed before giving the eager baseline's numbers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from benchmarks.contenders import Contender

# Largest allowed norm of a difference by the norm of the expected value. In float64 nothing but rounding is left.
FLOAT64 = 1e-8
# In float32 a sample on the border of two voxels takes the slope of either, which the gradient of a volume seen by few
# rays shows; the eager baseline is as far from its own float64 numbers. On a GPU products round to tf32 besides, which
# moves resampled points.
FLOAT32 = {"cpu": 5e-2, "cuda": 1e-1}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference by the norm of `expected`; the plain norm where that is 0."""
    difference = float((actual.double() - expected.double()).norm())
    return difference / (float(expected.double().norm()) or 1.0)


def check(
    contenders: Mapping[str, Contender], truth: str, limit: float, inexact: frozenset[str] = frozenset()
) -> dict[str, float]:
    """Run every contender once and compare all that comes out with the truth's.

    Args:
        contenders: by name.
        truth: name of the one that is right.
        limit: largest allowed relative error of any output, loss or gradient.
        inexact: those that compute something else and are only run.

    Returns:
        Largest relative error of every contender that was compared.

    Raises:
        AssertionError: naming a contender and everything of it that is missing, not finite or too far off.
    """
    expected = results_of(contenders[truth])
    assert expected, f"{truth} gave nothing to compare with"
    worst = {}
    for name, contender in contenders.items():
        if name == truth:
            continue
        found = results_of(contender)
        if name in inexact:
            continue
        errors = _errors(found, expected)
        # Not "error > limit", which a NaN passes.
        wrong = [f"{key}: {error:.1e}" for key, error in errors.items() if not error <= limit]
        assert not wrong, f"{name} differs from {truth}: {', '.join(wrong)}"
        worst[name] = max(errors.values())
    return worst


def results_of(contender: Contender) -> dict[str, Tensor]:
    """Outputs, losses and gradients of all parts of a contender, run once."""
    contender.reset()
    for work in contender.parts.values():
        work()
    found = contender.results()
    contender.reset()
    return found


def _errors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    errors = {}
    for key, want in expected.items():
        got = found.get(key)
        if got is None and not want.any():
            # A gradient of zeros may as well be missing.
            continue
        errors[key] = float("inf") if got is None or got.shape != want.shape else relative_error(got, want)
    return errors
