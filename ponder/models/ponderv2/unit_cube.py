"""Scenes moved into the unit cube, as PonderV2's indoor model sees them, with their cameras.

The longest axis of a scene spans the cube [-0.5, 0.5]^3; x and y are centred and the lowest point lies on the face
z = -0.5. Camera axes keep their metres, so the rotations of the cameras carry a factor afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# PonderV2 widens boxes by this and keeps points this far inside the cube: metres, and parts of the cube.
MARGIN = 1e-5

# Half the edge of the cube; where the floor lies.
HALF = 0.5


class UnitCube(NamedTuple):
    """N points of B scenes and the V cameras of each, normalised.

    Attributes:
        unit: [N, 3] points in the cube.
        coord: [N, 3] the same in metres from the cube's lower corner, 0 to pc_scale.
        batch: [N] int64 scene of each point.
        empty: [B] bool, scenes without points; they are given the size of one metre.
        extrinsic: [B, V, 4, 4] cube to camera (OpenCV axes, metres).
        depth_scale: [B] from raw depth to lengths in the cube.
        pc_scale: [B] metres per edge of the cube.
        bbox: [B, 2, 3] box of `coord`, metres.
        resolution: [B] int32 voxels along the longest axis of the box.
    """

    unit: Tensor
    coord: Tensor
    batch: Tensor
    empty: Tensor
    extrinsic: Tensor
    depth_scale: Tensor
    pc_scale: Tensor
    bbox: Tensor
    resolution: Tensor


def scene_numbers(offset: Tensor, count: int) -> Tensor:
    """[N] int64 scene of each of `count` points, from the cumulative numbers of points [B]."""
    sizes = torch.diff(offset, prepend=offset.new_zeros(1))
    return torch.arange(len(offset), device=offset.device).repeat_interleave(sizes, output_size=count)


def scene_extremes(coord: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corner [B, 3] of the points [N, 3] of each scene; +inf and -inf of a scene without points."""
    count = len(coord)
    starts = torch.nn.functional.pad(offset[:-1], (1, 0))
    # An axis after the other, so that segments are contiguous.
    axes = torch.arange(3, device=offset.device)[:, None] * count
    bounds = torch.cat([(axes + starts).flatten(), offset.new_full((1,), 3 * count)])
    flat = coord.T.reshape(-1)
    low, high = (
        torch.segment_reduce(flat, reduce, offsets=bounds, unsafe=True, initial=initial).view(3, -1).T
        for reduce, initial in (("min", float("inf")), ("max", -float("inf")))
    )
    return low, high


@torch.no_grad()
def to_unit_cube(
    coord: Tensor, offset: Tensor, extrinsic: Tensor, depth_scale: Tensor, grid_size: float = 0.02
) -> UnitCube:
    """Normalise all scenes of a batch; nothing that is passed in changes.

    All arithmetic is PonderV2's in float32, so that points fall into the same cells. Two things that stop PonderV2
    work here: a scene without points, and one so far from the origin that its extent is lost in rounding.

    Args:
        coord: [N, 3] metres, scene after scene.
        offset: [B] int64 cumulative numbers of points, the last of which is N.
        extrinsic: [B, V, 4, 4] world to camera.
        depth_scale: [B] metres per unit of raw depth.
        grid_size: edge of a voxel, metres; sets `resolution`.

    Raises:
        ValueError: a shape that does not fit.
    """
    _check(coord, offset, extrinsic, depth_scale)
    coord = coord.float()
    batch = scene_numbers(offset, len(coord))
    low, high = scene_extremes(coord, offset)
    empty = (low > high).any(1)
    low, high = torch.where(empty[:, None], -HALF, low), torch.where(empty[:, None], HALF, high)
    lower, upper = low - MARGIN, high + MARGIN
    centre, extent = (lower + upper) / 2, (upper - lower).amax(1)
    extent = torch.where(extent > 0, extent, 2 * MARGIN)
    scale = 1.0 / extent
    # Rounding keeps the order of numbers, so the extremes of moved points are the moved extremes.
    floor = (low[:, 2] - centre[:, 2]) * scale
    shift = scale[:, None] * -centre
    shift[:, 2] += -floor - HALF

    def move(points: Tensor, scene: Tensor) -> Tensor:
        moved = scale[scene][:, None] * points + shift[scene]
        return moved.clip(-HALF + MARGIN, HALF - MARGIN)

    scenes = torch.arange(len(offset), device=offset.device)
    unit = move(coord, batch)
    box = torch.stack([move(low, scenes) - MARGIN, move(high, scenes) + MARGIN], 1)
    box = (box + HALF) * extent[:, None, None]
    voxels = (box // grid_size).int()
    return UnitCube(
        unit=unit,
        coord=(unit + HALF) * extent[batch][:, None],
        batch=batch,
        empty=empty,
        extrinsic=_moved_cameras(extrinsic.float(), scale, shift),
        depth_scale=scale * depth_scale.float(),
        pc_scale=extent,
        bbox=box,
        resolution=(voxels[:, 1] - voxels[:, 0]).amax(1) + 1,
    )


def _moved_cameras(extrinsic: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """[B, V, 4, 4] cameras of scenes whose points p have become ``scale p + shift``."""
    extrinsic = extrinsic.clone()
    extrinsic[..., 3, 3] = 1
    inverse = torch.zeros(len(scale), 4, 4, dtype=scale.dtype, device=scale.device)
    inverse[:, [0, 1, 2], [0, 1, 2]] = (1 / scale)[:, None]
    inverse[:, :3, 3] = -shift / scale[:, None]
    inverse[:, 3, 3] = 1
    # Half precision would put the cameras elsewhere.
    with torch.autocast(extrinsic.device.type, enabled=False):
        return extrinsic @ inverse[:, None]


def _check(coord: Tensor, offset: Tensor, extrinsic: Tensor, depth_scale: Tensor) -> None:
    scenes = len(offset) if offset.dim() == 1 else -1
    if scenes < 1:
        raise ValueError(f"offset: expected shape [B] with at least one scene, got {list(offset.shape)}")
    if coord.dim() != 2 or coord.shape[1] != 3:
        raise ValueError(f"coord: expected shape [N, 3], got {list(coord.shape)}")
    if extrinsic.dim() != 4 or extrinsic.shape[0] != scenes or extrinsic.shape[2:] != (4, 4):
        raise ValueError(f"extrinsic: expected shape [B={scenes}, V, 4, 4], got {list(extrinsic.shape)}")
    if depth_scale.shape != (scenes,):
        raise ValueError(f"depth_scale: expected shape [B={scenes}], got {list(depth_scale.shape)}")
