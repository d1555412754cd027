"""volume_sample: checks, dispatch and launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._backend import choose_backend, eager_on_cpu
from ponder_kernels._launch import Plan, Specialisation, cdiv, launch, specialise
from ponder_kernels._register import keeps_float32, register
from ponder_kernels._tuning import DEFAULT, WARPS, family_of, parameters
from ponder_kernels.volume_sample import reference, rows
from ponder_kernels.volume_sample.autograd import link_orders
from ponder_kernels.volume_sample.layout import (
    PADDINGS,
    UNUSED,
    Layout,
    Options,
    block_sizes,
    gradient_buffer,
    gradient_from,
    gradient_like,
    layout_of,
)
from ponder_kernels.volume_sample.scatter import scatter

POINT_DTYPES = (torch.float32, torch.float64)


@keeps_float32("volume")
def volume_sample(
    volume: Tensor,
    points: Tensor,
    *,
    padding: str = "zeros",
    align_corners: bool = True,
    smoothstep: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Sample a dense volume at continuous points by trilinear interpolation.

    Values and derivatives are those of ``torch.nn.functional.grid_sample`` (mode "bilinear"), without the output's
    transposition: ``out[b,n,c] = sum over 8 corners of weight(point) * volume[b,c,corner]``. floor() decides the cell,
    so that a point on a grid plane takes the derivative of its right-hand cell.

    Channels-last-3d (the channel contiguous) is the fast layout: the Triton backend takes any strides without a copy,
    on a CPU others are copied to it. The gradient has the volume's layout. Sums are accumulated in float32.

    Differentiable any number of times: kernels give values, first and second derivatives, the torch formula higher
    ones. For the backward pass only the inputs are kept; on a CPU a derivative that is not asked for is not computed,
    though its input requires one. On the Triton backend the gradient of `volume` is an atomic sum, whose last bits
    differ between runs; under ``torch.use_deterministic_algorithms(True)`` it is summed in a fixed order instead, which
    takes longer and 224 bytes of workspace per point.

    Args:
        volume: [B, C, D, H, W] float16, bfloat16, float32 or float64 (float64: torch backend only).
        points: [B, N, 3] float32 or float64 (float64: torch backend only), as (x, y, z) with x on the last
            volume axis. [-1, 1] spans the volume; any other value is allowed.
        padding: what lies outside. "zeros": each corner outside contributes 0. "border": coordinates are
            clamped to the volume, and a clamped coordinate has derivative 0. "reflection": coordinates are mirrored at
            the volume's ends (the centres of the end cells, or with align_corners=False their outer faces, then
            clamped) as often as it takes. A coordinate that is infinite counts as outside with "zeros" and "border".
            NaN gives 0 with "zeros" and the first cell of its axis otherwise, derivative 0; so do, with "reflection",
            infinities and coordinates beyond REFLECTION_MAX voxels.
        align_corners: True puts -1 and 1 on the centres of the end cells, False on their outer faces.
        smoothstep: True replaces the fraction t inside a cell by ``t^2 (3 - 2 t)`` on each axis: derivatives are then
            continuous, and 0 on the grid planes.
        backend: "auto", "triton" or "torch".

    Returns:
        [B, N, C] in the dtype of `points`.

    Raises:
        TypeError: not a tensor, or a dtype other than those above.
        ValueError: wrong shape, batch sizes or devices that differ, an empty D, H or W, an unknown padding or
            backend.
        RuntimeError: Triton asked for but not installed, or inside a torch.func transform.

    Reference: trilinear feature volumes as in PonderV2 (arXiv 2310.08586; no equation number); smoothstep as in
    Instant NGP (arXiv 2201.05989, appendix A).
    """
    _check.floating("volume", volume)
    _check.floating("points", points, POINT_DTYPES)
    dims = _check.shape("volume", volume, "B C D H W")
    _check.shape("points", points, "B N 3", dims)
    if 0 in volume.shape[2:]:
        raise ValueError(f"volume: expected D, H and W of at least 1, got {list(volume.shape)}")
    _check.same_device("volume", volume, points=points)
    _check.choice("padding", padding, PADDINGS)
    options = Options(padding, bool(align_corners), bool(smoothstep))
    if choose_backend(backend, volume, points) == "torch":
        if eager_on_cpu(volume, points):
            return rows.volume_sample_rows(volume.to(points.dtype), points, *options)
        return reference.volume_sample_reference(volume, points, *options)
    out: Tensor = _volume_sample(volume, points, *options)
    return out


_OPTIONS = "str padding, bool align_corners, bool smoothstep"


def _values_like(volume: Tensor, points: Tensor, *_: object) -> Tensor:
    return torch.empty(*points.shape[:2], volume.shape[1], dtype=points.dtype, device=points.device)


def _dense_like(x: Tensor, want: bool) -> Tensor:
    return torch.empty(x.shape if want else (0,), dtype=x.dtype, device=x.device)


@register(f"volume_sample(Tensor volume, Tensor points, {_OPTIONS}) -> Tensor", _values_like)
def _volume_sample(volume: Tensor, points: Tensor, padding: str, align_corners: bool, smoothstep: bool) -> Tensor:
    from ponder_kernels.volume_sample import kernels

    out = _values_like(volume, points)
    if out.numel() == 0:
        return out
    batch, n_points, channels = out.shape
    layout = layout_of(volume)
    options = Options(padding, align_corners, smoothstep)
    plan = _forward_plan(channels, layout, options, family_of(volume.device))
    grid = (batch * cdiv(n_points, plan.constexprs["BLOCK_N"]), cdiv(channels, plan.constexprs["BLOCK_C"]))
    tensors = (volume, points.contiguous(), out)
    launch(kernels.volume_sample_forward_kernel, grid, plan, *tensors, n_points, *volume.shape[2:], *layout.strides)
    return out


@register(
    f"volume_sample_backward(Tensor grad_out, Tensor volume, Tensor points, {_OPTIONS}, bool[] wanted) "
    "-> (Tensor, Tensor)",
    lambda grad_out, volume, points, *o: (gradient_like(volume, o[-1][0]), _dense_like(points, o[-1][1])),
)
def _volume_sample_backward(
    grad_out: Tensor,
    volume: Tensor,
    points: Tensor,
    padding: str,
    align_corners: bool,
    smoothstep: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    from ponder_kernels.volume_sample import kernels

    options = Options(padding, align_corners, smoothstep)
    grad_out, points = grad_out.contiguous(), points.contiguous()
    to_points = _dense_like(points, wanted[1])
    if grad_out.numel() == 0:
        return gradient_like(volume, wanted[0]).zero_(), to_points.zero_()
    atomic, to_volume = _volume_target(volume, grad_out, points, None, wanted[0], options)
    if atomic or wanted[1]:
        layout = layout_of(volume)
        plan = _backward_plan(volume.shape[1], layout, options, atomic, wanted[1], family_of(volume.device))
        tensors = (grad_out, volume, points, to_volume, to_points)
        sizes = (points.shape[1], *volume.shape[2:])
        kernel = kernels.volume_sample_backward_kernel
        launch(kernel, _point_blocks(points, plan), plan, *tensors, *sizes, *layout.strides)
    return gradient_from(to_volume, volume) if wanted[0] else gradient_like(volume, False), to_points


@register(
    "volume_sample_double_backward(Tensor? grad_grad_volume, Tensor? grad_grad_points, Tensor grad_out, "
    f"Tensor volume, Tensor points, {_OPTIONS}, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    lambda gg_volume, gg_points, grad_out, volume, points, *o: (
        _dense_like(grad_out, o[-1][0]),
        gradient_like(volume, o[-1][1]),
        _dense_like(points, o[-1][2]),
    ),
)
def _volume_sample_double_backward(
    grad_grad_volume: Tensor | None,
    grad_grad_points: Tensor | None,
    grad_out: Tensor,
    volume: Tensor,
    points: Tensor,
    padding: str,
    align_corners: bool,
    smoothstep: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    from ponder_kernels.volume_sample import kernels

    options = Options(padding, align_corners, smoothstep)
    grad_out, points = grad_out.contiguous(), points.contiguous()
    along = None if grad_grad_points is None else grad_grad_points.contiguous()
    to_out, to_points = _dense_like(grad_out, wanted[0]), _dense_like(points, wanted[2])
    if grad_out.numel() == 0:
        return to_out, gradient_like(volume, wanted[1]).zero_(), to_points.zero_()
    # The volume enters its own gradient's derivative only through the points' gradient.
    touched = wanted[1] and along is not None
    atomic, to_volume = _volume_target(volume, grad_out, points, along, touched, options)
    if wanted[0] or atomic or wanted[2]:
        layout = layout_of(volume)
        gg_layout = UNUSED if grad_grad_volume is None else layout_of(grad_grad_volume)
        given = (grad_grad_volume is not None, along is not None)
        flags = (*given, wanted[0], atomic, wanted[2])
        plan = _double_backward_plan(volume.shape[1], layout, gg_layout, options, *flags, family_of(volume.device))
        # What its flags leave unused still needs a tensor: others of the same dtype stand in.
        cotangents = (volume if grad_grad_volume is None else grad_grad_volume, points if along is None else along)
        tensors = (*cotangents, grad_out, volume, points, to_out, to_volume, to_points)
        numbers = (points.shape[1], *volume.shape[2:], *layout.strides, *gg_layout.strides)
        kernel = kernels.volume_sample_double_backward_kernel
        launch(kernel, _point_blocks(points, plan), plan, *tensors, *numbers)
    if wanted[1] and not touched:
        return to_out, gradient_like(volume, True).zero_(), to_points
    return to_out, gradient_from(to_volume, volume) if touched else gradient_like(volume, False), to_points


link_orders(_volume_sample, _volume_sample_backward, _volume_sample_double_backward)


def _point_blocks(points: Tensor, plan: Plan) -> tuple[int]:
    return (points.shape[0] * cdiv(points.shape[1], plan.constexprs["BLOCK_N"]),)


def _volume_target(
    volume: Tensor,
    grad_out: Tensor,
    points: Tensor,
    along: Tensor | None,
    want: bool,
    options: Options,
) -> tuple[bool, Tensor]:
    """Whether a kernel is to add to the volume's gradient by atomics, and the float32 buffer of that gradient.

    Where torch is to be deterministic the buffer is complete instead. Without `want` it is a placeholder.
    """
    if not want:
        return False, torch.empty(0, dtype=torch.float32, device=volume.device)
    to_volume = gradient_buffer(volume)
    if not torch.are_deterministic_algorithms_enabled():
        return True, to_volume
    scatter(to_volume, grad_out, points, along, options)
    return False, to_volume


def _plan(kernel: str, bucket: str, family: str, channels: int, constants: Mapping[str, int | bool]) -> Plan:
    """Constants and a tile of the launch table's number of elements, by default four per thread.

    With eight the backward spills on compute capability 9.0 (Triton 3.9), and the forward takes twice the registers:
    fewer gathers in flight.
    """
    row = parameters(f"volume_sample_{kernel}_kernel", bucket, family)
    return Plan({**constants, **block_sizes(channels, row["TILE"])}, row[WARPS])


def _constants(channels: int, layout: Layout, options: Options) -> dict[str, int | bool]:
    return {"C": channels, **options.flags(), "LAST": layout.last, "UNIT": layout.unit}


def _forward_plan(channels: int, layout: Layout, options: Options, family: str = DEFAULT) -> Plan:
    return _plan("forward", "", family, channels, _constants(channels, layout, options))


def _backward_plan(
    channels: int, layout: Layout, options: Options, to_volume: bool, to_points: bool, family: str = DEFAULT
) -> Plan:
    wanted = {"TO_VOLUME": to_volume, "TO_POINTS": to_points}
    # With few channels a tile is mostly corner arithmetic, of which a full one leaves too little room on sm_80.
    bucket = "few" if 1 < channels <= 4 else ""
    return _plan("backward", bucket, family, channels, {**_constants(channels, layout, options), **wanted})


def _double_backward_plan(
    channels: int,
    layout: Layout,
    gg_layout: Layout,
    options: Options,
    from_volume: bool,
    from_points: bool,
    to_out: bool,
    to_volume: bool,
    to_points: bool,
    family: str = DEFAULT,
) -> Plan:
    given = {"FROM_VOLUME": from_volume, "FROM_POINTS": from_points, "TO_OUT": to_out}
    wanted = {"TO_VOLUME": to_volume, "TO_POINTS": to_points}
    layouts = {**_constants(channels, layout, options), "GG_LAST": gg_layout.last, "GG_UNIT": gg_layout.unit}
    # Where channels are apart in memory every element has its own addresses: half the tile, or registers spill.
    bucket = "" if layout.last and gg_layout.last else "apart"
    return _plan("double_backward", bucket, family, channels, {**layouts, **given, **wanted})


def specialisations() -> list[Specialisation]:
    """Compiled forms of this operator's kernels over dtypes, layouts, options and channel counts that occur."""
    from ponder_kernels.volume_sample import kernels

    apart = Layout(False, 1, ())
    wide = Layout(True, 16, ())
    cases = [
        (torch.float32, 1, apart, Options("zeros", True, False)),
        (torch.float32, 4, Layout(True, 4, ()), Options("reflection", False, True)),
        (torch.float32, 96, apart, Options("zeros", True, False)),
        (torch.float32, 128, wide, Options("zeros", True, False)),
        (torch.float16, 64, wide, Options("border", True, True)),
        (torch.bfloat16, 128, wide, Options("zeros", True, False)),
    ]
    forms = []
    for dtype, channels, layout, options in cases:
        dtypes = {"volume_ptr": dtype, "gg_volume_ptr": dtype}
        every = (dtype, channels) == (torch.float32, 128)
        plan = _forward_plan(channels, layout, options)
        forms.append(specialise(kernels.volume_sample_forward_kernel, plan, dtypes))
        for first in _FIRST_ORDER_FLAGS if every else _FIRST_ORDER_FLAGS[:1]:
            plan = _backward_plan(channels, layout, options, *first)
            forms.append(specialise(kernels.volume_sample_backward_kernel, plan, dtypes))
        for second in _SECOND_ORDER_FLAGS if every else _SECOND_ORDER_FLAGS[:1]:
            gg_layout = layout if second[0] else UNUSED
            plan = _double_backward_plan(channels, layout, gg_layout, options, *second)
            forms.append(specialise(kernels.volume_sample_double_backward_kernel, plan, dtypes))
    return forms


# TO_VOLUME, TO_POINTS.
_FIRST_ORDER_FLAGS = [(True, True), (True, False), (False, True)]
# FROM_VOLUME, FROM_POINTS, TO_OUT, TO_VOLUME, TO_POINTS: everything; a loss on the points' gradient alone, with and
# without gradients to the points; deterministic.
_SECOND_ORDER_FLAGS = [
    (True, True, True, True, True),
    (False, True, True, True, True),
    (False, True, True, True, False),
    (False, True, True, False, True),
]
