"""One chunk of rays, forwards and backwards, in closed form.

Only the distance and its gradient survive the forward pass, 16 bytes per sample; the backward pass gathers the features
and runs the decoders again. The gradient of the SDF is computed forwards from the slopes of the trilinear weights, so
losses on it need one backward pass, not two. Notation: R rays, S samples each, M = R * S; `x_bar` is the derivative of
the loss with respect to x. Vectors per sample, [R, S, 3] or [M, 3], are kept with all x side by side in memory, then
all y, then all z: on rows of three numbers torch's operations take several times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._workspace import Workspace
from ponder_kernels.render.heads import FEATURES, Head, heads_backward, heads_forward
from ponder_kernels.render.opacity import Opacity, opacity
from ponder_kernels.render.rows import Blocks, Rows, add_rows, affine, product, rows_backward, stack_rows
from ponder_kernels.render.samples import sample_targets
from ponder_kernels.render.types import RayTargets
from ponder_kernels.sdf_field.chain import (
    Chain,
    ChainBar,
    Hidden,
    Slopes,
    activate,
    chain_backward,
    input_gradient,
    map_tensors,
)
from ponder_kernels.sdf_field.plain import PlainDecoder, plain_distance, plain_features
from ponder_kernels.sdf_field.volumes import Growth, Samples, SplitVolume, locate

# Per-ray sums that every call makes: position along the ray, opacity, unit normal.
DEPTH, OPACITY, NORMAL, OUTPUTS = 0, 1, 2, 5
# Entries of the summed loss terms: eikonal, free space, band.
LOSS_SUMS = 3


@dataclass(frozen=True)
class Settings:
    """What does not depend on tensors.

    Attributes:
        model: a name of `opacity.MODELS`.
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
    """R rays: origins, directions [R, 3], edges [R, S + 1], scene, measured depth and slope [R], hit [R] or None."""

    origins: Tensor
    directions: Tensor
    edges: Tensor
    scene: Tensor
    ray_depth: Tensor
    slope: Tensor
    hit: Tensor | None

    def part(self, rows: slice | Tensor) -> Rays:
        """Some of the rays."""
        return Rays(*(None if v is None else v[rows] for v in self))  # type: ignore[arg-type]


class Normals(NamedTuple):
    """Gradients [R, S, 3] as unit vectors; their lengths and the norms they were divided by, with a floor [R, S, 1]."""

    unit: Tensor
    length: Tensor
    norm: Tensor


class Frame(NamedTuple):
    """Geometry of a chunk's samples: position along the ray and bin length [R, S], where they lie in the volumes.

    Points [M, 3] are those of the box, `unmoved` what they were before.
    """

    position: Tensor
    delta: Tensor
    samples: Samples
    points: Tensor
    unmoved: Tensor


class Decoded(NamedTuple):
    """Decoder state of a chunk: features [M, F] with the decoder's input in front, hidden activations, slopes.

    `sdf` [M] where it was evaluated layer by layer.
    """

    features: Tensor
    hidden: Hidden
    slopes: Slopes
    sdf: Tensor | None


class Renderer:
    """Renders chunks of rays with one set of buffers."""

    def __init__(
        self, field: Field, settings: Settings, normalise: Normalisation, plain: PlainDecoder | None = None
    ) -> None:
        self.field, self.settings, self.normalise, self.plain = field, settings, normalise, plain
        self.work = Workspace(field.sdf[0].inputs)
        self.inputs = field.sdf[0].inputs.shape[1]
        self.second = 0
        if settings.carry or any(layer.blocks[FEATURES].shape[1] for head in field.heads for layer in head):
            self.second = sum(volume.channels for volume in field.volumes) - self.inputs + 3 * settings.points
        self.rows = stack_rows(field.sdf[-1], field.heads, self.second)
        self.scenes = max((volume.geometry.shape[0] for volume in field.volumes), default=1)

    def frame(self, rays: Rays) -> Frame:
        """Sample positions of a chunk."""
        starts, ends = rays.edges[:, :-1], rays.edges[:, 1:]
        position = (starts + ends) / 2 if self.settings.middles else starts
        points = along_rays(position, rays.directions).add_(rays.origins.unsqueeze(1))
        unmoved = points.reshape(-1, 3)
        points = self.normalise(unmoved)
        scene = rays.scene.repeat_interleave(position.shape[1]) if self.scenes > 1 else None
        return Frame(position, ends - starts, locate(self.field.volumes, points, scene), points, unmoved)

    def decode(self, frame: Frame, plain: PlainDecoder | None = None) -> Decoded:
        """Gather the features and run the SDF chain, or the decoder that it is made of."""
        points = frame.points if self.settings.points else None
        features = frame.samples.features(self.field.volumes, points, second=self.second > 0)
        sdf = None
        if plain is None:
            hidden = activate(self.field.sdf, features[:, : self.inputs], self.work)
        else:
            where = self.normalise._replace(snap=False)(frame.unmoved)
            sdf, hidden = plain_distance(plain, self.plain_features(plain, where), where, self.work)
        return Decoded(features, hidden, input_gradient(self.field.sdf, hidden, len(features), self.work), sdf)

    def plain_features(self, plain: PlainDecoder, points: Tensor) -> Tensor:
        """What the SDF reads at points [M, 3], of volumes of one scene, by PonderV2's operation."""
        geometry = self.field.volumes[0].geometry
        low, high = geometry.box[0]
        images = [volume.image for volume in self.field.volumes]
        grid = (points - low) / (high - low) * 2 - 1
        return plain_features(plain, images, grid, geometry.padding, geometry.align_corners)

    def gradient(self, frame: Frame, decoded: Decoded) -> Tensor:
        """d sdf / d point [R, S, 3]."""
        out = frame.samples.slopes(self.field.volumes, decoded.slopes.z)
        if self.settings.points:
            out.add_(decoded.slopes.z[:, -3:])
        return out.view(*frame.position.shape, 3)

    def blocks(self, frame: Frame, decoded: Decoded, gradient: Tensor) -> Blocks:
        """What the rows act on, [R, S, *] each."""
        shape = frame.position.shape
        features, logs = decoded.features.view(*shape, -1), decoded.hidden.logs
        hidden = logs[-1].view(*shape, -1) if logs else features[..., :0]
        return Blocks(features, hidden, gradient)

    def opacity(self, rays: Rays, frame: Frame, sdf: Tensor, gradient: Tensor) -> tuple[Opacity, Tensor]:
        """The opacity model of a chunk and its weights [R, S]."""
        cosine = (gradient * rays.directions.unsqueeze(1)).sum(-1)
        model = opacity(
            self.settings.model, sdf, cosine, frame.delta, self.field.sharpness, self.settings.cos_anneal_ratio
        )
        if rays.hit is not None:
            model.mask(rays.hit)
        return model, model.weights()

    def normals(self, gradient: Tensor) -> Normals:
        """Unit normals, lengths and norms."""
        length = gradient.square().sum(-1, keepdim=True).sqrt_()
        norm = length.clamp_min(self.settings.normal_floor)
        return Normals(gradient / norm, length, norm)

    def forward(self, rays: Rays) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Per-ray sums [R, *], loss sums [3], weights and sdf [R, S], gradient [R, S, 3]."""
        frame = self.frame(rays)
        decoded = self.decode(frame, self.plain)
        blocks = self.blocks(frame, decoded, self.gradient(frame, decoded))
        rows = affine(self.rows, rays.directions, blocks)
        sdf, gradient = rows[:, 0] if decoded.sdf is None else decoded.sdf.view(frame.position.shape), blocks.gradient
        sdf = sdf.contiguous()
        outputs, _ = heads_forward(self.field.heads, self.settings.activations, rows[:, 1:])
        _, weights = self.opacity(rays, frame, sdf, gradient)
        along = weights.unsqueeze(1)
        values = [(weights * frame.position).sum(1, keepdim=True), weights.sum(1, keepdim=True)]
        normals = self.normals(gradient)
        values.append(torch.bmm(along, normals.unit).squeeze(1))
        values += [(output * along).sum(-1) for output in outputs]
        if self.settings.carry:
            composited = [torch.bmm(along, v).squeeze(1) for v in (gradient, blocks.hidden, blocks.features)]
            composited[1].neg_()
            values += composited
        losses = self.loss_sums(rays, frame, sdf, normals.length)
        return torch.cat(values, 1), losses, weights, sdf, gradient

    def loss_sums(self, rays: Rays, frame: Frame, sdf: Tensor, length: Tensor) -> Tensor:
        """Summed eikonal, free-space and band terms; `length` [R, S, 1] is that of the gradients."""
        goal = sample_targets(
            RayTargets(rays.ray_depth, rays.slope, self.settings.truncation), frame.position, rays.hit
        )
        excess = (length.squeeze(-1) - 1) ** 2
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
            out = (points / (1 / self.scale)).add_(self.offset)
        if (self.low, self.high) != IDENTITY[2:4]:
            # PonderV2 moves what lies at or beyond the far face just inside; the near face is clamped.
            out = torch.where(out >= 1, self.high, out).clamp_min_(self.low)
        if not self.snap:
            return out
        out = out * 2 if out is points else out.mul_(2)
        return out.sub_(1).add_(1).div_(2)


IDENTITY = Normalisation(1.0, 0.0, -float("inf"), float("inf"))


class ChunkBar(NamedTuple):
    """One chunk's derivatives: by the volumes, by the decoders' weights (shapes of `Field`), by sharpness (float64)."""

    volumes: list[Growth]
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
    """Derivatives by sdf [R, S] and gradient [R, S, 3], the samples' weights [R, S], the derivative by sharpness []."""

    sdf: Tensor
    gradient: Tensor
    weights: Tensor
    sharpness: Tensor


def render_backward(renderer: Renderer, rays: Rays, sdf: Tensor, gradient: Tensor, bar: RayBar) -> ChunkBar:
    """One chunk's derivatives; sdf [R, S] and gradient [R, S, 3] are those of the forward pass."""
    field, settings, work = renderer.field, renderer.settings, renderer.work
    out: tuple[Chain, tuple[Head, ...]] = map_tensors((field.sdf, field.heads), torch.zeros_like)
    frame = renderer.frame(rays)
    shape = frame.position.shape
    decoded = renderer.decode(frame)
    gradient = gradient.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    blocks, normals = renderer.blocks(frame, decoded, gradient), renderer.normals(gradient)

    carried = _carried(renderer, bar.sums) if settings.carry else None
    # One product for the decoders and what the upstream of the composited blocks multiplies.
    weights_of = _rows_per_ray(renderer.rows, carried, shape[0])
    found = product(weights_of, blocks)
    values = found[:, found.shape[1] - renderer.rows.bias.shape[0] + 1 :]
    per_ray = torch.addmm(renderer.rows.bias, rays.directions, renderer.rows.direction.T)
    heads = heads_forward(field.heads, settings.activations, values.add_(per_ray[:, 1:].unsqueeze(-1)))
    weights_bar = _weights_bar(frame, normals.unit, heads[0], found[:, 0] if settings.carry else None, bar)
    sample = _composite_backward(renderer, rays, frame, sdf, gradient, normals, weights_bar, bar)

    # Derivatives by what the rows made, in the order of `weights_of`.
    made = torch.empty_like(found)
    if settings.carry:
        made[:, 0] = sample.weights
    made[:, int(settings.carry)] = sample.sdf
    rows_bar = made[:, int(settings.carry) :]
    widths = [output.shape[1] for output in heads[0]]
    upstream = bar.sums[:, OUTPUTS : OUTPUTS + sum(widths)].unsqueeze(-1) * sample.weights.unsqueeze(1)
    heads_backward(field.heads, settings.activations, heads, upstream.split(widths, 1), out[1], rows_bar[:, 1:])
    add_rows(rows_backward(rows_bar, rays.directions, blocks), out[0][-1], out[1])

    turned = made.transpose(1, 2)
    along = torch.baddbmm(sample.gradient.mT, weights_of.gradient.mT, made).transpose(0, 1).reshape(3, -1).T
    features_bar, hidden_bar = (
        torch.bmm(turned, weight, out=work(name, *value.shape)).view(sdf.numel(), value.shape[2])
        for name, weight, value in zip(("features bar", "hidden bar"), weights_of, blocks, strict=False)
    )
    weights_along = frame.samples.along(along)
    by_z = frame.samples.directional(field.volumes, weights_along)
    if settings.points:
        by_z = torch.cat([by_z, along], 1)
    chain_bar = ChainBar(by_z, features_bar[:, : renderer.inputs], hidden_bar)
    z = decoded.features[:, : renderer.inputs]
    chain_backward(field.sdf, z, decoded.hidden, decoded.slopes, chain_bar, out[0], work)
    volumes = frame.samples.scatter(field.volumes, features_bar, decoded.slopes.z, weights_along)
    return ChunkBar(volumes, *out, sample.sharpness)


def along_rays(samples: Tensor, vectors: Tensor) -> Tensor:
    """[R, S] numbers times the vectors of their rays [R, 3]: [R, S, 3]."""
    return (vectors.T.contiguous().unsqueeze(-1) * samples).permute(1, 2, 0)


def _carried(renderer: Renderer, sums_bar: Tensor) -> Blocks:
    """The upstream of the composited blocks, [R, *] each: the last columns of the sums."""
    blocks = renderer.rows.blocks
    widths = [blocks.gradient.shape[1], blocks.hidden.shape[1], blocks.features.shape[1]]
    gradient, hidden, features = sums_bar[:, sums_bar.shape[1] - sum(widths) :].split(widths, dim=1)
    return Blocks(features, hidden, gradient)


def _rows_per_ray(rows: Rows, carried: Blocks | None, rays: int) -> Blocks:
    """[R, n, *], or [R, 1 + n, *] with the carried blocks' upstream in front."""
    every = (block.expand(rays, *block.shape) for block in rows.blocks)
    if carried is None:
        return Blocks(*every)
    return Blocks(*(torch.cat([c.unsqueeze(1), e], 1) for c, e in zip(carried, every, strict=True)))


def _weights_bar(frame: Frame, unit: Tensor, outputs: Sequence[Tensor], carried: Tensor | None, bar: RayBar) -> Tensor:
    """Derivative by the weights [R, S]: composited values times the upstream of their sums.

    `unit` [R, S, 3] are the unit normals, `outputs` [R, O, S] those of the heads, `carried` [R, S] what the carried
    blocks bring. The two of the depth, which are large and nearly cancel where a ray has little weight, come last, as
    in PonderV2.
    """
    out = torch.bmm(unit, bar.sums[:, NORMAL:OUTPUTS].unsqueeze(-1)).squeeze(-1)
    start = OUTPUTS
    for output in outputs:
        out += (output * bar.sums[:, start : start + output.shape[1]].unsqueeze(-1)).sum(1)
        start += output.shape[1]
    for given in (carried, bar.weights):
        if given is not None:
            out += given
    out += bar.sums[:, OPACITY : OPACITY + 1]
    return out.add_(frame.position * bar.sums[:, DEPTH : DEPTH + 1])


def _composite_backward(
    renderer: Renderer,
    rays: Rays,
    frame: Frame,
    sdf: Tensor,
    gradient: Tensor,
    normals: Normals,
    weights_bar: Tensor,
    bar: RayBar,
) -> SampleBar:
    """From the per-ray upstream to the per-sample values that the opacities and losses depend on."""
    settings, (unit, length, norm) = renderer.settings, normals
    model, weights = renderer.opacity(rays, frame, sdf, gradient)
    found = model.backward(weights_bar, rays.hit)
    sdf_bar = found.sdf
    # d unit = (d gradient - unit (unit . d gradient)) / norm; below the floor the norm is a constant and the first term
    # alone remains.
    unit_bar = along_rays(weights, bar.sums[:, NORMAL:OUTPUTS])
    radial = (unit * unit_bar).sum(-1, keepdim=True) * (norm > settings.normal_floor)
    gradient_bar = unit_bar.sub_(unit * radial).div_(norm)
    gradient_bar += along_rays(found.cosine, rays.directions)
    # Of a zero gradient the direction is 0; the division comes first, for 1 / tiny times anything may overflow. What is
    # shorter than the root of tiny has no square.
    stretch = 2 * bar.losses[0] * (length - 1)
    if rays.hit is not None:
        stretch = stretch * rays.hit[:, None, None]
    gradient_bar += stretch * (gradient / length.clamp_min(math.sqrt(torch.finfo(length.dtype).tiny)))
    goal = sample_targets(RayTargets(rays.ray_depth, rays.slope, settings.truncation), frame.position, rays.hit)
    sdf_bar = sdf_bar - bar.losses[1] * ((sdf < settings.truncation) & goal.front)
    sdf_bar += bar.losses[2] * torch.sign(sdf - goal.sdf) * goal.band
    if bar.sdf is not None:
        sdf_bar += bar.sdf
    if bar.gradient is not None:
        gradient_bar += bar.gradient
    return SampleBar(sdf_bar, gradient_bar, weights, found.sharpness)
