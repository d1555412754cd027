"""The comparison helper and the guarded allocations fail when they must."""

import sys
import types

import pytest
import torch

from tests.tolerance import assert_close_to_reference, assert_within_rounding, bound

WANT = torch.linspace(-1, 1, 50, dtype=torch.float64)


def test_accepts_rounding():
    assert_close_to_reference(WANT.float(), WANT, 1)


def test_bound_grows_with_terms_and_shrinks_with_precision():
    assert bound(WANT, 100, torch.float32) == pytest.approx(10 * bound(WANT, 1, torch.float32))
    assert bound(WANT, 1, torch.float64) < 1e-6 * bound(WANT, 1, torch.float32)


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (None, "missing"),
        (WANT[:-1].float(), "shape"),
        (WANT.float() + 1e-5, "error"),
        (torch.zeros(50), "error"),
        (torch.where(WANT > 0.9, float("nan"), WANT).float(), "NaN or infinity"),
    ],
    ids=["missing", "shape", "offset", "zeros", "nan"],
)
def test_rejects(actual, message):
    with pytest.raises(AssertionError, match=message):
        assert_close_to_reference(actual, WANT, 1)


def test_rejects_a_nan_that_the_reference_has_elsewhere():
    want = WANT.clone()
    want[0] = float("nan")
    with pytest.raises(AssertionError, match="NaN or infinity"):
        assert_close_to_reference(WANT.float(), want, 1)


def test_rejects_a_float32_reference():
    with pytest.raises(AssertionError, match="must be float64"):
        assert_close_to_reference(WANT.float(), WANT.float(), 1)


def test_rounding_is_judged_element_by_element():
    """A small value beside large ones has to be right too, unless its own terms were large."""
    want = torch.tensor([1e6, 1e-3], dtype=torch.float64)
    wrong = torch.tensor([1e6, 1.1e-3])
    assert_close_to_reference(wrong, want, 1)
    with pytest.raises(AssertionError, match=r"expected 0\.001"):
        assert_within_rounding(wrong, want, want, n_terms=1, dtype=torch.float32)
    cancelled = torch.tensor([1e6, 1e3], dtype=torch.float64)
    assert_within_rounding(wrong, want, cancelled, n_terms=1, dtype=torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rounding_rejects_a_number_for_none_and_none_for_a_number(value):
    none, one = torch.tensor([value]), torch.ones(1)
    assert_within_rounding(none, none.double(), one.double(), n_terms=1, dtype=torch.float32)
    with pytest.raises(AssertionError, match="finite where the reference is"):
        assert_within_rounding(one, none.double(), one.double(), n_terms=1, dtype=torch.float32)
    with pytest.raises(AssertionError, match="expected 1"):
        assert_within_rounding(none, one.double(), one.double(), n_terms=1, dtype=torch.float32)


@pytest.fixture
def inside_package():
    """A function that allocates as if it were part of the package."""
    module = types.ModuleType("ponder_kernels._fake")
    exec("import torch\ndef make(n): return torch.empty(n)", module.__dict__)
    sys.modules.pop(module.__name__, None)
    return module.make


def test_empty_is_poisoned_inside_the_package_only(inside_package):
    assert inside_package(3).isnan().all()
    assert type(torch.empty(3)) is torch.Tensor


@pytest.mark.parametrize("offset", [-1, 3])
def test_a_store_outside_is_seen(inside_package, guarded_allocations, offset):
    out = inside_package(3)
    position = out.storage_offset() + offset
    out.as_strided((1,), (1,), position).fill_(0.0)
    with pytest.raises(AssertionError, match="outside its output"):
        guarded_allocations.check()
    guarded_allocations.buffers.clear()
