"""Reference renderer: the plain formulas, differentiated twice by autograd. Slow; the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._constants import DEPTH_EPS, NORMAL_FLOOR, TRANSMITTANCE_EPS
from ponder_kernels.render.chunk import Normalisation
from ponder_kernels.render.samples import sample_targets
from ponder_kernels.render.types import FieldWeights, RayTargets, RenderedRays, SampleOutputs
from ponder_kernels.sdf_density.reference import (
    alpha_from_density_reference,
    laplace_density_reference,
    neus_alpha_reference,
)
from ponder_kernels.sdf_field.chain import Layer
from ponder_kernels.sdf_field.plain import PlainDecoder
from ponder_kernels.sdf_field.weights import softplus
from ponder_kernels.volume_sample.reference import volume_sample_reference


def run_chain(layers: Sequence[Layer], z: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """x_{l+1} = previous act(x_l) + inputs z + bias, on [..., I]."""
    x = z
    for layer in layers:
        y = z @ layer.inputs.T + layer.bias
        x = y if layer.previous is None else y + activation(x) @ layer.previous.T
    return x


class _Decoded(NamedTuple):
    sdf: Tensor
    gradient: Tensor
    heads: list[Tensor]


def _decode(
    volumes: Sequence[Tensor], field: FieldWeights, points: Tensor, directions: Tensor, box: Tensor,
    align_corners: bool, padding: str,
) -> _Decoded:  # fmt: skip
    """The field at points [B, N, 3]; the gradient by autograd."""
    low, high = box[:, None, 0], box[:, None, 1]
    inputs = field.sdf[0].inputs.shape[1] - 3 * field.points
    channels = inputs // len(volumes)
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        grid = 2 * (leaf - low) / (high - low) - 1
        sampled = [volume_sample_reference(v, grid, padding=padding, align_corners=align_corners) for v in volumes]
        first = torch.cat([s[..., :channels] for s in sampled], -1)
        second = first if field.shared else torch.cat([s[..., channels:] for s in sampled], -1)
        z = torch.cat([first, leaf], -1) if field.points else first
        rows = run_chain(field.sdf, z, softplus)
        (gradient,) = torch.autograd.grad(rows[..., 0].sum(), leaf, create_graph=True)
    heads = []
    for head in field.heads:
        parts = [gradient, second, rows[..., 1:]]
        parts += [directions] if head.directed else []
        parts += [points.detach()] if field.points else []
        out = run_chain(head.layers, torch.cat(parts, -1), torch.relu)
        heads.append(torch.sigmoid(out) if head.sigmoid else out)
    return _Decoded(rows[..., 0], gradient, heads)


def _weights(
    opacity: str, sdf: Tensor, cosine: Tensor, delta: Tensor, sharpness: Tensor, ratio: float, hit: Tensor
) -> Tensor:
    if opacity.startswith("neus"):
        alpha = neus_alpha_reference(sdf, cosine, delta, sharpness, ratio) * hit
        factors = 1 - alpha + TRANSMITTANCE_EPS
        return alpha * torch.cat([torch.ones_like(factors[..., :1]), factors[..., :-1].cumprod(-1)], -1)
    depth = delta * laplace_density_reference(sdf, sharpness) * hit
    before = torch.nn.functional.pad(depth[..., :-1].cumsum(-1), (1, 0))
    return alpha_from_density_reference(depth, torch.ones_like(depth)) * torch.exp(-before)


def render_rays_reference(
    volume: Tensor | Sequence[Tensor],
    field: FieldWeights,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    sharpness: Tensor,
    box: Tensor,
    *,
    opacity: str = "neus",
    cos_anneal_ratio: float = 1.0,
    hit: Tensor | None = None,
    targets: RayTargets | None = None,
    plain: PlainDecoder | None = None,
    align_corners: bool = False,
    padding: str = "border",
    sample_at: str = "middle",
    normalise: Normalisation | None = None,
    normal_floor: float = NORMAL_FLOOR,
    per_sample: bool = False,
) -> RenderedRays:
    """Same arguments and result as `render_rays`; any float dtype. `plain` is of no importance here."""
    volumes = [volume] if isinstance(volume, Tensor) else list(volume)
    batch, rays, samples = edges.shape[0], edges.shape[1], edges.shape[2] - 1
    grid = (batch, rays, samples)
    position = (edges[..., 1:] + edges[..., :-1]) / 2 if sample_at == "middle" else edges[..., :-1]
    delta = edges[..., 1:] - edges[..., :-1]
    points = (origins.unsqueeze(-2) + directions.unsqueeze(-2) * position.unsqueeze(-1)).reshape(batch, -1, 3)
    if normalise is not None:
        points = normalise(points)
    along = directions.unsqueeze(-2).expand(*grid, 3)
    decoded = _decode(volumes, field, points, along.reshape(points.shape), box, align_corners, padding)
    sdf, gradient = decoded.sdf.view(grid), decoded.gradient.view(*grid, 3)
    if hit is None:
        hit = torch.ones(batch, rays, dtype=torch.bool, device=edges.device)
    used = hit.unsqueeze(-1).expand(grid)
    weights = _weights(opacity, sdf, (gradient * along).sum(-1), delta, sharpness, cos_anneal_ratio, used)
    total = weights.sum(-1)
    norm = torch.linalg.vector_norm(gradient, dim=-1)
    unit = gradient / norm.clamp_min(normal_floor).unsqueeze(-1)
    goal = RayTargets(torch.zeros_like(total), torch.ones_like(total), 0.0) if targets is None else targets
    sample = sample_targets(goal, position, hit)
    return RenderedRays(
        heads=tuple((weights.unsqueeze(-1) * head.view(*grid, -1)).sum(-2) for head in decoded.heads),
        depth=(weights * position).sum(-1) / (total + DEPTH_EPS),
        opacity=total,
        normal=(weights.unsqueeze(-1) * unit).sum(-2),
        eikonal=((norm - 1) ** 2 * used).sum() / used.sum().clamp_min(1),
        free_space=((goal.truncation - sdf).clamp_min(0) * sample.front).sum() / sample.front.sum().clamp_min(1),
        sdf=((sdf - sample.sdf).abs() * sample.band).sum() / sample.band.sum().clamp_min(1),
        samples=SampleOutputs(weights, sdf, gradient) if per_sample else None,
    )
