"""Random pixels of posed frames as rays with targets: a pure function of the generator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponder.data.scene import Frames
from ponder.geometry import rays_through_pixels, z_depth_to_ray_depth


class SampledRays(NamedTuple):
    """R rays with the pixels they were drawn from.

    Attributes:
        origins, directions: [R, 3].
        rgb: [R, 3] in 0..1.
        ray_depth: [R] metres along the ray, 0 = missing.
        normal: [R, 3], 0 = missing.
    """

    origins: Tensor
    directions: Tensor
    rgb: Tensor
    ray_depth: Tensor
    normal: Tensor


def sample_rays(frames: Frames, views: int, rays: int, generator: torch.Generator) -> SampledRays:
    """Draw `rays` pixels, split evenly over `views` random frames (with repetition where there are fewer).

    Args:
        frames: the frames to draw from.
        views: frames to use.
        rays: R pixels in all; the remainder goes to the first views.
        generator: CPU generator.
    """
    height, width = frames.size
    if views <= len(frames):
        chosen = torch.randperm(len(frames), generator=generator)[:views]
    else:
        chosen = torch.randint(len(frames), (views,), generator=generator)
    view = chosen.repeat_interleave(-(-rays // views))[:rays]
    row = torch.randint(height, (rays,), generator=generator)
    column = torch.randint(width, (rays,), generator=generator)
    pixels = torch.stack([column + 0.5, row + 0.5], -1)
    return rays_of_pixels(frames, view, row, column, pixels)


def rays_of_pixels(frames: Frames, view: Tensor, row: Tensor, column: Tensor, pixels: Tensor) -> SampledRays:
    """Rays through given pixels: view, row, column [R] and their centres [R, 2]."""
    intrinsics = frames.intrinsics[view]
    origins, directions = rays_through_pixels(pixels, intrinsics, frames.camera_to_world[view])
    return SampledRays(
        origins,
        directions,
        frames.rgb[view, row, column].float() / 255,
        z_depth_to_ray_depth(frames.z_depth[view, row, column], pixels, intrinsics),
        frames.normal[view, row, column],
    )
