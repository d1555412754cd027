"""volume_sample: checks, dispatch, launches and autograd."""

from __future__ import annotations

from typing import Any

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
from ponder_kernels.volume_sample import reference

PADDINGS = ("zeros", "border")
POINT_DTYPES = (torch.float32, torch.float64)
MAX_BLOCK_C = 64
# Elements of one [BLOCK_N, BLOCK_C] tile: four per thread. With eight the backward spills on compute
# capability 9.0 (Triton 3.9), and the forward takes twice the registers: fewer gathers in flight.
TILE = 512


def volume_sample(
    volume: Tensor,
    points: Tensor,
    *,
    padding: str = "zeros",
    align_corners: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Sample a dense volume at continuous points by trilinear interpolation.

    Values and first derivatives are those of ``torch.nn.functional.grid_sample`` (mode "bilinear"), without
    the output's transposition: ``out[b,n,c] = sum over 8 corners of weight(point) * volume[b,c,corner]``.
    floor() decides the cell, so that a point on a grid plane takes the derivative of its right-hand cell.

    Any strides are taken without a copy; channels-last-3d (the channel contiguous) is the fast layout. Sums
    are accumulated in float32. On the Triton backend the gradient of `volume` is an atomic sum, whose last
    bits differ between runs, and derivatives stop at first order; the torch backend has all orders.

    Args:
        volume: [B, C, D, H, W] float16, bfloat16, float32 or float64 (float64: torch backend only).
        points: [B, N, 3] float32 or float64 (float64: torch backend only), as (x, y, z) with x on the last
            volume axis. [-1, 1] spans the volume; any other value is allowed.
        padding: what lies outside. "zeros": each corner outside contributes 0. "border": coordinates are
            clamped to the volume, and a clamped coordinate has derivative 0. A coordinate that is infinite
            counts as outside; NaN gives 0 with "zeros" and the first cell of its axis with "border",
            derivative 0.
        align_corners: True puts -1 and 1 on the centres of the end cells, False on their outer faces.
        backend: "auto", "triton" or "torch".

    Returns:
        [B, N, C] in the dtype of `points`.

    Raises:
        TypeError: not a tensor, or a dtype other than those above.
        ValueError: wrong shape, batch sizes or devices that differ, an empty D, H or W, an unknown padding or
            backend.
        RuntimeError: Triton asked for but not installed; a second derivative through the Triton kernels.

    Reference: trilinear feature volumes as in PonderV2 (arXiv 2310.08586); no equation number.
    """
    _check.floating("volume", volume)
    _check.floating("points", points, POINT_DTYPES)
    dims = _check.shape("volume", volume, "B C D H W")
    _check.shape("points", points, "B N 3", dims)
    if 0 in volume.shape[2:]:
        raise ValueError(f"volume: expected D, H and W of at least 1, got {list(volume.shape)}")
    _check.same_device("volume", volume, points=points)
    _check.choice("padding", padding, PADDINGS)
    if choose_backend(backend, volume, points) == "torch":
        return reference.volume_sample_reference(volume, points, padding=padding, align_corners=align_corners)
    out: Tensor = _VolumeSample.apply(volume, points, align_corners, padding == "border")
    return out


def _forward_plan(channels: int, align_corners: bool, border: bool) -> Plan:
    block_c = min(MAX_BLOCK_C, next_power_of_two(channels))
    return Plan(
        {
            "C": channels,
            "ALIGN": align_corners,
            "BORDER": border,
            "BLOCK_N": min(256, TILE // block_c),
            "BLOCK_C": block_c,
        }
    )


def _backward_plan(channels: int, align_corners: bool, border: bool, to_volume: bool, to_points: bool) -> Plan:
    block_c = min(MAX_BLOCK_C, next_power_of_two(channels))
    return Plan(
        {
            "C": channels,
            "ALIGN": align_corners,
            "BORDER": border,
            "TO_VOLUME": to_volume,
            "TO_POINTS": to_points,
            "BLOCK_N": min(256, TILE // block_c),
            "BLOCK_C": block_c,
        }
    )


def launch_forward(volume: Tensor, points: Tensor, align_corners: bool, border: bool) -> Tensor:
    """Values [B, N, C] float32 by the Triton kernel; `points` contiguous."""
    from ponder_kernels.volume_sample import kernels

    batch, channels, depth, height, width = volume.shape
    n_points = points.shape[1]
    out = torch.empty(batch, n_points, channels, dtype=torch.float32, device=points.device)
    if out.numel() == 0:
        return out
    plan = _forward_plan(channels, align_corners, border)
    grid = (batch * cdiv(n_points, plan.constexprs["BLOCK_N"]), cdiv(channels, plan.constexprs["BLOCK_C"]))
    sizes = (n_points, depth, height, width)
    launch(kernels.volume_sample_forward_kernel, grid, plan, volume, points, out, *sizes, *volume.stride())
    return out


def launch_backward(
    grad_out: Tensor,
    volume: Tensor,
    points: Tensor,
    align_corners: bool,
    border: bool,
    to_volume: bool,
    to_points: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the volume (float32, the volume's layout) and the points, each None unless asked for."""
    from ponder_kernels.volume_sample import kernels

    batch, channels, depth, height, width = volume.shape
    n_points = points.shape[1]
    grad_volume = torch.zeros_like(volume, dtype=torch.float32) if to_volume else None
    make_points = torch.zeros_like if channels == 0 else torch.empty_like
    grad_points = make_points(points) if to_points else None
    if grad_out.numel() == 0:
        return grad_volume, grad_points
    plan = _backward_plan(channels, align_corners, border, to_volume, to_points)
    grid = (batch * cdiv(n_points, plan.constexprs["BLOCK_N"]),)
    # A kernel argument that its flags leave unused still needs a tensor: the upstream gradient stands in.
    volume_out = grad_out if grad_volume is None else grad_volume
    points_out = grad_out if grad_points is None else grad_points
    volume_strides = (0, 0, 0, 0, 0) if grad_volume is None else grad_volume.stride()
    tensors = (grad_out, volume, points, volume_out, points_out)
    sizes = (n_points, depth, height, width)
    kernel = kernels.volume_sample_backward_kernel
    launch(kernel, grid, plan, *tensors, *sizes, *volume.stride(), *volume_strides)
    return grad_volume, grad_points


class _VolumeSample(torch.autograd.Function):
    """Triton values with Triton first derivatives."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, points: Tensor, align_corners: bool, border: bool) -> Tensor:
        points = points.contiguous()
        ctx.save_for_backward(volume, points)
        ctx.options = (align_corners, border)
        return launch_forward(volume, points, align_corners, border)

    @staticmethod
    @first_order_only("volume_sample")
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        volume, points = ctx.saved_tensors
        needs = ctx.needs_input_grad
        align_corners, border = ctx.options
        grad_volume, grad_points = launch_backward(
            grad_out.contiguous(), volume, points, align_corners, border, needs[0], needs[1]
        )
        if grad_volume is not None:
            grad_volume = grad_volume.to(volume.dtype)
        return (
            grad_volume,
            grad_points,
            None,  # align_corners
            None,  # border
        )


def specialisations() -> list[Specialisation]:
    """Compiled forms of this operator's kernels over dtypes, layouts, flags and channel counts that occur."""
    from ponder_kernels.volume_sample import kernels

    last, first = "stride_c", "stride_w"
    strides = ("stride_b", "stride_c", "stride_d", "stride_h", "stride_w")
    cases = [
        (torch.float32, 1, first, True, False),
        (torch.float32, 3, first, False, True),
        (torch.float32, 32, last, False, False),
        (torch.float32, 96, first, True, False),
        (torch.float32, 128, last, True, False),
        (torch.float16, 64, last, True, True),
        (torch.bfloat16, 128, last, True, False),
    ]
    forms = []
    for dtype, channels, unit, align, border in cases:
        volume = {"volume_ptr": dtype}
        # Channels last with C a multiple of 16 makes every other stride one too: wide vector loads.
        aligned = [s for s in strides if s != unit and unit == last]
        plan = _forward_plan(channels, align, border)
        kernel = kernels.volume_sample_forward_kernel
        forms.append(specialise(kernel, plan, volume, ones=(unit,), aligned=aligned))
        for to_volume, to_points in ((True, True), (True, False), (False, True)):
            if (dtype, channels) != (torch.float32, 128) and not (to_volume and to_points):
                continue
            plan = _backward_plan(channels, align, border, to_volume, to_points)
            prefixes = ("", "grad_") if to_volume else ("",)
            ones = [prefix + unit for prefix in prefixes]
            wide = [prefix + name for prefix in prefixes for name in aligned]
            kernel = kernels.volume_sample_backward_kernel
            forms.append(specialise(kernel, plan, volume, ones=ones, aligned=wide))
    return forms
