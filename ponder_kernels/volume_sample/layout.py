"""Memory layouts and launch plans that the kernels of trilinear sampling share."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._launch import next_power_of_two

PADDINGS = ("zeros", "border", "reflection")
MAX_BLOCK_C = 64


class Options(NamedTuple):
    """The operator's options; see `volume_sample`."""

    padding: str
    align_corners: bool
    smoothstep: bool

    def flags(self) -> dict[str, int | bool]:
        """The same as constants of a kernel."""
        return {"PADDING": PADDINGS.index(self.padding), "ALIGN": self.align_corners, "SMOOTH": self.smoothstep}


class Layout(NamedTuple):
    """How a kernel addresses a volume [B, C, D, H, W].

    Attributes:
        last: whether the channel is the last axis in memory.
        unit: power of two up to 16 that divides every stride but the channel's; 1 unless `last`.
        strides: in steps of `unit` elements.
    """

    last: bool
    unit: int
    strides: tuple[int, ...]


def layout_of(volume: Tensor) -> Layout:
    """The layout of a volume; `last` and `unit` do not depend on B, D, H or W of a dense one."""
    stride_b, stride_c, *others = volume.stride()
    # Where D = H = W = 1 both dense layouts have stride 1 everywhere: a channel-second one like its larger sisters.
    last = stride_c == 1 and others[2] != 1
    unit = math.gcd(16, stride_b, *others) if last else 1
    return Layout(last, unit, tuple(s // unit for s in (stride_b, stride_c, *others)))


UNUSED = Layout(True, 1, (0, 0, 0, 0, 0))


def gradient_buffer(volume: Tensor) -> Tensor:
    """Zeros [B, C, D, H, W] float32, dense, the channel last or second in memory as in `volume`."""
    order = torch.channels_last_3d if layout_of(volume).last else torch.contiguous_format
    return torch.empty(volume.shape, dtype=torch.float32, device=volume.device, memory_format=order).zero_()


def gradient_from(buffer: Tensor, volume: Tensor) -> Tensor:
    """The buffer as `gradient_like` has it; copied where the dtype or the order of the axes in memory differ."""
    # The strides that torch.empty_like would choose, without its memory.
    strides = torch.empty_strided(volume.shape, volume.stride(), device="meta").clone().stride()
    places = zip(volume.shape, strides, buffer.stride(), strict=True)
    if buffer.dtype == volume.dtype and all(size == 1 or wanted == has for size, wanted, has in places):
        return buffer.as_strided(volume.shape, strides)
    return gradient_like(volume, True).copy_(buffer)


def gradient_like(volume: Tensor, want: bool) -> Tensor:
    """An unfilled gradient with the dtype and, where that is dense, the strides of `volume`; empty if not wanted."""
    return torch.empty_like(volume) if want else torch.empty(0, dtype=volume.dtype, device=volume.device)


def block_sizes(channels: int, tile: int) -> dict[str, int]:
    """Points and channels of one tile of so many elements."""
    block_c = min(MAX_BLOCK_C, next_power_of_two(channels))
    return {"BLOCK_N": min(256, tile // block_c), "BLOCK_C": block_c}
