"""What the ray-sampling operators launch, registered with torch.library and linked to its gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ponder_kernels._launch import Plan, Specialisation, cdiv, launch, specialise
from ponder_kernels._register import gradient_buffers, link_gradient, register
from ponder_kernels.ray_sampling import reference
from ponder_kernels.ray_sampling.reference import SPACINGS

# Rays a program of the box intersection; edges a program of the elementwise kernels.
BLOCK_RAYS = 128
BLOCK_EDGES = 512
# Rays and edges of a tile that is summed along rays.
SUM_BLOCKS = {"BLOCK_R": 4, "BLOCK_S": 128}
# A warp for each ray: bins that are summed and positions that are searched at a time.
SEARCH_BLOCKS = {"BLOCK_R": 4, "BLOCK_S": 128, "BLOCK_K": 64}


def _broadcast(origins: Tensor, directions: Tensor, box: Tensor) -> tuple[int, ...]:
    return torch.broadcast_shapes(origins.shape[:-1], directions.shape[:-1], box.shape[:-2])


def _rays(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """[..., 3] of every ray, contiguous."""
    return x.expand(*lead, 3).contiguous()


def _boxes(box: Tensor, lead: tuple[int, ...]) -> tuple[Tensor, int]:
    """Contiguous boxes, and how many rays in a row share one: boxes per scene are not copied to its rays."""
    sizes = (1,) * (len(lead) - box.dim() + 2) + tuple(box.shape[:-2])
    shared = len(lead)
    while shared > 0 and sizes[shared - 1] == 1:
        shared -= 1
    if sizes[:shared] == lead[:shared]:
        return box.contiguous(), max(math.prod(lead[shared:]), 1)
    return box.expand(*lead, 2, 3).contiguous(), 1


def _fake_interval(origins: Tensor, directions: Tensor, box: Tensor, near_min: float) -> tuple[Tensor, Tensor]:
    lead = _broadcast(origins, directions, box)
    near, far = (torch.empty(lead, dtype=origins.dtype, device=origins.device) for _ in range(2))
    return near, far


@register(
    "intersect_aabb(Tensor origins, Tensor directions, Tensor box, float near_min) -> (Tensor, Tensor)", _fake_interval
)
def _intersect_aabb(origins: Tensor, directions: Tensor, box: Tensor, near_min: float) -> tuple[Tensor, Tensor]:
    from ponder_kernels.ray_sampling import kernels

    lead = _broadcast(origins, directions, box)
    near, far = _fake_interval(origins, directions, box, near_min)
    boxes, shared = _boxes(box, lead)
    n, plan = near.numel(), Plan({"BLOCK": BLOCK_RAYS})
    rays = (_rays(origins, lead), _rays(directions, lead))
    launch(
        kernels.intersect_aabb_forward_kernel,
        (cdiv(n, BLOCK_RAYS),),
        plan,
        *rays,
        boxes,
        near,
        far,
        n,
        shared,
        near_min,
    )
    return near, far


@register(
    "intersect_aabb_backward(Tensor? grad_near, Tensor? grad_far, Tensor origins, Tensor directions, Tensor box, "
    "float near_min, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    lambda grad_near, grad_far, *inputs: gradient_buffers(inputs[:3], inputs[4]),
)
def _intersect_aabb_backward(
    grad_near: Tensor | None,
    grad_far: Tensor | None,
    origins: Tensor,
    directions: Tensor,
    box: Tensor,
    near_min: float,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    from ponder_kernels.ray_sampling import kernels

    lead = _broadcast(origins, directions, box)
    n = math.prod(lead)
    boxes, shared = _boxes(box, lead)
    rays = (_rays(origins, lead), _rays(directions, lead))
    upstream = [rays[0].new_zeros(n) if g is None else g.contiguous() for g in (grad_near, grad_far)]
    # Per ray; where rays share an origin or a box, summed afterwards.
    shapes = ((*lead, 3), (*lead, 3), (*lead, 2, 3))
    found = [rays[0].new_empty(s if want else (0,)) for s, want in zip(shapes, wanted, strict=True)]
    plan = _intersect_backward_plan(*wanted)
    arguments = (*upstream, *rays, boxes, *found)
    launch(kernels.intersect_aabb_backward_kernel, (cdiv(n, BLOCK_RAYS),), plan, *arguments, n, shared, near_min)
    inputs = (origins, directions, box)
    return tuple(g.sum_to_size(x.shape) if want else g for g, x, want in zip(found, inputs, wanted, strict=True))


def _fake_edges(near: Tensor, far: Tensor, jitter: Tensor | None, count: int, spacing: str) -> Tensor:
    return torch.empty((*near.shape, count + 1), dtype=near.dtype, device=near.device)


@register("stratified_edges(Tensor near, Tensor far, Tensor? jitter, SymInt count, str spacing) -> Tensor", _fake_edges)
def _stratified_edges(near: Tensor, far: Tensor, jitter: Tensor | None, count: int, spacing: str) -> Tensor:
    from ponder_kernels.ray_sampling import kernels

    out = _fake_edges(near, far, jitter, count, spacing)
    near, far = near.contiguous(), far.contiguous()
    # A kernel argument that its flags leave unused still needs a tensor.
    noise = near if jitter is None else jitter.contiguous()
    n, plan = out.numel(), _stratified_plan(spacing, jitter is not None)
    launch(kernels.stratified_edges_forward_kernel, (cdiv(n, BLOCK_EDGES),), plan, near, far, noise, out, n, count)
    return out


@register(
    "stratified_edges_backward(Tensor grad_out, Tensor near, Tensor far, Tensor? jitter, SymInt count, str spacing, "
    "bool[] wanted) -> (Tensor, Tensor, Tensor)",
    lambda grad_out, near, far, *rest: gradient_buffers((near, far, near), (True, True, False)),
)
def _stratified_edges_backward(
    grad_out: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor | None,
    count: int,
    spacing: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    from ponder_kernels.ray_sampling import kernels

    # Both gradients come from one sum over the edges, wanted or not; the jitter never has one.
    gradients = gradient_buffers((near, far, near), (True, True, False))
    rays, plan = near.numel(), _stratified_backward_plan(spacing, jitter is not None)
    near, far = near.contiguous(), far.contiguous()
    noise = near if jitter is None else jitter.contiguous()
    arguments = (grad_out.contiguous(), near, far, noise, *gradients[:2])
    grid = (cdiv(rays, SUM_BLOCKS["BLOCK_R"]),)
    launch(kernels.stratified_edges_backward_kernel, grid, plan, *arguments, rays, count)
    return gradients


def _fake_positions(edges: Tensor, weights: Tensor, jitter: Tensor | None, count: int) -> Tensor:
    return torch.empty((*edges.shape[:-1], count), dtype=edges.dtype, device=edges.device)


@register("resample_edges(Tensor edges, Tensor weights, Tensor? jitter, SymInt count) -> Tensor", _fake_positions)
def _resample_edges(edges: Tensor, weights: Tensor, jitter: Tensor | None, count: int) -> Tensor:
    from ponder_kernels.ray_sampling import kernels

    out = _fake_positions(edges, weights, jitter, count)
    edges, weights = edges.contiguous(), weights.contiguous()
    noise = edges if jitter is None else jitter.contiguous()
    cdf = torch.empty_like(weights)
    sizes = (math.prod(weights.shape[:-1]), weights.shape[-1], count)
    plan = _resample_plan(0 if jitter is None else 2 if jitter.shape[-1] == count else 1)
    grid = (cdiv(sizes[0], SEARCH_BLOCKS["BLOCK_R"]),)
    launch(kernels.resample_edges_kernel, grid, plan, edges, weights, noise, cdf, out, *sizes)
    return out


def _fake_union(first: Tensor, second: Tensor) -> Tensor:
    shape = (*first.shape[:-1], first.shape[-1] + second.shape[-1])
    return torch.empty(shape, dtype=first.dtype, device=first.device)


@register("merge_edges(Tensor first, Tensor second) -> Tensor", _fake_union)
def _merge_edges(first: Tensor, second: Tensor) -> Tensor:
    from ponder_kernels.ray_sampling import kernels

    out = _fake_union(first, second)
    n, plan, sizes = out.numel(), Plan({"BLOCK": BLOCK_EDGES}), (first.shape[-1], second.shape[-1])
    rows = (first.contiguous(), second.contiguous())
    launch(kernels.merge_edges_forward_kernel, (cdiv(n, BLOCK_EDGES),), plan, *rows, out, n, *sizes)
    return out


@register(
    "merge_edges_backward(Tensor grad_out, Tensor first, Tensor second, bool[] wanted) -> (Tensor, Tensor)",
    lambda grad_out, first, second, wanted: gradient_buffers((first, second), wanted),
)
def _merge_edges_backward(
    grad_out: Tensor, first: Tensor, second: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    from ponder_kernels.ray_sampling import kernels

    gradients = gradient_buffers((first, second), wanted)
    grad_out, first, second = grad_out.contiguous(), first.contiguous(), second.contiguous()
    for own, other, gradient, is_first in ((first, second, gradients[0], True), (second, first, gradients[1], False)):
        n, plan = gradient.numel(), _merge_backward_plan(is_first)
        arguments = (grad_out, own, other, gradient, n, own.shape[-1], other.shape[-1])
        launch(kernels.merge_edges_backward_kernel, (cdiv(n, BLOCK_EDGES),), plan, *arguments)
    return gradients


def _interval(origins: Tensor, directions: Tensor, box: Tensor, near_min: float) -> tuple[Tensor, Tensor]:
    return reference.intersect_aabb_reference(origins, directions, box, near_min)[:2]


link_gradient(_intersect_aabb, _intersect_aabb_backward, _interval, tensors=3)
link_gradient(_stratified_edges, _stratified_edges_backward, reference.stratified_edges_reference, tensors=3)
link_gradient(_merge_edges, _merge_edges_backward, reference.merge_edges_reference, tensors=2)


def _intersect_backward_plan(origins: bool, directions: bool, box: bool) -> Plan:
    return Plan({"TO_ORIGINS": origins, "TO_DIRECTIONS": directions, "TO_BOX": box, "BLOCK": BLOCK_RAYS})


def _stratified_plan(spacing: str, jittered: bool) -> Plan:
    return Plan({"SPACING": SPACINGS.index(spacing), "HAS_JITTER": jittered, "BLOCK": BLOCK_EDGES})


def _stratified_backward_plan(spacing: str, jittered: bool) -> Plan:
    return Plan({"SPACING": SPACINGS.index(spacing), "HAS_JITTER": jittered, **SUM_BLOCKS})


def _resample_plan(jitter: int) -> Plan:
    return Plan({"JITTER": jitter, **SEARCH_BLOCKS}, num_warps=SEARCH_BLOCKS["BLOCK_R"])


def _merge_backward_plan(first: bool) -> Plan:
    return Plan({"FIRST": first, "BLOCK": BLOCK_EDGES})


def specialisations() -> list[Specialisation]:
    """Compiled forms of this operator's kernels: every spacing and jitter, and the usual subsets of gradients."""
    from ponder_kernels.ray_sampling import kernels

    plain, near_min = Plan({"BLOCK": BLOCK_RAYS}), ("near_min",)
    flags = ((True, True, True), (True, True, False), (True, False, False), (False, True, False), (False, False, True))
    strata = [(spacing, jittered) for spacing in SPACINGS for jittered in (False, True)]
    return [
        specialise(kernels.intersect_aabb_forward_kernel, plain, floats=near_min),
        *(
            specialise(kernels.intersect_aabb_backward_kernel, _intersect_backward_plan(*wanted), floats=near_min)
            for wanted in flags
        ),
        *(specialise(kernels.stratified_edges_forward_kernel, _stratified_plan(*form)) for form in strata),
        *(specialise(kernels.stratified_edges_backward_kernel, _stratified_backward_plan(*form)) for form in strata),
        *(specialise(kernels.resample_edges_kernel, _resample_plan(jitter)) for jitter in (0, 1, 2)),
        specialise(kernels.merge_edges_forward_kernel, Plan({"BLOCK": BLOCK_EDGES})),
        *(specialise(kernels.merge_edges_backward_kernel, _merge_backward_plan(first)) for first in (True, False)),
    ]
