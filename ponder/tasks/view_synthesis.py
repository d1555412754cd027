"""Compare rendered views with frames that were kept out of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from ponder.data.scene import Frames
from ponder.models.pretrainer import PonderModel, Volume
from ponder.render.image import Image, render_image

# PSNR of a perfect 8-bit image is bounded by rounding; this floor on the error keeps it finite.
MIN_MSE = 1e-10


class ViewMetrics(NamedTuple):
    """Metrics of one view.

    Attributes:
        name: frame name.
        psnr: dB over all pixels and channels.
        psnr_mean_colour: the same for the constant image of this frame's own mean colour (the best constant image).
        ssim: structural similarity (Wang et al. 2004), mean over channels.
        depth_mae, depth_rmse: metres of z-depth over measured pixels; NaN where none is measured.
    """

    name: str
    psnr: float
    psnr_mean_colour: float
    ssim: float
    depth_mae: float
    depth_rmse: float


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio of images in 0..1, dB."""
    mse = float(((first - second) ** 2).mean())
    return -10 * math.log10(max(mse, MIN_MSE))


def compare(name: str, image: Image, rgb: Tensor, z_depth: Tensor) -> ViewMetrics:
    """Metrics of a rendered image against a frame: rgb [H, W, 3] in 0..1, z_depth [H, W] metres (0 = missing)."""
    constant = rgb.mean((0, 1), keepdim=True).expand_as(rgb)
    window = min(7, (min(rgb.shape[:2]) - 1) // 2 * 2 + 1)
    similarity = structural_similarity(rgb.numpy(), image.rgb.numpy(), channel_axis=2, data_range=1.0, win_size=window)
    error = (image.z_depth - z_depth)[z_depth > 0]
    return ViewMetrics(
        name,
        psnr(image.rgb, rgb),
        psnr(constant, rgb),
        float(similarity),
        float(error.abs().mean()),
        float(error.square().mean().sqrt()),
    )


def summarise(views: list[ViewMetrics]) -> dict[str, float]:
    """Means over views; depth metrics over the views that have depth. `views` is their number."""
    if not views:
        raise ValueError("views: expected at least one view, got none")
    summary: dict[str, float] = {}
    for key in ViewMetrics._fields[1:]:
        values = [getattr(view, key) for view in views if math.isfinite(getattr(view, key))]
        summary[key] = sum(values) / len(values) if values else 0.0
    summary["views"] = len(views)
    return summary


def evaluate_views(
    model: PonderModel, volume: Volume, frames: Frames, progress: Callable[[int, int], None]
) -> tuple[list[ViewMetrics], list[Image]]:
    """Render every frame's view at the frame's own size and compare.

    Args:
        model: in eval mode.
        volume: one encoded scene.
        frames: views in the same world frame.
        progress: called with (views done, views in all).
    """
    metrics, images = [], []
    for index, name in enumerate(frames.names):
        progress(index, len(frames))
        image = render_image(
            model.renderer, volume.features, volume.box, frames.intrinsics[index], frames.camera_to_world[index],
            frames.size,
        )  # fmt: skip
        metrics.append(compare(name, image, frames.rgb[index].float() / 255, frames.z_depth[index]))
        images.append(image)
    progress(len(frames), len(frames))
    return metrics, images


@torch.no_grad()
def mesh_distance(vertices: Tensor, surface: Callable[[Tensor], Tensor]) -> float:
    """Median distance of mesh vertices [V, 3] to a surface given by its unsigned distance function, metres."""
    return float(surface(vertices).median())
