"""Generated cases for ray sampling: any size, layout and number, through the kernels.

Every second case, by its seed, goes through the backward too: that is where the interpreter spends most of its time.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ponder_kernels import intersect_aabb, merge_edges, resample_edges, stratified_edges
from ponder_kernels._constants import DIRECTION_MIN
from ponder_kernels.ray_sampling import SPACINGS
from ponder_kernels.ray_sampling.reference import (
    intersect_aabb_reference,
    merge_edges_reference,
    resample_edges_reference,
    stratified_edges_reference,
)
from tests.kernels.harness import rand
from tests.kernels.strategies import PROPERTY, layouts, numbers, relayout, seeds, sizes
from tests.kernels.test_ray_sampling_kernels import assert_inverts_cdf
from tests.tolerance import assert_no_worse_than_torch

EPS = torch.finfo(torch.float32).eps
rays = st.one_of(st.tuples(sizes(8, small=5)), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.just(()))
counts = st.one_of(st.integers(1, 6), st.sampled_from([16, 17]))
specials = st.integers(0, 3)
boxes = st.sampled_from(["one", "last", "each", "first"])


def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """Gradients to all leaves; zeros for one that the outputs do not depend on."""
    outputs, pairs = tuple(outputs), [g.to(o.device, o.dtype) for g, o in zip(upstream, outputs, strict=True)]
    found = torch.autograd.grad(outputs, leaves, pairs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def undecided(origins: Tensor, directions: Tensor, box: Tensor, near_min: float) -> Tensor:
    """Rays on which rounding may choose another slab, or a hit for a miss: two distances that decide are nearly equal.

    Distances are rounded three times (difference, quotient, near_min); what is nearer than 8 eps may change places.
    """
    origins, directions, lower, upper = torch.broadcast_tensors(origins, directions, *box.unbind(-2))
    parallel = directions.abs() < DIRECTION_MIN
    into = torch.where(directions > 0, lower, upper).sub(origins) / directions
    out = torch.where(directions > 0, upper, lower).sub(origins) / directions
    limit = torch.full_like(into[..., :1], near_min)
    into = torch.cat([torch.where(parallel, -torch.inf, into), limit], -1).sort(-1, descending=True).values
    out = torch.where(parallel, torch.inf, out).sort(-1).values
    pairs = [(into[..., 0], into[..., 1]), (out[..., 0], out[..., 1]), (into[..., 0], out[..., 0])]
    near = [((a - b).abs() <= 8 * EPS * torch.maximum(a.abs(), b.abs())) | (a == b) for a, b in pairs]
    return near[0] | near[1] | near[2]


def box_of(kind: str, shape: tuple[int, ...], seed: int, n_special: int) -> Tensor:
    """Boxes around the origin for rays of a shape: one for all, one per ray, or shared along one dim."""
    lead = {"one": (), "each": shape, "last": shape[-1:], "first": (*shape[:1], *(1 for _ in shape[1:]))}[kind]
    corner = rand(*lead, 3, seed=seed, low=-1.5, high=-0.5)
    box = torch.stack([corner, corner + rand(*lead, 3, seed=seed + 1, low=-0.1, high=2.5)], -2)
    return numbers((*lead, 2, 3), seed, 0.0, 0.0, n_special) + box


@PROPERTY
@given(rays, seeds, layouts, layouts, boxes, specials, st.sampled_from([0.0, 0.1, -1.0]))
def test_intersect_aabb(device, shape, seed, layout, other_layout, kind, n_special, near_min):
    inputs = {
        "origins": relayout(numbers((*shape, 3), seed, -2.0, 2.0, n_special), layout),
        "directions": relayout(numbers((*shape, 3), seed + 1, -1.0, 1.0, n_special), other_layout),
        "box": box_of(kind, shape, seed + 2, n_special // 3),
    }
    upstream = [rand(*shape, seed=seed + 3 + k, low=0.5, high=2.0) for k in range(2)]
    results = []
    for function, place, dtype in (
        (lambda *x: intersect_aabb(*x, near_min=near_min, backend="triton"), device, torch.float32),
        (lambda *x: intersect_aabb_reference(*x, near_min), "cpu", torch.float32),
        (lambda *x: intersect_aabb_reference(*x, near_min), "cpu", torch.float64),
    ):
        leaves = [v.to(place, dtype).requires_grad_() for v in inputs.values()]
        found = function(*leaves)
        results.append((*found, *(gradients(found[:2], leaves, upstream) if seed % 2 else ())))
    got, single, double = results
    unsure = undecided(*(v.double() for v in inputs.values()), near_min)
    assert got[0].shape == got[1].shape == got[2].shape == double[2].shape and got[0].dtype == torch.float32
    assert torch.equal(got[2].cpu() | unsure, double[2] | unsure), "hits"
    assert not got[0][~got[2]].any() and not got[1][~got[2]].any()
    for k, name in enumerate(("near", "far")):
        assert_no_worse_than_torch(got[k], single[k], double[k].masked_fill(unsure, torch.nan), name=name)
    for name, ours, theirs, truth in zip(inputs, got[3:], single[3:], double[3:], strict=False):
        if name != "box" or kind == "each":
            truth = truth.masked_fill(unsure.reshape(*shape, *(1 for _ in truth.shape[len(shape) :])), torch.nan)
        elif unsure.any():
            continue  # the gradient to a shared box sums over rays that are not comparable
        assert_no_worse_than_torch(ours, theirs, truth, n_terms=max(unsure.numel(), 1), name=name)


def allowed(near: Tensor, far: Tensor, spacing: str) -> bool:
    """Whether a spacing takes these distances."""
    lowest = torch.fmin(near, far)
    if spacing == "sqrt":
        return not bool((lowest < 0).any())
    return spacing not in ("disparity", "log") or not bool(((lowest <= 0) & (near != far)).any())


@PROPERTY
@given(rays, counts, seeds, layouts, layouts, specials, st.sampled_from(SPACINGS), st.booleans())
def test_stratified_edges(device, shape, count, seed, layout, other_layout, n_special, spacing, jittered):
    near = relayout(numbers(shape, seed, 0.05, 2.0, n_special if seed % 4 < 2 else 0), layout)
    far = torch.maximum(near, numbers(shape, seed + 1, 0.05, 5.0, n_special))
    noise = numbers((*shape, count + 1), seed + 2, 0.0, 1.0, n_special if seed % 8 > 5 else 0)
    jitter = relayout(noise, other_layout) if jittered else None
    if device == "cpu" and not allowed(near, far, spacing):
        with pytest.raises(ValueError, match="near: expected distances"):
            stratified_edges(near, far, count, jitter, spacing=spacing, backend="triton")
        return
    upstream = rand(*shape, count + 1, seed=seed + 3, low=0.5, high=2.0)
    results = []
    for function, place, dtype in (
        (lambda a, b, j: stratified_edges(a, b, count, j, spacing=spacing, backend="triton"), device, torch.float32),
        (lambda a, b, j: stratified_edges_reference(a, b, j, count, spacing), "cpu", torch.float32),
        (lambda a, b, j: stratified_edges_reference(a, b, j, count, spacing), "cpu", torch.float64),
    ):
        leaves = [v.to(place, dtype).requires_grad_() for v in (near, far)]
        out = function(*leaves, None if jitter is None else jitter.to(place, dtype))
        results.append([out.detach(), *(gradients((out,), leaves, [upstream]) if seed % 2 else ())])
    got, single, double = results
    assert got[0].shape == (*shape, count + 1) and got[0].dtype == torch.float32
    edges = got[0].cpu()
    whole = edges.isfinite().all(-1) & near.isfinite() & far.isfinite()
    assert (edges[whole].diff(dim=-1) >= 0).all(), "not sorted"
    assert (edges[whole] >= near[whole][:, None]).all() and (edges[whole] <= far[whole][:, None]).all(), "outside"
    # exp(x) passes on x eps; everything else a few eps.
    ends = torch.stack([near, far])[:, whole].double()
    exponents = torch.where((ends > 0) & (spacing == "log"), ends, 1.0).log()
    n_terms = 4 + int(exponents.square().max()) if ends.numel() else 4
    assert_no_worse_than_torch(*(r[0] for r in results), n_terms=n_terms, name="edges")
    # Distances among the denormal numbers have no digits left to take a slope from.
    normal = ((near == 0) | (near.abs() > 1e-35)) & ((far == 0) | (far.abs() > 1e-35))
    defined = double[0].isfinite().all(-1) & single[0].isfinite().all(-1) & normal
    for name, ours, theirs, truth in zip(("near", "far"), got[1:], single[1:], double[1:], strict=False):
        truth = torch.where(defined, truth, torch.nan)
        assert_no_worse_than_torch(ours, theirs, truth, n_terms=4 * (count + 1), name=name)


@PROPERTY
@given(rays, counts, counts, seeds, layouts, layouts, specials, st.sampled_from(["middles", "each", "ray"]))
def test_resample_edges(device, shape, bins, count, seed, layout, other_layout, n_special, jittered):
    edges = rand(*shape, bins + 1, seed=seed, low=-1.0, high=4.0).round(decimals=seed % 3).sort(-1).values
    weights = numbers((*shape, bins), seed + 1, -0.5, 0.5, n_special)
    # Far apart in size, and rays without any weight.
    weights = weights * 10.0 ** (rand(*shape, 1, seed=seed + 2, low=-12.0, high=3.0) * (seed % 5 == 0))
    if seed % 7 == 0:
        weights = -weights.abs()
    jitter = None
    if jittered != "middles":
        jitter = numbers((*shape, count if jittered == "each" else 1), seed + 3, 0.0, 1.0, n_special // 3)
        jitter = torch.nan_to_num(jitter, 0.25).sort(-1).values
    edges, weights = relayout(edges, layout), relayout(weights, other_layout)
    moved = None if jitter is None else jitter.to(device)
    found = resample_edges(edges.to(device), weights.to(device), count, moved, backend="triton")
    assert found.shape == (*shape, count) and found.dtype == torch.float32 and not found.requires_grad
    assert_inverts_cdf(found, edges, weights, count, jitter)
    single = resample_edges_reference(edges, weights, jitter, count)
    assert_inverts_cdf(single, edges, weights, count, jitter)


@PROPERTY
@given(rays, counts, counts, seeds, layouts, layouts, st.integers(0, 6), st.booleans())
def test_merge_edges(device, shape, own, other, seed, layout, other_layout, n_special, tied):
    """A permutation: values and gradients are those of the reference to the bit."""
    first = numbers((*shape, own), seed, -1.0, 1.0, n_special).sort(-1).values
    second = numbers((*shape, other - other % 2), seed + 1, -1.0, 1.0, n_special).sort(-1).values
    if tied:
        first, second = first.round(decimals=1), second.round(decimals=1)
    upstream = rand(*shape, first.shape[-1] + second.shape[-1], seed=seed + 2)
    results = []
    for function, place in ((lambda *x: merge_edges(*x, backend="triton"), device), (merge_edges_reference, "cpu")):
        rows = (relayout(first, layout).to(place), relayout(second, other_layout).to(place))
        leaves = [v.detach().requires_grad_() for v in rows]
        out = function(*leaves)
        found = gradients((out,), leaves, [upstream]) if seed % 2 else []
        results.append([x.detach().cpu() for x in (out, *found)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
