"""One chunk of rays, forwards and backwards, in closed form.

Only the distance and its gradient survive the forward pass, 16 bytes per sample; the backward pass gathers the features
and runs the decoders again. The gradient of the SDF is computed forwards from the slopes of the trilinear weights, so
losses on it need one backward pass, not two. Notation: R rays, S samples each, M = R * S; `x_bar` is the derivative of
the loss with respect to x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels.render.heads import GRADIENT, HIDDEN, INPUT, Head, head_backward, head_forward
from ponder_kernels.render.opacity import Opacity, opacity
from ponder_kernels.render.samples import sample_targets
from ponder_kernels.render.types import RayTargets
from ponder_kernels.sdf_field.chain import (
    Chain,
    ChainBar,
    Hidden,
    Slopes,
    Workspace,
    activate,
    chain_backward,
    distance,
    input_gradient,
)
from ponder_kernels.sdf_field.volumes import Samples, SplitVolume, VolumeGradient, locate

# Per-ray sums that every call makes: position along the ray, opacity, unit normal.
DEPTH, OPACITY, NORMAL, OUTPUTS = 0, 1, 2, 5
# Entries of the summed loss terms: eikonal, free space, band.
LOSS_SUMS = 3


@dataclass(frozen=True)
class Settings:
    """What does not depend on tensors.

    Attributes:
        model: "neus" or "volsdf".
        middles: samples at the middles of the bins (True) or at their starts.
        cos_anneal_ratio: of the NeuS slope.
        normal_floor: smallest norm that a gradient is divided by.
        truncation: half width of the supervised band.
        points: whether points are appended to the features.
        activations: per head, what its output passes; names in `heads.ACTIVATIONS`.
        carry: whether the blocks of the heads are composited, for layers applied per ray.
    """

    model: str
    middles: bool
    cos_anneal_ratio: float
    normal_floor: float
    truncation: float
    points: bool
    activations: tuple[str, ...]
    carry: bool


class Field(NamedTuple):
    """What the rays are rendered from; the SDF chain is scaled and ends in one row, heads are those per sample."""

    volumes: list[SplitVolume]
    sdf: Chain
    heads: tuple[Head, ...]
    sharpness: Tensor


class Rays(NamedTuple):
    """R rays: origins, directions [R, 3], edges [R, S + 1], scene [R], measured depth and slope [R], hit [R] or None.

    `low`, `high` [R, 3] or None bound the points (see `render_rays`).
    """

    origins: Tensor
    directions: Tensor
    edges: Tensor
    scene: Tensor
    ray_depth: Tensor
    slope: Tensor
    hit: Tensor | None

    def part(self, rows: slice) -> Rays:
        """Some of the rays."""
        return Rays(*(None if v is None else v[rows] for v in self))  # type: ignore[arg-type]


class Frame(NamedTuple):
    """Geometry of a chunk's samples: position along the ray and bin length [R, S], where they lie in the volumes."""

    position: Tensor
    delta: Tensor
    samples: Samples
    points: Tensor


class Decoded(NamedTuple):
    """Decoder state of a chunk: input z and its slopes, hidden activations, second channels."""

    z: Tensor
    hidden: Hidden
    slopes: Slopes
    second: Tensor


class Renderer:
    """Renders chunks of rays with one set of buffers."""

    def __init__(self, field: Field, settings: Settings, normalise: Normalisation) -> None:
        self.field, self.settings, self.normalise = field, settings, normalise
        self.work = Workspace(field.sdf[0].inputs)
        self.needs_second = any(layer.blocks[1].shape[1] for head in field.heads for layer in head)

    def frame(self, rays: Rays) -> Frame:
        """Sample positions of a chunk."""
        starts, ends = rays.edges[:, :-1], rays.edges[:, 1:]
        position = (starts + ends) / 2 if self.settings.middles else starts
        along = rays.directions.unsqueeze(1) * position.unsqueeze(-1)
        points = self.normalise((rays.origins.unsqueeze(1) + along).reshape(-1, 3))
        scene = rays.scene.repeat_interleave(position.shape[1])
        return Frame(position, ends - starts, locate(self.field.volumes, points, scene), points)

    def decode(self, frame: Frame) -> Decoded:
        """Gather the features and run the SDF chain."""
        volumes, chain = self.field.volumes, self.field.sdf
        z = frame.samples.features(volumes, second=False)
        if self.settings.points:
            z = torch.cat([z, frame.points], 1)
        second = z[:, :0]
        if self.needs_second or self.settings.carry:
            second = frame.samples.features(volumes, second=True) if volumes[0].second is not None else second
        hidden = activate(chain, z, self.work)
        return Decoded(z, hidden, input_gradient(chain, hidden, z.shape[0], self.work), second)

    def gradient(self, frame: Frame, decoded: Decoded) -> Tensor:
        """d sdf / d point [M, 3]."""
        out = frame.samples.slopes(self.field.volumes, decoded.slopes.z)
        if self.settings.points:
            out.add_(decoded.slopes.z[:, -3:])
        return out

    def blocks(self, decoded: Decoded, gradient: Tensor) -> list[Tensor]:
        """What the heads see, in their order."""
        last = decoded.hidden.values[-1] if decoded.hidden.values else decoded.z[:, :0]
        return [gradient, decoded.second, last, decoded.z]

    def heads(self, blocks: Sequence[Tensor], directions: Tensor, samples: int) -> list[tuple[Tensor, list[Tensor]]]:
        """Output [M, O] and activations of the hidden layers of every head."""
        pairs = zip(self.field.heads, self.settings.activations, strict=True)
        return [
            head_forward(head, activation, blocks, directions, samples, self.work, f"head{number}")
            for number, (head, activation) in enumerate(pairs)
        ]

    def opacity(self, rays: Rays, frame: Frame, sdf: Tensor, gradient: Tensor) -> tuple[Opacity, Tensor]:
        """The opacity model of a chunk and its weights [R, S]."""
        cosine = (gradient * rays.directions.unsqueeze(1)).sum(-1)
        model = opacity(
            self.settings.model, sdf, cosine, frame.delta, self.field.sharpness, self.settings.cos_anneal_ratio
        )
        if rays.hit is not None:
            model.mask(rays.hit)
        return model, model.weights()

    def unit(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Unit normals, and the norms they were divided by."""
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True).clamp_min(self.settings.normal_floor)
        return gradient / norm, norm

    def forward(self, rays: Rays, sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fill the per-ray sums; return loss sums [3], weights and sdf [R, S], gradient [R, S, 3]."""
        frame = self.frame(rays)
        shape = frame.position.shape
        decoded = self.decode(frame)
        sdf = distance(self.field.sdf, decoded.z, decoded.hidden).view(shape)
        flat = self.gradient(frame, decoded)
        gradient = flat.view(*shape, 3)
        blocks = self.blocks(decoded, flat)
        outputs = [output for output, _ in self.heads(blocks, rays.directions, shape[1])]
        _, weights = self.opacity(rays, frame, sdf, gradient)
        position = frame.position.unsqueeze(-1)
        values = [position, torch.ones_like(position), self.unit(gradient)[0], *(o.view(*shape, -1) for o in outputs)]
        if self.settings.carry:
            values += [block.view(*shape, -1) for block in blocks]
        start = 0
        for value in values:
            width = value.shape[-1]
            sums[:, start : start + width] = torch.bmm(weights.unsqueeze(1), value).squeeze(1)
            start += width
        return self.loss_sums(rays, frame, sdf, gradient), weights, sdf, gradient

    def loss_sums(self, rays: Rays, frame: Frame, sdf: Tensor, gradient: Tensor) -> Tensor:
        """Summed eikonal, free-space and band terms."""
        goal = sample_targets(
            RayTargets(rays.ray_depth, rays.slope, self.settings.truncation), frame.position, rays.hit
        )
        excess = (torch.linalg.vector_norm(gradient, dim=-1) - 1) ** 2
        if rays.hit is not None:
            excess = excess * rays.hit.unsqueeze(-1)
        free_space = ((self.settings.truncation - sdf).clamp_min(0) * goal.front).sum()
        return torch.stack([excess.sum(), free_space, ((sdf - goal.sdf).abs() * goal.band).sum()])


class Normalisation(NamedTuple):
    """q = clamp(p * scale + offset): what the field takes for a point p; the SDF's gradient is with respect to q.

    With `snap`, q is rounded as by a trip through grid_sample's range [-1, 1]: the SDF's gradient jumps between voxels,
    and a point on a face of a voxel, such as where a ray enters the volume, should fall on grid_sample's side of it.
    """

    scale: float
    offset: float
    low: float
    high: float
    snap: bool = False

    def __call__(self, points: Tensor) -> Tensor:
        """Apply to [M, 3]."""
        if self == IDENTITY:
            return points
        out = points
        if (self.scale, self.offset) != (1.0, 0.0):
            # PonderV2 divides, and in float32 a product rounds differently.
            out = points / (1 / self.scale) + self.offset
        if (self.low, self.high) != IDENTITY[2:4]:
            # PonderV2 moves what lies at or beyond the far face just inside; the near face is clamped.
            out = torch.where(out >= 1, self.high, out).clamp_min_(self.low)
        return ((out * 2 - 1) + 1) / 2 if self.snap else out


IDENTITY = Normalisation(1.0, 0.0, -float("inf"), float("inf"))


class FieldBar(NamedTuple):
    """Derivatives summed over chunks, in the shapes of `Field`."""

    volumes: list[VolumeGradient]
    sdf: Chain
    heads: tuple[Head, ...]
    sharpness: Tensor


class RayBar(NamedTuple):
    """Upstream derivatives of a chunk: by per-ray sums, loss sums, and the per-sample outputs where they were given."""

    sums: Tensor
    losses: Tensor
    weights: Tensor | None
    sdf: Tensor | None
    gradient: Tensor | None


class SampleBar(NamedTuple):
    """Derivatives by sdf [M] and gradient [M, 3], and the weights [R, S] of the samples."""

    sdf: Tensor
    gradient: Tensor
    weights: Tensor


def render_backward(renderer: Renderer, rays: Rays, sdf: Tensor, gradient: Tensor, bar: RayBar, out: FieldBar) -> None:
    """Add one chunk's derivatives to `out`; sdf [R, S] and gradient [R, S, 3] are those of the forward pass."""
    field, settings, work = renderer.field, renderer.settings, renderer.work
    frame = renderer.frame(rays)
    shape = frame.position.shape
    decoded = renderer.decode(frame)
    blocks = renderer.blocks(decoded, gradient.reshape(-1, 3))
    heads = renderer.heads(blocks, rays.directions, shape[1])
    outputs = [output for output, _ in heads]
    sample = _composite_backward(renderer, rays, frame, sdf, gradient, outputs, blocks, bar, out)

    rows = blocks[0].shape[0]
    blocks_bar: list[Tensor | None] = [sample.gradient]
    for number, block in enumerate(blocks[1:], 1):
        blocks_bar.append(work(f"block bar {number}", rows, block.shape[1]) if block.shape[1] else None)
    carried = _carried(bar.sums, blocks) if settings.carry else None
    for number, block_bar in enumerate(blocks_bar):
        if block_bar is None:
            continue
        view = block_bar.view(*shape, -1)
        if carried is None:
            view.zero_() if number != GRADIENT else None
        elif number == GRADIENT:
            view.addcmul_(sample.weights.unsqueeze(-1), carried[number].unsqueeze(1))
        else:
            torch.mul(sample.weights.unsqueeze(-1), carried[number].unsqueeze(1), out=view)
    start = OUTPUTS
    for head, head_out, activation, found in zip(field.heads, out.heads, settings.activations, heads, strict=True):
        width = found[0].shape[1]
        head_bar = (sample.weights.unsqueeze(-1) * bar.sums[:, None, start : start + width]).view(-1, width)
        head_backward(head, activation, blocks, rays.directions, found, head_bar, blocks_bar, head_out)
        start += width

    along = blocks_bar[GRADIENT]
    assert along is not None
    weights_along = frame.samples.along(along)
    by_z = frame.samples.directional(field.volumes, weights_along)
    if settings.points:
        by_z = torch.cat([by_z, along], 1)
    z_slopes = decoded.slopes.z
    z_bar = blocks_bar[INPUT]
    assert z_bar is not None
    chain_bar = ChainBar(sample.sdf, by_z, z_bar, blocks_bar[HIDDEN])
    z_bar = chain_backward(field.sdf, decoded.z, decoded.hidden, decoded.slopes, chain_bar, out.sdf, work)
    frame.samples.scatter(field.volumes, out.volumes, z_bar, z_slopes, weights_along, blocks_bar[1])


def _carried(sums_bar: Tensor, blocks: Sequence[Tensor]) -> list[Tensor]:
    """The upstream of the composited blocks, [R, *] each: the last columns of the sums."""
    widths = [block.shape[1] for block in blocks]
    return list(sums_bar[:, sums_bar.shape[1] - sum(widths) :].split(widths, dim=1))


def _weights_bar(
    renderer: Renderer, frame: Frame, unit: Tensor, outputs: Sequence[Tensor], blocks: Sequence[Tensor], bar: RayBar
) -> Tensor:
    """Derivative by the weights [R, S]: every composited value times the upstream of its sum."""
    shape = frame.position.shape
    out = frame.position * bar.sums[:, DEPTH : DEPTH + 1] + bar.sums[:, OPACITY : OPACITY + 1]
    if bar.weights is not None:
        out = out + bar.weights
    values = [unit, *(o.view(*shape, -1) for o in outputs)]
    if renderer.settings.carry:
        values += [block.view(*shape, -1) for block in blocks]
    upstream = bar.sums[:, NORMAL:].split([v.shape[-1] for v in values], 1)
    for value, column in zip(values, upstream, strict=True):
        if value.shape[-1]:
            out += torch.bmm(value, column.unsqueeze(-1)).squeeze(-1)
    return out


def _composite_backward(
    renderer: Renderer,
    rays: Rays,
    frame: Frame,
    sdf: Tensor,
    gradient: Tensor,
    outputs: Sequence[Tensor],
    blocks: Sequence[Tensor],
    bar: RayBar,
    out: FieldBar,
) -> SampleBar:
    """From the per-ray upstream to the per-sample values that the opacities and losses depend on."""
    settings = renderer.settings
    unit, norm = renderer.unit(gradient)
    model, weights = renderer.opacity(rays, frame, sdf, gradient)
    found = model.backward(weights, _weights_bar(renderer, frame, unit, outputs, blocks, bar), rays.hit)
    out.sharpness.add_(found.sharpness)
    sdf_bar = found.sdf
    gradient_bar = found.cosine.unsqueeze(-1) * rays.directions.unsqueeze(1)
    unit_bar = weights.unsqueeze(-1) * bar.sums[:, None, NORMAL:OUTPUTS]
    # Below the floor the norm is a constant and only the first term remains.
    radial = unit * (unit * unit_bar).sum(-1, keepdim=True) * (norm > settings.normal_floor)
    gradient_bar += (unit_bar - radial) / norm
    length = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    # Of a zero gradient the direction is 0; the division comes first, for 1 / tiny times anything may overflow.
    stretch = 2 * (length - 1) * (gradient / length.clamp_min(torch.finfo(length.dtype).tiny))
    if rays.hit is not None:
        stretch = stretch * rays.hit[:, None, None]
    gradient_bar += bar.losses[0] * stretch
    goal = sample_targets(RayTargets(rays.ray_depth, rays.slope, settings.truncation), frame.position, rays.hit)
    sdf_bar = sdf_bar - bar.losses[1] * ((sdf < settings.truncation) & goal.front)
    sdf_bar += bar.losses[2] * torch.sign(sdf - goal.sdf) * goal.band
    if bar.sdf is not None:
        sdf_bar += bar.sdf
    if bar.gradient is not None:
        gradient_bar += bar.gradient
    return SampleBar(sdf_bar.reshape(-1), gradient_bar.reshape(-1, 3), weights)
