"""Trilinear gathers and scatters on a volume laid out as rows of channels.

A volume [B, C, D, H, W] becomes rows [B*D*H*W, C]; a point becomes 8 row numbers with 8 weights. A weighted
embedding bag then gathers without materialising the corners, and a bag over the sorted transpose scatters without
atomics: the sum of every row is taken in one fixed order, so the result does not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PADDINGS = ("zeros", "border")


class VolumeGeometry(NamedTuple):
    """How box coordinates map to volume indices.

    Attributes:
        shape: (B, D, H, W).
        box: [B, 2, 3] lower and upper (x, y, z) corner of the region that the volume spans.
        align_corners: True puts the outer voxel centres on the faces of the box, False half a voxel inside.
        padding: "border" continues the outermost voxels outwards, "zeros" fades to 0.
    """

    shape: tuple[int, int, int, int]
    box: Tensor
    align_corners: bool
    padding: str

    def index_scale(self) -> Tensor:
        """[B, 3] derivative of the (x, y, z) index with respect to the position."""
        size = self.box.new_tensor(self.shape[:0:-1])
        cells = size - 1 if self.align_corners else size
        return cells / (self.box[:, 1] - self.box[:, 0])


class Corners(NamedTuple):
    """The 8 voxels around each of M points. Points run along the last dim, so that products are vectorised.

    Attributes:
        rows: [8, M] int64 row numbers, always in range.
        bags: [M, 8] the same numbers laid out as the bags of a gather.
        weight: [8, M] trilinear weights.
        slope: [3, 8, M] derivatives of the weights with respect to the (x, y, z) position.
    """

    rows: Tensor
    bags: Tensor
    weight: Tensor
    slope: Tensor


def volume_rows(volume: Tensor) -> Tensor:
    """[B, C, D, H, W] -> [B*D*H*W, C]; free for a channels-last volume."""
    return volume.permute(0, 2, 3, 4, 1).reshape(-1, volume.shape[1])


class _Axis(NamedTuple):
    """Along one axis, for the lower and the upper neighbour, [2, M] each: voxel number, weight, slope of the weight."""

    number: Tensor
    weight: Tensor
    slope: Tensor


def _axis(index: Tensor, scale: Tensor, size: int, padding: str) -> _Axis:
    """Neighbours of fractional voxel indices [M]; `scale` [M] is the derivative of the index."""
    # The clamp bounds the float before it becomes an integer; NaN goes to the outside as well.
    bounded = torch.nan_to_num(index, nan=-2.0).clamp(-2.0, float(size + 1))
    slope = scale
    if padding == "border":
        moves = (bounded >= 0) & (bounded <= size - 1) & (size > 1)
        slope = scale * moves
        bounded = bounded.clamp(0, size - 1)
        low = bounded.floor().clamp_max(max(size - 2, 0))
    else:
        low = bounded.floor()
    fraction = bounded - low
    numbers = torch.stack([low, low + 1])
    inside = (numbers >= 0) & (numbers < size)
    weights = torch.stack([1 - fraction, fraction]) * inside
    slopes = torch.stack([-slope, slope]) * inside
    return _Axis(numbers.clamp(0, size - 1).long(), weights, slopes)


def find_corners(points: Tensor, scene: Tensor, geometry: VolumeGeometry) -> Corners:
    """Corners of points in the boxes of their scenes.

    Args:
        points: [M, 3] (x, y, z) in box coordinates.
        scene: [M] int64 scene number of each point.
        geometry: the volume's geometry.
    """
    _, depth, height, width = geometry.shape
    scale = geometry.index_scale()[scene]
    index = (points - geometry.box[scene, 0]) * scale
    if not geometry.align_corners:
        index = index - 0.5
    sizes = (width, height, depth)
    x, y, z = (_axis(index[:, k], scale[:, k].contiguous(), sizes[k], geometry.padding) for k in range(3))
    planes = ((scene * depth + z.number) * height)[:, None]
    rows = ((planes + y.number) * width)[:, :, None] + x.number
    yz = z.weight[:, None] * y.weight
    slope_y, slope_z = z.weight[:, None] * y.slope, z.slope[:, None] * y.weight
    slope = torch.stack([yz[:, :, None] * x.slope, slope_y[:, :, None] * x.weight, slope_z[:, :, None] * x.weight])
    count = points.shape[0]
    weight = yz[:, :, None] * x.weight
    rows = rows.reshape(8, count)
    return Corners(rows, rows.T.contiguous(), weight.reshape(8, count), slope.reshape(3, 8, count))


def gather_rows(rows: Tensor, bags: Tensor, weight: Tensor) -> Tensor:
    """sum_k weight[k, m] rows[bags[m, k]]: [V, C], [M, 8], [8, M] -> [M, C]."""
    return torch.nn.functional.embedding_bag(bags, rows, per_sample_weights=weight.T.contiguous(), mode="sum")


class Scatter:
    """The transpose of `gather_rows` for one set of corners; the sort is shared by all scatters through it."""

    def __init__(self, index: Tensor) -> None:
        ordered, self.order = index.reshape(-1).sort(stable=True)
        self.rows, counts = torch.unique_consecutive(ordered, return_counts=True)
        self.offsets = counts.cumsum(0) - counts
        self.samples = self.order % index.shape[1]

    def sums(self, weight: Tensor, values: Tensor) -> Tensor:
        """Sums that belong to `self.rows`: weight [8, M], values [M, C] -> [number of distinct rows, C]."""
        ordered = weight.reshape(-1)[self.order]
        return torch.nn.functional.embedding_bag(
            self.samples, values, self.offsets, per_sample_weights=ordered, mode="sum"
        )
