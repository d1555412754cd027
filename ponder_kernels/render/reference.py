"""Reference renderer: the plain formulas, differentiated twice by autograd. Slow; the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels._constants import DEPTH_EPS, NEUS_ALPHA_EPS, NORMAL_EPS, TRANSMITTANCE_EPS
from ponder_kernels.render.samples import sample_targets
from ponder_kernels.render.types import ColourWeights, RayTargets, RenderedRays
from ponder_kernels.sdf_field.weights import SdfWeights, softplus


def _sample(volume: Tensor, points: Tensor, box: Tensor, align_corners: bool, padding: str) -> Tensor:
    from ponder_kernels.volume_sample.reference import volume_sample_reference

    low, high = box[:, None, 0], box[:, None, 1]
    grid = 2 * (points - low) / (high - low) - 1
    return volume_sample_reference(volume, grid, padding=padding, align_corners=align_corners)


def render_rays_reference(
    volume: Tensor,
    sdf_weights: SdfWeights,
    colour_weights: ColourWeights,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    inv_s: Tensor,
    box: Tensor,
    *,
    hit: Tensor,
    targets: RayTargets,
    align_corners: bool = False,
    padding: str = "border",
) -> RenderedRays:
    """Same arguments and result as `render_rays`, all of them required; any float dtype."""
    batch, rays, samples = edges.shape[0], edges.shape[1], edges.shape[2] - 1
    position = (edges[..., 1:] + edges[..., :-1]) / 2
    delta = edges[..., 1:] - edges[..., :-1]
    points = origins.unsqueeze(-2) + directions.unsqueeze(-2) * position.unsqueeze(-1)
    points = points.reshape(batch, rays * samples, 3).detach().requires_grad_()
    with torch.enable_grad():
        features = _sample(volume, points, box, align_corners, padding)
        channels = sdf_weights.out_linear.shape[0]
        first, second = features[..., :channels], features[..., channels:]
        hidden = softplus(first @ sdf_weights.hidden_weight.T + sdf_weights.hidden_bias)
        sdf = hidden @ sdf_weights.out_hidden + first @ sdf_weights.out_linear + sdf_weights.out_bias
        (gradient,) = torch.autograd.grad(sdf.sum(), points, create_graph=True)
    ray_directions = directions.unsqueeze(-2).expand(batch, rays, samples, 3).reshape(points.shape)
    logits = (
        hidden @ colour_weights.hidden.T
        + first @ colour_weights.sdf_features.T
        + second @ colour_weights.features.T
        + gradient @ colour_weights.gradient.T
        + ray_directions @ colour_weights.direction.T
        + colour_weights.bias
    )
    grid = (batch, rays, samples)
    colour = torch.sigmoid(logits).view(*grid, 3)
    sdf, gradient = sdf.view(grid), gradient.view(*grid, 3)
    cosine = (gradient * directions.unsqueeze(-2)).sum(-1)
    half = cosine.clamp_max(0) * delta / 2
    before, after = torch.sigmoid((sdf - half) * inv_s), torch.sigmoid((sdf + half) * inv_s)
    alpha = (before - after + NEUS_ALPHA_EPS) / (before + NEUS_ALPHA_EPS) * hit.unsqueeze(-1)
    factors = 1 - alpha + TRANSMITTANCE_EPS
    transmittance = torch.cat([torch.ones_like(factors[..., :1]), factors[..., :-1].cumprod(-1)], -1)
    weights = alpha * transmittance
    opacity = weights.sum(-1)
    unit = gradient * torch.rsqrt((gradient**2).sum(-1, keepdim=True) + NORMAL_EPS**2)
    norm = torch.linalg.vector_norm(gradient, dim=-1)
    goal = sample_targets(targets, position, hit)
    used = hit.unsqueeze(-1).expand(grid)
    return RenderedRays(
        rgb=(weights.unsqueeze(-1) * colour).sum(-2),
        depth=(weights * position).sum(-1) / (opacity + DEPTH_EPS),
        opacity=opacity,
        normal=(weights.unsqueeze(-1) * unit).sum(-2),
        eikonal=((norm - 1) ** 2 * used).sum() / used.sum().clamp_min(1),
        free_space=((targets.truncation - sdf).clamp_min(0) * goal.front).sum() / goal.front.sum().clamp_min(1),
        sdf=((sdf - goal.sdf).abs() * goal.band).sum() / goal.band.sum().clamp_min(1),
    )
