"""Fuse posed depth maps into one point cloud on a voxel grid."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder.data.scene import DataError, Frames, PointCloud
from ponder.geometry import unproject_depth

# Voxel indices are packed into one integer with this many bits per axis: at 2 cm that is 20 km to every side.
_BITS = 21
_HALF_RANGE = 1 << (_BITS - 1)
# The mean of observed unit normals shorter than this comes from surfaces facing opposite ways and means
# nothing.
_MIN_MEAN_NORMAL = 0.2


def _voxel_keys(coord: Tensor, voxel_size: float) -> tuple[Tensor, Tensor]:
    """Packed voxel index [N] int64, ordered by x, y, z, and position inside the voxel [N, 3] float64."""
    scaled = coord.double() / voxel_size
    cell = scaled.floor()
    if not bool((cell.abs() < _HALF_RANGE).all()):
        reach = float(coord.abs().max())
        limit = _HALF_RANGE * voxel_size
        raise DataError(f"frames: expected points within {limit:.4g} m of the world origin, got one at {reach:.4g} m")
    x, y, z = (cell.long() + _HALF_RANGE).unbind(-1)
    return (x << (2 * _BITS)) | (y << _BITS) | z, (scaled - cell) * voxel_size


def _unpack_keys(keys: Tensor, voxel_size: float) -> Tensor:
    """Lower corners [M, 3] float64 of the voxels in metres."""
    mask = (1 << _BITS) - 1
    index = torch.stack([keys >> (2 * _BITS), (keys >> _BITS) & mask, keys & mask], -1) - _HALF_RANGE
    return index.double() * voxel_size


def _sum_by_key(keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted distinct keys [M] and the sums [M, C] of their rows, added in the order given."""
    distinct, position = torch.unique(keys, sorted=True, return_inverse=True)
    return distinct, rows.new_zeros(distinct.shape[0], rows.shape[1]).index_add_(0, position, rows)


def _frame_sums(frames: Frames, index: int, voxel_size: float, max_depth: float) -> tuple[Tensor, Tensor]:
    """Voxel keys [M] of a view's pixels, and sums [M, 11] float64: count, offset, colour, normal, known."""
    z_depth = frames.z_depth[index]
    pixels = ((z_depth > 0) & (z_depth <= max_depth)).flatten().nonzero().squeeze(1)
    coord = unproject_depth(z_depth, frames.intrinsics[index], frames.camera_to_world[index])
    keys, offset = _voxel_keys(coord.reshape(-1, 3)[pixels], voxel_size)
    normal = frames.normal[index].reshape(-1, 3)[pixels]
    known = normal.square().sum(-1, keepdim=True) > 0.5
    colour = frames.rgb[index].reshape(-1, 3)[pixels].double() / 255
    return _sum_by_key(keys, torch.cat([torch.ones_like(offset[:, :1]), offset, colour, normal, known], -1))


def fuse_frames(frames: Frames, *, voxel_size: float = 0.02, max_depth: float = 8.0, min_points: int = 3) -> PointCloud:
    """One averaged point per occupied voxel of a world-aligned grid.

    The result is a pure function of the input: views are added in order, and points come sorted by voxel
    index (x, then y, then z). Memory grows with the number of occupied voxels per view, not with the number
    of pixels.

    Args:
        frames: posed views.
        voxel_size: edge of a voxel in metres.
        max_depth: pixels farther than this z-depth in metres are ignored.
        min_points: voxels seen by fewer pixels, over all views, are dropped; such are the pixels that a depth
            sensor places between a foreground edge and its background.

    Returns:
        Mean position, colour and renormalised normal of each kept voxel; the normal is 0 where no pixel had
        one or where they cancel out.

    Raises:
        DataError: `voxel_size` or `max_depth` not positive, `min_points` below 1, no view at all, points too
            far from the origin for the grid, or no voxel left.
    """
    for name, value in (("voxel_size", voxel_size), ("max_depth", max_depth)):
        if not value > 0:
            raise DataError(f"{name}: expected a positive number of metres, got {value}")
    if min_points < 1:
        raise DataError(f"min_points: expected at least 1, got {min_points}")
    if len(frames) == 0:
        raise DataError("frames: expected at least one view to fuse, got none")
    parts = [_frame_sums(frames, i, voxel_size, max_depth) for i in range(len(frames))]
    keys, sums = _sum_by_key(torch.cat([k for k, _ in parts]), torch.cat([s for _, s in parts]))
    kept = sums[:, 0] >= min_points
    if not bool(kept.any()):
        raise DataError(
            f"frames: expected a voxel of {voxel_size} m seen by at least {min_points} pixels nearer than "
            f"{max_depth} m, got none among {len(frames)} views"
        )
    keys, sums = keys[kept], sums[kept]
    count, offset, colour, normal, known = sums.split([1, 3, 3, 3, 1], dim=1)
    mean_normal = normal / known.clamp(min=1)
    length = mean_normal.norm(dim=1, keepdim=True)
    unit = torch.where(length >= _MIN_MEAN_NORMAL, mean_normal / length.clamp(min=_MIN_MEAN_NORMAL), 0.0)
    return PointCloud(
        coord=(_unpack_keys(keys, voxel_size) + offset / count).float(),
        colour=(colour / count).clamp(0, 1).float(),
        normal=unit.float(),
    )
