"""Features of one or several volumes at sample points, and the way back to the volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ponder_kernels.sdf_field.gather import Corners, Scatter, VolumeGeometry, find_corners, gather_rows, volume_rows


def lazy_zeros(like: Tensor) -> Tensor:
    """Zeros like a matrix [rows, columns], on a CPU without writing them.

    The pages are mapped when they are first touched: rays reach a small part of a volume, and clearing the gradient of
    the rest takes longer than many rays do.
    """
    if like.device.type != "cpu":
        return torch.zeros_like(like)
    kind = np.float64 if like.dtype == torch.float64 else np.float32
    return torch.from_numpy(np.zeros(tuple(like.shape), kind))


class RowView(NamedTuple):
    """Some channels of a volume as rows: those of voxel v are row ``v * stride + offset`` of `rows`."""

    rows: Tensor
    stride: int
    offset: int

    def of(self, numbers: Tensor) -> Tensor:
        """Row numbers of voxel numbers."""
        return numbers if self.stride == 1 else numbers * self.stride + self.offset


class SplitVolume(NamedTuple):
    """A volume whose first channels feed the SDF and whose other channels feed the heads only.

    Attributes:
        first: the SDF's channels.
        second: the others; None where there are none.
        geometry: how positions map to voxels.
        halves: whether both parts are views of one tensor (equal widths), so that no copy was made.
    """

    first: RowView
    second: RowView | None
    geometry: VolumeGeometry
    halves: bool


def split_volume(volume: Tensor, sdf_channels: int, geometry: VolumeGeometry) -> SplitVolume:
    """Rows of [B, C, D, H, W]; a channels-last volume with C = Cs or C = 2 Cs is not copied."""
    rows = volume_rows(volume)
    channels = rows.shape[1]
    if channels == sdf_channels:
        return SplitVolume(RowView(rows, 1, 0), None, geometry, False)
    if channels == 2 * sdf_channels:
        halves = rows.reshape(-1, sdf_channels)
        return SplitVolume(RowView(halves, 2, 0), RowView(halves, 2, 1), geometry, True)
    first, second = rows[:, :sdf_channels].contiguous(), rows[:, sdf_channels:].contiguous()
    return SplitVolume(RowView(first, 1, 0), RowView(second, 1, 0), geometry, False)


class VolumeGradient:
    """Sums of derivatives by the rows of one split volume."""

    def __init__(self, volume: SplitVolume) -> None:
        self.volume = volume
        self.first = lazy_zeros(volume.first.rows)
        self.second = self.first
        if volume.second is not None and not volume.halves:
            self.second = lazy_zeros(volume.second.rows)

    def as_volume(self) -> Tensor:
        """[B, C, D, H, W], channels last."""
        batch, depth, height, width = self.volume.geometry.shape
        rows = self.first
        if self.volume.second is not None and not self.volume.halves:
            rows = torch.cat([self.first, self.second], 1)
        return rows.view(batch, depth, height, width, -1).permute(0, 4, 1, 2, 3)


class Samples(NamedTuple):
    """One chunk's corners in every volume."""

    corners: list[Corners]

    def features(self, volumes: Sequence[SplitVolume], second: bool) -> Tensor:
        """First or second channels of all volumes side by side, [M, sum of C]."""
        found = []
        for volume, corners in zip(volumes, self.corners, strict=True):
            view = volume.second if second else volume.first
            if view is not None:
                found.append(gather_rows(view.rows, view.of(corners.rows), corners.weight))
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def slopes(self, volumes: Sequence[SplitVolume], by_features: Tensor) -> Tensor:
        """Derivatives along x, y, z of by_features . features with `by_features` [M, C] held fixed: [M, 3]."""
        out = by_features.new_zeros(by_features.shape[0], 3)
        start = 0
        for volume, corners in zip(volumes, self.corners, strict=True):
            view = volume.first
            bags, width = view.of(corners.rows), view.rows.shape[1]
            part = by_features[:, start : start + width]
            for axis in range(3):
                along = gather_rows(view.rows, bags, corners.slope(axis))
                out[:, axis].add_(along.mul_(part).sum(-1))
            start += width
        return out

    def along(self, direction: Tensor) -> list[Tensor]:
        """Derivatives of the corner weights along `direction` [M, 3]: [M, 8] for each volume."""
        return [corners.along(direction) for corners in self.corners]

    def directional(self, volumes: Sequence[SplitVolume], along: Sequence[Tensor]) -> Tensor:
        """Derivatives of the features in the direction of `along`: [M, sum of C]."""
        triples = zip(volumes, self.corners, along, strict=True)
        found = [gather_rows(v.first.rows, v.first.of(c.rows), weight) for v, c, weight in triples]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def scatter(
        self,
        volumes: Sequence[SplitVolume],
        out: Sequence[VolumeGradient],
        first_bar: Tensor,
        by_features: Tensor,
        along: Sequence[Tensor],
        second_bar: Tensor | None,
    ) -> None:
        """Add to the volumes' gradients: derivatives by the features, and those by `slopes`.

        Args:
            volumes, out: the volumes and their gradients.
            first_bar: [M, C] by the first channels.
            by_features: [M, C] as given to `slopes`.
            along: weights in the direction of the derivatives by what `slopes` returned.
            second_bar: [M, C'] by the second channels.
        """
        start = other = 0
        for volume, corners, gradient, weight in zip(volumes, self.corners, out, along, strict=True):
            scatter = Scatter(corners.rows)
            rows = scatter.rows.long()  # index_add_ is slower with int32
            width = volume.first.rows.shape[1]
            part = slice(start, start + width)
            sums = scatter.sums(corners.weight, first_bar[:, part])
            sums.add_(scatter.sums(weight, by_features[:, part]))
            gradient.first.index_add_(0, volume.first.of(rows), sums)
            start += width
            if volume.second is not None and second_bar is not None:
                width = volume.second.rows.shape[1]
                sums = scatter.sums(corners.weight, second_bar[:, other : other + width])
                gradient.second.index_add_(0, volume.second.of(rows), sums)
                other += width


def locate(volumes: Sequence[SplitVolume], points: Tensor, scene: Tensor) -> Samples:
    """Corners of points [M, 3] of scenes [M] in every volume."""
    return Samples([find_corners(points, scene, volume.geometry) for volume in volumes])
