"""From distances and gradients of R rays with S samples to weights and loss sums, and back, in one kernel each way.

What the torch engine does in `Renderer.opacity`, `Renderer.loss_sums` and `_composite_backward` for float32 rays. Host
functions only: they expect checked inputs. `x_bar` is the derivative of the loss with respect to x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ponder_kernels._launch import Plan, Specialisation, cdiv, launch, specialise
from ponder_kernels._tuning import DEFAULT, family_of, parameters, tuned_plan

if TYPE_CHECKING:
    from ponder_kernels.render.chunk import Settings

# One program scans 8 rays, 32 samples at a time: a warp's width, so that a scan stays within a warp.
BLOCKS = parameters("opacity_forward_kernel")
LOSSES = 3


class RaySamples(NamedTuple):
    """What the field says along the rays, float32.

    Attributes:
        sdf: [R, S].
        gradient: [R, S, 3] of the distance.
        directions: [R, 3].
        edges: [R, S + 1] of the bins.
        hit: [R] rays that meet the box, None: all; bool, or float32 (0 or 1), which saves a conversion.
        ray_depth, slope: [R], as in `RayTargets`.
        sharpness: [] inv_s of NeuS or beta of VolSDF.
    """

    sdf: Tensor
    gradient: Tensor
    directions: Tensor
    edges: Tensor
    hit: Tensor | None
    ray_depth: Tensor
    slope: Tensor
    sharpness: Tensor


class RayOpacity(NamedTuple):
    """Weights and transmittance [R, S]; sums [R, 3] of the eikonal, free-space and band terms."""

    weights: Tensor
    transmittance: Tensor
    losses: Tensor


class RayUpstream(NamedTuple):
    """Derivatives that reach the samples, float32.

    Attributes:
        weights: [R, S] complete: every composited value times the upstream of its sum, the unit normals included.
        losses: [3] by the loss sums over all rays.
        normal: [R, 3] by each ray's weighted sum of unit normals, None: 0. Rows may have any stride.
        gradient_by: [R, S, 3] by the gradient, as collected by the heads that read it, None: 0. A view whose samples
            lie a constant stride apart, such as three columns of a wide buffer, is not copied.
        sdf, gradient: [R, S] and [R, S, 3] by the per-sample outputs, None: 0.
    """

    weights: Tensor
    losses: Tensor
    normal: Tensor | None = None
    gradient_by: Tensor | None = None
    sdf: Tensor | None = None
    gradient: Tensor | None = None


class RayOpacityBar(NamedTuple):
    """Derivatives by sdf [R, S], gradient [R, S, 3] and sharpness [], which is float64."""

    sdf: Tensor
    gradient: Tensor
    sharpness: Tensor


def opacity_forward(settings: Settings, samples: RaySamples) -> RayOpacity:
    """Weights, transmittance and loss sums of every ray.

    A ray outside `hit` is transparent and has no loss. Every output is written once: deterministic.
    """
    from ponder_kernels.render import kernels

    rays, count = samples.sdf.shape
    weights, transmittance = (torch.empty_like(samples.sdf, memory_format=torch.contiguous_format) for _ in range(2))
    losses = samples.sdf.new_empty((rays, LOSSES))
    plan = _plan("forward", settings.model, family_of(samples.sdf.device))
    inputs, numbers = _inputs(samples), (settings.cos_anneal_ratio, settings.truncation, _middle(settings))
    flags = (int(samples.hit is not None),)
    outputs = (weights, transmittance, losses)
    launch(kernels.opacity_forward_kernel, _grid(rays, plan), plan, *inputs, *outputs, rays, count, *flags, *numbers)
    return RayOpacity(weights, transmittance, losses)


def opacity_backward(settings: Settings, samples: RaySamples, transmittance: Tensor, bar: RayUpstream) -> RayOpacityBar:
    """Derivatives by the samples' values and the sharpness, given the transmittance [R, S] of `opacity_forward`."""
    from ponder_kernels.render import kernels

    rays, count = samples.sdf.shape
    plan = _plan("backward", settings.model, family_of(samples.sdf.device))
    grid = _grid(rays, plan)
    sdf_bar, gradient_bar = (
        torch.empty_like(v, memory_format=torch.contiguous_format) for v in (samples.sdf, samples.gradient)
    )
    partial = samples.sdf.new_empty(grid)
    normal, normal_stride = _rows(bar.normal, samples.sdf)
    by, by_stride = _rows(bar.gradient_by, samples.sdf)
    # A kernel argument that its flag leaves unused still needs a tensor of its type.
    extra = (samples.sdf if v is None else v.contiguous() for v in (bar.sdf, bar.gradient))
    upstream = (transmittance.contiguous(), bar.weights.contiguous(), bar.losses.contiguous(), normal, by, *extra)
    optional = (samples.hit, bar.normal, bar.gradient_by, bar.sdf, bar.gradient)
    sizes = (rays, count, normal_stride, by_stride, *(int(v is not None) for v in optional))
    numbers = (settings.cos_anneal_ratio, settings.truncation, _middle(settings), settings.normal_floor)
    tensors = (*_inputs(samples), *upstream, sdf_bar, gradient_bar, partial)
    launch(kernels.opacity_backward_kernel, grid, plan, *tensors, *sizes, *numbers)
    return RayOpacityBar(sdf_bar, gradient_bar, partial.sum(dtype=torch.float64))


def _inputs(samples: RaySamples) -> tuple[Tensor, ...]:
    """The kernels' inputs in their order."""
    # As float32, hits and what stands in for absent ones share a compiled form.
    hit = samples.ray_depth if samples.hit is None else samples.hit.to(torch.float32)
    return tuple(v.contiguous() for v in (*samples[:4], hit, *samples[5:]))


def _rows(values: Tensor | None, unused: Tensor) -> tuple[Tensor, int]:
    """Values [..., 3] as rows, and the stride of these; copied only where rows have no common stride."""
    if values is None:
        return unused, 0
    flat = values.reshape(-1, values.shape[-1])
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    return flat, flat.stride(0)


def _middle(settings: Settings) -> float:
    return 0.5 if settings.middles else 0.0


def _plan(direction: str, model: str, family: str = DEFAULT) -> Plan:
    return tuned_plan(f"opacity_{direction}_kernel", {"NEUS": model.startswith("neus")}, family=family)


def _grid(rays: int, plan: Plan) -> tuple[int]:
    return (cdiv(rays, plan.constexprs["BLOCK_R"]),)


def specialisations() -> list[Specialisation]:
    """Compiled forms of the two kernels: one per opacity model, whatever is absent."""
    from ponder_kernels.render import kernels

    floats = ("ratio", "truncation", "middle", "normal_floor")
    entries = {"forward": kernels.opacity_forward_kernel, "backward": kernels.opacity_backward_kernel}
    return [
        specialise(kernel, _plan(direction, model), floats=floats)
        for model in ("neus", "volsdf")
        for direction, kernel in entries.items()
    ]
