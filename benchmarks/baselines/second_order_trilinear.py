"""A trilinear sampler with hand-written first and second derivatives, for a fairer eager baseline.

torch's grid_sample has a double backward made of many tensor operations, which takes most of the baseline's time. Here
values, derivatives by the points, and what a loss on those derivatives needs are weighted gathers and sorted scatters
of rows of channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ponder_kernels.sdf_field.gather import Corners, Scatter, VolumeGeometry, find_corners, gather_rows, volume_rows


def _corners(volume: Tensor, points: Tensor) -> Corners:
    batch, _, *extent = volume.shape
    box = points.new_tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]).expand(batch, 2, 3)
    scene = torch.arange(batch, device=points.device).repeat_interleave(points.shape[1])
    geometry = VolumeGeometry((batch, extent[0], extent[1], extent[2]), box, True, "zeros")
    return find_corners(points.reshape(-1, 3), scene, geometry)


def _scattered(like: Tensor, scatter: Scatter, sums: Tensor) -> Tensor:
    """Sums of distinct rows as a volume like [B, C, D, H, W]."""
    batch, channels, *extent = like.shape
    rows = sums.new_zeros(batch * extent[0] * extent[1] * extent[2], channels)
    rows[scatter.rows.long()] = sums
    return rows.view(batch, *extent, channels).permute(0, 4, 1, 2, 3)


class _Sample(torch.autograd.Function):
    """[B, C, D, H, W], [B, N, 3] -> [B, N, C]."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(volume, points)
        corners = _corners(volume, points)
        return gather_rows(volume_rows(volume), corners.rows, corners.weight).view(*points.shape[:2], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        volume, points = ctx.saved_tensors
        to_volume = to_points = None
        if ctx.needs_input_grad[0]:
            corners = _corners(volume, points)
            scatter = Scatter(corners.rows)
            to_volume = _scattered(volume, scatter, scatter.sums(corners.weight, grad.flatten(0, 1)))
        if ctx.needs_input_grad[1]:
            to_points = _ByPoints.apply(volume, points, grad)
        return to_volume, to_points


class _ByPoints(torch.autograd.Function):
    """Derivative by the points [B, N, 3]: sum over channels of grad times the slopes of the features."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, points: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(volume, points, grad)
        corners, rows = _corners(volume, points), volume_rows(volume)
        slopes = [gather_rows(rows, corners.rows, corners.slope(axis)) for axis in range(3)]
        return torch.stack([(slope * grad.flatten(0, 1)).sum(-1) for slope in slopes], -1).view(points.shape)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        volume, points, grad = ctx.saved_tensors
        corners = _corners(volume, points)
        along = corners.along(direction.reshape(-1, 3))
        scatter = Scatter(corners.rows)
        to_volume = _scattered(volume, scatter, scatter.sums(along, grad.flatten(0, 1)))
        to_grad = gather_rows(volume_rows(volume), corners.rows, along).view(grad.shape)
        # Nothing follows from second derivatives by the points, which are constants of the losses.
        return to_volume, None, to_grad


def second_order_trilinear(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear values of a volume at points, like `ponderv2.trilinear.torch_trilinear`.

    Args:
        volume: [B, C, D, H, W]; channels last is read without a copy.
        points: [B, N, 3] in [-1, 1], corners aligned, zeros outside.

    Returns:
        [B, N, C].
    """
    return _Sample.apply(volume, points)
