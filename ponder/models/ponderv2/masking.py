"""Block masking: the features of most blocks of voxels are replaced by one learned token, their places stay."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ponder.models.ponderv2.unit_cube import scene_numbers

TOKEN_STD = 0.02


class MaskConfig(NamedTuple):
    """ratio: part of the blocks that lose their features, 0 to 1; size: voxels per edge of a block; channel: features
    per voxel."""

    ratio: float
    size: int
    channel: int


def mask_token(channels: int) -> nn.Parameter:
    """A token [1, channels], drawn from a normal distribution of deviation 0.02 cut at one deviation, as PonderV2's."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, channels), 0.0, TOKEN_STD, -TOKEN_STD, TOKEN_STD))


def kept_voxels(grid_coord: Tensor, offset: Tensor, size: int, ratio: float) -> Tensor:
    """Draw which voxels keep their features: those of round(n (1 - ratio)) of the n blocks of each scene.

    The draws are those of PonderV2, which for one scene after the other takes n uniform numbers from torch's CPU
    generator and keeps the blocks of the smallest, counted in the order of their coordinates.

    Args:
        grid_coord: [N, 3] integer voxels of B scenes.
        offset: [B] cumulative numbers of voxels.
        size: voxels per edge of a block.
        ratio: part of the blocks that lose their features.

    Returns:
        [N] bool.

    Raises:
        ValueError: a ratio outside [0, 1] or a size below 1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"mask.ratio: expected 0 to 1, got {ratio}")
    if size < 1:
        raise ValueError(f"mask.size: expected at least 1, got {size}")
    scenes = scene_numbers(offset, len(grid_coord))
    rows = torch.cat([scenes.unsqueeze(1), torch.div(grid_coord, size, rounding_mode="trunc").long()], 1)
    blocks, block_of = _unique_rows(rows)
    counts = torch.bincount(blocks, minlength=len(offset)).cpu()
    # Scene numbers are added in float64, which holds both exactly, so that one sort orders every scene by itself.
    draws = torch.rand(len(blocks)).double()
    scene_of_block = torch.arange(len(counts)).repeat_interleave(counts)
    order = (draws + scene_of_block).argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[scene_of_block]
    kept = (counts.double() * (1 - ratio)).round().long()
    return (rank < kept[scene_of_block]).to(grid_coord.device)[block_of]


def _unique_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """First entries [M] of the distinct rows of [N, 4], in the order of rows, and which of them each row is, [N]."""
    if len(rows) == 0:
        return rows[:, 0], rows[:, 0]
    low = rows.amin(0)
    extent = rows.amax(0) - low + 1
    offset_rows = rows - low
    key = offset_rows[:, 0]
    for axis in range(1, rows.shape[1]):
        key = key * extent[axis] + offset_rows[:, axis]
    distinct, index = key.unique(return_inverse=True)
    return distinct // extent[1:].prod() + low[0], index


def masked_features(features: Tensor, kept: Tensor, token: Tensor) -> Tensor:
    """[N, C] features with the token [1, C] where `kept` [N] is not set; the features are left as they are.

    Raises:
        ValueError: features of another width than the token.
    """
    if features.shape[1] != token.shape[1]:
        raise ValueError(f"mask.channel: expected {features.shape[1]}, the width of feat, got {token.shape[1]}")
    return torch.where(kept.unsqueeze(1), features, token.to(features.dtype))
