"""Trilinear gathers and scatters on a volume laid out as rows of channels.

A volume [B, C, D, H, W] becomes rows [B*D*H*W, C]; a point becomes 8 row numbers with 8 weights. A weighted
embedding bag then gathers without materialising the corners, and a bag over the sorted transpose scatters without
atomics: the sum of every row is taken in one fixed order, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PADDINGS = ("zeros", "border")
# Row numbers of half volumes, twice as many, still fit 32 bits below this.
_INT32_ROWS = 1 << 30
# Sums of so many rows at a time are still in the cache when they are added to the volume's gradient.
BLOCK_ROWS = 4096


def row_type(count: int) -> torch.dtype:
    """Of numbers below `count`: int32 where it is enough, half the bytes of int64, which sort and gathers notice."""
    return torch.int32 if count < _INT32_ROWS else torch.int64


@dataclass(frozen=True, eq=False)
class VolumeGeometry:
    """How box coordinates map to volume indices; what is asked for is computed once and kept.

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

    @functools.cached_property
    def size(self) -> Tensor:
        """[3, 1] voxels along x, y, z."""
        return self.box.new_tensor(self.shape[:0:-1]).unsqueeze(1)

    @functools.cached_property
    def index_scale(self) -> Tensor:
        """[B, 3] derivative of the (x, y, z) index with respect to the position."""
        cells = self.size.T - 1 if self.align_corners else self.size.T
        return cells / (self.box[:, 1] - self.box[:, 0])

    @functools.cached_property
    def row_type(self) -> torch.dtype:
        """Of row numbers."""
        return row_type(math.prod(self.shape))


class Corners:
    """The 8 voxels around each of M points; what is asked for is computed once and kept.

    A point's corners lie next to each other, [M, 8], as a gather reads them.

    Args:
        number: [2, 3, M] numbers of the lower and the upper neighbour along x, y, z, always in range.
        weight: [2, 3, M] their weights.
        slope: [2, 3, M] derivatives of the weights with respect to the position.
        scene: [M] first row of the point's scene, or 0.
        shape: (D, H, W).
    """

    def __init__(
        self, number: Tensor, weight: Tensor, slope: Tensor, scene: Tensor | int, shape: tuple[int, int, int]
    ) -> None:
        self._number, self._weight, self._slope = number, weight, slope
        self._scene, self._shape = scene, shape

    @functools.cached_property
    def rows(self) -> Tensor:
        """[M, 8] row numbers."""
        _, height, width = self._shape
        x, y, z = self._number.unbind(1)
        lines = (z * (height * width) + self._scene)[:, None] + y * width
        return _bags(lines[:, :, None] + x)

    @functools.cached_property
    def _planes(self) -> Tensor:
        """[2, 2, M] products of the weights along z and y."""
        return self._weight[:, None, 2] * self._weight[:, 1]

    @functools.cached_property
    def weight(self) -> Tensor:
        """[M, 8] trilinear weights."""
        return _bags(self._planes[:, :, None] * self._weight[:, 0])

    def slope(self, axis: int) -> Tensor:
        """[M, 8] derivatives of the weights along x (0), y (1) or z (2)."""
        x, y, z = (self._slope[:, k] if k == axis else self._weight[:, k] for k in range(3))
        planes = self._planes if axis == 0 else z[:, None] * y
        return _bags(planes[:, :, None] * x)

    def along(self, direction: Tensor) -> Tensor:
        """[M, 8] derivatives of the weights along `direction` [M, 3]."""
        slope = self._slope * direction.T
        planes = self._weight[:, None, 2] * slope[:, 1]
        planes.addcmul_(slope[:, None, 2], self._weight[:, 1])
        found = self._planes[:, :, None] * slope[:, 0]
        return _bags(found.addcmul_(planes[:, :, None], self._weight[:, 0]))


def _bags(corners: Tensor) -> Tensor:
    """[2, 2, 2, M] -> [M, 8]."""
    # As an image of 8 channels: half the time of transposing a matrix.
    image = corners.reshape(1, 8, -1, 1).contiguous(memory_format=torch.channels_last)
    return image.permute(0, 2, 3, 1).view(-1, 8)


def volume_rows(volume: Tensor) -> Tensor:
    """[B, C, D, H, W] -> [B*D*H*W, C]; free for a channels-last volume."""
    return volume.permute(0, 2, 3, 4, 1).reshape(-1, volume.shape[1])


def scene_of_rows(batch: int, count: int, device: torch.device) -> Tensor:
    """[batch * count] int64 scene number of each of `count` rows a scene; of a single scene it takes no memory."""
    return torch.arange(batch, device=device)[:, None].expand(batch, count).reshape(-1)


def find_corners(points: Tensor, scene: Tensor | None, geometry: VolumeGeometry) -> Corners:
    """Corners of points in the boxes of their scenes.

    Args:
        points: [M, 3] (x, y, z) in box coordinates; fastest where all x lie side by side in memory, then all y.
        scene: [M] int64 scene number of each point; None for a single scene.
        geometry: the volume's geometry.
    """
    batch, depth, height, width = geometry.shape
    scale, low = geometry.index_scale, geometry.box[:, 0]
    if batch > 1:
        assert scene is not None
        scale, low = scale[scene], low[scene]
    index = ((points - low) * scale).T.contiguous()
    slope = scale.T.expand_as(index)
    if not geometry.align_corners:
        index -= 0.5
    size = geometry.size
    # Bounded before it becomes an integer; NaN goes to the outside as well.
    index = torch.minimum(index.nan_to_num_(nan=-2.0).clamp_(min=-2.0), size + 1)
    if geometry.padding == "border":
        slope = slope * ((index >= 0) & (index <= size - 1) & (size > 1))
        index = torch.minimum(index.clamp_(min=0), size - 1)
        lower = torch.minimum(index.floor(), (size - 2).clamp_min(0))
    else:
        lower = index.floor()
    fraction = index.sub_(lower)
    kind = geometry.row_type
    number = lower.to(kind)
    numbers = torch.stack([number, number + 1])
    bounds = size.to(kind)
    inside = (numbers >= 0) & (numbers < bounds)
    weights = torch.stack([1 - fraction, fraction]).mul_(inside)
    slopes = torch.stack([-slope, slope]).mul_(inside)
    numbers = torch.minimum(numbers.clamp_(min=0), bounds - 1)
    first = 0 if scene is None or batch == 1 else (scene * (depth * height * width)).to(kind)
    return Corners(numbers, weights, slopes, first, (depth, height, width))


def gather_rows(rows: Tensor, bags: Tensor, weight: Tensor) -> Tensor:
    """sum_k weight[m, k] rows[bags[m, k]]: [V, C], [M, 8], [M, 8] -> [M, C]."""
    return torch.nn.functional.embedding_bag(bags, rows, per_sample_weights=weight, mode="sum")


def dot_rows(rows: Tensor, bags: Tensor, values: Tensor) -> Tensor:
    """values[m] . rows[bags[m, k]]: [V, C], [M, 8], [M, C] -> [M, 8]."""
    # What the derivative of a weighted bag by its weights is.
    bag = torch.arange(len(bags), dtype=bags.dtype, device=bags.device)
    found = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        values.contiguous(), rows, bags.reshape(-1), bag * bags.shape[1], bag.repeat_interleave(bags.shape[1]), 0
    )
    return found.view(bags.shape)


class Scatter:
    """The transpose of `gather_rows` for bags [M, 8]; the sort is shared by all scatters through it."""

    def __init__(self, bags: Tensor) -> None:
        ordered, self._order = bags.reshape(-1).sort(stable=True)
        self.rows, counts = torch.unique_consecutive(ordered, return_counts=True)
        self._offsets = (counts.cumsum(0) - counts).to(bags.dtype)
        # The point of every bag's entry; a division takes ten times as long.
        self._samples = self._order.to(bags.dtype) >> 3

    def sums(self, weight: Tensor, values: Tensor) -> Tensor:
        """Sums that belong to `self.rows`: weight [M, 8], values [M, C] -> [number of distinct rows, C]."""
        return _bag_sums(values, self._samples, self._offsets, self._ordered(weight))

    def blocks(self, *terms: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Some rows at a time: their numbers [n] and, over all terms, the sums [n, C] that belong to them.

        Args:
            terms: weight [M, 8] and values [M, *] each; C is the first one's, others may have fewer columns.
        """
        ordered = [(values, self._ordered(weight)) for weight, values in terms]
        for rows, entries in self._parts():
            samples, offsets = self._samples[entries], self._offsets[rows] - entries.start
            sums, *rest = (_bag_sums(values, samples, offsets, weight[entries]) for values, weight in ordered)
            for more in rest:
                sums[:, : more.shape[1]].add_(more)
            yield self.rows[rows], sums

    def _ordered(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1).index_select(0, self._order)

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Distinct rows, and the entries of their bags."""
        count = self.rows.numel()
        # In one part on a GPU: where others begin would have to be waited for.
        on_cpu = self.rows.device.type == "cpu"
        size, starts = (BLOCK_ROWS, self._offsets[::BLOCK_ROWS].tolist()) if on_cpu else (count, [0])
        for number, entries in enumerate(itertools.pairwise([*starts, self._order.numel()])):
            yield slice(number * size, min((number + 1) * size, count)), slice(*entries)


def _bag_sums(values: Tensor, samples: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.embedding_bag(samples, values, offsets, per_sample_weights=weight, mode="sum")
