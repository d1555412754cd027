"""One chunk of rays, forwards and backwards, in closed form.

Nothing but a few numbers per sample (distance to the surface, gradient, weight, colour) survives the forward pass; the
backward pass gathers the features again. The gradient of the SDF is computed forwards from the slopes of the trilinear
weights, so losses on it need one backward pass, not two. Notation: M = R*S samples of the chunk, K hidden units, Cs and
Cr channels; `x_bar` is the derivative of the loss with respect to x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._constants import NEUS_ALPHA_EPS, NORMAL_EPS, SOFTPLUS_BETA, TRANSMITTANCE_EPS
from ponder_kernels.render.samples import sample_targets
from ponder_kernels.render.types import ColourWeights, RayTargets
from ponder_kernels.sdf_field.gather import (
    Scatter,
    VolumeGeometry,
    find_corners,
    gather_rows,
    gather_slopes,
)
from ponder_kernels.sdf_field.weights import SdfWeights, decode_sdf_and_gradient


class Rays(NamedTuple):
    """A chunk of R rays: origins, directions [R, 3], edges [R, S + 1], scene [R], hit [R] and their targets."""

    origins: Tensor
    directions: Tensor
    edges: Tensor
    scene: Tensor
    hit: Tensor
    targets: RayTargets

    def position(self) -> Tensor:
        """[R, S] middles of the bins."""
        return (self.edges[:, 1:] + self.edges[:, :-1]) / 2

    def delta(self) -> Tensor:
        """[R, S] lengths of the bins."""
        return self.edges[:, 1:] - self.edges[:, :-1]

    def points(self) -> Tensor:
        """[R * S, 3] sample positions."""
        along = self.directions.unsqueeze(1) * self.position().unsqueeze(-1)
        return (self.origins.unsqueeze(1) + along).reshape(-1, 3)

    def sample_scene(self) -> Tensor:
        """[R * S] scene number of every sample."""
        return self.scene.repeat_interleave(self.edges.shape[1] - 1)


class Field(NamedTuple):
    """What the rays are rendered from: volume rows split in two halves, decoders, sharpness, geometry."""

    sdf_rows: Tensor
    colour_rows: Tensor
    sdf: SdfWeights
    colour: ColourWeights
    inv_s: Tensor
    geometry: VolumeGeometry


class Saved(NamedTuple):
    """Kept per sample for the backward pass: sdf, alpha [R, S], gradient and colour [R, S, 3]."""

    sdf: Tensor
    alpha: Tensor
    gradient: Tensor
    colour: Tensor


# Columns of the per-ray sums: colour 0:3, distance 3, opacity 4, unit normal 5:8.
RAY_SUMS = 8
# Entries of the summed loss terms: eikonal, free space, band.
LOSS_SUMS = 3


def _neus(sdf: Tensor, cosine: Tensor, delta: Tensor, inv_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Half step along the ray and the two sigmoids of the NeuS alpha (NeuS, arXiv 2106.10689, eq. 13)."""
    half = cosine.clamp_max(0) * delta / 2
    return half, torch.sigmoid((sdf - half) * inv_s), torch.sigmoid((sdf + half) * inv_s)


def _transmittance(alpha: Tensor) -> Tensor:
    factors = 1 - alpha + TRANSMITTANCE_EPS
    return torch.cat([torch.ones_like(factors[:, :1]), factors[:, :-1].cumprod(-1)], -1)


def _unit(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals and the reciprocal norm used, both finite at a zero gradient."""
    reciprocal = torch.rsqrt((gradient * gradient).sum(-1, keepdim=True) + NORMAL_EPS**2)
    return gradient * reciprocal, reciprocal


def forward_chunk(field: Field, rays: Rays) -> tuple[Tensor, Tensor, Saved]:
    """Render a chunk: per-ray sums [R, 8], summed loss terms [3], and what the backward pass needs."""
    count, samples = rays.edges.shape[0], rays.edges.shape[1] - 1
    corners = find_corners(rays.points(), rays.sample_scene(), field.geometry)
    features = gather_rows(field.sdf_rows, corners.bags, corners.weight)
    decoded = decode_sdf_and_gradient(features, field.sdf)
    slopes = gather_slopes(field.sdf_rows, corners)
    gradient = torch.stack([(slope * decoded.feature_gradient).sum(-1) for slope in slopes], -1)
    logits = decoded.hidden @ field.colour.hidden.T
    logits = logits.addmm_(features, field.colour.sdf_features.T)
    logits = logits.addmm_(gradient, field.colour.gradient.T)
    if field.colour_rows.shape[1]:
        second = gather_rows(field.colour_rows, corners.bags, corners.weight)
        logits = logits.addmm_(second, field.colour.features.T)
    per_ray = rays.directions @ field.colour.direction.T + field.colour.bias
    colour = torch.sigmoid(logits.view(count, samples, 3) + per_ray.unsqueeze(1))
    sdf = decoded.sdf.view(count, samples)
    gradient = gradient.view(count, samples, 3)
    cosine = (gradient * rays.directions.unsqueeze(1)).sum(-1)
    _, before, after = _neus(sdf, cosine, rays.delta(), field.inv_s)
    alpha = (before - after + NEUS_ALPHA_EPS) / (before + NEUS_ALPHA_EPS) * rays.hit.unsqueeze(-1)
    saved = Saved(sdf, alpha, gradient, colour)
    return _ray_sums(rays, saved), _loss_sums(rays, saved), saved


def _ray_sums(rays: Rays, saved: Saved) -> Tensor:
    weights = saved.alpha * _transmittance(saved.alpha)
    unit, _ = _unit(saved.gradient)
    position = rays.position().unsqueeze(-1)
    values = torch.cat([saved.colour, position, torch.ones_like(position), unit], -1)
    return torch.bmm(weights.unsqueeze(1), values).squeeze(1)


def _loss_sums(rays: Rays, saved: Saved) -> Tensor:
    goal = sample_targets(rays.targets, rays.position(), rays.hit)
    norm = torch.linalg.vector_norm(saved.gradient, dim=-1)
    eikonal = ((norm - 1) ** 2 * rays.hit.unsqueeze(-1)).sum()
    free_space = ((rays.targets.truncation - saved.sdf).clamp_min(0) * goal.front).sum()
    band = ((saved.sdf - goal.sdf).abs() * goal.band).sum()
    return torch.stack([eikonal, free_space, band])


class Gradients(NamedTuple):
    """Accumulated over chunks: volume rows [V, Cs + Cr], decoders, sharpness []."""

    rows: Tensor
    sdf: SdfWeights
    colour: ColourWeights
    inv_s: Tensor

    @classmethod
    def zeros(cls, field: Field) -> Gradients:
        """Zero gradients for a field."""
        return cls(
            field.sdf_rows.new_zeros(field.sdf_rows.shape[0], field.sdf_rows.shape[1] + field.colour_rows.shape[1]),
            SdfWeights(*(torch.zeros_like(w) for w in field.sdf)),
            ColourWeights(*(torch.zeros_like(w) for w in field.colour)),
            torch.zeros_like(field.inv_s),
        )


class _SampleBar(NamedTuple):
    """Derivatives with respect to per-sample values: sdf [M], gradient and colour logits [M, 3]."""

    sdf: Tensor
    gradient: Tensor
    logits: Tensor


def _weights_backward(alpha: Tensor, weights_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and the derivative with respect to alpha of w_i = alpha_i prod_{j<i} (1 - alpha_j + eps)."""
    transmittance = _transmittance(alpha)
    weights = alpha * transmittance
    # The sum over later samples is taken from the far end: a total minus a prefix would cancel, and it is divided by
    # a factor that is as small as TRANSMITTANCE_EPS behind an opaque sample.
    product = (weights_bar * weights)[:, 1:]
    behind = torch.nn.functional.pad(product.flip(-1).cumsum(-1).flip(-1), (0, 1))
    return weights, transmittance * weights_bar - behind / (1 - alpha + TRANSMITTANCE_EPS)


def _composite_backward(
    field: Field, rays: Rays, saved: Saved, sums_bar: Tensor, losses_bar: Tensor, out: Gradients
) -> _SampleBar:
    """From the upstream of per-ray sums [R, 8] and loss sums [3] to the per-sample values."""
    position, delta = rays.position(), rays.delta()
    unit, reciprocal = _unit(saved.gradient)
    columns = sums_bar.unsqueeze(1)
    weights_bar = (saved.colour * columns[..., 0:3]).sum(-1) + (unit * columns[..., 5:8]).sum(-1)
    weights_bar += position * columns[..., 3] + columns[..., 4]
    weights, alpha_bar = _weights_backward(saved.alpha, weights_bar)
    alpha_bar = alpha_bar * rays.hit.unsqueeze(-1)

    cosine = (saved.gradient * rays.directions.unsqueeze(1)).sum(-1)
    half, before, after = _neus(saved.sdf, cosine, delta, field.inv_s)
    denominator = before + NEUS_ALPHA_EPS
    before_arg = alpha_bar * after / denominator**2 * before * (1 - before)
    after_arg = -alpha_bar / denominator * after * (1 - after)
    out.inv_s.add_((before_arg * (saved.sdf - half) + after_arg * (saved.sdf + half)).sum())
    sdf_bar = field.inv_s * (before_arg + after_arg)
    cosine_bar = field.inv_s * (after_arg - before_arg) * delta / 2 * (cosine < 0)

    gradient_bar = cosine_bar.unsqueeze(-1) * rays.directions.unsqueeze(1)
    unit_bar = weights.unsqueeze(-1) * columns[..., 5:8]
    gradient_bar += reciprocal * (unit_bar - unit * (unit * unit_bar).sum(-1, keepdim=True))
    norm = torch.linalg.vector_norm(saved.gradient, dim=-1, keepdim=True)
    stretch = 2 * (norm - 1) / norm.clamp_min(torch.finfo(norm.dtype).tiny) * rays.hit[:, None, None]
    gradient_bar += losses_bar[0] * stretch * saved.gradient

    goal = sample_targets(rays.targets, position, rays.hit)
    sdf_bar -= losses_bar[1] * ((saved.sdf < rays.targets.truncation) & goal.front)
    sdf_bar += losses_bar[2] * torch.sign(saved.sdf - goal.sdf) * goal.band

    logits_bar = weights.unsqueeze(-1) * columns[..., 0:3] * saved.colour * (1 - saved.colour)
    out.colour.bias.add_(logits_bar.sum((0, 1)))
    out.colour.direction.add_(logits_bar.sum(1).T @ rays.directions)
    return _SampleBar(sdf_bar.reshape(-1), gradient_bar.reshape(-1, 3), logits_bar.reshape(-1, 3))


def backward_chunk(
    field: Field, rays: Rays, saved: Saved, sums_bar: Tensor, losses_bar: Tensor, out: Gradients
) -> None:
    """Add one chunk's derivatives to `out`, gathering its features again."""
    bar = _composite_backward(field, rays, saved, sums_bar, losses_bar, out)
    corners = find_corners(rays.points(), rays.sample_scene(), field.geometry)
    features = gather_rows(field.sdf_rows, corners.bags, corners.weight)
    decoded = decode_sdf_and_gradient(features, field.sdf)

    gradient_bar = torch.addmm(bar.gradient, bar.logits, field.colour.gradient)
    out.colour.gradient.addmm_(bar.logits.T, saved.gradient.view(-1, 3))
    out.colour.hidden.addmm_(bar.logits.T, decoded.hidden)
    out.colour.sdf_features.addmm_(bar.logits.T, features)

    # The gradient is linear in the slopes of the features: its cotangent picks one directional slope per sample.
    slope_weight = (gradient_bar.T.contiguous()[:, None] * corners.slope).sum(0)
    direction_bar = gather_rows(field.sdf_rows, corners.bags, slope_weight)
    scaled = decoded.slope * field.sdf.out_hidden
    scaled_bar = direction_bar @ field.sdf.hidden_weight.T
    hidden_bar = torch.outer(bar.sdf, field.sdf.out_hidden).addmm_(bar.logits, field.colour.hidden)
    curvature = SOFTPLUS_BETA * (1 - decoded.slope) * field.sdf.out_hidden * scaled_bar
    x_bar = decoded.slope * (hidden_bar + curvature)

    out.sdf.hidden_weight.addmm_(scaled.T, direction_bar).addmm_(x_bar.T, features)
    out.sdf.hidden_bias.add_(x_bar.sum(0))
    out.sdf.out_hidden.add_((scaled_bar * decoded.slope).sum(0)).addmv_(decoded.hidden.T, bar.sdf)
    out.sdf.out_linear.add_(direction_bar.sum(0)).addmv_(features.T, bar.sdf)
    out.sdf.out_bias.add_(bar.sdf.sum())

    features_bar = torch.outer(bar.sdf, field.sdf.out_linear).addmm_(x_bar, field.sdf.hidden_weight)
    features_bar.addmm_(bar.logits, field.colour.sdf_features)
    scatter = Scatter(corners.rows)
    channels = features.shape[1]
    sums = scatter.sums(slope_weight, decoded.feature_gradient)
    if field.colour_rows.shape[1]:
        second = gather_rows(field.colour_rows, corners.bags, corners.weight)
        out.colour.features.addmm_(bar.logits.T, second)
        values = torch.cat([features_bar, bar.logits @ field.colour.features], 1)
        whole = scatter.sums(corners.weight, values)
        whole[:, :channels] += sums
    else:
        whole = scatter.sums(corners.weight, features_bar).add_(sums)
    out.rows.index_add_(0, scatter.rows, whole)
