"""The renderer as two functions of tensors, registered with torch.library: sums along rays, and their derivatives.

The decoders arrive as one list of tensors; `layers` says how many belong to the SDF and to each head, `activations`
what each head ends in. Heads without an activation at their end arrive without their last layer (see heads.py).
Everything else that shapes the result is a number or a string, so that torch.compile sees one node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponder_kernels._register import register
from ponder_kernels._threads import PerThread, even_parts, for_each
from ponder_kernels.render.chunk import (
    LOSS_SUMS,
    OUTPUTS,
    ChunkBar,
    Field,
    Normalisation,
    RayBar,
    Rays,
    Renderer,
    Settings,
    render_backward,
)
from ponder_kernels.render.fused import FusedRenderer
from ponder_kernels.render.heads import Head, HeadLayer
from ponder_kernels.render.order import ray_order
from ponder_kernels.sdf_field.chain import Chain, Layer, flatten
from ponder_kernels.sdf_field.gather import VolumeGeometry, scene_of_rows, volume_rows
from ponder_kernels.sdf_field.plain import rebuild_plain
from ponder_kernels.sdf_field.volumes import SplitVolume, VolumeGradient, split_volume

INPUTS = (
    "Tensor[] volumes, Tensor[] weights, Tensor sharpness, Tensor origins, Tensor directions, Tensor edges, "
    "Tensor box, Tensor? hit, Tensor ray_depth, Tensor slope, Tensor[] plain, int[] layers, str[] activations, "
    "str opacity, str padding, bool align_corners, bool middles, bool points, bool carry, float[] numbers, "
    "int chunk_bytes, str precision"
)


def chunk_rays(samples: int, width: int, element_bytes: int, chunk_bytes: int) -> int:
    """How many rays one chunk holds, at least 1."""
    return max(1, chunk_bytes // max(1, samples * width * element_bytes))


class Numbers(NamedTuple):
    """The real-valued options, in the order of the schema's `numbers`."""

    cos_anneal_ratio: float
    normal_floor: float
    truncation: float
    scale: float
    offset: float
    low: float
    high: float
    snap: float
    plain_factor: float


def pack(chain: Chain, heads: Sequence[Head]) -> tuple[list[Tensor], list[int]]:
    """Decoders as a list of tensors and the number of layers of the SDF and of each head."""
    return flatten((chain, tuple(heads))), [len(chain), *(len(head) for head in heads)]


def _unpack(weights: Sequence[Tensor], layers: Sequence[int]) -> tuple[Chain, tuple[Head, ...]]:
    """The inverse of `pack`."""
    leaves: Iterator[Tensor] = iter(weights)

    def previous(number: int) -> Tensor | None:
        return next(leaves) if number else None

    chain = tuple(Layer(previous(k), next(leaves), next(leaves)) for k in range(layers[0]))
    heads = tuple(
        tuple(
            HeadLayer(previous(k), (next(leaves), next(leaves), next(leaves), next(leaves)), next(leaves), next(leaves))
            for k in range(count)
        )
        for count in layers[1:]
    )
    return chain, heads


class _Call(NamedTuple):
    """The arguments of `INPUTS`, by name; `precision` is that of the Triton kernels, empty without them."""

    volumes: Sequence[Tensor]
    weights: Sequence[Tensor]
    sharpness: Tensor
    origins: Tensor
    directions: Tensor
    edges: Tensor
    box: Tensor
    hit: Tensor | None
    ray_depth: Tensor
    slope: Tensor
    plain: Sequence[Tensor]
    layers: Sequence[int]
    activations: Sequence[str]
    opacity: str
    padding: str
    align_corners: bool
    middles: bool
    points: bool
    carry: bool
    numbers: Sequence[float]
    chunk_bytes: int
    precision: str

    def decoders(self) -> tuple[Chain, tuple[Head, ...]]:
        """The decoders' layers."""
        return _unpack(self.weights, self.layers)

    def width(self) -> int:
        """Columns of the per-ray sums."""
        chain, heads = self.decoders()
        outputs = sum(head[-1].bias.shape[0] for head in heads)
        if not self.carry:
            return OUTPUTS + outputs
        first = chain[0].inputs.shape[1]
        per_volume = (first - 3 * self.points) // len(self.volumes)
        last = 0 if chain[-1].previous is None else chain[-1].previous.shape[1]
        return OUTPUTS + outputs + 3 + (self.volumes[0].shape[1] - per_volume) * len(self.volumes) + last + first

    def split(self, chain: Chain) -> list[SplitVolume]:
        """The volumes as rows."""
        per_volume = (chain[0].inputs.shape[1] - 3 * self.points) // len(self.volumes)
        found = []
        for volume in self.volumes:
            batch, _, depth, height, width = volume.shape
            geometry = VolumeGeometry((batch, depth, height, width), self.box, self.align_corners, self.padding)
            found.append(split_volume(volume, per_volume, geometry))
        return found

    def rays(self) -> Rays:
        """All rays of all scenes in one row."""
        batch, count = self.edges.shape[:2]
        scene = scene_of_rows(batch, count, self.edges.device)
        hit = None if self.hit is None else self.hit.reshape(-1)
        rest = (scene, self.ray_depth.reshape(-1), self.slope.reshape(-1), hit)
        edges = self.edges.reshape(batch * count, self.edges.shape[2])
        return Rays(self.origins.reshape(-1, 3), self.directions.reshape(-1, 3), edges, *rest)

    def settings(self) -> Settings:
        """Options of the renderer."""
        numbers = Numbers(*self.numbers)
        return Settings(
            self.opacity,
            self.middles,
            numbers.cos_anneal_ratio,
            numbers.normal_floor,
            numbers.truncation,
            self.points,
            tuple(self.activations),
            self.carry,
        )

    def normalise(self) -> Normalisation:
        """Map from points to the coordinates of the box."""
        numbers = Numbers(*self.numbers)
        return Normalisation(*numbers[3:7], bool(numbers.snap))

    def field(self) -> Field:
        """What the rays are rendered from."""
        chain, heads = self.decoders()
        return Field(self.split(chain), chain, heads, self.sharpness)

    def renderers(self) -> PerThread[Renderer]:
        """What renders chunks with torch operations, one for each thread."""
        field, settings, normalise = self.field(), self.settings(), self.normalise()
        plain = rebuild_plain(self.plain, Numbers(*self.numbers).plain_factor)
        return PerThread(lambda: Renderer(field, settings, normalise, plain))

    def fused(self, rays: Rays) -> FusedRenderer:
        """What renders the chunks with Triton kernels."""
        rows = volume_rows(self.volumes[0]).contiguous()
        rays = Rays(*(None if v is None else v.contiguous() for v in rays))  # type: ignore[arg-type]
        # Converted once: Triton takes no booleans from memory.
        rays = rays._replace(hit=None if rays.hit is None else rays.hit.float())
        return FusedRenderer(self.field(), rows, self.settings(), self.normalise(), self.precision, rays)

    def chunks(self, rays: Rays) -> list[Tensor]:
        """Which rays are rendered at once: their numbers, in each."""
        chain, _ = self.decoders()
        widest = max([chain[0].inputs.shape[1], *(layer.bias.shape[0] for layer in chain)])
        samples = self.edges.shape[2] - 1
        most = chunk_rays(samples, widest, self.edges.element_size(), self.chunk_bytes)
        parts = even_parts(len(rays.scene), most)
        order = ray_order(rays) if len(parts) > 1 else torch.arange(len(rays.scene), device=rays.scene.device)
        return [order[part] for part in parts]


def _fake_sums(*arguments: Any) -> tuple[Tensor, ...]:
    call = _Call(*arguments)
    edges = call.edges
    rays, samples = edges.shape[0] * edges.shape[1], edges.shape[2] - 1
    shapes = ((rays, call.width()), (LOSS_SUMS,), (rays, samples), (rays, samples), (rays, samples, 3))
    return tuple(edges.new_empty(shape) for shape in shapes)


@register(f"render_rays({INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _fake_sums)
def render_sums(*arguments: Any) -> tuple[Tensor, ...]:
    """Per-ray sums [B R, *], summed loss terms [3], weights and sdf [B R, S], gradient [B R, S, 3]."""
    call = _Call(*arguments)
    sums, losses, weights, sdf, gradient = _fake_sums(*arguments)
    rays = call.rays()
    if call.precision:
        fused = call.fused(rays)
        losses.zero_()
        for part in fused.chunks(call.chunk_bytes):
            loss, weights[part] = fused.forward(part, sums[part], sdf[part], gradient[part])
            losses += loss
        return sums, losses, weights, sdf, gradient
    renderers, chunks = call.renderers(), call.chunks(rays)
    # Added up at the end: in one order, and no thread waits for another's turn.
    partial = losses.new_empty(len(chunks), LOSS_SUMS)

    def render(chunk: tuple[int, Tensor]) -> None:
        number, part = chunk
        found = renderers.value.forward(rays.part(part))
        sums[part], partial[number], weights[part], sdf[part], gradient[part] = found

    for_each(render, list(enumerate(chunks)), sdf.device)
    return sums, partial.sum(0), weights, sdf, gradient


def _fake_gradients(*arguments: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    call = _Call(*arguments[7:])
    layout = torch.channels_last_3d
    volumes = [torch.empty(v.shape, dtype=v.dtype, device=v.device, memory_format=layout) for v in call.volumes]
    return volumes, [torch.empty_like(w) for w in call.weights], torch.empty_like(call.sharpness)


@register(
    "render_rays_backward(Tensor? sums_bar, Tensor? losses_bar, Tensor? weights_bar, Tensor? sdf_bar, "
    f"Tensor? gradient_bar, Tensor sdf, Tensor gradient, {INPUTS}) -> (Tensor[], Tensor[], Tensor)",
    _fake_gradients,
)
def render_gradients(*arguments: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Derivatives by the volumes (channels last), the decoders and the sharpness."""
    upstream, sdf, gradient = arguments[:5], arguments[5], arguments[6]
    call = _Call(*arguments[7:])
    chain, heads = _unpack([torch.zeros_like(w) for w in call.weights], call.layers)
    run = _fused_gradients if call.precision else _torch_gradients
    volumes, sharpness = run(call, _upstream(call, sdf, upstream), sdf, gradient, chain, heads)
    return volumes, flatten((chain, heads)), sharpness.to(call.sharpness.dtype)


def _upstream(call: _Call, sdf: Tensor, bars: Sequence[Tensor | None]) -> RayBar:
    """Upstream derivatives of all rays; zeros where sums and losses have none."""
    sums, losses, *samples = bars
    sums = sdf.new_zeros(sdf.shape[0], call.width()) if sums is None else sums
    return RayBar(sums, sdf.new_zeros(LOSS_SUMS) if losses is None else losses, *samples)


def _part(bar: RayBar, rows: slice | Tensor) -> RayBar:
    """The upstream of some of the rays."""
    samples = [None if value is None else value[rows] for value in (bar.weights, bar.sdf, bar.gradient)]
    return RayBar(bar.sums[rows], bar.losses, *samples)


def _torch_gradients(
    call: _Call, bar: RayBar, sdf: Tensor, gradient: Tensor, chain: Chain, heads: tuple[Head, ...]
) -> tuple[list[Tensor], Tensor]:
    """Derivatives by the volumes and, in float64, the sharpness; those by the decoders go to `chain` and `heads`."""
    rays, renderers, volumes = call.rays(), call.renderers(), call.split(chain)
    gradients, sharpness = [VolumeGradient(v) for v in volumes], call.sharpness.new_zeros((), dtype=torch.float64)

    def backward(part: Tensor) -> ChunkBar:
        return render_backward(renderers.value, rays.part(part), sdf[part], gradient[part], _part(bar, part))

    weights = [*flatten((chain, heads)), sharpness]

    def add(found: ChunkBar) -> None:
        for total, part in zip(gradients, found.volumes, strict=True):
            total.add(part)
        torch._foreach_add_(weights, flatten((found.sdf, found.heads, found.sharpness)))

    for_each(backward, call.chunks(rays), sdf.device, use=add)
    return [g.as_volume() for g in gradients], sharpness


def _fused_gradients(
    call: _Call, bar: RayBar, sdf: Tensor, gradient: Tensor, chain: Chain, heads: tuple[Head, ...]
) -> tuple[list[Tensor], Tensor]:
    """The same with Triton kernels."""
    fused = call.fused(call.rays())
    out = fused.sums(chain, heads)
    for part in fused.chunks(call.chunk_bytes):
        fused.backward(part, sdf[part], gradient[part], _part(bar, part), out)
    return [fused.finish(out)], out.sharpness


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call = _Call(*inputs)
    ctx.counts = (len(call.volumes), len(call.weights), len(call.plain))
    ctx.options = call[11:]
    ctx.save_for_backward(*call.volumes, *call.weights, *call[2:10], output[3], output[4])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    n_volumes, n_weights, n_plain = ctx.counts
    saved = ctx.saved_tensors
    volumes, weights = list(saved[:n_volumes]), list(saved[n_volumes : n_volumes + n_weights])
    *rest, sdf, gradient = saved[n_volumes + n_weights :]
    if torch.is_grad_enabled():
        raise RuntimeError(
            "render_rays: second derivatives are not available; the SDF's gradient is an output (per_sample=True, "
            "eikonal), so that losses on it need the first order only"
        )
    volumes_bar, weights_bar, sharpness_bar = render_gradients(
        *upstream, sdf, gradient, volumes, weights, *rest, [], *ctx.options
    )
    # The samples and targets are constants of the renderer. torch takes an empty list of options for one of tensors.
    options: list[Any] = [[] if value == [] else None for value in ctx.options]
    return volumes_bar, weights_bar, sharpness_bar, *(None for _ in range(7)), [None] * n_plain, *options


render_sums.register_autograd(_backward, setup_context=_setup_context)
