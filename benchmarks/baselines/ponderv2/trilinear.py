"""Reading a dense volume between its voxels, with torch's own operator."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

# (volume [B, C, D, H, W], points [B, N, 3] in [-1, 1]) -> [B, N, C]: corners aligned, zeros outside, and
# differentiable twice, because the renderer differentiates the SDF and the loss differentiates that again.
TrilinearSampler = Callable[[Tensor, Tensor], Tensor]


def torch_trilinear(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear values of a volume at points, by `torch.nn.functional.grid_sample`.

    Args:
        volume: [B, C, D, H, W].
        points: [B, N, 3] as (x, y, z), x along W; -1 and 1 are the centres of the outermost voxels.

    Returns:
        [B, N, C]; voxels outside the volume count as 0.
    """
    grid = points[:, None, None]
    sampled = F.grid_sample(volume, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return sampled.flatten(2).transpose(1, 2)
