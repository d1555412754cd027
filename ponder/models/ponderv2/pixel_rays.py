"""Rays through randomly drawn pixels of all views of a batch, and what is seen there.

Only drawn pixels get a ray. Pixel (x, y) is the point (x, y) of the image plane, without half a pixel, as in PonderV2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.models.ponderv2.unit_cube import UnitCube

# PonderV2's box test keeps directions this far from 0, from -1e-10 on the positive side, ...
SMALLEST_SLOPE, NOT_NEGATIVE = 1e-5, -1e-10
# ... and lets rays start this far from the camera.
NEAREST = 0.1

# The depth of rays that miss the box; a depth counts as measured above 0.
NO_DEPTH = -0.001
NO_LABEL = -1


class Drawn(NamedTuple):
    """Pixels drawn from views: view [R] (scene after scene), x and y [R], all int64; rays per scene, on the host."""

    view: Tensor
    x: Tensor
    y: Tensor
    counts: list[int]


class PixelRays(NamedTuple):
    """R rays, scene after scene and view after view.

    Attributes:
        origins, directions: [R, 3] in the cube, directions of unit length.
        rgb: [R, 3], black where a ray misses the box.
        depth: [R, 1] distance along the ray in the cube, -0.001 where it misses the box.
        labels: [R] int64 classes, -1 for none.
        drawn: the pixels.
        ignored: [] how many labels were no class.
    """

    origins: Tensor
    directions: Tensor
    rgb: Tensor
    depth: Tensor
    labels: Tensor
    drawn: Drawn
    ignored: Tensor


class Views(NamedTuple):
    """Images of V views of B scenes.

    Attributes:
        rgb: [B, V, H, W, 3], 0 to 1.
        depth: [B, V, H, W] raw, 0 where missing.
        intrinsic: [B, V, K, K] or [B, K, K], K = 3 or 4; pixels.
        semantic: [B, V, H, W] integer classes, -1 for none; or None.
    """

    rgb: Tensor
    depth: Tensor
    intrinsic: Tensor
    semantic: Tensor | None = None


@torch.no_grad()
def draw_rays(
    views: Views, cube: UnitCube, per_view: int, bound: float, classes: int, class_zero: bool = False
) -> PixelRays:
    """Draw pixels with a measured depth and make their rays.

    Each view draws with `torch.randperm` on the CPU, view after view, as PonderV2 does: one seed gives its rays. A view
    with fewer measured pixels than `per_view` gives all of them and no more; PonderV2 stops there. No rays come from
    scenes without points and from cameras that are not finite or cannot be inverted.

    Args:
        views: the images.
        cube: the normalised scenes and cameras.
        per_view: rays drawn from each view.
        bound: the box that rays must hit is [-bound, bound]^3.
        classes: labels from this number on are ignored and counted.
        class_zero: whether pixels of class 0 keep their label.

    Raises:
        ValueError: images whose shapes do not fit each other or the cameras.
    """
    _check(views, cube)
    to_cube, from_pixels = _inverse_cameras(views, cube)
    finite = torch.isfinite(to_cube).all(-1).all(-1) & torch.isfinite(from_pixels).all(-1).all(-1)
    usable = finite & torch.isfinite(cube.depth_scale)[:, None] & ~cube.empty[:, None]
    drawn = draw_pixels((views.depth > 0) & (views.depth < torch.inf) & usable[..., None, None], per_view)
    view, x, y, _ = drawn
    poses = to_cube.flatten(0, 1)[view]
    origins = poses[:, :3, 3].contiguous()
    directions = _directions(poses, from_pixels.flatten(0, 1)[view], x, y)
    scale = cube.depth_scale.repeat_interleave(views.depth.shape[1])[view]
    z_depth = views.depth.flatten(0, 1)[view, y, x].float() * scale
    # The optical axis; its point at distance 1 as PonderV2 takes it, through the whole matrix.
    axis = F.normalize(poses[:, :3, 2] + poses[:, :3, 3] - origins, dim=-1)
    depth = z_depth / (directions * axis).sum(-1)
    inside = hits_box(origins, directions, bound)
    labels, ignored = _labels(views.semantic, drawn, inside, classes, class_zero)
    return PixelRays(
        origins=origins,
        directions=directions,
        rgb=torch.where(inside[:, None], views.rgb.flatten(0, 1)[view, y, x].float(), 0.0),
        depth=torch.where(inside, depth, NO_DEPTH)[:, None],
        labels=labels,
        drawn=drawn,
        ignored=ignored,
    )


def draw_pixels(measured: Tensor, per_view: int) -> Drawn:
    """Up to `per_view` random pixels of every view where [B, V, H, W] bool is set; all where there are fewer."""
    scenes, count, height, width = measured.shape
    # Pixels up to and including each one, in rows from the top left.
    reached = measured.reshape(scenes * count, height * width).cumsum(1, dtype=torch.int32)
    totals = reached[:, -1].tolist() if height * width else [0] * (scenes * count)
    ranks = [torch.randperm(total)[:per_view] for total in totals]
    sizes = torch.tensor([len(rank) for rank in ranks])
    counts = sizes.view(scenes, count).sum(1).tolist()
    view = torch.arange(len(ranks)).repeat_interleave(sizes)
    slot = torch.cat([torch.arange(size) for size in sizes.tolist()])
    wanted = torch.zeros(len(ranks), int(sizes.max()), dtype=torch.int32)
    wanted[view, slot] = torch.cat(ranks).int() + 1
    device = measured.device
    view, slot, wanted = view.to(device), slot.to(device), wanted.to(device)
    pixel = torch.searchsorted(reached, wanted)[view, slot]
    return Drawn(view, pixel % max(width, 1), pixel // max(width, 1), counts)


def hits_box(origins: Tensor, directions: Tensor, bound: float) -> Tensor:
    """[R] bool: rays that are inside of [-bound, bound]^3 somewhere beyond a distance of 0.1.

    PonderV2's test, which takes bounds in float64 and moves components of the direction away from 0.
    """
    slope = F.normalize(directions, dim=-1)
    slope = torch.where((slope < SMALLEST_SLOPE) & (slope > NOT_NEGATIVE), SMALLEST_SLOPE, slope)
    slope = torch.where((slope > -SMALLEST_SLOPE) & (slope < -NOT_NEGATIVE), -SMALLEST_SLOPE, slope)
    inverse = (1.0 / slope).double()
    first, second = ((side - origins.double()) * inverse for side in (-bound, bound))
    near = torch.minimum(first, second).amax(-1).clamp_min(NEAREST)
    return near < torch.maximum(first, second).amin(-1)


def _inverse_cameras(views: Views, cube: UnitCube) -> tuple[Tensor, Tensor]:
    """Camera to cube [B, V, 4, 4] and pixels to camera [B, V, 3, 3]; not finite where there is no inverse."""
    intrinsic = views.intrinsic.float()[..., :3, :3]
    if intrinsic.dim() == 3:
        intrinsic = intrinsic[:, None]
    intrinsic = intrinsic.expand(*cube.extrinsic.shape[:2], 3, 3)
    # `inv_ex` neither waits for the device nor stops at a singular matrix.
    found = [torch.linalg.inv_ex(matrix) for matrix in (cube.extrinsic, intrinsic)]
    to_cube, from_pixels = (torch.where(info[..., None, None] == 0, inverse, torch.nan) for inverse, info in found)
    return to_cube, from_pixels


def _directions(poses: Tensor, from_pixels: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[R, 3] unit directions in the cube through pixels (x, y) [R] of cameras [R, 4, 4] and [R, 3, 3]."""
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).float()
    camera = F.normalize(_rotated(from_pixels, pixels), dim=-1)
    # Normalised again: the poses carry the scale of the scene.
    return F.normalize(_rotated(poses[:, :3, :3], camera), dim=-1)


def _rotated(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[R, 3] products of matrices [R, 3, 3] and vectors [R, 3], in float32 also under autocast."""
    return (matrices * vectors[:, None, :]).sum(-1)


def _labels(
    semantic: Tensor | None, drawn: Drawn, inside: Tensor, classes: int, class_zero: bool
) -> tuple[Tensor, Tensor]:
    """Labels [R] of rays and how many were no class."""
    view, x, y, _ = drawn
    if semantic is None:
        return torch.full_like(view, NO_LABEL), torch.zeros((), dtype=torch.long, device=view.device)
    labels = torch.where(inside, semantic.flatten(0, 1)[view, y, x].long(), NO_LABEL)
    unknown = labels >= classes
    first = 0 if class_zero else 1
    return torch.where(unknown | (labels < first), NO_LABEL, labels), unknown.sum()


def _check(views: Views, cube: UnitCube) -> None:
    scenes, count = cube.extrinsic.shape[:2]
    expected = f"[B={scenes}, V={count}, H, W"
    if views.depth.dim() != 4 or views.depth.shape[:2] != (scenes, count):
        raise ValueError(f"depth: expected shape {expected}], got {list(views.depth.shape)}")
    for name, value, tail in (("rgb", views.rgb, (3,)), ("semantic", views.semantic, ())):
        if value is not None and value.shape != (*views.depth.shape, *tail):
            end = "".join(f", {size}" for size in tail)
            wanted = f"[{', '.join(map(str, views.depth.shape))}{end}]"
            raise ValueError(f"{name}: expected shape {wanted} as depth has, got {list(value.shape)}")
    _check_intrinsic(views.intrinsic, (scenes, count))


def _check_intrinsic(intrinsic: Tensor, views: Sequence[int]) -> None:
    scenes, count = views
    fits = intrinsic.shape[:-2] in ((scenes, count), (scenes,)) and intrinsic.shape[-2:] in ((3, 3), (4, 4))
    if not fits:
        wanted = f"[B={scenes}, V={count}, 4, 4], [B, V, 3, 3], [B, 4, 4] or [B, 3, 3]"
        raise ValueError(f"intrinsic: expected shape {wanted}, got {list(intrinsic.shape)}")
