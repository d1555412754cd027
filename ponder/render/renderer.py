"""The NeuS renderer of the pipeline: place samples, evaluate the field, composite, in metres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ponder.render.decoders import Field
from ponder_kernels import (
    FieldWeights,
    HeadWeights,
    RayTargets,
    RenderedRays,
    intersect_aabb,
    merge_edges,
    render_rays,
    resample_edges,
    sdf_field,
    stratified_edges,
)
from ponder_kernels._constants import NEUS_ALPHA_EPS, SLOPE_EPS, TRANSMITTANCE_EPS


@dataclass(frozen=True)
class RendererConfig:
    """Settings of the renderer.

    Attributes:
        sdf_channels: volume channels that define the geometry.
        colour_channels: further volume channels that only colour sees.
        hidden: width of the decoders.
        geometry_channels: features that the SDF decoder hands to the colour decoder.
        uniform_samples: stratified bins per ray.
        importance_samples: extra bin edges placed where the SDF crosses 0.
        sampler_inv_s: sharpness used to place them, 1/m.
        initial_variance: v of the learned sharpness exp(10 v), 1/m.
        near: nearest sample, metres.
    """

    sdf_channels: int = 16
    colour_channels: int = 16
    hidden: int = 32
    geometry_channels: int = 16
    uniform_samples: int = 48
    importance_samples: int = 16
    sampler_inv_s: float = 48.0
    initial_variance: float = 0.3
    near: float = 0.05

    @property
    def volume_channels(self) -> int:
        """Channels of the volume that the renderer reads."""
        return self.sdf_channels + self.colour_channels


class RayBatch(NamedTuple):
    """Rays of B scenes: origins, unit directions [B, R, 3] in metres."""

    origins: Tensor
    directions: Tensor


class Decoders(NamedTuple):
    """Weights of one step as the kernels take them."""

    field: FieldWeights
    inv_s: Tensor


class NeusRenderer(nn.Module):
    """Renders rays from feature volumes.

    Importance sampling queries the field at the very coordinates that are rendered (PonderV2's released code does
    not). Training draws its jitter from a generator that the caller owns, so a step is a function of its seed.
    """

    def __init__(self, config: RendererConfig) -> None:
        super().__init__()
        self.config = config
        self.field = Field(
            config.sdf_channels,
            config.colour_channels,
            config.hidden,
            config.geometry_channels,
            config.initial_variance,
        )

    def collapse(self) -> Decoders:
        """Multiply the decoders out; gradients flow back to their parameters."""
        colour = HeadWeights(self.field.rgb_decoder.layers(), directed=True, sigmoid=True)
        return Decoders(FieldWeights(self.field.sdf_decoder.layers(), (colour,)), self.field.deviation_network())

    def forward(
        self,
        volume: Tensor,
        box: Tensor,
        rays: RayBatch,
        targets: RayTargets | None = None,
        generator: torch.Generator | None = None,
    ) -> RenderedRays:
        """Render rays.

        Args:
            volume: [B, C, D, H, W] features, C = config.volume_channels.
            box: [B, 2, 3] metres.
            rays: B x R rays.
            targets: measured depths for the geometric loss terms.
            generator: CPU generator for jittered samples; None places them regularly.
        """
        decoders = self.collapse()
        interval = intersect_aabb(rays.origins, rays.directions, box.unsqueeze(1), near_min=self.config.near)
        jitter = _uniform((*interval.near.shape, self.config.uniform_samples + 1), interval.near, generator)
        edges = stratified_edges(interval.near, interval.far, self.config.uniform_samples, jitter)
        if self.config.importance_samples:
            edges = self._refine(volume, box, rays, edges, decoders.field, generator)
        return render_rays(
            volume, decoders.field, rays.origins, rays.directions, edges, decoders.inv_s, box,
            hit=interval.hit, targets=targets,
        )  # fmt: skip

    @torch.no_grad()
    def _refine(
        self,
        volume: Tensor,
        box: Tensor,
        rays: RayBatch,
        edges: Tensor,
        field: FieldWeights,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Add bin edges near the surface (NeuS, arXiv 2106.10689, section 3.2, hierarchical sampling)."""
        middles = (edges[..., 1:] + edges[..., :-1]) / 2
        points = rays.origins.unsqueeze(-2) + rays.directions.unsqueeze(-2) * middles.unsqueeze(-1)
        batch, count, samples = middles.shape
        sdf = sdf_field(volume, field.sdf, points.reshape(batch, -1, 3), box, gradient=False).sdf
        coarse = coarse_weights(sdf.view(batch, count, samples), middles, self.config.sampler_inv_s)
        jitter = _uniform((batch, count, self.config.importance_samples), middles, generator)
        extra = resample_edges(middles, coarse, self.config.importance_samples, jitter)
        return merge_edges(edges, extra)


def coarse_weights(sdf: Tensor, position: Tensor, inv_s: float) -> Tensor:
    """Weights of the S - 1 intervals between S samples, from finite-difference slopes.

    Args:
        sdf: [..., S].
        position: [..., S] distances along the ray.
        inv_s: fixed sharpness, 1/m.

    Returns:
        [..., S - 1]; the slope of an interval is the smaller of its own and the previous one, at most 0, which keeps
        surfaces that face away from the ray out.
    """
    delta = position[..., 1:] - position[..., :-1]
    slope = (sdf[..., 1:] - sdf[..., :-1]) / (delta + SLOPE_EPS)
    previous = torch.cat([torch.zeros_like(slope[..., :1]), slope[..., :-1]], -1)
    slope = torch.minimum(slope, previous).clamp(-1e3, 0)
    middle = (sdf[..., 1:] + sdf[..., :-1]) / 2
    half = slope * delta / 2
    before, after = torch.sigmoid((middle - half) * inv_s), torch.sigmoid((middle + half) * inv_s)
    alpha = (before - after + NEUS_ALPHA_EPS) / (before + NEUS_ALPHA_EPS)
    factors = 1 - alpha + TRANSMITTANCE_EPS
    transmittance = torch.cat([torch.ones_like(factors[..., :1]), factors[..., :-1].cumprod(-1)], -1)
    return alpha * transmittance


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor | None:
    if generator is None:
        return None
    return torch.rand(shape, generator=generator, dtype=like.dtype).to(like.device)
