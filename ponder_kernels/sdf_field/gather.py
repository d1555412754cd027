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
    """The 8 voxels around each of M points.

    Attributes:
        rows: [M, 8] int64 row numbers, always in range.
        weight: [M, 8] trilinear weights.
        slope: [M, 3, 8] derivatives of the weights with respect to the (x, y, z) position.
    """

    rows: Tensor
    weight: Tensor
    slope: Tensor


def volume_rows(volume: Tensor) -> Tensor:
    """[B, C, D, H, W] -> [B*D*H*W, C]; free for a channels-last volume."""
    return volume.permute(0, 2, 3, 4, 1).reshape(-1, volume.shape[1])


def _axis(index: Tensor, size: int, padding: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and upper voxel number along one axis, [M, 2]; their weights, [M, 2]; weight slopes, [M, 2]; inside."""
    # The clamp bounds the float before it becomes an integer; NaN goes to the outside as well.
    bounded = torch.nan_to_num(index, nan=-2.0).clamp(-2.0, float(size + 1))
    if padding == "border":
        moves = (bounded >= 0) & (bounded <= size - 1) & (size > 1)
        bounded = bounded.clamp(0, size - 1)
        low = bounded.floor().clamp_max(max(size - 2, 0))
    else:
        moves = torch.ones_like(bounded, dtype=torch.bool)
        low = bounded.floor()
    fraction = bounded - low
    numbers = torch.stack([low, low + 1], -1)
    weights = torch.stack([1 - fraction, fraction], -1)
    slopes = torch.stack([-moves.to(index.dtype), moves.to(index.dtype)], -1)
    inside = (numbers >= 0) & (numbers < size)
    return numbers.clamp(0, size - 1).long(), weights * inside, slopes * inside, inside


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
    x, wx, gx, _ = _axis(index[:, 0], width, geometry.padding)
    y, wy, gy, _ = _axis(index[:, 1], height, geometry.padding)
    z, wz, gz, _ = _axis(index[:, 2], depth, geometry.padding)
    base = scene[:, None] * depth
    rows = ((base + z)[:, :, None, None] * height + y[:, None, :, None]) * width + x[:, None, None, :]
    yz = wz[:, :, None, None] * wy[:, None, :, None]
    weight = yz * wx[:, None, None, :]
    slope = torch.stack(
        [
            yz * (gx * scale[:, :1])[:, None, None, :],
            wz[:, :, None, None] * (gy * scale[:, 1:2])[:, None, :, None] * wx[:, None, None, :],
            (gz * scale[:, 2:])[:, :, None, None] * wy[:, None, :, None] * wx[:, None, None, :],
        ],
        1,
    )
    count = points.shape[0]
    return Corners(rows.reshape(count, 8), weight.reshape(count, 8), slope.reshape(count, 3, 8))


def gather_rows(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """sum_k weight[m, k] rows[index[m, k]]: [V, C], [M, 8], [M, 8] -> [M, C]."""
    return torch.nn.functional.embedding_bag(index, rows, per_sample_weights=weight.contiguous(), mode="sum")


def gather_slopes(rows: Tensor, corners: Corners) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the gathered features along x, y, z: three [M, C]."""
    x, y, z = (gather_rows(rows, corners.rows, corners.slope[:, axis]) for axis in range(3))
    return x, y, z


class Scatter:
    """The transpose of `gather_rows` for one set of corners; the sort is shared by all scatters through it."""

    def __init__(self, index: Tensor) -> None:
        order = index.reshape(-1).argsort(stable=True)
        ordered = index.reshape(-1)[order]
        self.rows, counts = torch.unique_consecutive(ordered, return_counts=True)
        self.offsets = counts.cumsum(0) - counts
        self.order = order
        self.samples = order // index.shape[1]

    def add(self, out: Tensor, terms: list[tuple[Tensor, Tensor]]) -> None:
        """out[index[m, k]] += sum over terms of weight[m, k] * values[m].

        Args:
            out: [V, C], changed in place.
            terms: pairs (weight [M, 8], values [M, C]).
        """
        for weight, values in terms:
            sums = torch.nn.functional.embedding_bag(
                self.samples,
                values,
                self.offsets,
                per_sample_weights=weight.reshape(-1)[self.order],
                mode="sum",
            )
            out.index_add_(0, self.rows, sums)
