"""Memory of volumes' gradients that is used again."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
import torch

from ponder_kernels import memory, render_rays
from ponder_kernels.memory import Spare, keep_at_most, spare_zeros
from tests.kernels.render_cases import make_case

LIKE = torch.zeros(1)
# 4 MiB of float32.
SHAPE = (1 << 14, 64)


@pytest.fixture(autouse=True)
def spare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spare]:
    """Nothing of earlier tests, and nothing for later ones."""
    fresh = Spare()
    monkeypatch.setattr(memory, "_spare", fresh)
    yield fresh


def test_memory_is_used_again_and_zero() -> None:
    first = spare_zeros(LIKE, SHAPE)
    assert first.shape == SHAPE and first.dtype == torch.float32 and not first.any()
    address = first.fill_(3.0).data_ptr()
    del first
    second = spare_zeros(LIKE, SHAPE)
    assert second.data_ptr() == address and not second.any()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count page faults differently")
def test_what_will_be_kept_is_touched_at_once() -> None:
    """Not by the first step a part of it and by the second one the rest."""
    resource = pytest.importorskip("resource")

    def faults_of_filling() -> int:
        made = spare_zeros(LIKE, (1 << 18, 64))
        before: int = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        made.fill_(1.0)
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt) - before

    kept = faults_of_filling()
    keep_at_most(0)
    # 64 MiB, in pages of 2 MiB or less.
    assert kept < 16 < 32 <= faults_of_filling()


def test_memory_in_use_is_left_alone() -> None:
    """Also where only a view of it is left, in torch or numpy."""
    first = spare_zeros(LIKE, SHAPE).fill_(3.0)
    view, array = first[5:7, 1].permute(0), first.numpy()[0]
    del first
    second = spare_zeros(LIKE, SHAPE).fill_(4.0)
    del view
    third = spare_zeros(LIKE, SHAPE).fill_(5.0)
    assert (array == 3).all() and bool((second == 4).all()) and bool((third == 5).all())


def test_only_memory_of_the_same_size(spare: Spare) -> None:
    narrow = spare_zeros(LIKE, SHAPE)
    del narrow
    wide = spare_zeros(LIKE.double(), SHAPE)
    assert wide.dtype == torch.float64 and not wide.any() and len(spare.blocks) == 1
    del wide
    assert sorted(len(block) for block in spare.blocks) == [1 << 22, 1 << 23]


def test_a_bounded_amount_is_kept(spare: Spare) -> None:
    """Of the newest; one that is too large does not drive out the others."""
    keep_at_most(3 << 22)
    for rows in (1, 2, 1, 4):
        tensor = spare_zeros(LIKE, (SHAPE[0] * rows, SHAPE[1]))
        del tensor
    assert [len(block) >> 22 for block in spare.blocks] == [2, 1]
    some = [spare_zeros(LIKE, SHAPE) for _ in range(5)]
    some.clear()
    assert [len(block) >> 22 for block in spare.blocks] == [1, 1, 1]
    keep_at_most(0)
    tensor = spare_zeros(LIKE, SHAPE)
    del tensor
    assert not spare.blocks


@pytest.mark.parametrize(("count", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_amounts_that_are_none(count: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="count: expected"):
        keep_at_most(count)


def test_small_ones_are_left_to_malloc(spare: Spare) -> None:
    tensor = spare_zeros(LIKE, (SHAPE[0] - 1, SHAPE[1]))
    assert not tensor.any()
    del tensor
    gc.collect()
    assert not spare.blocks


@pytest.mark.parametrize("missing", ["MADV_FREE", "MADV_HUGEPAGE", "MAP_PRIVATE"])
def test_systems_without_advice(missing: str, spare: Spare, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is kept all the same; an error while it comes back would only be printed."""
    monkeypatch.delattr(memory.mmap, missing, raising=False)
    if missing == "MAP_PRIVATE":
        # Such systems have none of them.
        monkeypatch.delattr(memory.mmap, "MADV_FREE", raising=False)
        monkeypatch.delattr(memory.mmap, "MADV_HUGEPAGE", raising=False)
    for _ in range(2):
        tensor = spare_zeros(LIKE, SHAPE)
        assert not tensor.any()
        tensor.fill_(1.0)
        del tensor
        assert len(spare.blocks) == 1


def test_a_step_finds_the_gradient_that_the_last_one_dropped() -> None:
    """The volume's gradient of one step is the memory of the next one's, and is right."""
    found = []
    for _ in range(3):
        case = make_case(channels=8, volume=(16, 64, 64), dtype=torch.float32)
        (gradient,) = torch.autograd.grad(case.call(render_rays, backend="torch").depth.sum(), case.volumes)
        found.append((gradient.data_ptr(), gradient.nbytes, gradient.double().norm().item()))
        del gradient
    assert found[0] == found[1] == found[2]
    assert found[0][1] >= memory.LEAST_BYTES and found[0][2] > 0
