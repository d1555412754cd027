"""Buffers that a thread uses again."""

from __future__ import annotations

import threading

import pytest
import torch

from ponder_kernels._workspace import KEPT_BYTES, Workspace

LIKE = torch.zeros(1)
# The allocations that conftest guards are not wanted here: kept buffers outlive a test.
pytestmark = pytest.mark.unguarded


def test_small_buffers_serve_the_next_workspace():
    first = Workspace(LIKE)("test small", 6, 5)
    assert first.shape == (6, 5) and first.dtype == torch.float32
    assert Workspace(LIKE)("test small", 3, 4).data_ptr() == first.data_ptr()
    assert Workspace(LIKE)("test other", 6, 5).data_ptr() != first.data_ptr()


def test_a_buffer_grows():
    work = Workspace(LIKE)
    assert work("test growing", 4).numel() == 4 and work("test growing", 1000).shape == (1000,)


def test_large_buffers_go_with_their_workspace():
    count = KEPT_BYTES // 4 + 1
    one, two = Workspace(LIKE), Workspace(LIKE)
    assert one("test large", count).data_ptr() == one("test large", count).data_ptr()
    assert one("test large", count).data_ptr() != two("test large", count).data_ptr()


def test_types_and_threads_have_their_own():
    mine = Workspace(LIKE)("test owner", 8)
    assert Workspace(LIKE.double())("test owner", 8).dtype == torch.float64
    found = []
    thread = threading.Thread(target=lambda: found.append(Workspace(LIKE)("test owner", 8)))
    thread.start()
    thread.join()
    assert found[0].data_ptr() != mine.data_ptr()


def test_made_in_inference_mode_and_written_outside():
    with torch.inference_mode():
        Workspace(LIKE)("test inference", 4).fill_(1)
    buffer = Workspace(LIKE)("test inference", 4)
    assert not buffer.is_inference()
    torch.add(torch.ones(4), 1, out=buffer)
    assert (buffer == 2).all()
