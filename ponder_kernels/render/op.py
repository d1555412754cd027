"""`render_rays`: a bundle of rays to pixels and reduced loss terms, with memory that does not grow with features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ponder_kernels import _check
from ponder_kernels._constants import DEPTH_EPS
from ponder_kernels.render.lean import (
    LOSS_SUMS,
    RAY_SUMS,
    Field,
    Gradients,
    Rays,
    Saved,
    backward_chunk,
    forward_chunk,
)
from ponder_kernels.render.samples import sample_targets
from ponder_kernels.render.types import ColourWeights, RayTargets, RenderedRays
from ponder_kernels.sdf_field.gather import VolumeGeometry, volume_rows
from ponder_kernels.sdf_field.op import check_volume
from ponder_kernels.sdf_field.weights import SdfWeights, check_weights

# Bytes of one [samples, channels] buffer of a chunk. About a dozen live at once, and on a CPU they should stay in
# the second-level cache.
CHUNK_BYTES = 1 << 20


def chunk_rays(samples: int, channels: int, element_bytes: int, chunk_bytes: int) -> int:
    """How many rays one chunk holds, at least 1."""
    return max(1, chunk_bytes // max(1, samples * channels * element_bytes))


def _split_rows(volume: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    rows = volume_rows(volume)
    return rows[:, :channels].contiguous(), rows[:, channels:].contiguous()


class _RenderRays(torch.autograd.Function):
    """Per-ray sums and loss sums; the backward pass recomputes the features chunk by chunk."""

    @staticmethod
    def forward(ctx, geometry, truncation, rays_per_chunk, volume, origins, directions, edges, scene, hit,
                ray_depth, slope, inv_s, *weights):  # fmt: skip
        sdf, colour = SdfWeights(*weights[:5]), ColourWeights(*weights[5:])
        field = Field(*_split_rows(volume, sdf.out_linear.shape[0]), sdf, colour, inv_s, geometry)
        rays = Rays(origins, directions, edges, scene, hit, RayTargets(ray_depth, slope, truncation))
        count, samples = edges.shape[0], edges.shape[1] - 1
        sums = edges.new_zeros(count, RAY_SUMS)
        losses = edges.new_zeros(LOSS_SUMS)
        keep = any(ctx.needs_input_grad)
        saved = Saved(*(edges.new_empty(count, samples, *tail) for tail in ((), (), (3,), (3,)))) if keep else None
        for part in _chunks(count, rays_per_chunk):
            part_sums, part_losses, part_saved = forward_chunk(field, _slice(rays, part))
            sums[part] = part_sums
            losses += part_losses
            if saved is not None:
                for whole, piece in zip(saved, part_saved, strict=True):
                    whole[part] = piece
        if saved is not None:
            # The two halves are saved instead of the volume: same size, and no second split.
            constants = (origins, directions, edges, scene, hit, ray_depth, slope)
            ctx.save_for_backward(field.sdf_rows, field.colour_rows, *constants, inv_s, *weights, *saved)
            ctx.settings = (geometry, truncation, rays_per_chunk)
        return sums, losses

    @staticmethod
    @once_differentiable
    def backward(ctx, sums_bar, losses_bar):
        geometry, truncation, rays_per_chunk = ctx.settings
        sdf_rows, colour_rows, origins, directions, edges, scene, hit, ray_depth, slope, inv_s, *rest = (
            ctx.saved_tensors
        )
        sdf, colour, saved = SdfWeights(*rest[:5]), ColourWeights(*rest[5:11]), Saved(*rest[11:])
        field = Field(sdf_rows, colour_rows, sdf, colour, inv_s, geometry)
        rays = Rays(origins, directions, edges, scene, hit, RayTargets(ray_depth, slope, truncation))
        out = Gradients.zeros(field)
        for part in _chunks(edges.shape[0], rays_per_chunk):
            piece = Saved(*(value[part] for value in saved))
            backward_chunk(field, _slice(rays, part), piece, sums_bar[part], losses_bar, out)
        volume_bar = None
        if ctx.needs_input_grad[3]:
            batch, depth, height, width = geometry.shape
            volume_bar = out.rows.view(batch, depth, height, width, -1).permute(0, 4, 1, 2, 3)
        return (
            None,  # geometry
            None,  # truncation
            None,  # rays_per_chunk
            volume_bar,
            None,  # origins: samples are constants of the renderer
            None,  # directions
            None,  # edges
            None,  # scene
            None,  # hit
            None,  # ray_depth
            None,  # slope
            out.inv_s,
            *out.sdf,
            *out.colour,
        )


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _slice(rays: Rays, part: slice) -> Rays:
    targets = RayTargets(rays.targets.ray_depth[part], rays.targets.slope[part], rays.targets.truncation)
    return Rays(rays.origins[part], rays.directions[part], rays.edges[part], rays.scene[part], rays.hit[part], targets)


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


def _check_colour(weights: ColourWeights, sizes: dict[str, int], channels: int) -> None:
    known = {"K": sizes["K"], "Cs": sizes["C"], "Cr": channels - sizes["C"]}
    for name, dims in zip(ColourWeights._fields, ("3 K", "3 Cs", "3 Cr", "3 3", "3 3", "3"), strict=True):
        value = _check.floating(f"colour_weights.{name}", getattr(weights, name))
        _check.shape(f"colour_weights.{name}", value, dims, known)


def _default_targets(edges: Tensor) -> RayTargets:
    empty = edges.new_zeros(edges.shape[:2])
    return RayTargets(empty, torch.ones_like(empty), 0.0)


def render_rays(
    volume: Tensor,
    sdf_weights: SdfWeights,
    colour_weights: ColourWeights,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    inv_s: Tensor,
    box: Tensor,
    *,
    hit: Tensor | None = None,
    targets: RayTargets | None = None,
    align_corners: bool = False,
    padding: str = "border",
    chunk_bytes: int = CHUNK_BYTES,
) -> RenderedRays:
    """Render rays through a feature volume with NeuS weights, and reduce the geometric loss terms on the way.

    Samples sit at the middles of the bins. Differentiable to first order with respect to the volume, the weights and
    inv_s; the SDF gradient is in closed form, so eikonal and normal losses need no double backward. Saved for the
    backward pass: 36 bytes per sample in float32, whatever the channels.

    Args:
        volume: [B, C, D, H, W] float32 or float64; channels-last-3d avoids a copy. The first Cs channels feed the
            SDF and the colour, the remaining Cr the colour only.
        sdf_weights: collapsed SDF decoder (K hidden units, Cs features).
        colour_weights: collapsed colour head.
        origins: [B, R, 3] in the coordinates of `box`.
        directions: [B, R, 3] unit vectors.
        edges: [B, R, S + 1] sorted distances of the bin edges.
        inv_s: [] positive inverse standard deviation of NeuS, in 1 / unit of the box.
        box: [B, 2, 3] region that each volume spans.
        hit: [B, R] bool, rays to render; the others give zeros. None: all.
        targets: measured depths for the free-space and SDF terms; None leaves both 0.
        align_corners: voxel centres on the faces of the box (True) or half a voxel inside (False).
        padding: "border" or "zeros".
        chunk_bytes: size of one working buffer; about a dozen are alive at once.

    Returns:
        RenderedRays.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    Reference:
        Wang et al., NeuS, arXiv 2106.10689, eq. 13; Zhu et al., PonderV2, arXiv 2310.08586, section 3.3.
    """
    geometry = check_volume(volume, box, align_corners, padding)
    sizes = _check_rays(geometry.shape[0], origins, directions, edges)
    decoder = check_weights(sdf_weights)
    _check_colour(colour_weights, decoder, volume.shape[1])
    _check.shape("inv_s", _check.floating("inv_s", inv_s), "")
    _check.same_device("volume", volume, origins=origins, directions=directions, edges=edges, inv_s=inv_s)
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes: expected a positive number, got {chunk_bytes}")
    batch, count = sizes["B"], sizes["R"]
    if hit is None:
        hit = torch.ones(batch, count, dtype=torch.bool, device=edges.device)
    _check.shape("hit", hit, "B R", sizes)
    goal = _default_targets(edges) if targets is None else targets
    _check.shape("targets.ray_depth", goal.ray_depth, "B R", sizes)
    _check.shape("targets.slope", goal.slope, "B R", sizes)
    per_chunk = chunk_rays(sizes["E"] - 1, volume.shape[1], volume.element_size(), chunk_bytes)
    scene = torch.arange(batch, device=edges.device).repeat_interleave(count)
    sums, losses = _RenderRays.apply(
        geometry, goal.truncation, per_chunk, volume, origins.reshape(-1, 3), directions.reshape(-1, 3),
        edges.reshape(batch * count, sizes["E"]), scene, hit.reshape(-1), goal.ray_depth.reshape(-1),
        goal.slope.reshape(-1), inv_s, *sdf_weights, *colour_weights,
    )  # fmt: skip
    return _assemble(sums.view(batch, count, RAY_SUMS), losses, _counts(goal, edges, hit))


def _counts(targets: RayTargets, edges: Tensor, hit: Tensor) -> Tensor:
    """[3] divisors of the eikonal, free-space and band sums, each at least 1."""
    goal = sample_targets(targets, (edges[..., 1:] + edges[..., :-1]) / 2, hit)
    samples = edges.shape[-1] - 1
    counts = torch.stack([hit.sum() * samples, goal.front.sum(), goal.band.sum()])
    return counts.clamp_min(1).to(edges.dtype)


def _assemble(sums: Tensor, losses: Tensor, counts: Tensor) -> RenderedRays:
    opacity = sums[..., 4]
    means = losses / counts
    return RenderedRays(
        rgb=sums[..., 0:3],
        depth=sums[..., 3] / (opacity + DEPTH_EPS),
        opacity=opacity,
        normal=sums[..., 5:8],
        eikonal=means[0],
        free_space=means[1],
        sdf=means[2],
    )


__all__ = ["CHUNK_BYTES", "VolumeGeometry", "chunk_rays", "render_rays"]
