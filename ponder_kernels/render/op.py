"""`render_rays`: a bundle of rays to pixels and reduced loss terms, with memory that does not grow with features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._constants import DEPTH_EPS, NORMAL_FLOOR
from ponder_kernels._register import keeps_float32
from ponder_kernels.render.chunk import (
    IDENTITY,
    Normalisation,
)
from ponder_kernels.render.heads import Head, SplitHead, apply_per_ray, collapse_head, split_head
from ponder_kernels.render.opacity import MODELS
from ponder_kernels.render.ray_opacity import specialisations
from ponder_kernels.render.registered import pack, render_sums
from ponder_kernels.render.samples import sample_targets
from ponder_kernels.render.types import FieldWeights, RayTargets, RenderedRays, SampleOutputs
from ponder_kernels.sdf_field.chain import Chain, Layer, check_chain, scaled
from ponder_kernels.sdf_field.fused import fused_precision
from ponder_kernels.sdf_field.op import check_volumes, first_channels
from ponder_kernels.sdf_field.plain import PlainDecoder, check_plain

# Bytes of one [samples, width] buffer of a chunk, of which about a dozen live at once. Smaller ones stay in a CPU's
# second-level cache, but then the many small operations of a chunk cost more than that saves.
CHUNK_BYTES = 1 << 22
# For the Triton kernels, whose buffers of a chunk take about 4 times this in all: what the launch table says. Enough
# samples to fill a GPU, few enough that its second-level cache helps.
TABLE_CHUNK_BYTES = 0


def _check_rays(batch: int, origins: Tensor, directions: Tensor, edges: Tensor) -> dict[str, int]:
    sizes = {"B": batch}
    for name, value, dims in (("origins", origins, "B R 3"), ("directions", directions, "B R 3")):
        _check.floating(name, value)
        _check.shape(name, value, dims, sizes)
    _check.floating("edges", edges)
    _check.shape("edges", edges, "B R E", sizes)
    if sizes["E"] < 2:
        raise ValueError(f"edges: expected at least 2 edges per ray, got shape {list(edges.shape)}")
    return sizes


class Widths(NamedTuple):
    """Channels that the SDF reads in each volume and in all, further ones in all, columns that are points."""

    per_volume: int
    first: int
    second: int
    points: int


def _widths(field: FieldWeights, volumes: Sequence[Tensor]) -> Widths:
    """Check the decoders against the volumes' channels."""
    per_volume = first_channels("field.sdf", field.sdf, volumes, field.points)
    first, points, channels = per_volume * len(volumes), 3 if field.points else 0, volumes[0].shape[1]
    if field.shared and per_volume != channels:
        raise ValueError(f"field.shared: expected the SDF to read all C={channels} channels, got {per_volume}")
    second = first if field.shared else (channels - per_volume) * len(volumes)
    geometry = field.sdf[-1].bias.shape[0] - 1
    for number, head in enumerate(field.heads):
        width = 3 + second + geometry + 3 * head.directed + points
        check_chain(f"field.heads[{number}].layers", head.layers, width)
    return Widths(per_volume, first, 0 if field.shared else second, points)


def _collapse(field: FieldWeights, widths: Widths) -> tuple[Chain, list[Head]]:
    chain = scaled(field.sdf)
    features = widths.first if field.shared else widths.second
    heads = [
        collapse_head(head.layers, chain, features, directed=head.directed, points=field.points, shared=field.shared)
        for head in field.heads
    ]
    last = chain[-1]
    top = Layer(None if last.previous is None else last.previous[:1], last.inputs[:1], last.bias[:1])
    return (*chain[:-1], top), heads


def _default_targets(edges: Tensor) -> RayTargets:
    empty = edges.new_zeros(edges.shape[:2])
    return RayTargets(empty, torch.ones_like(empty), 0.0)


@keeps_float32("volume")
def render_rays(
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
    chunk_bytes: int | None = None,
    backend: str = "auto",
    precision: str = "tf32",
) -> RenderedRays:
    """Render rays through feature volumes, and reduce the geometric loss terms on the way.

    Differentiable to first order with respect to the volumes, the decoders and the sharpness; the SDF gradient is in
    closed form, so eikonal and normal losses need no double backward. Saved for the backward pass: 20 bytes per sample
    in float32, whatever the channels and decoders; everything else is computed again, a chunk of rays at a time.

    Args:
        volume: [B, C, D, H, W] floating, or several of them (same B and C) whose features are put side by side;
            channels-last-3d with C = Cs or C = 2 Cs avoids a copy. Converted to the dtype of `origins`.
        field: the decoders.
        origins: [B, R, 3] float32 or float64.
        directions: [B, R, 3] unit vectors.
        edges: [B, R, S + 1] sorted distances of the bin edges.
        sharpness: [] positive; inv_s of NeuS (in 1 / unit of the points) or beta of VolSDF.
        box: [B, 2, 3] region that each volume spans.
        opacity: "neus" or "volsdf"; "neus-plain" and "volsdf-plain" are the same with the roundings of PonderV2's code,
            which subtracts nearly equal numbers: in float32 few digits are left of small opacities. The Triton kernels
            take them for the former.
        cos_anneal_ratio: of NeuS, in [0, 1].
        hit: [B, R] bool, rays to render; the others give zeros. None: all.
        targets: measured depths for the free-space and SDF terms; None leaves both 0.
        plain: what `field.sdf` was multiplied out from. Without Triton the SDF is evaluated layer by layer then, of one
            scene, features by torch's grid_sample: the same number with PonderV2's last digits.
        align_corners: voxel centres on the faces of the box (True) or half a voxel inside (False).
        padding: "border" or "zeros".
        sample_at: where a bin is sampled, "middle" or "start".
        normalise: map from points to the coordinates of `box`; SDF gradients are with respect to these then.
        normal_floor: unit normals are gradient / max(|gradient|, floor).
        per_sample: whether to return weights, SDF and gradients of all samples.
        chunk_bytes: size of one working buffer, of which about a dozen are alive at once (with Triton, about 4). None:
            4 MiB, with Triton what the launch table says (32 MiB).
        backend: "auto", "triton" or "torch". The Triton kernels take float32 rays, one volume and SDF decoders of up to
            128 inputs and 128 hidden units in all; "auto" takes them on a GPU where they fit.
        precision: of the kernels' matrix products, whose sums are float32: "tf32", "tf32x3", "bf16" or "ieee".

    Returns:
        RenderedRays.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    Reference:
        Wang et al., NeuS, arXiv 2106.10689, eq. 13; Yariv et al., VolSDF, arXiv 2106.12052; Zhu et al., PonderV2,
        arXiv 2310.08586, section 3.3.
    """
    volumes = check_volumes(volume, box, align_corners, padding)
    sizes = _check_rays(box.shape[0], origins, directions, edges)
    widths = _widths(field, [v for v, _ in volumes])
    _check.shape("sharpness", _check.floating("sharpness", sharpness), "")
    _check.same_device(
        "volume", volumes[0][0], origins=origins, directions=directions, edges=edges, sharpness=sharpness
    )
    _check.choice("opacity", opacity, MODELS)
    _check.choice("sample_at", sample_at, ("middle", "start"))
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(f"chunk_bytes: expected a positive number, got {chunk_bytes}")
    if hit is not None:
        _check.shape("hit", hit, "B R", sizes)
    if plain is not None:
        check_plain("plain", plain, field.sdf, widths.first)
        if sizes["B"] != 1:
            raise ValueError(f"plain: expected one scene, got B={sizes['B']}")
        _check.same_device("volume", volumes[0][0], plain=plain.inner[0][0])
    goal = _default_targets(edges) if targets is None else targets
    _check.shape("targets.ray_depth", goal.ray_depth, "B R", sizes)
    _check.shape("targets.slope", goal.slope, "B R", sizes)

    chain, heads = _collapse(field, widths)
    cast = [v.to(origins.dtype) for v, _ in volumes]
    used = fused_precision(backend, precision, chain, cast, origins)
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES if used is None else TABLE_CHUNK_BYTES
    split = [split_head(head, weights.sigmoid) for head, weights in zip(heads, field.heads, strict=True)]
    sampled = [head for head in split if head.per_sample]
    weights, layers = pack(chain, [head.per_sample for head in sampled])
    # Every layer has columns on the gradient, so one applied per ray needs the blocks.
    carry = any(head.per_ray is not None for head in split)
    *affine, snap = IDENTITY if normalise is None else normalise
    numbers = [float(cos_anneal_ratio), normal_floor, float(goal.truncation), *affine, float(snap)]
    numbers.append(0.0 if plain is None else float(plain.factor))
    digits = [] if plain is None or used is not None else plain.tensors(origins.dtype)
    last = chain[-1].previous
    carried = 3 + (0 if last is None else last.shape[1]) + widths.first + widths.points + widths.second
    batch, count = sizes["B"], sizes["R"]
    found = render_sums(
        cast, weights, sharpness, origins.detach(), directions.detach(),
        edges.detach(), box.to(origins.dtype), hit, goal.ray_depth, goal.slope, digits, layers,
        [head.activation for head in sampled], opacity, padding, align_corners, sample_at == "middle", field.points,
        carry, numbers, chunk_bytes, used or "",
    )  # fmt: skip
    sums = found[0].view(batch, count, found[0].shape[1])
    means = found[1] / _counts(targets, edges, hit, sample_at == "middle")
    samples = SampleOutputs(*(v.view(batch, count, *v.shape[1:]) for v in found[2:])) if per_sample else None
    eikonal, free_space, band = means.unbind()
    pixels = _pixels(split, sums, carried if carry else 0, directions)
    return RenderedRays(*pixels, eikonal, free_space, band, samples)


def _pixels(
    heads: Sequence[SplitHead], sums: Tensor, carried: int, directions: Tensor
) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """Heads [B, R, O], depth and opacity [B, R], normal [B, R, 3] from the sums along rays.

    A head is a composited output or, for a last layer per ray, what that layer reads; `carried` is the number of
    columns of the composited blocks, the last ones of `sums`.
    """
    widths = [head.per_sample[-1].bias.shape[0] if head.per_sample else 0 for head in heads]
    # One split: the derivative of a slice is as wide as all sums.
    position, opacity, normal, *composited, blocks = sums.split([1, 1, 3, *widths, carried], -1)
    opacity = opacity.squeeze(-1)
    outputs = tuple(
        value if head.per_ray is None else apply_per_ray(head.per_ray, value, blocks, directions, opacity)
        for head, value in zip(heads, composited, strict=True)
    )
    return outputs, position.squeeze(-1) / (opacity + DEPTH_EPS), opacity, normal


def _counts(targets: RayTargets | None, edges: Tensor, hit: Tensor | None, middles: bool) -> Tensor:
    """[3] divisors of the eikonal, free-space and band sums, each at least 1."""
    rays = edges.new_tensor(float(edges.shape[0] * edges.shape[1])) if hit is None else hit.sum()
    front = band = torch.zeros_like(rays)
    if targets is not None:
        position = (edges[..., 1:] + edges[..., :-1]) / 2 if middles else edges[..., :-1]
        goal = sample_targets(targets, position, hit)
        front, band = goal.front.sum(), goal.band.sum()
    return torch.stack([rays * (edges.shape[-1] - 1), front, band]).clamp_min(1).to(edges.dtype)


__all__ = ["CHUNK_BYTES", "render_rays", "specialisations"]
