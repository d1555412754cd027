"""Cutting a large cloud into blocks, each with the context that its features depend on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Sparse engines number the voxels of a block's bounding box with 32 bits.
_MAX_VOLUME = (1 << 31) - 1
# What the sparse U-Net adds to the box on every axis.
_BOX_MARGIN = 96


class BlockError(ValueError):
    """No cut keeps within the bound; the message is one sentence."""


class Block(NamedTuple):
    """One pass of the network.

    Attributes:
        window: [W] voxels that are fed to it, ascending.
        core: [K] voxels whose features are kept; every voxel of the cloud is in the core of exactly one block, and
            the window reaches at least the overlap beyond it.
        core_in_window: [K] where they stand in `window`.
        origin: [3] cell that becomes (0, 0, 0).
    """

    window: Tensor
    core: Tensor
    core_in_window: Tensor
    origin: Tensor


def plan_blocks(cells: Tensor, limit: int, overlap: int, edge: int | None, alignment: int) -> list[Block]:
    """Halve the cloud along its longest axis until every block with its context is small enough.

    Boundaries and origins are multiples of the coarsest voxel of the network, so that a voxel is pooled with the same
    neighbours in a block as in the whole cloud: features differ only where the context that the network can see
    reaches beyond the overlap.

    Args:
        cells: [V, 3] int64 from 0, distinct, V >= 1.
        limit: most voxels per pass.
        overlap: context on every side of a core, voxels.
        edge: longest core, voxels, at least `alignment`; None leaves that to the limit.
        alignment: edge of the network's coarsest voxel, voxels.

    Raises:
        ValueError: an edge below the alignment.
        BlockError: the context alone exceeds the limit.
    """
    if edge is not None and edge < alignment:
        raise ValueError(f"edge: expected at least the network's coarsest voxel, {alignment}, got {edge}")
    blocks: list[Block] = []
    everything = torch.arange(len(cells), device=cells.device)
    pending = [(everything, everything)]
    while pending:
        core, candidates = pending.pop()
        low, high = cells[core].amin(0), cells[core].amax(0)
        there = cells[candidates]
        window = candidates[((there >= low - overlap) & (there <= high + overlap)).all(1)]
        origin = cells[window].amin(0) // alignment * alignment
        x, y, z = (cells[window].amax(0) - origin + 1 + _BOX_MARGIN).tolist()
        length = high - low + 1
        small = edge is None or int(length.max()) <= edge
        if small and len(window) <= limit and x * y * z <= _MAX_VOLUME:
            blocks.append(Block(window, core, torch.searchsorted(window, core), origin))
            continue
        # Halve on the boundary of a coarsest voxel.
        axis = int(length.argmax())
        middle = (int(low[axis] + high[axis]) // 2 // alignment + 1) * alignment
        lower = cells[core, axis] < middle
        if bool(lower.all()):
            middle -= alignment
            lower = cells[core, axis] < middle
        if bool(lower.all()) or not bool(lower.any()):
            raise BlockError(
                f"the context of {overlap} voxels around a block of {int(length.max())} already holds {len(window)} "
                f"voxels, above the {limit} of a pass"
            )
        pending += [(core[~lower], window), (core[lower], window)]
    return blocks
