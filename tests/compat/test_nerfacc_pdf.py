"""nerfacc's binary search and importance sampling: batched and flat rays against loops over one ray after another."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from ponder_kernels.compat import nerfacc
from ponder_kernels.compat.nerfacc import RayIntervals, RaySamples, importance_sampling, searchsorted
from tests.compat import nerfacc_oracle as oracle
from tests.compat.nerfacc_oracle import indices, packed, rand
from tests.tolerance import assert_close_to_reference

EVEN, RAGGED = (6, 6, 6), (4, 0, 9, 1, 2, 0)


def ascending(counts, seed=0):
    """Flat values that ascend on each ray, with two equal neighbours here and there."""
    parts = [rand(n, high=4.0, seed=seed + r).sort().values for r, n in enumerate(counts)]
    for part in parts:
        part[3::4] = part[2::4][: len(part[3::4])]
    return torch.cat(parts)


def forms(kind, vals, counts):
    """One set of rays in every form that fits."""
    found = [kind(vals, packed(counts)), kind(vals, packed(counts).int()), kind(vals, ray_indices=indices(counts))]
    found.append(kind(vals, packed(counts), indices(counts)))
    if len(set(counts)) == 1:
        found.append(kind(vals.view(len(counts), -1)))
    return found


def test_dataclasses(device):
    """Fields in nerfacc's order, all but the first optional."""
    names = [f.name for f in dataclasses.fields(RayIntervals)]
    assert names == ["vals", "packed_info", "ray_indices", "is_left", "is_right"]
    names = [f.name for f in dataclasses.fields(RaySamples)]
    assert names == ["vals", "packed_info", "ray_indices", "is_valid"]
    for kind in (RayIntervals, RaySamples):
        one = kind(torch.zeros(2, 3, device=device))
        assert one.device == one.vals.device and one.packed_info is None and one.ray_indices is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("query_counts", [(5, 5, 5), (4, 0, 8)], ids=["even", "ragged"])
@pytest.mark.parametrize("key_counts", [EVEN, (3, 1, 16)], ids=["even-key", "ragged-key"])
def test_searchsorted(key_counts, query_counts, dtype, device):
    """Places within the ray for batched values, within the whole sequence for flat ones; -1 and 9 are out of range."""
    keys = ascending(key_counts).to(dtype)
    values = rand(sum(query_counts), low=-1.0, high=5.0, seed=7).to(dtype)
    values[0], values[-1], values[1] = -1.0, 9.0, keys[2]
    starts = packed(key_counts)[:, 0].tolist()
    per_ray = [part.tolist() for part in keys.split(key_counts)]
    local = [
        oracle.bracket(per_ray[r], v) for r, v in zip(indices(query_counts).tolist(), values.tolist(), strict=True)
    ]
    shift = torch.tensor([starts[r] for r in indices(query_counts).tolist()])
    want = torch.tensor(local).T
    for key in forms(RayIntervals, keys.to(device), key_counts):
        for query in forms(RaySamples, values.to(device), query_counts):
            left, right = searchsorted(move(key, device), move(query, device))
            batched = query.vals.dim() > 1
            assert left.dtype == right.dtype == torch.int64 and left.shape == right.shape == query.vals.shape
            got = torch.stack((left, right)).flatten(1).cpu()
            assert torch.equal(got, want if batched else want + shift)


def move(rays, device):
    """The dataclass with all of its tensors on the device."""
    moved = {k: v.to(device) for k, v in vars(rays).items() if v is not None}
    return dataclasses.replace(rays, **moved)


def test_searchsorted_equals_torch(device):
    keys = rand(10, 33).sort().values.to(device)
    values = rand(10, 17, seed=1).sort().values.to(device)
    left, right = searchsorted(RayIntervals(keys), RayIntervals(values))
    want = torch.searchsorted(keys, values, right=True)
    assert torch.equal(right, want.clamp(0, 32))
    inside = (want > 0) & (want < 33)
    assert torch.equal(left[inside], want[inside] - 1)
    assert (keys.gather(1, left) <= values)[inside].all() and (values < keys.gather(1, right))[inside].all()


def test_searchsorted_more_dims_and_edges(device):
    keys, values = rand(2, 3, 8).sort().values.to(device), rand(2, 3, 5, seed=1).to(device)
    flat = searchsorted(RayIntervals(keys.view(6, 8)), RaySamples(values.view(6, 5)))
    for got, want in zip(searchsorted(RayIntervals(keys), RaySamples(values)), flat, strict=True):
        assert torch.equal(got.view(6, 5), want)
    single = searchsorted(RayIntervals(keys[0, :, :1]), RaySamples(values[0]))
    assert all((x == 0).all() for x in single)
    none = searchsorted(RayIntervals(keys[0, :0]), RaySamples(values[0, :0]))
    assert all(x.shape == (0, 5) for x in none)
    none = searchsorted(RayIntervals(keys[0]), RaySamples(values[0, :, :0]))
    assert all(x.shape == (3, 0) for x in none)
    none = searchsorted(RayIntervals(keys[0, :, :0]), RaySamples(values[0]))
    assert all(x.shape == (3, 5) for x in none)
    empty = RayIntervals(torch.zeros(0, device=device, dtype=keys.dtype), torch.zeros(2, 2, dtype=int, device=device))
    left, right = searchsorted(empty, RaySamples(values[0, :2]))
    assert left.shape == right.shape == (2, 5)


def test_searchsorted_of_packed_values_in_any_order(device):
    """A value belongs to the ray whose chunk it lies in, next to empty rays and in any order of chunks."""
    keys = torch.arange(8.0, device=device).view(4, 2)
    chunks = torch.tensor([[2, 0], [2, 3], [0, 2], [2, 0]], device=device)
    _, right = searchsorted(RayIntervals(keys), RaySamples(torch.full((5,), 99.0, device=device), chunks))
    assert right.tolist() == [5, 5, 3, 3, 3]


CDF_KINDS = ["steep", "flat", "empty", "free"]


def cdf_of(counts, kind):
    """Ascending numbers per ray: from 0 to 1, with plateaus, all 0, or neither from 0 nor to 1."""
    parts = []
    for r, n in enumerate(counts):
        steps = rand(n, low=0.01, seed=20 + r)
        if kind == "flat":
            steps[1::2] = 0.0
        part = steps.cumsum(0) - steps[:1]
        part = part / part[-1:].clamp_min(1e-3) if kind in ("steep", "flat") else part + 0.3
        parts.append(torch.zeros_like(part) if kind == "empty" else part)
    return torch.cat(parts)


def truth(edges, cdfs, counts, numbers, biases=None):
    """New edges and samples of each ray."""
    found = []
    for r, (e, c) in enumerate(zip(edges.split(counts), cdfs.split(counts), strict=True)):
        bias = 0.5 if biases is None else biases[r]
        found.append(oracle.sample_ray(e.tolist(), c.tolist(), numbers[r], bias))
    flat = [torch.tensor([x for ray in part for x in ray], dtype=torch.float64) for part in zip(*found, strict=True)]
    return flat[0], flat[1]


@pytest.mark.parametrize("kind", CDF_KINDS)
@pytest.mark.parametrize("number", [1, 2, 7, 33])
@pytest.mark.parametrize("counts", [EVEN, RAGGED, (1, 1), (64,)], ids=["even", "ragged", "single", "long"])
def test_importance_sampling(counts, number, kind, device):
    """One number of intervals for all rays: batched results, whatever the form of the input."""
    edges, cdfs, rays = ascending(counts), cdf_of(counts, kind), len(counts)
    # A ray behind the last edge is known to chunks only.
    known = len(counts) - (counts[-1] == 0)
    for form in forms(RayIntervals, edges, counts):
        n = known if form.packed_info is None and form.vals.dim() == 1 else rays
        want_edges, want_samples = truth(edges, cdfs, counts, [number] * n + [0] * (rays - n))
        new, samples = importance_sampling(move(form, device), cdfs.view(form.vals.shape).to(device), number)
        assert new.vals.shape == (n, number + 1) and samples.vals.shape == (n, number)
        assert new.packed_info is None and samples.packed_info is None and new.is_left is None
        assert_close_to_reference(new.vals, want_edges.view(n, -1), 64)
        assert_close_to_reference(samples.vals, want_samples.view(n, -1), 64)


@pytest.mark.parametrize("kind", CDF_KINDS)
@pytest.mark.parametrize(
    ("counts", "numbers"),
    [(EVEN, (3, 0, 5)), (RAGGED, (2, 0, 16, 1, 0, 0)), (RAGGED, (0, 2, 1, 1, 3, 4)), (EVEN, (0, 0, 0))],
    ids=["even", "ragged", "rays-without-edges", "nothing"],
)
def test_importance_sampling_per_ray(counts, numbers, kind, device):
    """A number per ray: flat results that say whose they are, and which edges begin and end an interval."""
    edges, cdfs = ascending(counts), cdf_of(counts, kind)
    want_edges, want_samples = truth(edges, cdfs, counts, numbers)
    edge_counts = tuple(n + 1 if n else 0 for n in numbers)
    place = torch.cat([torch.arange(n) for n in edge_counts])
    last = torch.cat([torch.full((n,), n - 1) for n in edge_counts])
    for form in forms(RayIntervals, edges, counts):
        if form.packed_info is None and form.vals.dim() == 1 and counts[-1] == 0:
            continue
        number = torch.tensor(numbers, device=device)
        new, samples = importance_sampling(move(form, device), cdfs.view(form.vals.shape).to(device), number)
        assert_close_to_reference(new.vals, want_edges, 64)
        assert_close_to_reference(samples.vals, want_samples, 64)
        assert torch.equal(new.packed_info.cpu(), packed(edge_counts))
        assert torch.equal(samples.packed_info.cpu(), packed(numbers))
        assert torch.equal(new.ray_indices.cpu(), indices(edge_counts))
        assert torch.equal(samples.ray_indices.cpu(), indices(numbers))
        assert torch.equal(new.is_left.cpu(), place < last) and torch.equal(new.is_right.cpu(), place > 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=["fp16", "fp32", "fp64"])
def test_importance_sampling_dtypes(dtype, device):
    edges, cdfs = ascending(EVEN).to(dtype).view(3, 6), cdf_of(EVEN, "steep").to(dtype).view(3, 6)
    new, samples = importance_sampling(RayIntervals(edges.to(device)), cdfs.to(device), 9)
    want_edges, want_samples = truth(edges.double().flatten(), cdfs.double().flatten(), EVEN, [9] * 3)
    # The slope of the inverse CDF, up to 4 over a step of 0.01, carries the rounding of the CDF into the position.
    assert_close_to_reference(new.vals, want_edges.view(3, 10), 6, scale=10.0)
    assert_close_to_reference(samples.vals, want_samples.view(3, 9), 6, scale=10.0)
    assert new.vals.dtype == samples.vals.dtype == dtype


def test_importance_sampling_dims_and_gradient(device):
    edges = rand(2, 3, 8).sort().values.to(device).requires_grad_()
    cdfs = rand(2, 3, 8, seed=1).sort().values.to(device).requires_grad_()
    new, samples = importance_sampling(RayIntervals(edges), cdfs, 4)
    assert new.vals.shape == (2, 3, 5) and samples.vals.shape == (2, 3, 4)
    assert not new.vals.requires_grad and not samples.vals.requires_grad
    flat, _ = importance_sampling(RayIntervals(edges.view(6, 8)), cdfs.view(6, 8), 4)
    assert torch.equal(new.vals.view(6, 5), flat.vals)
    numbers = torch.full((2, 3), 4, device=device)
    ragged, _ = importance_sampling(RayIntervals(edges), cdfs, numbers)
    assert torch.equal(ragged.vals, flat.vals.flatten())
    new, samples = importance_sampling(RayIntervals(edges[0, :, :0]), cdfs[0, :, :0], 4)
    assert not new.vals.any() and new.vals.shape == (3, 5) and not samples.vals.any()
    for rays in (RayIntervals(edges[0, :0]), RayIntervals(edges[0, 0, :0], packed(()).to(device))):
        new, samples = importance_sampling(rays, rays.vals, 4)
        assert new.vals.shape == (0, 5) and samples.vals.shape == (0, 4)


@pytest.mark.parametrize("flat", [False, True], ids=["batched", "flat"])
def test_stratified_sampling(flat, device):
    """All samples of a ray move by the same part of a step, each ray by its own, and stay in their strata."""
    rays, number = 50, 8
    edges = torch.linspace(0, 1, 5, dtype=torch.float64, device=device).expand(rays, 5).contiguous()
    form = RayIntervals(edges.flatten(), packed((5,) * rays).to(device)) if flat else RayIntervals(edges)
    numbers = torch.full((rays,), number, device=device) if flat else number

    def draw(seed):
        torch.manual_seed(seed)
        return importance_sampling(form, form.vals, numbers, stratified=True)[1].vals.view(rays, number)

    drawn = draw(0)
    bias = drawn * number - torch.arange(number, device=device)
    torch.testing.assert_close(bias, bias[:, :1].expand(rays, number))
    assert (bias >= 0).all() and (bias < 1).all()
    assert bias[:, 0].min() < 0.2 and bias[:, 0].max() > 0.8 and len(bias[:, 0].unique()) == rays
    assert torch.equal(draw(0), drawn) and not torch.equal(draw(1), drawn)


def test_stratified_sampling_equals_its_loops(device):
    edges, cdfs = ascending(EVEN).to(device), cdf_of(EVEN, "free").to(device)
    torch.manual_seed(5)
    new, samples = importance_sampling(RayIntervals(edges.view(3, 6)), cdfs.view(3, 6), 7, True)
    torch.manual_seed(5)
    biases = torch.rand(3, dtype=torch.float64, device=device).tolist()
    want_edges, want_samples = truth(edges.cpu(), cdfs.cpu(), EVEN, [7] * 3, biases)
    assert_close_to_reference(new.vals, want_edges.view(3, 8), 8)
    assert_close_to_reference(samples.vals, want_samples.view(3, 7), 8)


@pytest.mark.parametrize("flat", [False, True], ids=["batched", "flat"])
def test_outer_measure(flat, device):
    """What the proposal loss is made of: the weight of all key intervals that touch a query interval."""
    counts, number = (17, 17, 17), 5
    edges, cdfs = rand(51).view(3, 17).sort().values.to(device), rand(51, seed=1).view(3, 17).sort().values.to(device)
    key = RayIntervals(edges.flatten(), packed(counts).to(device)) if flat else RayIntervals(edges)
    cdf = cdfs.flatten() if flat else cdfs
    query, _ = importance_sampling(key, cdf, torch.full((3,), number, device=device) if flat else number)
    left, right = searchsorted(key, query)
    if flat:
        left, right = left[query.is_left], right[query.is_right]
    else:
        left, right = left[:, :-1], right[:, 1:]
    outer = (cdf.gather(-1, right) - cdf.gather(-1, left)).reshape(3, number)
    for r, (new, old, weight) in enumerate(zip(query.vals.view(3, -1), edges, cdfs.diff(), strict=True)):
        for k, (begin, end) in enumerate(pairwise(new.tolist())):
            touched = [w for w, a, b in zip(weight.tolist(), old[:-1], old[1:], strict=True) if b > begin and a <= end]
            assert_close_to_reference(outer[r, k], torch.tensor(sum(touched), dtype=torch.float64), 16)


E, C = torch.zeros(4), torch.tensor([[0, 2], [2, 2]])
PACKED = RayIntervals(E, C)
ROWS = RayIntervals(E.view(2, 2))


@pytest.mark.parametrize(
    ("key", "query", "error", "message"),
    [
        (E, ROWS, TypeError, "sorted_sequence: expected RayIntervals or RaySamples, got Tensor"),
        (RaySamples(C), ROWS, TypeError, "sorted_sequence.vals: expected dtype"),
        (RayIntervals(E), ROWS, ValueError, "sorted_sequence: expected packed_info or ray_indices with flat vals"),
        (ROWS, RaySamples(E.double().view(2, 2)), TypeError, "values.vals: expected dtype"),
        (ROWS, RaySamples(E.view(1, 4)), ValueError, "values: expected the 2 rays of sorted_sequence, got 1"),
        (ROWS, RaySamples(E, ray_indices=torch.tensor([0, 0, 1, 2])), ValueError, "values: expected the 2 rays"),
        (RaySamples(E, C[:0]), RaySamples(E, C[:0]), ValueError, "values: expected the 0 rays"),
        (ROWS, RaySamples(E, ray_indices=torch.tensor([0, 0])), ValueError, "values.ray_indices: expected shape"),
        (ROWS, RaySamples(E, C + 1), ValueError, "values.packed_info: expected chunks .* inside the 4 samples"),
        (ROWS, RaySamples(E.to("meta").view(2, 2)), ValueError, "values: expected device cpu"),
    ],
)
def test_searchsorted_refuses(key, query, error, message):
    with pytest.raises(error, match=message):
        searchsorted(key, query)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((E, E, 2), TypeError, "intervals: expected RayIntervals or RaySamples, got Tensor"),
        ((PACKED, E.double(), 2), TypeError, "cdfs: expected dtype float32, got float64"),
        ((PACKED, E[:3], 2), ValueError, r"cdfs: expected shape \[4\] as intervals, got \[3\]"),
        ((PACKED, E.to("meta"), 2), ValueError, "cdfs: expected device cpu"),
        ((PACKED, E, 0), ValueError, "n_intervals_per_ray: expected at least 1, got 0"),
        ((PACKED, E, torch.tensor([1, -1])), ValueError, "n_intervals_per_ray: expected at least 0, got -1"),
        ((PACKED, E, torch.tensor([1, 1, 1])), ValueError, r"n_intervals_per_ray: expected shape \[2\], got \[3\]"),
        ((PACKED, E, torch.tensor([1.0, 1.0])), TypeError, "n_intervals_per_ray: expected dtype int64"),
        ((RayIntervals(E), E, 2), ValueError, "intervals: expected packed_info or ray_indices"),
        ((RayIntervals(E, C * 2), E, 2), ValueError, "intervals.packed_info: expected chunks"),
    ],
)
def test_importance_sampling_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        nerfacc.importance_sampling(*arguments)
