"""Whole images from a volume, a bounded number of rays at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ponder.geometry import pixel_grid, ray_depth_to_z_depth, rays_through_pixels
from ponder.render.renderer import NeusRenderer, RayBatch

# Rays rendered at once: some 20 MB of per-sample values at 64 samples.
RAYS_AT_ONCE = 8192


class Image(NamedTuple):
    """A rendered view: rgb [H, W, 3] in 0..1, z_depth [H, W] metres, world normal [H, W, 3], opacity [H, W]."""

    rgb: Tensor
    z_depth: Tensor
    normal: Tensor
    opacity: Tensor


def _nothing(_done: int, _total: int) -> None:
    return None


@torch.no_grad()
def render_image(
    renderer: NeusRenderer,
    volume: Tensor,
    box: Tensor,
    intrinsics: Tensor,
    camera_to_world: Tensor,
    size: tuple[int, int],
    progress: Callable[[int, int], None] = _nothing,
) -> Image:
    """Render one view without jitter.

    Args:
        renderer: the renderer.
        volume: [1, C, D, H, W].
        box: [1, 2, 3] metres.
        intrinsics: [3, 3] of an image of this size.
        camera_to_world: [4, 4].
        size: (height, width) in pixels.
        progress: called with (rays done, rays in all).

    Returns:
        Image on the CPU.
    """
    height, width = size
    pixels = pixel_grid(height, width).reshape(-1, 2)
    origins, directions = rays_through_pixels(pixels, intrinsics, camera_to_world)
    parts = []
    for start in range(0, len(pixels), RAYS_AT_ONCE):
        part = slice(start, start + RAYS_AT_ONCE)
        rays = RayBatch(origins[None, part].to(volume.device), directions[None, part].to(volume.device))
        out = renderer(volume, box, rays)
        columns = [out.rgb[0], out.depth[0, :, None], out.normal[0], out.opacity[0, :, None]]
        parts.append(torch.cat(columns, 1).cpu())
        progress(min(start + RAYS_AT_ONCE, len(pixels)), len(pixels))
    flat = torch.cat(parts)
    z_depth = ray_depth_to_z_depth(flat[:, 3], pixels, intrinsics)
    return Image(
        flat[:, 0:3].clamp(0, 1).view(height, width, 3),
        z_depth.view(height, width),
        flat[:, 4:7].view(height, width, 3),
        flat[:, 7].view(height, width),
    )
