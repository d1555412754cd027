"""Trilinear sampling in plain torch: the definition of the operator, and its CPU backend."""

from __future__ import annotations

import torch
from torch import Tensor


def axis_position(coordinate: Tensor, size: int, *, align_corners: bool, border: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Locate coordinates in [-1, 1] on one volume axis.

    The continuous index is ``p = (x + 1) / 2 * (size - 1)`` with align_corners, else ``((x + 1) * size - 1) /
    2``. With `border`, p is clamped to [0, size - 1] and a clamped p has derivative 0 (at the two ends as
    well); NaN goes to 0. Without, a p whose two neighbours are both outside (NaN and infinities too) is sent
    to -2, which has no neighbour inside, with derivative 0.

    Returns:
        the lower neighbour's index (int64, may lie outside), the lower weight 1 - f and the upper weight f,
        where ``f = p - floor(p)``.
    """
    if align_corners:  # noqa: SIM108  (two formulas, two lines)
        position = (coordinate + 1) / 2 * (size - 1)
    else:
        position = ((coordinate + 1) * size - 1) / 2
    if border:
        inner = (position > 0) & (position < size - 1)
        end = torch.where(position > 0, float(size - 1), 0.0).to(position.dtype)
        position = torch.where(inner, position, end)
    else:
        reachable = (position >= -1) & (position < size)
        position = torch.where(reachable, position, -2.0)
    floor = position.detach().floor()
    fraction = position - floor
    return floor.long(), 1 - fraction, fraction


def volume_sample_reference(volume: Tensor, points: Tensor, *, padding: str, align_corners: bool) -> Tensor:
    """Sum the eight corners around each point, ``out[b,n,c] = sum_k w_k(p) volume[b,c,corner_k]``.

    The weight of a corner is the product of its three axis weights (see `axis_position`); a corner outside
    the volume contributes 0. Differentiable any number of times in `volume` and `points`.

    Args:
        volume: [B, C, D, H, W], converted to the dtype of `points`.
        points: [B, N, 3] as (x, y, z), x on the last volume axis.
        padding: "zeros" or "border".
        align_corners: whether -1 and 1 are the centres (True) or the outer faces (False) of the end cells.

    Returns:
        [B, N, C], dtype of `points`.
    """
    batch, channels, *sizes = volume.shape
    depth, height, width = sizes
    n_points = points.shape[1]
    rows = volume.to(points.dtype).permute(0, 2, 3, 4, 1).reshape(batch * depth * height * width, channels)
    axes = [
        axis_position(points[..., axis], size, align_corners=align_corners, border=padding == "border")
        for axis, size in enumerate((width, height, depth))
    ]
    (x0, *x_weights), (y0, *y_weights), (z0, *z_weights) = axes
    first = torch.arange(batch, device=points.device)[:, None] * depth
    out = points.new_zeros(batch, n_points, channels)
    for corner in range(8):
        dx, dy, dz = corner % 2, corner // 2 % 2, corner // 4
        x, y, z = x0 + dx, y0 + dy, z0 + dz
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z >= 0) & (z < depth)
        row = ((first + z) * height + y) * width + x
        values = rows.index_select(0, torch.where(inside, row, 0).reshape(-1)).view(batch, n_points, channels)
        # A corner outside reads row 0: whatever is stored there (NaN as well) must not come through.
        values = torch.where(inside[..., None], values, 0.0)
        weight = x_weights[dx] * y_weights[dy] * z_weights[dz]
        out = out + weight[..., None] * values
    return out
