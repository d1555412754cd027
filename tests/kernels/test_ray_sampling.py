"""Ray sampling: known values on both backends, bad arguments, costs by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ponder_kernels import intersect_aabb, merge_edges, resample_edges, stratified_edges
from ponder_kernels.ray_sampling import SPACINGS, cost
from tests.kernels.harness import rand
from tests.tolerance import assert_close_to_reference

BOTH = pytest.mark.parametrize("backend", ["triton", "torch"])
BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
INF, NAN = math.inf, math.nan


def rays(device, *pairs):
    origins = torch.tensor([pair[0] for pair in pairs], device=device)
    directions = torch.nn.functional.normalize(torch.tensor([pair[1] for pair in pairs], device=device), dim=-1)
    return origins, directions


def close(actual, expected, scale=1.0):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert_close_to_reference(actual.cpu(), expected, 1, dtype=torch.float32, scale=scale)


@BOTH
def test_box_hits(backend, device):
    origins, directions = rays(
        device,
        ([-3.0, 0.0, 0.0], [1.0, 0.0, 0.0]),  # through the middle
        ([0.0, 0.0, 0.0], [0.0, 0.0, -1.0]),  # from inside
        ([-3.0, 2.0, 0.0], [1.0, 0.0, 0.0]),  # parallel, outside the slab
        ([3.0, 0.0, 0.0], [1.0, 0.0, 0.0]),  # behind
        ([-3.0, 0.5, 0.5], [-1e-30, 0.0, 1.0]),  # almost parallel, outside
        ([-0.5, 0.5, -3.0], [1e-42, -1e-42, 1.0]),  # almost parallel, inside
        ([-3.0, 0.0, 0.0], [1.0, -0.0, -0.0]),  # negative zeros
        ([-2.0, 0.0, 0.0], [1.0, 1.0, 0.0]),  # touches an edge: no length inside
    )
    found = intersect_aabb(origins, directions, BOX.to(device), near_min=0.1, backend=backend)
    assert found.hit.tolist() == [True, True, False, False, False, True, True, False]
    close(found.near, [2.0, 0.1, 0.0, 0.0, 0.0, 2.0, 2.0, 0.0])
    close(found.far, [4.0, 1.0, 0.0, 0.0, 0.0, 4.0, 4.0, 0.0])


@BOTH
def test_box_faces_and_odd_boxes(backend, device):
    """A ray in the plane of a face belongs to the box above that plane, so that boxes side by side share no ray."""
    low, high = ([-3.0, -1.0, 0.0], [1.0, 0.0, 0.0]), ([-3.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    starts_in, starts_out = ([-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]), ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    origins, directions = rays(device, low, high, starts_in, starts_out)
    box = BOX.to(device)
    found = intersect_aabb(origins, directions, box, backend=backend)
    assert found.hit.tolist() == [True, False, True, False]
    close(found.far, [4.0, 0.0, 2.0, 0.0])
    assert not intersect_aabb(origins, directions, box.flip(0), backend=backend).hit.any()
    assert not intersect_aabb(origins, directions, box[:1].expand(2, 3), backend=backend).hit.any()
    endless = torch.tensor([[-INF] * 3, [INF] * 3], device=device)
    found = intersect_aabb(origins, directions, endless, near_min=-1.0, backend=backend)
    assert found.hit.all() and (found.near == -1.0).all() and (found.far == 1e30).all()
    half = torch.tensor([[-1.0, -INF, -INF], [INF, INF, INF]], device=device)
    assert intersect_aabb(origins, directions, half, backend=backend).near.tolist() == [2.0, 2.0, 0.0, 0.0]


@BOTH
def test_nan_rays_miss(backend, device):
    origins, directions = rays(device, ([-3.0, 0.0, 0.0], [1.0, 0.0, 0.0]), ([-3.0, 0.1, 0.0], [1.0, 0.1, -0.1]))
    box = BOX.to(device).repeat(2, 1, 1)
    for place in range(3):
        for broken in ((origins, directions), (directions, origins)):
            one = broken[0].clone()
            one[:, place] = NAN
            pair = (one, directions) if broken[0] is origins else (origins, one)
            found = intersect_aabb(*pair, box, backend=backend)
            assert not found.hit.any() and not found.near.any() and not found.far.any()
        for corner in range(2):
            part = box.clone()
            part[:, corner, place] = NAN
            assert not intersect_aabb(origins, directions, part, backend=backend).hit.any()


@BOTH
def test_box_points_lie_on_faces(backend, device):
    origins, directions = rand(500, 3, seed=0, low=-3, high=3), rand(500, 3, seed=1)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    found = intersect_aabb(origins.to(device), directions.to(device), BOX.to(device), backend=backend)
    hit, far = found.hit.cpu(), found.far.cpu()
    ends = (origins.double() + directions.double() * far.double().unsqueeze(-1))[hit]
    assert 50 < int(hit.sum()) < 450
    close(ends.abs().amax(-1), torch.ones(len(ends)))


@BOTH
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_stratified_edges_stay_sorted_and_inside(spacing, count, backend, device):
    near = torch.tensor([0.5, 0.0, 0.3, 1.7], device=device)
    far = torch.tensor([2.0, 0.0, 0.3 + 1e-7, 1e6], device=device)
    regular = stratified_edges(near, far, count, spacing=spacing, backend=backend)
    assert torch.equal(regular[:, 0], near) and torch.equal(regular[:, -1], far)
    ones = torch.ones(4, count + 1, device=device)
    for jitter in (None, 0 * ones, rand(4, count + 1, seed=1, low=0).to(device), 0.9999 * ones, ones, ones * 2 - 9):
        edges = stratified_edges(near, far, count, jitter, spacing=spacing, backend=backend)
        assert edges.shape == (4, count + 1)
        assert (edges[:, 1:] >= edges[:, :-1]).all()
        assert (edges >= near[:, None]).all() and (edges <= far[:, None]).all()
        assert not edges[1].any()


@BOTH
@pytest.mark.parametrize("spacing", SPACINGS)
def test_edges_within_rounding_stay_sorted(spacing, backend, device):
    """The two middle edges as near to the middle of s as they get, where one formula takes over from another."""
    near = rand(600, seed=1, low=0.4, high=1.0)
    near[:200] = rand(200, seed=2, low=50.0, high=100.0)
    far = near * torch.cat([1 + 2e-7 * torch.arange(300), 4 + 2e-7 * torch.arange(-150, 150)])
    noise = rand(600, 8, seed=3, low=0.0, high=5e-7)
    noise[:, 3] = 1 - noise[:, 3]
    edges = stratified_edges(near.to(device), far.to(device), 7, noise.to(device), spacing=spacing, backend=backend)
    assert (edges[:, 1:] >= edges[:, :-1]).all()


@BOTH
def test_spacings_by_hand(backend, device):
    def edges(near, far, spacing):
        ends = (torch.tensor(t, device=device) for t in (near, far))
        return stratified_edges(*ends, 4, spacing=spacing, backend=backend)

    close(edges(1.0, 3.0, "uniform"), [1.0, 1.5, 2.0, 2.5, 3.0])
    close(edges(1.0, 5.0, "disparity"), [1 / s for s in (1.0, 0.8, 0.6, 0.4, 0.2)])
    close(edges(1.0, 25.0, "sqrt"), [1.0, 4.0, 9.0, 16.0, 25.0])
    close(edges(0.0, 16.0, "sqrt"), [0.0, 1.0, 4.0, 9.0, 16.0])
    close(edges(0.1, 1000.0, "log"), [0.1, 1.0, 10.0, 100.0, 1000.0], scale=4.0)
    # s from 0.25 to 0.95 and, with an infinite far end, to 1.
    close(edges(0.5, 10.0, "piecewise"), [0.5, 0.85, 1 / 0.8, 1 / 0.45, 10.0])
    assert edges(0.5, INF, "piecewise")[:4].tolist() == pytest.approx([0.5, 0.875, 1 / 0.75, 1 / 0.375])
    assert edges(2.0, INF, "disparity").tolist() == pytest.approx([2.0, 1 / 0.375, 4.0, 8.0, INF])
    # Far out and close in, no digits are lost.
    far_out = [1 / (1 / 4e6 + k / 4 * (1 / 8e6 - 1 / 4e6)) for k in range(5)]
    close(edges(4e6, 8e6, "piecewise"), far_out)
    close(edges(1e-6, 2e-6, "piecewise"), [1e-6, 1.25e-6, 1.5e-6, 1.75e-6, 2e-6])
    wide = edges(1e-3, 1e3, "disparity").cpu().double()
    exact = torch.tensor([1 / (1e3 * (1 - k / 4) + 1e-3 * k / 4) for k in range(5)], dtype=torch.float64)
    assert ((wide - exact).abs() / exact).max() < 1e-6


@BOTH
def test_jitter_moves_between_the_midpoints(backend, device):
    near, far = torch.zeros(1, device=device), torch.full((1,), 4.0, device=device)
    place = lambda j: stratified_edges(near, far, 4, torch.full((1, 5), j, device=device), backend=backend)  # noqa: E731
    close(place(0.0)[0], [0.0, 0.5, 1.5, 2.5, 3.5])
    close(place(0.5)[0], [0.25, 1.0, 2.0, 3.0, 3.75])
    close(place(1.0)[0], [0.5, 1.5, 2.5, 3.5, 4.0])


@BOTH
def test_distances_outside_a_spacing(backend, device):
    """Checked where the values are at hand; NaN on a GPU, where reading them would make the host wait."""
    for spacing, bad in (("disparity", 0.0), ("disparity", -1.0), ("log", 0.0), ("sqrt", -0.5)):
        near, far = torch.tensor([1.0, bad], device=device), torch.full((2,), 2.0, device=device)
        if device == "cpu":
            with pytest.raises(ValueError, match=rf"near: expected distances .* spacing '{spacing}'.*got {bad:g}"):
                stratified_edges(near, far, 3, spacing=spacing, backend=backend)
        else:
            edges = stratified_edges(near, far, 3, spacing=spacing, backend=backend)
            assert edges[0].isfinite().all() and edges[1].isnan().all()


@BOTH
def test_resampling_follows_the_weights(backend, device):
    edges = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]], device=device)
    one_hot = torch.tensor([[0.0, 0.0, 1.0, 0.0]], device=device)
    found = resample_edges(edges, one_hot, 8, backend=backend)
    close(found[0], 2 + (torch.arange(8) + 0.5) / 8)
    for nothing in (torch.zeros(1, 4, device=device), torch.full((1, 4), -1.0, device=device)):
        close(resample_edges(edges, nothing, 4, backend=backend)[0], [0.5, 1.5, 2.5, 3.5])
    # A third of the padding: weights that sum to less than PDF_EPS are padded evenly.
    faint = torch.tensor([[0.0, 2e-6, 0.0, 0.0]], device=device)
    close(resample_edges(edges, faint, 5, backend=backend)[0], [0.5, 1.25, 1.75, 2.5, 3.5])


@BOTH
def test_resampling_never_enters_empty_bins(backend, device):
    edges = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]], device=device)
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], device=device)
    # The regular targets 1/2 fall exactly on the step between the two bins.
    for count in (1, 2, 3, 64):
        for jitter in (None, torch.zeros(1, 1, device=device), torch.ones(1, 1, device=device)):
            found = resample_edges(edges, weights, count, jitter, backend=backend)[0]
            assert (((found >= 1) & (found <= 2)) | ((found >= 3) & (found <= 4))).all()


@BOTH
def test_hostile_weights(backend, device):
    edges = torch.linspace(0, 5, 6, device=device).repeat(4, 1)
    rows = [[-3.0, NAN, 1.0, -INF, 0.0], [1.0, INF, 1.0, 1.0, 1.0], [NAN] * 5, [1e38, 1e38, 1e38, 1e38, 1e38]]
    found = resample_edges(edges, torch.tensor(rows, device=device), 10, backend=backend)
    close(found[0], 2 + (torch.arange(10) + 0.5) / 10)
    close(found[1], 1 + (torch.arange(10) + 0.5) / 10)
    close(found[2], (torch.arange(10) + 0.5) / 2)
    close(found[3], (torch.arange(10) + 0.5) / 2)


@BOTH
def test_resampling_density(backend, device):
    weights = torch.tensor([[0.1, 0.6, 0.3]], device=device)
    edges = torch.tensor([[0.0, 1.0, 2.0, 3.0]], device=device)
    jitter = rand(1, 1000, seed=0, low=0.0).to(device)
    found = resample_edges(edges, weights, 1000, jitter, backend=backend)
    share = torch.histc(found.cpu(), 3, 0, 3) / 1000
    # Stratified: each bin gets its share but for the strata on its edges.
    assert (share - weights[0].cpu()).abs().max() < 2e-3
    assert (found[:, 1:] >= found[:, :-1]).all()


@BOTH
def test_merge_by_hand(backend, device):
    first = torch.tensor([[0.0, 2.0, 2.0, INF], [1.0, 1.0, 1.0, NAN]], device=device)
    second = torch.tensor([[-INF, 2.0, 3.0], [1.0, INF, NAN]], device=device)
    merged = merge_edges(first, second, backend=backend).cpu()
    assert merged[0].tolist() == [-INF, 0.0, 2.0, 2.0, 2.0, 3.0, INF]
    assert merged[1, :5].tolist() == [1.0, 1.0, 1.0, 1.0, INF] and merged[1, 5:].isnan().all()


@BOTH
def test_merge_gives_equal_edges_in_order(backend, device):
    first = torch.tensor([[1.0, 2.0]], device=device, requires_grad=True)
    second = torch.tensor([[1.0, 2.0, 2.0]], device=device, requires_grad=True)
    (merge_edges(first, second, backend=backend) * torch.arange(5, device=device)).sum().backward()
    assert first.grad.tolist() == [[0.0, 2.0]] and second.grad.tolist() == [[1.0, 3.0, 4.0]]


R, D3 = torch.zeros(4, 3), torch.ones(4, 3)
T = torch.ones(2)
E, W = torch.zeros(2, 4), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: intersect_aabb([0.0], D3, BOX), TypeError, "origins: expected a torch.Tensor, got list"),
        (lambda: intersect_aabb(R.long(), D3, BOX), TypeError, "origins: expected dtype float32, float64, got int64"),
        (lambda: intersect_aabb(R.half(), D3.half(), BOX.half()), TypeError, "origins: expected dtype float32"),
        (lambda: intersect_aabb(R, D3.double(), BOX), TypeError, "directions: expected dtype float32, got float64"),
        (lambda: intersect_aabb(R, D3, BOX.double()), TypeError, "box: expected dtype float32, got float64"),
        (lambda: intersect_aabb(R[:, :2], D3, BOX), ValueError, r"origins: expected shape \[..., 3\], got \[4, 2\]"),
        (lambda: intersect_aabb(R, D3[0, :1], BOX), ValueError, r"directions: expected shape \[..., 3\], got \[1\]"),
        (lambda: intersect_aabb(R, D3, BOX.t()), ValueError, r"box: expected shape \[..., 2, 3\], got \[3, 2\]"),
        (lambda: intersect_aabb(R, D3[:3], BOX), ValueError, r"directions: expected leading dims .* \[4\] of origins"),
        (lambda: intersect_aabb(R, D3, BOX.expand(3, 2, 3)), ValueError, r"box: expected leading dims .*, got \[3\]"),
        (lambda: intersect_aabb(R, D3.to("meta"), BOX), ValueError, "directions: expected device cpu as origins"),
        (lambda: intersect_aabb(R, D3, BOX, near_min=NAN), ValueError, "near_min: expected a number, got nan"),
        (lambda: intersect_aabb(R, D3, BOX, near_min="0"), TypeError, "near_min: expected a number, got str"),
        (lambda: intersect_aabb(R, D3, BOX, backend="jax"), ValueError, "backend: expected one of"),
        (lambda: stratified_edges(1.0, T, 3), TypeError, "near: expected a torch.Tensor, got float"),
        (lambda: stratified_edges(T, T.double(), 3), TypeError, "far: expected dtype float32, got float64"),
        (lambda: stratified_edges(T, T[:1], 3), ValueError, r"far: expected shape \[2\] as near, got \[1\]"),
        (lambda: stratified_edges(T, T.to("meta"), 3), ValueError, "far: expected device cpu as near, got meta"),
        (lambda: stratified_edges(T, T, 0), ValueError, "count: expected at least 1, got 0"),
        (lambda: stratified_edges(T, T, 3.0), TypeError, "count: expected an int, got float"),
        (lambda: stratified_edges(T, T, True), TypeError, "count: expected an int, got bool"),
        (lambda: stratified_edges(T, T, 3, torch.zeros(2, 3)), ValueError, r"jitter: expected shape \[2, 4\]"),
        (lambda: stratified_edges(T, T, 3, E.double()), TypeError, "jitter: expected dtype float32, got float64"),
        (lambda: stratified_edges(T, T, 3, E.to("meta")), ValueError, "jitter: expected device cpu as near, got meta"),
        (lambda: stratified_edges(T, T, 3, spacing="cubic"), ValueError, "spacing: expected one of uniform, .*'cubic'"),
        (lambda: stratified_edges(-T, T, 3, spacing="log"), ValueError, "near: expected distances above 0 .* got -1"),
        (lambda: resample_edges(E.long(), W, 3), TypeError, "edges: expected dtype float32, float64, got int64"),
        (lambda: resample_edges(E, W.double(), 3), TypeError, "weights: expected dtype float32, got float64"),
        (lambda: resample_edges(E, E, 3), ValueError, "weights: expected one per bin"),
        (lambda: resample_edges(E, W[:1], 3), ValueError, "weights: expected one per bin"),
        (lambda: resample_edges(E[0, 0], W, 3), ValueError, r"edges: expected shape \[..., S\+1\], got \[\]"),
        (lambda: resample_edges(E[:, :1], W[:, :0], 3), ValueError, "edges: expected at least 2 along the last dim"),
        (lambda: resample_edges(E, W.to("meta"), 3), ValueError, "weights: expected device cpu as edges, got meta"),
        (lambda: resample_edges(E, W, 0), ValueError, "count: expected at least 1"),
        (lambda: resample_edges(E, W, "3"), TypeError, "count: expected an int, got str"),
        (lambda: resample_edges(E, W, 3, W[:, :2]), ValueError, r"jitter: expected shape \[2, 3\] or \[2, 1\], got"),
        (lambda: resample_edges(E, W, 3, W.double()), TypeError, "jitter: expected dtype float32, got float64"),
        (lambda: merge_edges(E, [0.0]), TypeError, "second: expected a torch.Tensor, got list"),
        (lambda: merge_edges(E, E.double()), TypeError, "second: expected dtype float32, got float64"),
        (lambda: merge_edges(E, E[:1]), ValueError, r"second: expected leading dims \[2\] as first, got \[1, 4\]"),
        (lambda: merge_edges(T[0], T), ValueError, r"first: expected shape \[..., S\], got \[\]"),
        (lambda: merge_edges(E, E.to("meta")), ValueError, "second: expected device cpu as first, got meta"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_cost_by_hand():
    # One ray, float32: origin, direction and box are 6 numbers each, two distances and a flag.
    assert cost.intersect_aabb_cost(1, 1)[:2] == (12 * 4, 2 * 4 + 1)
    assert cost.intersect_aabb_backward_cost(1, 1)[:2] == (14 * 4, 12 * 4)
    # Three rays of two bins: three edges each.
    assert cost.stratified_edges_cost(3, 2)[:2] == (3 * 2 * 4, 9 * 4)
    assert cost.stratified_edges_cost(3, 2, "log", jittered=True)[:2] == (3 * 2 * 4 + 9 * 4, 9 * 4)
    assert cost.stratified_edges_backward_cost(3, 2)[:2] == (3 * 2 * 4 + 9 * 4, 3 * 2 * 4)
    assert cost.stratified_edges_backward_cost(3, 2, jittered=True).bytes_read == 3 * 2 * 4 + 18 * 4
    # Three slabs: two differences, two quotients, one magnitude; four minima and maxima.
    assert cost.intersect_aabb_cost(1, 1).flops == 3 * 5 + 4
    assert cost.resample_edges_cost(1, 3, 2)[:2] == ((4 + 3) * 4, 2 * 4)
    assert cost.resample_edges_cost(1, 3, 2, jitters=2).bytes_read == (4 + 3 + 2) * 4
    # Three bins: three sums, two steps of three operations a position.
    assert cost.resample_edges_cost(1, 3, 2).flops == 3 + 2 * (2 * 3 + 12)
    assert cost.merge_edges_cost(2, 3, 1) == (2 * 4 * 4, 2 * 4 * 4, 2 * 4 * 2)
    assert cost.merge_edges_backward_cost(2, 3, 1) == (2 * 8 * 4, 2 * 4 * 4, 2 * (3 * 1 + 1 * 2))
