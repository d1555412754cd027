"""Trilinear sampling in plain torch: the definition of the operator, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels._constants import REFLECTION_MAX


def axis_position(coordinate: Tensor, size: Tensor, *, padding: str, align_corners: bool) -> Tensor:
    """Continuous index of coordinates in [-1, 1] on volume axes of `size` voxels (broadcast; dtype of coordinates).

    The index is ``p = (x + 1) / 2 * (size - 1)`` with align_corners, else ``((x + 1) * size - 1) / 2``; then

    - "zeros": a p whose two neighbours are both outside (NaN and infinities too) is sent to -2, which has no
      neighbour inside, with derivative 0;
    - "border": p is clamped to [0, size - 1], and a clamped p has derivative 0 (at the two ends as well); NaN goes to
      0, an infinity to its end;
    - "reflection": p is mirrored at 0 and size - 1 (align_corners) or at -1/2 and size - 1/2 as often as it takes,
      then clamped as above. NaN, infinities and |p| >= REFLECTION_MAX go to 0.
    """
    if align_corners:  # noqa: SIM108  (two formulas, two lines)
        position = (coordinate + 1) / 2 * (size - 1)
    else:
        position = ((coordinate + 1) * size - 1) / 2
    if padding == "zeros":
        reachable = (position >= -1) & (position < size)
        return torch.where(reachable, position, -2.0)
    if padding == "reflection":
        position = _reflect(position, size, align_corners)
    inner = (position > 0) & (position < size - 1)
    return torch.where(inner, position, torch.where(position > 0, size - 1, 0.0))


def _reflect(position: Tensor, size: Tensor, align_corners: bool) -> Tensor:
    low, span = (0.0, size - 1) if align_corners else (-0.5, size)
    # A single voxel with align_corners is its own mirror: any period does, the clamp follows.
    period = (2 * span).clamp_min(1)
    distance = (torch.where(position.abs() < REFLECTION_MAX, position, 0.0) - low).abs()
    distance = distance - (distance.detach() / period).floor() * period
    return torch.where(distance > span, period - distance, distance) + low


def axis_weights(position: Tensor, smoothstep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Lower neighbour's index (int64, may lie outside), its weight and the upper neighbour's weight.

    With f the fraction of the position the upper weight is f, or ``f^2 (3 - 2 f)`` with `smoothstep`; both sum to 1.
    """
    floor = position.detach().floor()
    upper = position - floor
    if smoothstep:
        upper = upper * upper * (3 - 2 * upper)
    return floor.long(), 1 - upper, upper


def volume_sample_reference(
    volume: Tensor, points: Tensor, padding: str, align_corners: bool, smoothstep: bool = False
) -> Tensor:
    """Sum the eight corners around each point, ``out[b,n,c] = sum_k w_k(p) volume[b,c,corner_k]``.

    The weight of a corner is the product of its three axis weights (`axis_position`, `axis_weights`); a corner outside
    the volume contributes 0. Differentiable any number of times in `volume` and `points`.

    Args:
        volume: [B, C, D, H, W], converted to the dtype of `points`.
        points: [B, N, 3] as (x, y, z), x on the last volume axis.
        padding: "zeros", "border" or "reflection".
        align_corners: whether -1 and 1 are the centres (True) or the outer faces (False) of the end cells.
        smoothstep: whether the fraction f inside a cell becomes f^2 (3 - 2 f).

    Returns:
        [B, N, C], dtype of `points`.
    """
    batch, channels, depth, height, width = volume.shape
    n_points = points.shape[1]
    rows = volume.to(points.dtype).permute(0, 2, 3, 4, 1).reshape(batch * depth * height * width, channels)
    sizes = points.new_tensor([width, height, depth])
    positions = axis_position(points, sizes, padding=padding, align_corners=align_corners)
    per_axis = (axis_weights(positions[..., axis], smoothstep) for axis in range(3))
    (x0, *x_weights), (y0, *y_weights), (z0, *z_weights) = per_axis
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


def double_backward_reference(
    grad_grad_volume: Tensor | None,
    grad_grad_points: Tensor | None,
    grad_out: Tensor,
    volume: Tensor,
    points: Tensor,
    padding: str,
    align_corners: bool,
    smoothstep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of <grad_grad_volume, first[0]> + <grad_grad_points, first[1]> to grad_out, volume and points.

    Here first = the gradients of ``<grad_out, volume_sample(volume, points)>`` to volume and points; a cotangent that
    is None counts as 0. Differentiable any number of times.
    """
    with torch.enable_grad():
        sources = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in (grad_out, volume, points)]
        upstream, values, places = sources
        out = volume_sample_reference(values, places, padding, align_corners, smoothstep)
        first = torch.autograd.grad(out, (values, places), upstream, create_graph=True)
        given = [(f, g) for f, g in zip(first, (grad_grad_volume, grad_grad_points), strict=True) if g is not None]
        found = torch.autograd.grad(
            [f for f, _ in given], sources, [g for _, g in given], create_graph=True, allow_unused=True
        )
    to_out, to_volume, to_points = (
        torch.zeros_like(x) if f is None else f for x, f in zip(sources, found, strict=True)
    )
    return to_out, to_volume, to_points
