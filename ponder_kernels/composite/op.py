"""render_weights and composite: checks, dispatch, launches and autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._backend import choose_backend, eager_on_cpu
from ponder_kernels._constants import TRANSMITTANCE_EPS
from ponder_kernels._launch import Plan, Specialisation, cdiv, launch, next_power_of_two, specialise
from ponder_kernels._register import gradient_buffers, keeps_float32, link_gradient, register
from ponder_kernels.composite import reference
from ponder_kernels.composite.batched import batched_weights

RAY_DTYPES = (torch.float32, torch.float64)
OFFSET_DTYPES = (torch.int32, torch.int64)
# One program scans 16 rays, 32 samples (a 128-byte line of each) at a time. Packed rays differ in length and a program
# runs as long as its longest: fewer rays each.
BATCHED_BLOCKS = {"BLOCK_R": 16, "BLOCK_S": 32}
PACKED_BLOCKS = {"BLOCK_R": 4, "BLOCK_S": 128}
MAX_BLOCK_C = 64
COMPOSITE_TILE = 1024
MAX_BLOCK_S = 64
# CUDA's limit on the second dim of a grid.
MAX_GRID_Y = 65535


class RayWeights(NamedTuple):
    """What each sample contributes to its ray, and how much light reaches it."""

    weights: Tensor
    transmittance: Tensor


@keeps_float32()
def render_weights(
    alpha: Tensor,
    *,
    ray_offsets: Tensor | None = None,
    eps: float = TRANSMITTANCE_EPS,
    early_stop: float = 0.0,
    backend: str = "auto",
) -> RayWeights:
    """Weights and transmittance of samples ordered front to back.

    ``T_i = prod_{j<i} (1 - alpha_j + eps)``, ``w_i = alpha_i T_i``. Gradients multiply and never divide by a factor,
    so that they are exact at alpha = 0 and alpha = 1, with eps = 0 too. Differentiable any number of times: the
    kernels give values and first derivatives, the torch formula higher ones.

    Args:
        alpha: [R, S], or the samples of all rays packed into [N]; in [0, 1], float32 (float64: torch backend only). R,
            S and N may be 0.
        ray_offsets: None for [R, S]. For [N]: [R + 1] int32 or int64, ray r owns the samples
            ``ray_offsets[r] : ray_offsets[r + 1]``; starts at 0, never falls, ends at N; rays may be empty. The values
            are checked where they lie on the CPU (but not under torch.compile); checking them on a GPU would make the
            host wait for it. Wrong values there leave the results unspecified, but no memory outside of the tensors is
            read or written.
        eps: not negative, added inside every factor. 0 gives the plain product; PonderV2 uses TRANSMITTANCE_EPS.
        early_stop: in [0, 1). A ray ends at its first sample with ``T_i < early_stop``: that sample and all behind it
            get weight 0 and transmittance 0, and no gradient flows to or from them.
        backend: "auto", "triton" or "torch".

    Returns:
        RayWeights(weights, transmittance), shape and dtype of `alpha`, both in [0, 1] up to eps S.

    Raises:
        TypeError: not a tensor, or a dtype that is not allowed.
        ValueError: wrong rank, offsets that do not fit, eps or early_stop out of range, another device, an unknown
            backend.
        RuntimeError: Triton asked for but not installed, or inside a torch.func transform.

    Reference: Max 1995, "Optical models for direct volume rendering"; NeRF, arXiv 2003.08934, eq. 3; the factors with
    eps are PonderV2's; early termination: Levoy 1990, "Efficient ray tracing of volume data".
    """
    _check.floating("alpha", alpha, RAY_DTYPES)
    dims = _check.shape("alpha", alpha, "R S" if ray_offsets is None else "N")
    if ray_offsets is not None:
        _check_offsets("alpha", alpha, ray_offsets, dims)
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite number, not negative, got {eps!r}")
    if not 0.0 <= early_stop < 1.0:
        raise ValueError(f"early_stop: expected a number in [0, 1), got {early_stop!r}")
    if choose_backend(backend, alpha) == "torch":
        if ray_offsets is None and eager_on_cpu(alpha):
            return RayWeights(*batched_weights(alpha, float(eps), float(early_stop)))
        return RayWeights(*reference.render_weights_reference(alpha, ray_offsets, float(eps), float(early_stop)))
    return RayWeights(*_render_weights(alpha, ray_offsets, float(eps), float(early_stop)))


@keeps_float32("values", "background")
def composite(
    weights: Tensor,
    values: Tensor,
    background: Tensor | None = None,
    *,
    ray_offsets: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of sample values per ray, over a background.

    ``out_r = sum_i w_ri v_ri + background_r (1 - sum_i w_ri)``, accumulated in float32. Differentiable any number of
    times, as `render_weights`.

    Args:
        weights: [R, S] or packed [N], float32 (float64: torch backend only).
        values: [R, S, C] or packed [N, C], any floating dtype (float64: torch backend only), any strides.
        background: None, [C] or [R, C], any floating dtype (float64: torch backend only).
        ray_offsets: None for [R, S]; for [N] as in `render_weights`.
        backend: "auto", "triton" or "torch".

    Returns:
        [R, C] in the dtype of `weights`; a ray without samples shows the background.

    Raises:
        TypeError: not a tensor, or a dtype that is not allowed.
        ValueError: shapes, offsets or devices that do not fit, an unknown backend.
        RuntimeError: Triton asked for but not installed, or inside a torch.func transform.

    Reference: NeRF, arXiv 2003.08934, eq. 3 (after Max 1995).
    """
    _check.floating("weights", weights, RAY_DTYPES)
    _check.floating("values", values)
    samples = "R S" if ray_offsets is None else "N"
    dims = _check.shape("weights", weights, samples)
    _check.shape("values", values, f"{samples} C", dims)
    _check.same_device("weights", weights, values=values)
    if ray_offsets is not None:
        _check_offsets("weights", weights, ray_offsets, dims)
    tensors = [weights, values]
    if background is not None:
        _check.floating("background", background)
        _check.shape("background", background, "C" if background.dim() == 1 else "R C", dims)
        _check.same_device("weights", weights, background=background)
        tensors.append(background)
    chosen = choose_backend(backend, *tensors)
    if background is not None:
        background = background.to(weights.dtype).expand(dims["R"], dims["C"])
    if chosen == "torch":
        return reference.composite_reference(weights, values, background, ray_offsets)
    out: Tensor = _composite(weights, values, background, ray_offsets)
    return out


def _check_offsets(owner: str, samples: Tensor, ray_offsets: Tensor, dims: dict[str, int]) -> None:
    """Require [R + 1] integers that share out the N samples; binds R. Values are read only where that is free."""
    _check.tensor("ray_offsets", ray_offsets)
    if ray_offsets.dtype not in OFFSET_DTYPES:
        got = str(ray_offsets.dtype).removeprefix("torch.")
        raise TypeError(f"ray_offsets: expected dtype int32, int64, got {got}")
    if ray_offsets.dim() != 1 or ray_offsets.shape[0] == 0:
        raise ValueError(f"ray_offsets: expected shape [R + 1], got {list(ray_offsets.shape)}")
    _check.same_device(owner, samples, ray_offsets=ray_offsets)
    n, rays = dims["N"], ray_offsets.shape[0] - 1
    dims["R"] = rays
    if rays == 0 and n > 0:
        raise ValueError(f"ray_offsets: expected at least one ray for {n} samples, got shape [1]")
    if not reference.values_at_hand(ray_offsets):
        return
    first, last = int(ray_offsets[0]), int(ray_offsets[-1])
    if first != 0 or last != n:
        raise ValueError(f"ray_offsets: expected values from 0 to {n}, got from {first} to {last}")
    falls = ray_offsets[1:] < ray_offsets[:-1]
    if bool(falls.any()):
        k = int(falls.long().argmax())
        before, after = ray_offsets[k : k + 2].tolist()
        raise ValueError(f"ray_offsets: expected values that never fall, got {before} and then {after}")


def _fake_weights(alpha: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    weights, transmittance = gradient_buffers((alpha, alpha), (True, True))
    return weights, transmittance


def _alpha_gradients(
    grad_weights: Tensor | None, grad_transmittance: Tensor | None, alpha: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    # Offsets have no gradient: their place is taken by a placeholder.
    return gradient_buffers((alpha, alpha), rest[-1])


@register(
    "render_weights(Tensor alpha, Tensor? ray_offsets, float eps, float early_stop) -> (Tensor, Tensor)", _fake_weights
)
def _render_weights(alpha: Tensor, ray_offsets: Tensor | None, eps: float, early_stop: float) -> tuple[Tensor, Tensor]:
    from ponder_kernels.composite import kernels

    rays, size = _rays_and_size(alpha, ray_offsets)
    weights, transmittance = _fake_weights(alpha)
    alpha, offsets = alpha.contiguous(), _offsets_or(alpha, ray_offsets)
    plan = _scan_plan(ray_offsets is not None, early_stop > 0.0)
    grid = (cdiv(rays, plan.constexprs["BLOCK_R"]) if size else 0,)
    tensors = (alpha, offsets, weights, transmittance)
    launch(kernels.render_weights_forward_kernel, grid, plan, *tensors, rays, size, eps, early_stop)
    return weights, transmittance


@register(
    "render_weights_backward(Tensor? grad_weights, Tensor? grad_transmittance, Tensor alpha, Tensor? ray_offsets, "
    "Tensor weights, Tensor transmittance, float eps, float early_stop, bool[] wanted) -> (Tensor, Tensor)",
    _alpha_gradients,
)
def _render_weights_backward(
    grad_weights: Tensor | None,
    grad_transmittance: Tensor | None,
    alpha: Tensor,
    ray_offsets: Tensor | None,
    weights: Tensor,
    transmittance: Tensor,
    eps: float,
    early_stop: float,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    from ponder_kernels.composite import kernels

    rays, size = _rays_and_size(alpha, ray_offsets)
    gradients = gradient_buffers((alpha, alpha), wanted)
    upstream = (grad_weights, grad_transmittance)
    plan = _scan_backward_plan(ray_offsets is not None, early_stop > 0.0, *(g is not None for g in upstream))
    # A kernel argument that its flags leave unused still needs a tensor.
    given = (transmittance if g is None else g.contiguous() for g in upstream)
    grid = (cdiv(rays, plan.constexprs["BLOCK_R"]) if size else 0,)
    tensors = (*given, alpha.contiguous(), _offsets_or(alpha, ray_offsets), transmittance, gradients[0])
    launch(kernels.render_weights_backward_kernel, grid, plan, *tensors, rays, size, eps)
    return gradients


def _fake_composite(weights: Tensor, values: Tensor, background: Tensor | None, ray_offsets: Tensor | None) -> Tensor:
    rays, _ = _rays_and_size(weights, ray_offsets)
    return torch.empty((rays, values.shape[-1]), dtype=weights.dtype, device=weights.device)


def _composite_gradients(
    grad_out: Tensor,
    weights: Tensor,
    values: Tensor,
    background: Tensor | None,
    ray_offsets: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    # An absent background and the offsets have no gradient: their places are taken by placeholders.
    return gradient_buffers((weights, values, grad_out, weights), wanted)


@register(
    "composite(Tensor weights, Tensor values, Tensor? background, Tensor? ray_offsets) -> Tensor", _fake_composite
)
def _composite(weights: Tensor, values: Tensor, background: Tensor | None, ray_offsets: Tensor | None) -> Tensor:
    out = _fake_composite(weights, values, background, ray_offsets)
    _launch_composite(weights.contiguous(), values, background, ray_offsets, out, values.is_contiguous())
    return out


def _launch_composite(
    weights: Tensor, values: Tensor, background: Tensor | None, ray_offsets: Tensor | None, out: Tensor, dense: bool
) -> None:
    from ponder_kernels.composite import kernels

    rays, size = _rays_and_size(weights, ray_offsets)
    plan = _composite_plan(out.shape[1], ray_offsets is not None, dense, background is not None)
    behind = out if background is None else background
    grid = (rays, cdiv(out.shape[1], plan.constexprs["BLOCK_C"]))
    tensors = (weights, values, behind, _offsets_or(weights, ray_offsets), out)
    launch(kernels.composite_forward_kernel, grid, plan, *tensors, size, *_strides(values), *behind.stride())


@register(
    "composite_backward(Tensor grad_out, Tensor weights, Tensor values, Tensor? background, Tensor? ray_offsets, "
    "bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    _composite_gradients,
)
def _composite_backward(
    grad_out: Tensor,
    weights: Tensor,
    values: Tensor,
    background: Tensor | None,
    ray_offsets: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    from ponder_kernels.composite import kernels

    rays, size = _rays_and_size(weights, ray_offsets)
    channels = values.shape[-1]
    grad_out, weights = grad_out.contiguous(), weights.contiguous()
    gradients = _composite_gradients(grad_out, weights, values, background, ray_offsets, wanted)
    if wanted[2]:
        torch.mul(grad_out, 1.0 - _opacity(weights, ray_offsets), out=gradients[2])
    if not (wanted[0] or wanted[1]):
        return gradients
    plan = _composite_backward_plan(
        channels, ray_offsets is not None, values.is_contiguous(), background is not None, wanted[0], wanted[1]
    )
    behind = grad_out if background is None else background
    programs = cdiv(size, plan.constexprs["BLOCK_S"])
    if ray_offsets is not None:
        # As many programs per ray as its blocks on average; on a longer ray each does more of them.
        programs = cdiv(programs, max(rays, 1))
    tensors = (grad_out, weights, values, behind, _offsets_or(weights, ray_offsets), *gradients[:2])
    strides = (*_strides(values), *behind.stride())
    grid = (rays, min(programs, MAX_GRID_Y))
    launch(kernels.composite_backward_kernel, grid, plan, *tensors, size, *strides)
    return gradients


def _opacity(weights: Tensor, ray_offsets: Tensor | None) -> Tensor:
    """Sum of the weights of each ray, [R, 1]; packed rays are composited with values of one."""
    if ray_offsets is None:
        return weights.sum(dim=1, keepdim=True)
    ones = weights.new_ones(1).expand(weights.shape[0], 1)
    out = torch.empty((ray_offsets.shape[0] - 1, 1), dtype=weights.dtype, device=weights.device)
    _launch_composite(weights, ones, None, ray_offsets, out, dense=False)
    return out


def _rays_and_size(samples: Tensor, ray_offsets: Tensor | None) -> tuple[int, int]:
    """Number of rays, and samples per ray (batched) or of all rays (packed)."""
    rays = samples.shape[0] if ray_offsets is None else ray_offsets.shape[0] - 1
    return rays, samples.shape[-1]


def _offsets_or(unused: Tensor, ray_offsets: Tensor | None) -> Tensor:
    """The offsets, or a tensor in the place of a kernel argument that its flags leave unused."""
    return unused if ray_offsets is None else ray_offsets.contiguous()


def _strides(values: Tensor) -> tuple[int, ...]:
    """Strides of values along rays, samples and channels; a packed tensor has none along rays."""
    return values.stride() if values.dim() == 3 else (0, *values.stride())


link_gradient(
    _render_weights, _render_weights_backward, reference.render_weights_reference, tensors=2, keep_outputs=True
)
link_gradient(_composite, _composite_backward, reference.composite_reference, tensors=4)


def _scan_plan(packed: bool, early_stop: bool) -> Plan:
    return Plan({"PACKED": packed, "HAS_EARLY_STOP": early_stop, **(PACKED_BLOCKS if packed else BATCHED_BLOCKS)})


def _scan_backward_plan(packed: bool, early_stop: bool, has_weights: bool, has_transmittance: bool) -> Plan:
    flags = {"HAS_WEIGHTS": has_weights, "HAS_TRANSMITTANCE": has_transmittance}
    return Plan({**_scan_plan(packed, early_stop).constexprs, **flags})


def _composite_plan(channels: int, packed: bool, dense: bool, background: bool) -> Plan:
    block_c = min(MAX_BLOCK_C, next_power_of_two(channels))
    block_s = min(MAX_BLOCK_S, COMPOSITE_TILE // block_c)
    flags = {"C": channels, "PACKED": packed, "DENSE": dense, "HAS_BACKGROUND": background}
    # A ray of few channels is a small tile: one warp is enough, and more rays fit on a multiprocessor.
    return Plan({**flags, "BLOCK_S": block_s, "BLOCK_C": block_c}, num_warps=1 if block_c * block_s <= 256 else 4)


def _composite_backward_plan(
    channels: int, packed: bool, dense: bool, background: bool, to_weights: bool, to_values: bool
) -> Plan:
    forward = _composite_plan(channels, packed, dense, background)
    flags = {"TO_WEIGHTS": to_weights, "TO_VALUES": to_values}
    return Plan({**forward.constexprs, **flags}, forward.num_warps)


def specialisations() -> list[Specialisation]:
    """Compiled forms of this operator's kernels over layouts, channel counts, dtypes and flags that occur."""
    return [*_scan_forms(), *_composite_forms()]


def _scan_forms() -> list[Specialisation]:
    from ponder_kernels.composite import kernels

    forms = []
    for packed, early_stop, offsets in (
        (False, False, torch.float32),
        (False, True, torch.float32),
        (True, False, torch.int64),
        (True, True, torch.int32),
    ):
        pointers, plan = {"offsets_ptr": offsets}, _scan_plan(packed, early_stop)
        forms.append(specialise(kernels.render_weights_forward_kernel, plan, pointers, floats=("eps", "early_stop")))
        for upstream in ((True, False), (False, True), (True, True)):
            plan = _scan_backward_plan(packed, early_stop, *upstream)
            forms.append(specialise(kernels.render_weights_backward_kernel, plan, pointers, floats=("eps",)))
    return forms


def _composite_forms() -> list[Specialisation]:
    from ponder_kernels.composite import kernels

    forms = []
    for dtype, channels, packed, dense, background in (
        (torch.float32, 1, False, True, False),
        (torch.float32, 3, False, True, True),
        (torch.float32, 3, False, False, True),
        (torch.float32, 131, False, True, False),
        (torch.bfloat16, 64, False, True, False),
        (torch.float32, 1, True, True, False),
        (torch.float32, 1, True, False, False),
        (torch.float32, 3, True, True, True),
        (torch.bfloat16, 64, True, True, False),
    ):
        pointers = {"values_ptr": dtype, "offsets_ptr": torch.int64 if packed else torch.float32}
        plan = _composite_plan(channels, packed, dense, background)
        forms.append(specialise(kernels.composite_forward_kernel, plan, pointers))
        for wanted in ((True, True), (True, False), (False, True)):
            if channels != 3 and wanted != (True, True):
                continue
            plan = _composite_backward_plan(channels, packed, dense, background, *wanted)
            grads = {"grad_values_ptr": dtype}
            forms.append(specialise(kernels.composite_backward_kernel, plan, {**pointers, **grads}))
    return forms
