"""Point features averaged in a dense grid over the unit cube.

PonderV2 puts points into cells by rules of its own (`voxel_cells`), which are not the voxels that the renderer reads at
those points; `nearest_cells` are. Scenes below about 0.6 m have fewer voxels than the grid has cells on its shortest
axis: PonderV2 averages them on a grid of voxels and resizes that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ponder.models.ponderv2.unit_cube import UnitCube

Shape = tuple[int, int, int]


def points_to_volume(
    features: Tensor,
    cube: UnitCube,
    grid_shape: Shape,
    grid_size: float,
    read_at: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean feature of the points in every cell, 0 where there is none.

    Sums are taken in float32 whatever the dtype of the features, in which the means come back.

    Args:
        features: [N, C] floating.
        cube: the N points of B scenes.
        grid_shape: cells along (x, y, z).
        grid_size: edge of a voxel, metres.
        read_at: maps points [N, 3] of the cube to where the renderer reads them, [0, 1] from the first voxel's centre
            to the last one's; points go to the nearest voxel then. None: PonderV2's cells.

    Returns:
        [B, C, D, H, W] volume (D, H, W = Z, Y, X), stored channels last.

    Raises:
        ValueError: features of another number of points.
    """
    if features.dim() != 2 or len(features) != len(cube.coord):
        raise ValueError(f"features: expected shape [N={len(cube.coord)}, C], got {list(features.shape)}")
    scenes = len(cube.pc_scale)
    if read_at is not None:
        return scatter_mean(features, nearest_cells(read_at(cube.unit), grid_shape), cube.batch, scenes, grid_shape)
    sizes = (cube.resolution + 1).tolist()
    if min(sizes) >= min(grid_shape):
        return scatter_mean(features, voxel_cells(cube, grid_shape, grid_size), cube.batch, scenes, grid_shape)
    return _scene_by_scene(features, cube, grid_shape, grid_size, sizes)


def voxel_cells(cube: UnitCube, grid_shape: Shape, grid_size: float) -> Tensor:
    """[N, 3] int64 (x, y, z) cells as PonderV2 finds them: which voxel, and in which cell its lower corner lies.

    Where cells are smaller than voxels, on an axis along which the scene has fewer voxels than the grid cells, some
    cells can never be reached.
    """
    # `number // tensor` and `number / tensor` round like this; a product with 1 / grid_size would not.
    voxels = (cube.coord // grid_size).int()
    cells_per_axis = torch.tensor(grid_shape, dtype=torch.float32, device=voxels.device)
    voxels_per_cell = (cube.resolution + 1).float()[:, None] * cells_per_axis.reciprocal()
    return (voxels // voxels_per_cell[cube.batch]).long()


def nearest_cells(places: Tensor, grid_shape: Shape) -> Tensor:
    """[N, 3] int64 (x, y, z) voxels whose centres are nearest to places [N, 3] in [0, 1]."""
    last = torch.tensor(grid_shape, device=places.device) - 1
    return (places.clamp(0, 1) * last).round().long()


def scatter_mean(features: Tensor, cells: Tensor, batch: Tensor, scenes: int, grid_shape: Shape) -> Tensor:
    """[B, C, D, H, W] means, stored channels last, of features [N, C] in cells [N, 3] (x, y, z) of B scenes."""
    x, y, z = grid_shape
    flat = ((batch * z + cells[:, 2]) * y + cells[:, 1]) * x + cells[:, 0]
    means: Tensor = _ScatterMean.apply(features, flat, scenes * z * y * x)
    return means.view(scenes, z, y, x, features.shape[1]).permute(0, 4, 1, 2, 3)


class _ScatterMean(torch.autograd.Function):
    """Rows [cells, C] with the means of features [N, C] by cell [N]. The only dense tensor is the result."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, cell: Tensor, cells: int) -> Tensor:
        points = torch.arange(len(cell), device=cell.device)
        # Whichever point of a cell is written last stands for all of them.
        leader = cell.new_empty(cells)
        leader[cell] = points
        row = leader[cell]
        ones = torch.ones(len(cell), dtype=torch.float32, device=cell.device)
        count = torch.zeros_like(ones).index_add_(0, row, ones)[row, None]
        sums = torch.zeros_like(features, dtype=torch.float32).index_add_(0, row, features.float())
        ctx.save_for_backward(cell, count)
        ctx.dtype = features.dtype
        means = (sums[row] / count).to(features.dtype)
        return features.new_zeros(cells, features.shape[1]).index_copy_(0, cell, means)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cell, count = ctx.saved_tensors
        return (grad[cell].float() / count).to(ctx.dtype), None, None


def _scene_by_scene(
    features: Tensor, cube: UnitCube, grid_shape: Shape, grid_size: float, sizes: Sequence[int]
) -> Tensor:
    """The volume of a batch with a scene of fewer voxels than cells on the shortest axis."""
    cells = voxel_cells(cube, grid_shape, grid_size)
    voxels = (cube.coord // grid_size).long()
    volumes = []
    for scene, size in enumerate(sizes):
        own = (cube.batch == scene).nonzero()[:, 0]
        first = torch.zeros_like(own)
        if size >= min(grid_shape):
            volumes.append(scatter_mean(features[own], cells[own], first, 1, grid_shape))
        else:
            small = scatter_mean(features[own].float(), voxels[own], first, 1, (size, size, size))
            resized = F.interpolate(small, size=grid_shape[::-1], mode="trilinear")
            volumes.append(resized.to(features.dtype))
    return torch.cat(volumes).contiguous(memory_format=torch.channels_last_3d)
