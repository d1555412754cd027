"""Memory of the size of a volume on a CPU, kept from one step to the next.

The gradient of a volume is hundreds of megabytes that every step makes and drops. The system clears such pages when
they are first touched, and on a virtual machine the host may have to find them first: half a second for 256 MB, as long
as the whole step takes otherwise. Clearing pages that are already there takes a twentieth of that.
"""

from __future__ import annotations

import mmap
import threading
import weakref

import numpy as np
import torch
from torch import Tensor

# How much is kept unless the user says otherwise.
KEPT_BYTES = 1 << 29
# Smaller tensors are left to malloc.
LEAST_BYTES = 1 << 22


class Spare:
    """Blocks of memory without an owner, newest last, `limit` bytes in all at most."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit, self.blocks = limit, list[mmap.mmap]()
        # One that a thread may take twice: a block can come back while garbage is collected in here.
        self._lock = threading.RLock()

    def take(self, size: int) -> mmap.mmap | None:
        """One of exactly `size` bytes, of unspecified content."""
        with self._lock:
            for block in self.blocks:
                if len(block) == size:
                    self.blocks.remove(block)
                    return block
        return None

    def give(self, block: mmap.mmap) -> None:
        """Keep it, instead of older ones if need be, unless it is too large."""
        if len(block) > self.limit:
            return
        if hasattr(mmap, "MADV_FREE"):
            block.madvise(mmap.MADV_FREE)
        with self._lock:
            self.blocks.append(block)
            self.shrink(self.limit)

    def shrink(self, limit: int) -> None:
        """Keep no more than so many bytes from now on."""
        with self._lock:
            self.limit = limit
            while sum(map(len, self.blocks)) > limit:
                self.blocks.pop(0)


_spare = Spare()


def keep_at_most(count: int) -> None:
    """Choose how much memory of volumes' gradients is kept for the next step; 512 MiB unless this is called.

    It counts as used by the process, although the system may take it back whenever it is short. 0 keeps none: right
    where something else needs the memory in between, such as the networks of a pre-training step.

    Args:
        count: bytes, at least 0.

    Raises:
        TypeError, ValueError: not such a number.
    """
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"count: expected an int, got {type(count).__name__}")
    if count < 0:
        raise ValueError(f"count: expected at least 0 bytes, got {count}")
    _spare.shrink(count)


def spare_zeros(like: Tensor, shape: tuple[int, int]) -> Tensor:
    """Zeros of the type of `like`, on a CPU in memory that was used before or else is cleared when it is touched."""
    kind = np.dtype(np.float64 if like.dtype == torch.float64 else np.float32)
    size = shape[0] * shape[1] * kind.itemsize
    if like.device.type != "cpu" or size < LEAST_BYTES:
        return like.new_zeros(shape)
    used = _spare.take(size)
    block = _map(size) if used is None else used
    array = np.frombuffer(block, kind).reshape(shape)
    # The tensor's storage holds the array.
    weakref.finalize(array, _spare.give, block).atexit = False
    out = torch.from_numpy(array)
    # What will be kept is touched at once, all of it: else the second step, which clears it, finds most of the pages.
    return out.zero_() if used is not None or size <= _spare.limit else out


def _map(size: int) -> mmap.mmap:
    # Python's default is memory that processes share, which has neither large pages nor MADV_FREE.
    private = hasattr(mmap, "MAP_PRIVATE")
    block = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if private else mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


__all__ = ["keep_at_most"]
