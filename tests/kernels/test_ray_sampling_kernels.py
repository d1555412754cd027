"""Triton ray sampling against the float64 references: values and gradients, sizes, layouts, second order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ponder_kernels import intersect_aabb, merge_edges, resample_edges, stratified_edges
from ponder_kernels._constants import PDF_EPS, WEIGHT_LIMIT
from ponder_kernels.ray_sampling import SPACINGS
from ponder_kernels.ray_sampling.reference import (
    intersect_aabb_reference,
    merge_edges_reference,
    stratified_edges_reference,
)
from tests.kernels.harness import compare, compare_second_order, rand
from tests.tolerance import bound

EPS = torch.finfo(torch.float32).eps
LAYOUTS = pytest.mark.parametrize("upstream", ["expanded", "transposed"])
# A ray's direction may be nearly parallel to the plane that it meets: derivatives grow with the square of 1 / cosine.
STEEP = {"out": 4.0, "directions": 64.0, "origins": 16.0, "box": 16.0}


def ray_case(shape, device, box_shape=(), scale=1.5):
    """Rays around boxes near the origin; about half of them hit."""
    target = rand(*shape, 3, seed=2, low=-1.2, high=1.2)
    origins = rand(*shape, 3, seed=1, low=-scale, high=scale) * 2
    corner = rand(*box_shape, 3, seed=3, low=-1.3, high=-0.7)
    box = torch.stack([corner, corner + rand(*box_shape, 3, seed=4, low=1.5, high=2.5)], -2)
    directions = torch.nn.functional.normalize(target - origins, dim=-1)
    return {"origins": origins.to(device), "directions": directions.to(device), "box": box.to(device)}


def strata_case(shape, device, count, jittered):
    near = rand(*shape, seed=1, low=0.2, high=1.5)
    far = near + rand(*shape, seed=2, low=0.1, high=4.0)
    jitter = rand(*shape, count + 1, seed=3, low=0.0).to(device) if jittered else None
    return {"near": near.to(device), "far": far.to(device)}, jitter


def check_rays(inputs, near_min=0.1, **options):
    rays = max(inputs["origins"].shape[:-1].numel(), 1)
    op = lambda **x: intersect_aabb(**x, near_min=near_min, backend="triton")[:2]  # noqa: E731
    truth = lambda **x: intersect_aabb_reference(**x, near_min=near_min)[:2]  # noqa: E731
    terms = {"out": 1, "origins": 2, "directions": 2, "box": 2 * rays}
    compare(op, truth, inputs, terms, scales=STEEP, **options)


def check_strata(inputs, jitter, count, spacing, **options):
    noise = None if jitter is None else jitter.cpu().double()
    compare(
        lambda **x: stratified_edges(**x, count=count, jitter=jitter, spacing=spacing, backend="triton"),
        lambda **x: stratified_edges_reference(**x, jitter=noise, count=count, spacing=spacing),
        inputs,
        {"out": 1, "near": count + 1, "far": count + 1},
        scale=4.0,
        **options,
    )


def check_merge(inputs, **options):
    op = lambda **x: merge_edges(**x, backend="triton")  # noqa: E731
    compare(op, merge_edges_reference, inputs, dict.fromkeys(("out", *inputs), 1), **options)


def assert_inverts_cdf(found: Tensor, edges: Tensor, weights: Tensor, count: int, jitter: Tensor | None) -> None:
    """The float64 CDF of the weights, at positions moved by their own rounding, spans ``u = (k + jitter) / K``.

    Judged backwards, since float32 may put a u within rounding of a step of the CDF into the bin before or behind.
    Positions are also sorted, inside the ray, and not inside a bin without weight. Edges are finite.
    """
    bins = weights.shape[-1]
    found, edges, weights = (x.detach().cpu().double().reshape(-1, x.shape[-1]) for x in (found, edges, weights))
    weights = torch.where(weights > 0, weights, 0.0).clamp_max(WEIGHT_LIMIT)
    weights = weights + (PDF_EPS - weights.sum(-1, keepdim=True)).clamp_min(0) / bins
    cdf = torch.nn.functional.pad(weights.cumsum(-1) / weights.sum(-1, keepdim=True), (1, 0))
    noise = torch.tensor(0.5) if jitter is None else jitter.cpu().double().reshape(-1, jitter.shape[-1]).clamp(0, 1)
    u = ((torch.arange(count) + noise) / count).expand(found.shape)
    tolerance = bound(torch.ones(1, dtype=torch.float64), bins, torch.float32)
    for ray in range(found.shape[0]):
        slack = 4 * EPS * edges[ray].abs().amax() + 1e-37
        at, steps, middle = edges[ray].numpy(), cdf[ray].numpy(), found[ray].numpy()
        before = np.interp(middle - slack.item(), at, steps, left=0.0)
        behind = np.interp(middle + slack.item(), at, steps, right=1.0)
        wanted = u[ray].numpy()
        assert (before <= wanted + tolerance).all() and (behind >= wanted - tolerance).all(), f"ray {ray}"
        inner = (found[ray] > edges[ray, :-1, None] + slack) & (found[ray] < edges[ray, 1:, None] - slack)
        assert not (inner & (weights[ray] == 0)[:, None]).any(), f"ray {ray}: inside an empty bin"
    assert (found.diff(dim=-1) >= 0).all(), "not sorted"
    assert (found >= edges[:, :1]).all() and (found <= edges[:, -1:]).all(), "outside the ray"


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (128,), (129,), (2, 0), (0, 3), ()], ids=str)
def test_rays_of_every_number(shape, device):
    check_rays(ray_case(shape, device))


@pytest.mark.parametrize("near_min", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("box_shape", [(), (3, 1), (1, 1), (1,), (5,), (1, 5), (3, 5)], ids=str)
def test_boxes_broadcast(box_shape, near_min, device):
    check_rays(ray_case((3, 5), device, box_shape), near_min)


def test_rays_broadcast(device):
    """One origin per camera, one direction for all; boxes in front of both."""
    inputs = ray_case((3, 5), device, (3, 1))
    check_rays({**inputs, "origins": inputs["origins"][:, :1]})
    check_rays({**inputs, "directions": inputs["directions"][0, 0]})
    inputs = ray_case((5,), device, (2, 3, 1))
    assert intersect_aabb(**inputs, backend="triton").near.shape == (2, 3, 5)
    check_rays(inputs)


@LAYOUTS
def test_ray_layouts(upstream, device):
    inputs = ray_case((6, 5), device, (6, 1))
    inputs["origins"] = inputs["origins"].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    inputs["directions"] = inputs["directions"][:, ::2].repeat_interleave(2, 1)[:, :5]
    inputs["box"] = inputs["box"].flip(0).transpose(-1, -2).contiguous().transpose(-1, -2)
    check_rays(inputs, upstream=upstream)


@pytest.mark.parametrize("wanted", ["origins", "directions", "box"])
def test_only_the_wanted_ray_gradient(wanted, device):
    check_rays(ray_case((5,), device), wanted={wanted})


def test_gradient_of_one_end(device):
    for k in range(2):
        inputs = {name: v.requires_grad_() for name, v in ray_case((5,), device).items()}
        truths = {name: v.detach().cpu().double().requires_grad_() for name, v in inputs.items()}
        intersect_aabb(**inputs, backend="triton")[k].sum().backward()
        intersect_aabb_reference(**truths, near_min=0.0)[k].sum().backward()
        for name, leaf in inputs.items():
            assert (leaf.grad.cpu() - truths[name].grad).abs().max() <= 64 * EPS * truths[name].grad.abs().max()


def test_a_corner_gives_its_gradient_to_the_first_axis(device):
    for backend in ("triton", "torch"):
        origins = torch.full((1, 3), -2.0, device=device, requires_grad=True)
        box = torch.tensor([[-1.0] * 3, [1.0] * 3], device=device)
        found = intersect_aabb(origins, torch.ones_like(origins), box, backend=backend)
        assert found.near.tolist() == [1.0] and found.far.tolist() == [3.0]
        (found.near + 2 * found.far).sum().backward()
        assert origins.grad.tolist() == [[-3.0, 0.0, 0.0]]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_slabs_that_do_not_decide_have_no_gradient(backend, device):
    """Their distances and slopes overflow in float32."""
    origins = torch.tensor([[-3.0, 0.5, 0.5]], device=device, requires_grad=True)
    directions = torch.tensor([[1.0, 1e-20, 0.0]], device=device, requires_grad=True)
    box = torch.tensor([[-1.0, -1.0, -torch.inf], [1.0, 1.0, torch.inf]], device=device, requires_grad=True)
    found = intersect_aabb(origins, directions, box, near_min=0.0, backend=backend)
    (found.near + 10 * found.far).sum().backward()
    assert origins.grad.tolist() == [[-11.0, 0.0, 0.0]] and directions.grad.tolist() == [[-42.0, 0.0, 0.0]]
    assert box.grad.tolist() == [[1.0, 0.0, 0.0], [10.0, 0.0, 0.0]]


@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacings(spacing, jittered, device):
    for shape, count in (((3,), 1), ((2, 3), 6)):
        inputs, jitter = strata_case(shape, device, count, jittered)
        # A missed ray, one that only touches, one before distance 1 (where "piecewise" is linear).
        inputs["near"][..., 0] = inputs["far"][..., 0] = 0.0
        inputs["near"][..., 1] = inputs["far"][..., 1]
        inputs["near"][..., 2], inputs["far"][..., 2] = 0.1, 0.9
        check_strata(inputs, jitter, count, spacing)


@pytest.mark.parametrize(("shape", "count"), [((0,), 3), ((2, 0), 1), ((), 5), ((4,), 127), ((5,), 128), ((3,), 170)])
def test_strata_of_every_number(shape, count, device):
    """Up to one tile of edges and one more, up to one block of the forward and one more."""
    for jittered in (False, True):
        check_strata(*strata_case(shape, device, count, jittered), count, "sqrt")


@LAYOUTS
def test_strata_layouts(upstream, device):
    inputs, jitter = strata_case((4, 3), device, 5, True)
    inputs["near"] = inputs["near"].reshape(3, 4).t() * 0.1
    inputs["far"] = inputs["far"][:, :1].expand(4, 3)
    check_strata(inputs, jitter.transpose(0, 1).contiguous().transpose(0, 1), 5, "disparity", upstream=upstream)
    check_strata(inputs, jitter[..., :1].expand(4, 3, 6), 5, "log", upstream=upstream)


def test_only_the_wanted_end_has_a_gradient(device):
    for wanted in ("near", "far"):
        check_strata(*strata_case((3,), device, 4, True), 4, "log", wanted={wanted})


@pytest.mark.parametrize("spacing", ["disparity", "piecewise"])
def test_infinite_far(spacing, device):
    """Its own gradient is 0 but for the last edge, which it is."""
    for jittered in (False, True):
        inputs, jitter = strata_case((3,), device, 4, jittered)
        inputs["far"] = torch.full_like(inputs["far"], torch.inf)
        check_strata(inputs, jitter, 4, spacing)


def test_nan_stays_visible(device):
    nan, one = torch.full((2,), torch.nan, device=device), torch.ones(2, device=device)
    noise = torch.full((2, 4), torch.nan, device=device)
    for spacing in SPACINGS:
        assert stratified_edges(nan, one, 3, spacing=spacing, backend="triton")[:, :-1].isnan().all()
        assert stratified_edges(one, 2 * one, 3, noise, spacing=spacing, backend="triton").isnan().all()
        near = nan.clone().requires_grad_()
        stratified_edges(near, one, 3, spacing=spacing, backend="triton").sum().backward()
        assert near.grad.isnan().all()
    edges, weights = torch.arange(5.0, device=device).repeat(2, 1), torch.ones(2, 4, device=device)
    assert resample_edges(edges, weights, 4, noise, backend="triton").isnan().all()
    assert resample_edges(edges * torch.nan, weights, 4, backend="triton").isnan().all()


SEARCHES = [((0,), 3, 2), ((1,), 1, 1), ((4,), 5, 7), ((5,), 128, 64), ((2,), 129, 65), ((2, 3), 4, 3), ((), 3, 2)]


@pytest.mark.parametrize("jittered", ["middles", "each", "ray"])
@pytest.mark.parametrize(("shape", "bins", "count"), SEARCHES, ids=str)
def test_resampling_inverts_the_cdf(shape, bins, count, jittered, device):
    edges = rand(*shape, bins + 1, seed=1, low=0.5, high=4.0).sort(-1).values.to(device)
    weights = rand(*shape, bins, seed=2, low=-0.5, high=0.5).clamp_min(0).to(device)
    noise = {"middles": None, "each": rand(*shape, count, seed=3, low=0.0), "ray": rand(*shape, 1, seed=4, low=0.0)}
    jitter = noise[jittered]
    for backend in ("triton", "torch"):
        moved = None if jitter is None else jitter.to(device)
        found = resample_edges(edges, weights, count, moved, backend=backend)
        assert found.shape == (*shape, count) and not found.requires_grad
        assert_inverts_cdf(found, edges, weights, count, jitter)


def test_resampling_layouts(device):
    edges = rand(8, 3, seed=1).sort(0).values.to(device).t()
    weights, jitter = rand(1, 14, seed=2, low=0.0).to(device), rand(5, 3, seed=3, low=0.0).to(device).t()
    weights = weights[:, ::2].expand(3, 7)
    found = resample_edges(edges, weights, 5, jitter, backend="triton")
    assert_inverts_cdf(found, edges, weights, 5, jitter)


def test_the_rule_of_the_cdf_sees_faults():
    edges, weights = torch.arange(5.0)[None], torch.tensor([[1.0, 0.0, 2.0, 1.0]])
    found = resample_edges(edges, weights, 6, backend="torch")
    assert_inverts_cdf(found, edges, weights, 6, None)
    for wrong in (found + 1e-4, found - 1e-4, found.flip(-1), found.clamp_min(1.2)):
        with pytest.raises(AssertionError):
            assert_inverts_cdf(wrong, edges, weights, 6, None)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((0,), (3, 2)), ((2,), (0, 3)), ((2,), (3, 0)), ((1,), (0, 0)), ((), (1, 1)), ((3,), (5, 2)), ((4,), (97, 31)),
     ((3,), (128, 43)), ((2, 2), (4, 7))],
    ids=str,
)  # fmt: skip
def test_merging(shape, sizes, device):
    first, second = (rand(*shape, n, seed=n).sort(-1).values.to(device) for n in sizes)
    check_merge({"first": first, "second": second})
    if sizes[0]:
        # Ties: every second edge again.
        check_merge({"first": first, "second": first[..., ::2].clone()})


@LAYOUTS
def test_merge_layouts(upstream, device):
    first, second = rand(7, 4, seed=1).sort(0).values.t(), rand(4, 10, seed=2).sort(-1).values[:, ::2]
    check_merge({"first": first.to(device), "second": second.to(device)}, upstream=upstream)
    for wanted in ("first", "second"):
        check_merge({"first": first.to(device), "second": second[:1].expand(4, 5).to(device)}, wanted={wanted})


def test_rays_do_not_mix(device):
    edges, weights = rand(6, 5, seed=1).sort(-1).values.to(device), rand(6, 4, seed=2).to(device)
    near, far = edges[:, 0].abs() + 0.1, edges[:, 4].abs() + 1.1
    for op, inputs in (
        (lambda e, w: resample_edges(e, w, 3, backend="triton"), (edges, weights)),
        (lambda a, b: merge_edges(a, b, backend="triton"), (edges, edges.flip(0))),
        (lambda a, b: stratified_edges(a, b, 3, spacing="log", backend="triton"), (near, far)),
    ):
        assert torch.equal(op(*inputs)[2:3], op(*(x[2:3] for x in inputs)))


def test_second_order(device):
    box_terms = {"origins": 4, "directions": 4, "box": 10, "upstream": 4}
    compare_second_order(
        lambda **x: intersect_aabb(**x, backend="triton")[:2],
        lambda **x: intersect_aabb_reference(**x, near_min=0.0)[:2],
        ray_case((5,), device),
        box_terms,
        scale=256.0,
    )
    inputs, jitter = strata_case((3,), device, 4, True)
    for spacing in SPACINGS:
        compare_second_order(
            lambda s=spacing, **x: stratified_edges(**x, count=4, jitter=jitter, spacing=s, backend="triton"),
            lambda s=spacing, **x: stratified_edges_reference(**x, jitter=jitter.cpu().double(), count=4, spacing=s),
            inputs,
            dict.fromkeys(("near", "far", "upstream"), 10),
            scale=16.0,
        )
    rows = {"first": rand(2, 3, seed=1).sort(-1).values.to(device), "second": rand(2, 4, seed=2).sort(-1).values}
    rows["second"] = rows["second"].to(device)
    # Weighted, so that there is a second derivative.
    for op, backend in ((merge_edges, "triton"), (merge_edges, "torch")):
        squared = lambda op=op, backend=backend, **x: op(**x, backend=backend).square()  # noqa: E731
        truth = lambda **x: merge_edges_reference(**x).square()  # noqa: E731
        compare_second_order(squared, truth, rows, dict.fromkeys(("first", "second", "upstream"), 2))


@pytest.mark.gpu
def test_many_rays_on_a_gpu():
    check_rays(ray_case((4, 10_240), "cuda", (4, 1)))
    for spacing in SPACINGS:
        check_strata(*strata_case((10_240,), "cuda", 96, True), 96, spacing)
    edges, weights = rand(2000, 97, seed=1).sort(-1).values.cuda(), rand(2000, 96, seed=2).clamp_min(0).cuda()
    jitter = rand(2000, 36, seed=3, low=0.0).cuda()
    found = resample_edges(edges, weights, 36, jitter)
    assert_inverts_cdf(found, edges, weights, 36, jitter)
    check_merge({"first": edges, "second": found})
