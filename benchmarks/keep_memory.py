"""Freed memory that stays with the process while it is timed."""

from __future__ import annotations

import ctypes
import sys

# M_TRIM_THRESHOLD, M_MMAP_MAX of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Have glibc's malloc give nothing back to the system, and take large blocks from its heap like small ones.

    By default every large tensor is mapped afresh, and the system clears its pages one by one. How long that takes
    depends on the state of the whole machine's memory: from a third to half of a step of eager code. Other allocators
    keep what they have, as torch's own does on a GPU. Returns whether it was done: only glibc has the call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_MAX, 0))
