"""Voxels of a point cloud and the dense grid that the renderer samples: one grid, one convention.

Cell (i, j, k) of the grid covers [i, i+1] x [j, j+1] x [k, k+1] cells from the lower corner of the box, and the
renderer samples the volume with voxel centres half a cell inside the box (align_corners False): a point scattered into
a cell is read back at that cell's centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """An axis-aligned grid of cubic cells.

    Attributes:
        origin: [3] float32 lower corner of the box, metres.
        cell: edge of a cell, metres.
        shape: number of cells along (x, y, z).
    """

    origin: Tensor
    cell: float
    shape: tuple[int, int, int]

    @property
    def box(self) -> Tensor:
        """[2, 3] lower and upper corner, metres."""
        size = self.origin.new_tensor(self.shape) * self.cell
        return torch.stack([self.origin, self.origin + size])

    def cells_of(self, coord: Tensor) -> Tensor:
        """[N, 3] integer cells of points [N, 3]; points outside go to the nearest cell."""
        cells = ((coord - self.origin) / self.cell).floor().long()
        return torch.minimum(cells.clamp_min(0), cells.new_tensor(self.shape) - 1)


def fit_grid(coord: Tensor, cell: float, margin: float, max_cells: int, multiple: int = 1) -> Grid:
    """The grid around a point cloud: cells of the wanted size unless that needs more than `max_cells`.

    Args:
        coord: [N, 3] metres, N >= 1.
        cell: wanted edge, metres; grown, never shrunk, to respect `max_cells`.
        margin: empty space kept around the cloud, metres.
        max_cells: bound on the number of cells.
        multiple: each axis gets a multiple of this many cells.
    """
    low, high = coord.amin(0) - margin, coord.amax(0) + margin
    while True:
        counts = [max(1, math.ceil(float(size) / cell - 1e-6)) for size in high - low]
        x, y, z = (multiple * math.ceil(count / multiple) for count in counts)
        if x * y * z <= max_cells or cell > float((high - low).max()):
            break
        cell *= 1.02
    shape = (x, y, z)
    centre = (low + high) / 2
    origin = centre - centre.new_tensor(shape) * (cell / 2)
    return Grid(origin.float(), cell, shape)


def scatter_mean(
    features: Tensor, cells: Tensor, batch: Tensor, batch_size: int, shape: tuple[int, int, int]
) -> Tensor:
    """Average point features in grid cells; empty cells are 0.

    Args:
        features: [N, C].
        cells: [N, 3] integer (x, y, z) cells in range.
        batch: [N] scene numbers.
        batch_size: B.
        shape: cells along (x, y, z).

    Returns:
        [B, C, D, H, W] volume (D, H, W = Z, Y, X), stored channels last.
    """
    x, y, z = shape
    flat = ((batch * z + cells[:, 2]) * y + cells[:, 1]) * x + cells[:, 0]
    sums = features.new_zeros(batch_size * z * y * x, features.shape[1]).index_add(0, flat, features)
    counts = torch.bincount(flat, minlength=sums.shape[0]).clamp_min(1).to(features.dtype)
    means = sums / counts.unsqueeze(1)
    return means.view(batch_size, z, y, x, -1).permute(0, 4, 1, 2, 3)
