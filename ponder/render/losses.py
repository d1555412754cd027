"""Rendering losses. Each is finite for finite predictions, whatever the targets: masked means divide by at least 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels import RayTargets, RenderedRays

# Below this |cosine| between ray and surface a measured depth says nothing reliable about the distance to the surface.
MIN_SLOPE = 0.1


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms, and the truncation of the SDF terms.

    Attributes:
        colour, depth, normal, sdf, free_space, eikonal: weights; 0 switches a term off.
        truncation: half width of the supervised band, metres.
    """

    colour: float = 10.0
    depth: float = 1.0
    normal: float = 0.1
    sdf: float = 10.0
    free_space: float = 1.0
    eikonal: float = 0.05
    truncation: float = 0.15


class PixelTargets(NamedTuple):
    """Measured pixels of B x R rays.

    Attributes:
        rgb: [B, R, 3] in 0..1.
        ray_depth: [B, R] distance along the unit ray, metres; 0 = missing.
        normal: [B, R, 3] unit normals facing the camera; 0 = missing.
    """

    rgb: Tensor
    ray_depth: Tensor
    normal: Tensor


def ray_targets(pixels: PixelTargets, directions: Tensor, truncation: float) -> RayTargets:
    """Targets of the per-sample terms; pixels without a normal count as seen head-on."""
    cosine = (pixels.normal * directions).sum(-1).abs()
    known = (pixels.normal != 0).any(-1)
    slope = torch.where(known, cosine.clamp_min(MIN_SLOPE), torch.ones_like(cosine))
    return RayTargets(pixels.ray_depth, slope, truncation)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp_min(1)


def loss_terms(rendered: RenderedRays, pixels: PixelTargets) -> dict[str, Tensor]:
    """Unweighted terms, all scalars.

    `colour` is the mean L1 over all rays; `depth` the mean L1 over measured rays, metres; `normal` the mean of
    |N - n|_1 + (1 - N . n) over rays with a normal; the others come reduced from the renderer. Of no rays all are 0.
    """
    measured = (pixels.ray_depth > 0).to(rendered.depth.dtype)
    oriented = (pixels.normal != 0).any(-1).to(rendered.depth.dtype)
    difference = (rendered.normal - pixels.normal).abs().sum(-1)
    angle = 1 - (rendered.normal * pixels.normal).sum(-1)
    return {
        "colour": (rendered.rgb - pixels.rgb).abs().sum() / max(pixels.rgb.numel(), 1),
        "depth": _masked_mean((rendered.depth - pixels.ray_depth).abs(), measured),
        "normal": _masked_mean(difference + angle, oriented),
        "sdf": rendered.sdf,
        "free_space": rendered.free_space,
        "eikonal": rendered.eikonal,
    }


def total_loss(terms: dict[str, Tensor], config: LossConfig) -> Tensor:
    """Weighted sum of the terms whose weight is not 0."""
    parts = [getattr(config, name) * term for name, term in terms.items() if getattr(config, name)]
    if not parts:
        raise ValueError("loss: expected at least one weight above 0, got all 0")
    return torch.stack(parts).sum()
