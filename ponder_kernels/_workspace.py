"""Buffers that a thread uses again, chunk after chunk and call after call."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

# Larger buffers go with the call that wanted them; of smaller ones a thread keeps about ten.
KEPT_BYTES = 1 << 23


class _Kept(threading.local):
    """A thread's buffers on the CPU, by data type and name."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.dtype, str], Tensor] = {}


_kept = _Kept()


class Workspace:
    """Buffers of one thread: fresh pages cost more than the arithmetic on them.

    On a CPU small ones (KEPT_BYTES) outlive the workspace and serve the thread's next one, so that only one workspace
    of a thread may be in use at a time.
    """

    def __init__(self, like: Tensor) -> None:
        self._dtype, self._device = like.dtype, like.device
        self._own: dict[tuple[torch.dtype, str], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A tensor of unspecified content, the same memory for the same name."""
        size, key = math.prod(shape), (self._dtype, name)
        small = self._device.type == "cpu" and size * self._dtype.itemsize <= KEPT_BYTES
        buffers = _kept.buffers if small else self._own
        buffer = buffers.get(key)
        if buffer is None or buffer.numel() < size:
            # What is made in inference mode can be written in it only.
            with torch.inference_mode(False):
                buffer = buffers[key] = torch.empty(size, dtype=self._dtype, device=self._device)
        return buffer[:size].view(shape)
