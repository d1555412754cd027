"""Features of one or several volumes at sample points, and the way back to the volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels.memory import spare_zeros
from ponder_kernels.sdf_field.gather import (
    Corners,
    Scatter,
    VolumeGeometry,
    dot_rows,
    find_corners,
    gather_rows,
    volume_rows,
)


class RowView(NamedTuple):
    """Some channels of a volume as rows: those of voxel v are row ``v * stride + offset`` of `rows`."""

    rows: Tensor
    stride: int
    offset: int

    def of(self, numbers: Tensor) -> Tensor:
        """Row numbers of voxel numbers."""
        if self.stride > 1:
            numbers = numbers * self.stride
        return numbers + self.offset if self.offset else numbers


class SplitVolume(NamedTuple):
    """A volume whose first channels feed the SDF and whose other channels feed the heads only.

    Attributes:
        first: the SDF's channels.
        second: the others; None where there are none.
        whole: all channels [B D H W, C], where `first` and `second` are halves of them, so that no copy was made.
        geometry: how positions map to voxels.
    """

    first: RowView
    second: RowView | None
    whole: Tensor | None
    geometry: VolumeGeometry

    @property
    def channels(self) -> int:
        """C of the volume."""
        return self.first.rows.shape[1] + (0 if self.second is None else self.second.rows.shape[1])

    @property
    def image(self) -> Tensor:
        """The SDF's channels [B, C, D, H, W], no copy."""
        rows = self.first.rows if self.whole is None else self.whole
        found = rows.view(*self.geometry.shape, -1)[..., : self.first.rows.shape[1]]
        return found.permute(0, 4, 1, 2, 3)


def split_volume(volume: Tensor, sdf_channels: int, geometry: VolumeGeometry) -> SplitVolume:
    """Rows of [B, C, D, H, W]; a channels-last volume with C = Cs or C = 2 Cs is not copied."""
    rows = volume_rows(volume)
    channels = rows.shape[1]
    if channels == sdf_channels:
        return SplitVolume(RowView(rows, 1, 0), None, None, geometry)
    if channels == 2 * sdf_channels:
        rows = rows.contiguous()
        halves = rows.view(-1, sdf_channels)
        return SplitVolume(RowView(halves, 2, 0), RowView(halves, 2, 1), rows, geometry)
    first, second = rows[:, :sdf_channels].contiguous(), rows[:, sdf_channels:].contiguous()
    return SplitVolume(RowView(first, 1, 0), RowView(second, 1, 0), None, geometry)


class Growth(NamedTuple):
    """What the gradient of a volume grows by, not summed yet: values of M samples and which voxels they go to.

    The values may lie in a thread's buffers (see `_workspace`): to be added before that thread works on other samples.

    Attributes:
        scatter: the samples' voxels.
        terms: weight [M, 8] and values [M, *] each, of all channels or of the SDF's only; the first is the widest.
    """

    scatter: Scatter
    terms: tuple[tuple[Tensor, Tensor], ...]


class VolumeGradient:
    """Sums of derivatives by one volume."""

    def __init__(self, volume: SplitVolume) -> None:
        self.volume = volume
        like = volume.first.rows
        batch, depth, height, width = volume.geometry.shape
        self.rows = spare_zeros(like, (batch * depth * height * width, volume.channels))

    def add(self, part: Growth) -> None:
        """Add to some voxels."""
        for rows, sums in part.scatter.blocks(*part.terms):
            self._add(rows.long(), sums)  # index_add_ is slower with int32

    def _add(self, rows: Tensor, sums: Tensor) -> None:
        width, channels = sums.shape[1], self.rows.shape[1]
        if width == channels:
            self.rows.index_add_(0, rows, sums)
        elif channels == 2 * width:
            # index_add_ is fast on contiguous rows only.
            self.rows.view(-1, width).index_add_(0, rows * 2, sums)
        else:
            self.rows[:, :width].index_add_(0, rows, sums)

    def as_volume(self) -> Tensor:
        """[B, C, D, H, W], channels last."""
        return self.rows.view(*self.volume.geometry.shape, -1).permute(0, 4, 1, 2, 3)


class Samples(NamedTuple):
    """One chunk's corners in every volume."""

    corners: list[Corners]

    def features(self, volumes: Sequence[SplitVolume], points: Tensor | None, second: bool) -> Tensor:
        """First channels of all volumes side by side, the points [M, 3] if given, and second channels if asked for."""
        if second and points is None and len(volumes) == 1 and volumes[0].whole is not None:
            return gather_rows(volumes[0].whole, self.corners[0].rows, self.corners[0].weight)
        pairs = list(zip(volumes, self.corners, strict=True))
        found = [gather_rows(v.first.rows, v.first.of(c.rows), c.weight) for v, c in pairs]
        found += [] if points is None else [points]
        if second:
            found += [
                gather_rows(v.second.rows, v.second.of(c.rows), c.weight) for v, c in pairs if v.second is not None
            ]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def slopes(self, volumes: Sequence[SplitVolume], by_features: Tensor) -> Tensor:
        """Derivatives along x, y, z of by_features . features with `by_features` [M, C] held fixed.

        Returns:
            [M, 3], all x side by side in memory, then all y, then all z.
        """
        out = by_features.new_zeros(3, by_features.shape[0])
        start = 0
        for volume, corners in zip(volumes, self.corners, strict=True):
            view = volume.first
            bags, width = view.of(corners.rows), view.rows.shape[1]
            part = by_features[:, start : start + width]
            products = dot_rows(view.rows, bags, part)
            for axis in range(3):
                out[axis].add_(corners.slope(axis).mul_(products).sum(-1))
            start += width
        return out.T

    def along(self, direction: Tensor) -> list[Tensor]:
        """Derivatives of the corner weights along `direction` [M, 3]: [M, 8] for each volume."""
        return [corners.along(direction) for corners in self.corners]

    def directional(self, volumes: Sequence[SplitVolume], along: Sequence[Tensor]) -> Tensor:
        """Derivatives of the first channels in the direction of `along`: [M, sum of C]."""
        triples = zip(volumes, self.corners, along, strict=True)
        found = [gather_rows(v.first.rows, v.first.of(c.rows), weight) for v, c, weight in triples]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def scatter(
        self, volumes: Sequence[SplitVolume], features_bar: Tensor, by_features: Tensor, along: Sequence[Tensor]
    ) -> list[Growth]:
        """What the volumes' gradients grow by: derivatives by the features, and those by `slopes`.

        Args:
            volumes: the volumes.
            features_bar: [M, *] by what `features` returned; only first channels where it has no second ones.
            by_features: [M, C] as given to `slopes`.
            along: weights in the direction of the derivatives by what `slopes` returned.
        """
        firsts = [volume.first.rows.shape[1] for volume in volumes]
        seconds = [volume.channels - first for volume, first in zip(volumes, firsts, strict=True)]
        more = features_bar.shape[1] > by_features.shape[1]
        start, other = 0, by_features.shape[1]
        found = []
        for corners, weight, width, rest in zip(self.corners, along, firsts, seconds, strict=True):
            rest = rest if more else 0
            values = features_bar
            if len(volumes) > 1 or features_bar.shape[1] != width + rest:
                values = torch.cat([values[:, start : start + width], values[:, other : other + rest]], 1)
            slopes = by_features[:, start : start + width]
            found.append(Growth(Scatter(corners.rows), ((corners.weight, values), (weight, slopes))))
            start, other = start + width, other + rest
        return found


def locate(volumes: Sequence[SplitVolume], points: Tensor, scene: Tensor | None) -> Samples:
    """Corners of points [M, 3] of scenes [M] (None: of one) in every volume."""
    return Samples([find_corners(points, scene, volume.geometry) for volume in volumes])
