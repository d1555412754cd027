"""render_weights and composite: checks, dispatch, launches and autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._backend import choose_backend
from ponder_kernels._launch import (
    Plan,
    Specialisation,
    cdiv,
    first_order_only,
    launch,
    next_power_of_two,
    specialise,
)
from ponder_kernels.composite import reference

RAY_DTYPES = (torch.float32, torch.float64)
# One program scans 16 rays, 32 samples (a 128-byte line of each) at a time.
SCAN_PLAN = Plan({"BLOCK_R": 16, "BLOCK_S": 32})
MAX_BLOCK_C = 64
COMPOSITE_TILE = 1024
MAX_BLOCK_S = 64


class RayWeights(NamedTuple):
    """What each sample contributes to its ray, and how much light reaches it."""

    weights: Tensor
    transmittance: Tensor


def render_weights(alpha: Tensor, *, backend: str = "auto") -> RayWeights:
    """Weights and transmittance of samples ordered front to back.

    ``T_i = prod_{j<i} (1 - alpha_j + eps)`` with eps = TRANSMITTANCE_EPS inside every factor, ``w_i = alpha_i
    T_i``. The Triton backward multiplies and never divides by a factor, so that it is exact at alpha = 0 and
    alpha = 1. First derivatives everywhere; higher ones on the torch backend.

    Args:
        alpha: [R, S] in [0, 1], float32 (float64: torch backend only). R and S may be 0.
        backend: "auto", "triton" or "torch".

    Returns:
        RayWeights(weights [R, S], transmittance [R, S]), dtype of `alpha`, both in [0, 1] up to eps S.

    Raises:
        TypeError: not a tensor, or a dtype that is not allowed.
        ValueError: wrong rank, an unknown backend.
        RuntimeError: Triton asked for but not installed; a second derivative through the Triton kernels.

    Reference: Max 1995, "Optical models for direct volume rendering"; NeRF, arXiv 2003.08934, eq. 3; the
    factors with eps are PonderV2's.
    """
    _check.floating("alpha", alpha, RAY_DTYPES)
    _check.shape("alpha", alpha, "R S")
    if choose_backend(backend, alpha) == "torch":
        return RayWeights(*reference.render_weights_reference(alpha))
    return RayWeights(*_RenderWeights.apply(alpha))


def composite(weights: Tensor, values: Tensor, background: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Weighted sum of sample values per ray, over a background.

    ``out_r = sum_i w_ri v_ri + background_r (1 - sum_i w_ri)``, accumulated in float32. First derivatives
    everywhere; higher ones on the torch backend.

    Args:
        weights: [R, S] float32 (float64: torch backend only).
        values: [R, S, C] any floating dtype (float64: torch backend only), any strides.
        background: None, [C] or [R, C], any floating dtype (float64: torch backend only).
        backend: "auto", "triton" or "torch".

    Returns:
        [R, C] in the dtype of `weights`.

    Raises:
        TypeError: not a tensor, or a dtype that is not allowed.
        ValueError: shapes or devices that do not fit, an unknown backend.
        RuntimeError: Triton asked for but not installed; a second derivative through the Triton kernels.

    Reference: NeRF, arXiv 2003.08934, eq. 3 (after Max 1995).
    """
    _check.floating("weights", weights, RAY_DTYPES)
    _check.floating("values", values)
    dims = _check.shape("weights", weights, "R S")
    _check.shape("values", values, "R S C", dims)
    _check.same_device("weights", weights, values=values)
    tensors = [weights, values]
    if background is not None:
        _check.floating("background", background)
        if background.dim() == 1:
            _check.shape("background", background, "C", dims)
        else:
            _check.shape("background", background, "R C", dims)
        _check.same_device("weights", weights, background=background)
        tensors.append(background)
    chosen = choose_backend(backend, *tensors)
    if background is not None:
        background = background.to(weights.dtype).expand(dims["R"], dims["C"])
    if chosen == "torch":
        return reference.composite_reference(weights, values, background)
    out: Tensor = _Composite.apply(weights, values, background)
    return out


def _composite_plan(channels: int, background: bool) -> Plan:
    block_c = min(MAX_BLOCK_C, next_power_of_two(channels))
    block_s = min(MAX_BLOCK_S, COMPOSITE_TILE // block_c)
    values = {"C": channels, "HAS_BACKGROUND": background, "BLOCK_S": block_s, "BLOCK_C": block_c}
    # A ray of few channels is a small tile: one warp is enough, and more rays fit on a multiprocessor.
    return Plan(values, num_warps=1 if block_c * block_s <= 256 else 4)


def _composite_backward_plan(channels: int, background: bool, to_weights: bool, to_values: bool) -> Plan:
    forward = _composite_plan(channels, background)
    flags = {"TO_WEIGHTS": to_weights, "TO_VALUES": to_values}
    return Plan({**forward.constexprs, **flags}, forward.num_warps)


def _scan_backward_plan(has_weights: bool, has_transmittance: bool) -> Plan:
    flags = {"HAS_WEIGHTS": has_weights, "HAS_TRANSMITTANCE": has_transmittance}
    return Plan({**flags, **SCAN_PLAN.constexprs}, SCAN_PLAN.num_warps)


def launch_render_weights(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and transmittance by the Triton kernel; `alpha` contiguous."""
    from ponder_kernels.composite import kernels

    rays, samples = alpha.shape
    weights, transmittance = torch.empty_like(alpha), torch.empty_like(alpha)
    grid = (cdiv(rays, SCAN_PLAN.constexprs["BLOCK_R"]) if samples else 0,)
    kernel = kernels.render_weights_forward_kernel
    launch(kernel, grid, SCAN_PLAN, alpha, weights, transmittance, rays, samples)
    return weights, transmittance


def launch_render_weights_backward(
    grad_weights: Tensor | None, grad_transmittance: Tensor | None, alpha: Tensor, transmittance: Tensor
) -> Tensor:
    """Gradient of alpha by the Triton kernel; all tensors contiguous."""
    from ponder_kernels.composite import kernels

    rays, samples = alpha.shape
    grad_alpha = torch.empty_like(alpha)
    plan = _scan_backward_plan(grad_weights is not None, grad_transmittance is not None)
    # A kernel argument that its flags leave unused still needs a tensor.
    upstream = (alpha if g is None else g for g in (grad_weights, grad_transmittance))
    grid = (cdiv(rays, plan.constexprs["BLOCK_R"]) if samples else 0,)
    kernel = kernels.render_weights_backward_kernel
    launch(kernel, grid, plan, *upstream, alpha, transmittance, grad_alpha, rays, samples)
    return grad_alpha


class _RenderWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, alpha: Tensor) -> tuple[Tensor, Tensor]:
        alpha = alpha.contiguous()
        weights, transmittance = launch_render_weights(alpha)
        ctx.save_for_backward(alpha, transmittance)
        ctx.set_materialize_grads(False)
        return weights, transmittance

    @staticmethod
    @first_order_only("render_weights")
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None]:
        if all(g is None for g in upstream):
            return (None,)
        alpha, transmittance = ctx.saved_tensors
        to_weights, to_transmittance = (None if g is None else g.contiguous() for g in upstream)
        return (launch_render_weights_backward(to_weights, to_transmittance, alpha, transmittance),)


def launch_composite(weights: Tensor, values: Tensor, background: Tensor | None) -> Tensor:
    """Composited values [R, C] by the Triton kernel; `weights` contiguous."""
    from ponder_kernels.composite import kernels

    rays, samples, channels = values.shape
    out = torch.empty(rays, channels, dtype=weights.dtype, device=weights.device)
    plan = _composite_plan(channels, background is not None)
    behind = weights if background is None else background
    strides = (*values.stride(), *(behind.stride()))
    grid = (rays, cdiv(channels, plan.constexprs["BLOCK_C"]))
    launch(kernels.composite_forward_kernel, grid, plan, weights, values, behind, out, samples, *strides)
    return out


def launch_composite_backward(
    grad_out: Tensor,
    weights: Tensor,
    values: Tensor,
    background: Tensor | None,
    to_weights: bool,
    to_values: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weights and values (float32, contiguous), each None unless asked for."""
    from ponder_kernels.composite import kernels

    rays, samples, channels = values.shape
    grad_weights = grad_values = None
    if to_weights:
        grad_weights = torch.zeros_like(weights) if channels == 0 else torch.empty_like(weights)
    if to_values:
        grad_values = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    if values.numel() == 0 or not (to_weights or to_values):
        return grad_weights, grad_values
    plan = _composite_backward_plan(channels, background is not None, to_weights, to_values)
    # A kernel argument that its flags leave unused still needs a tensor.
    behind = weights if background is None else background
    targets = [grad_out if g is None else g for g in (grad_weights, grad_values)]
    tensors = (grad_out, weights, values, behind, *targets)
    grid = (rays, cdiv(samples, plan.constexprs["BLOCK_S"]))
    kernel = kernels.composite_backward_kernel
    launch(kernel, grid, plan, *tensors, samples, *values.stride(), *behind.stride())
    return grad_weights, grad_values


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, background: Tensor | None) -> Tensor:
        weights = weights.contiguous()
        ctx.save_for_backward(weights, values, background)
        return launch_composite(weights, values, background)

    @staticmethod
    @first_order_only("composite")
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        weights, values, background = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_out = grad_out.contiguous()
        grad_weights, grad_values = launch_composite_backward(
            grad_out, weights, values, background, to_weights=needs[0], to_values=needs[1]
        )
        # [R, C] only: not worth a kernel.
        grad_background = grad_out * (1.0 - weights.sum(dim=1, keepdim=True)) if needs[2] else None
        return grad_weights, grad_values, grad_background


def specialisations() -> list[Specialisation]:
    """Compiled forms of this operator's kernels over channel counts, dtypes and flags that occur."""
    from ponder_kernels.composite import kernels

    forms = [specialise(kernels.render_weights_forward_kernel, SCAN_PLAN)]
    for flags in ((True, False), (False, True), (True, True)):
        forms.append(specialise(kernels.render_weights_backward_kernel, _scan_backward_plan(*flags)))
    unit = ("stride_c",)
    for dtype, channels, background in (
        (torch.float32, 1, False),
        (torch.float32, 3, True),
        (torch.float32, 131, False),
        (torch.bfloat16, 64, False),
    ):
        values = {"values_ptr": dtype, "grad_values_ptr": dtype}
        aligned = ("stride_r", "stride_s") if channels % 16 == 0 else ()
        plan = _composite_plan(channels, background)
        kernel = kernels.composite_forward_kernel
        forms.append(specialise(kernel, plan, values, ones=unit, aligned=aligned))
        for to_weights, to_values in ((True, True), (True, False), (False, True)):
            if channels != 3 and not (to_weights and to_values):
                continue
            plan = _composite_backward_plan(channels, background, to_weights, to_values)
            pointers = {k: v for k, v in values.items() if to_values or k != "grad_values_ptr"}
            kernel = kernels.composite_backward_kernel
            forms.append(specialise(kernel, plan, pointers, ones=unit, aligned=aligned))
    return forms
