"""intersect_aabb, stratified_edges, resample_edges, merge_edges: checks and dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._backend import choose_backend
from ponder_kernels._register import keeps_float32
from ponder_kernels.ray_sampling import checks, reference
from ponder_kernels.ray_sampling.reference import SPACINGS, RayInterval
from ponder_kernels.ray_sampling.registered import (
    _intersect_aabb,
    _merge_edges,
    _resample_edges,
    _stratified_edges,
    specialisations,
)

RAY_DTYPES = (torch.float32, torch.float64)


@keeps_float32()
def intersect_aabb(
    origins: Tensor, directions: Tensor, box: Tensor, *, near_min: float = 0.0, backend: str = "auto"
) -> RayInterval:
    """Intersect rays with axis-aligned boxes by the slab method.

    A ray hits where it has a part of positive length at or beyond `near_min` inside the box. A direction component that
    is 0 (or below DIRECTION_MIN) is parallel to its slab: it constrains nothing where the origin lies between the
    planes, the lower one included, and misses otherwise. A ray with NaN in it, or in its box, misses; so does every ray
    of a box whose lower corner is above its upper one. Boxes may be infinite; distances are cut off at DISTANCE_LIMIT.
    Differentiable any number of times, to origins, directions and box: the kernels give values and first derivatives,
    the torch formula higher ones. Of several planes at one distance, the first axis gets the gradient; a distance held
    at `near_min` or DISTANCE_LIMIT, and a miss, have none.

    Args:
        origins: [..., 3], float32 (float64: torch backend only).
        directions: [..., 3], of unit length where `near` and `far` are to be in the unit of the origins.
        box: [..., 2, 3] lower and upper corner. The leading dims of all three broadcast.
        near_min: lower bound of `near`.
        backend: "auto", "triton" or "torch".

    Returns:
        RayInterval(near, far, hit) with the leading dims; near < far where the ray hits, both 0 where it misses.

    Raises:
        TypeError: not a tensor, a dtype that is not allowed or not that of `origins`, near_min not a number.
        ValueError: shapes or devices that do not fit, near_min NaN, an unknown backend.
        RuntimeError: Triton asked for but not installed, or inside a torch.func transform.

    Reference: Kay and Kajiya 1986, "Ray tracing complex scenes" (slabs); Williams et al. 2005, "An efficient and robust
    ray-box intersection algorithm".
    """
    _check.floating("origins", origins, RAY_DTYPES)
    checks.like("origins", origins, directions=directions, box=box)
    _check.shape("origins", origins, "... 3")
    _check.shape("directions", directions, "... 3")
    _check.shape("box", box, "... 2 3")
    rays = checks.common_shape("directions", directions.shape[:-1], origins.shape[:-1], "origins")
    checks.common_shape("box", box.shape[:-2], rays, "the rays")
    checks.number("near_min", near_min)
    if choose_backend(backend, origins, directions, box) == "torch":
        return reference.intersect_aabb_reference(origins, directions, box, float(near_min))
    near, far = _intersect_aabb(origins, directions, box, float(near_min))
    return RayInterval(near, far, near < far)


@keeps_float32()
def stratified_edges(
    near: Tensor,
    far: Tensor,
    count: int,
    jitter: Tensor | None = None,
    *,
    spacing: str = "uniform",
    backend: str = "auto",
) -> Tensor:
    """Edges of `count` bins between near and far, equally wide in a coordinate s, optionally jittered.

    ``t_k = s^-1((1 - u_k) s(near) + u_k s(far))`` with u_k = k / S. Without jitter the first and the last edge are
    exactly near and far. With jitter, each edge moves between the midpoints (in s) to its neighbours, the end edges
    inwards only. Spacings:

    ============ =============================== ========================================
    "uniform"    s = t                           any near and far
    "disparity"  s = 1 / t                       near > 0; far may be infinite
    "sqrt"       s = sqrt(t)                     near >= 0
    "log"        s = log(t)                      near > 0
    "piecewise"  s = t / 2 where t < 1, else     any near; far may be infinite
                 1 - 1 / (2 t)
    ============ =============================== ========================================

    A ray with near = far (a missed one has 0 and 0) has all its edges there, with the derivatives of "uniform": first
    ones are the same for all spacings there. Differentiable any number of times, to near and far: the kernels give
    values and first derivatives, the torch formula higher ones. At near = 0, "sqrt" has an infinite slope to near;
    there only the first edge has a gradient to it.

    Args:
        near, far: [...] of one shape, near <= far, float32 (float64: torch backend only). A far below near gives
            falling edges. What a spacing does not allow (see the table) raises where the values lie on the CPU (but not
            under torch.compile or torch.func); checking them on a GPU would make the host wait for it: there, such a
            ray comes out as NaN.
        count: S >= 1 bins.
        jitter: [..., S + 1] uniform numbers in [0, 1] (clamped to it), or None for regular bins. No gradient flows to
            it. Expand a [..., 1] tensor for one number per ray.
        spacing: see above.
        backend: "auto", "triton" or "torch".

    Returns:
        [..., S + 1] distances, sorted, in [near, far].

    Raises:
        TypeError: not a tensor, a dtype that is not allowed or not that of `near`, a count that is not an int.
        ValueError: shapes or devices that differ, count < 1, an unknown spacing or backend, a near that the spacing
            does not allow.
        RuntimeError: Triton asked for but not installed, or inside a torch.func transform.

    Reference: NeRF, arXiv 2003.08934, eq. 2 (stratified), appendix C (disparity); Mip-NeRF 360, arXiv 2111.12077,
    eq. 11 (s of 1 / t); "piecewise" is nerfstudio's.
    """
    _check.floating("near", near, RAY_DTYPES)
    checks.like("near", near, far=far)
    if far.shape != near.shape:
        raise ValueError(f"far: expected shape {list(near.shape)} as near, got {list(far.shape)}")
    checks.bin_count(count)
    _check.choice("spacing", spacing, SPACINGS)
    tensors = [near, far]
    if jitter is not None:
        checks.like("near", near, jitter=jitter)
        if jitter.shape != (*near.shape, count + 1):
            raise ValueError(f"jitter: expected shape {[*near.shape, count + 1]}, got {list(jitter.shape)}")
        jitter = jitter.detach()
        tensors.append(jitter)
    checks.range_for(near, far, spacing)
    if choose_backend(backend, *tensors) == "torch":
        return reference.stratified_edges_reference(near, far, jitter, count, spacing)
    out: Tensor = _stratified_edges(near, far, jitter, count, spacing)
    return out


@keeps_float32()
def resample_edges(
    edges: Tensor, weights: Tensor, count: int, jitter: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Draw sorted positions from the piecewise-uniform density that weights per bin define (inverse CDF).

    Position k is where the CDF is ``(k + jitter_k) / K``. Bins without weight are never entered: what falls between
    two others is on an edge. A weight that is negative or NaN counts as 0, one above WEIGHT_LIMIT (infinity too) as
    that. Rays whose weights sum to less than PDF_EPS are padded up to it evenly, so an empty ray is sampled uniformly.
    NaN in edges or jitter comes out as NaN where it is used. No gradient flows through it: positions are where to look,
    not what is seen.

    Args:
        edges: [..., S + 1] sorted, float32 (float64: torch backend only).
        weights: [..., S], S >= 1.
        count: K >= 1 positions.
        jitter: [..., K], or [..., 1] for one number per ray, uniform in [0, 1] (clamped to it), or None for the middle
            of each stratum, 0.5.
        backend: "auto", "triton" or "torch".

    Returns:
        [..., K] sorted, in [edges[0], edges[S]], detached.

    Raises:
        TypeError: not a tensor, a dtype that is not allowed or not that of `edges`, a count that is not an int.
        ValueError: shapes or devices that do not fit, no bin, count < 1, an unknown backend.
        RuntimeError: Triton asked for but not installed, or inside a torch.func transform.

    Reference: NeRF, arXiv 2003.08934, section 5.2 (hierarchical sampling).
    """
    _check.floating("edges", edges, RAY_DTYPES)
    checks.like("edges", edges, weights=weights)
    _check.shape("edges", edges, "... S+1")
    if edges.shape[-1] < 2:
        raise ValueError(f"edges: expected at least 2 along the last dim, got shape {list(edges.shape)}")
    if weights.shape != (*edges.shape[:-1], edges.shape[-1] - 1):
        raise ValueError(f"weights: expected one per bin of edges {list(edges.shape)}, got {list(weights.shape)}")
    checks.bin_count(count)
    tensors = [edges, weights]
    if jitter is not None:
        checks.like("edges", edges, jitter=jitter)
        if jitter.shape not in ((*edges.shape[:-1], count), (*edges.shape[:-1], 1)):
            expected = f"{[*edges.shape[:-1], count]} or {[*edges.shape[:-1], 1]}"
            raise ValueError(f"jitter: expected shape {expected}, got {list(jitter.shape)}")
        jitter = jitter.detach()
        tensors.append(jitter)
    if choose_backend(backend, *tensors) == "torch":
        return reference.resample_edges_reference(edges, weights, jitter, count)
    out: Tensor = _resample_edges(edges.detach(), weights.detach(), jitter, count)
    return out


@keeps_float32()
def merge_edges(first: Tensor, second: Tensor, *, backend: str = "auto") -> Tensor:
    """Sorted union of two sorted sets of positions per ray.

    Of equal positions, those of `first` come first; NaN counts as larger than every number. Differentiable any number
    of times: each gradient goes where its position came from.

    Args:
        first: [..., S] sorted, float32 (float64: torch backend only). S may be 0.
        second: [..., K] sorted, the same leading dims. K may be 0.
        backend: "auto", "triton" or "torch". Rows that are not sorted are sorted by "torch"; the result of "triton" is
            then in no particular order (and checking it would make the host wait for the GPU).

    Returns:
        [..., S + K] sorted.

    Raises:
        TypeError: not a tensor, or a dtype that is not allowed or not that of `first`.
        ValueError: leading dims or devices that differ, an unknown backend.
        RuntimeError: Triton asked for but not installed, or inside a torch.func transform.

    Reference: Green et al. 2012, "GPU merge path" (how an output finds its source).
    """
    _check.floating("first", first, RAY_DTYPES)
    checks.like("first", first, second=second)
    _check.shape("first", first, "... S")
    _check.shape("second", second, "... K")
    if first.shape[:-1] != second.shape[:-1]:
        raise ValueError(f"second: expected leading dims {list(first.shape[:-1])} as first, got {list(second.shape)}")
    if choose_backend(backend, first, second) == "torch":
        return reference.merge_edges_reference(first, second)
    out: Tensor = _merge_edges(first, second)
    return out


__all__ = ["intersect_aabb", "merge_edges", "resample_edges", "specialisations", "stratified_edges"]
