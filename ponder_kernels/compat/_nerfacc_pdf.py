"""Edges and samples along rays, bisection in them and inverse-CDF sampling: nerfacc's data_specs and pdf modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels.compat._nerfacc_scan import INTEGERS, check_indices, check_packed, pack_info
from ponder_kernels.composite.reference import values_at_hand

# Where the CDF grows by less than this over an interval, nerfacc takes the middle of the interval.
FLAT_CDF_STEP = 1e-10


@dataclass
class RaySamples:
    """Positions of samples along rays.

    Attributes:
        vals: [..., S] batched, the leading dimensions counting rays; or [N], the samples of all rays one by one.
        packed_info: [R, 2] (start, count) of each ray's samples in a flat `vals`.
        ray_indices: [N] the ray of each sample of a flat `vals`. One of the two says whose the samples are.
        is_valid: [N] bool, for the caller's own use.
    """

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_valid: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where `vals` lies."""
        return self.vals.device


@dataclass
class RayIntervals:
    """Edges of intervals along rays, neighbouring intervals sharing an edge.

    Attributes:
        vals: [..., S + 1] batched, the leading dimensions counting rays; or [N], the edges of all rays one by one.
        packed_info: [R, 2] (start, count) of each ray's edges in a flat `vals`.
        ray_indices: [N] the ray of each edge of a flat `vals`. One of the two says whose the edges are.
        is_left, is_right: [N] bool, whether an edge of a flat `vals` begins, and ends, an interval.
    """

    vals: Tensor
    packed_info: Tensor | None = None
    ray_indices: Tensor | None = None
    is_left: Tensor | None = None
    is_right: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where `vals` lies."""
        return self.vals.device


class _Rays(NamedTuple):
    """Values of R rays behind each other, ray r owning `held[r]` of them from `first[r]` on.

    Attributes:
        values: [N]
        first, held: [R] int64
        batch: shape of batched rays without their last dimension; None if they came flat.
        longest: bound on the counts.
    """

    values: Tensor
    first: Tensor
    held: Tensor
    batch: torch.Size | None
    longest: int


def _rays(name: str, data: RayIntervals | RaySamples) -> _Rays:
    if not hasattr(data, "vals"):
        raise TypeError(f"{name}: expected RayIntervals or RaySamples, got {type(data).__name__}")
    vals = _check.floating(f"{name}.vals", data.vals)
    if vals.dim() > 1:
        batch, each = vals.shape[:-1], vals.shape[-1]
        first = torch.arange(batch.numel(), device=vals.device) * each
        return _Rays(vals.reshape(-1), first, torch.full_like(first, each), batch, each)
    _check.shape(f"{name}.vals", vals, "N")
    packed = data.packed_info
    if packed is None:
        if data.ray_indices is None:
            raise ValueError(f"{name}: expected packed_info or ray_indices with flat vals, got neither")
        _check_ids(name, vals, data.ray_indices)
        packed = pack_info(data.ray_indices)
    _check.same_device(f"{name}.vals", vals, packed_info=_check.tensor(f"{name}.packed_info", packed))
    first, count = check_packed(f"{name}.packed_info", packed, vals.shape[0])
    return _Rays(vals, first, count, None, vals.shape[0])


def _check_ids(name: str, vals: Tensor, ray_indices: Tensor) -> None:
    check_indices(f"{name}.ray_indices", ray_indices)
    _check.shape(f"{name}.ray_indices", ray_indices, "N", {"N": vals.shape[0]})
    _check.same_device(f"{name}.vals", vals, ray_indices=ray_indices)


class _Layout(NamedTuple):
    """Elements of R rays: rows [R, n] of as many each, or flat [M].

    Attributes:
        start: [R] place of each ray's first element among all.
        ray: None for rows; [M] the ray of each flat element.
        place: of the elements on their ray, [n] or [M].
    """

    start: Tensor
    ray: Tensor | None
    place: Tensor

    @classmethod
    def rows(cls, rays: int, each: int, device: torch.device) -> _Layout:
        return cls(torch.arange(rays, device=device) * each, None, torch.arange(each, device=device))

    @classmethod
    def ragged(cls, counts: Tensor) -> _Layout:
        start = counts.cumsum(0) - counts
        ray = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return cls(start, ray, torch.arange(len(ray), device=counts.device) - start[ray])

    def spread(self, per_ray: Tensor) -> Tensor:
        """A number of each ray [R], at each of its elements: [R, 1] or [M]."""
        return per_ray[:, None] if self.ray is None else per_ray[self.ray]


def _layout_of(name: str, data: RayIntervals | RaySamples, rays: _Rays) -> _Layout:
    if rays.batch is not None:
        return _Layout.rows(len(rays.first), rays.longest, rays.values.device)
    position = torch.arange(rays.values.shape[0], device=rays.values.device)
    if data.ray_indices is not None:
        _check_ids(name, rays.values, data.ray_indices)
        return _Layout(rays.first, data.ray_indices.long(), position)
    # Each value lies on the first ray that ends behind it; empty ones, which own none, go last.
    ends, order = torch.where(rays.held > 0, rays.first + rays.held, len(position) + 1).sort()
    place = torch.searchsorted(ends, position, right=True)
    return _Layout(rays.first, order[place.clamp_max(len(order) - 1)], position)


def _first_above(rays: _Rays, low: Tensor, high: Tensor, wanted: Tensor) -> Tensor:
    """First place from `low` to before `high` whose value is above the wanted one, else `high`: by bisection."""
    values = rays.values if rays.values.numel() else rays.values.new_zeros(1)
    for _ in range(rays.longest.bit_length()):
        middle = (low + high) // 2
        right = (low < high) & ~(values[middle.clamp(0, len(values) - 1)] > wanted)
        low, high = torch.where(right, middle + 1, low), torch.where(right | (low >= high), high, middle)
    return low


def _bracket(rays: _Rays, layout: _Layout, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Places in `rays.values` of the neighbours of each wanted value on its ray: ``left <= wanted < right``.

    A value below the first edge of the ray gets that edge twice, one from the last edge on gets the last two.
    """
    first = layout.spread(rays.first).expand_as(wanted)
    last = first + layout.spread(rays.held) - 1
    most = max(rays.values.shape[0] - 1, 0)
    # The last value is left out: it bounds its ray, whatever is wanted.
    if layout.ray is None and rays.batch is not None and wanted.numel() and rays.longest:
        table = rays.values.view(-1, rays.longest)[:, :-1].contiguous()
        low = first + torch.searchsorted(table, wanted.contiguous(), right=True)
    else:
        low = _first_above(rays, first, last, wanted)

    def on_ray(place: Tensor) -> Tensor:
        # A ray without values has no place: stay inside the tensor.
        return torch.maximum(torch.minimum(place, last), first).clamp(0, most)

    return on_ray(low - 1), on_ray(low)


@torch.no_grad()
def searchsorted(
    sorted_sequence: RayIntervals | RaySamples, values: RayIntervals | RaySamples
) -> tuple[Tensor, Tensor]:
    """Neighbours of each value in the ascending sequence of its ray: ``sequence[left] <= value < sequence[right]``.

    A value below the sequence gets its first element for both; one at or above its end gets the last two elements.

    Args:
        sorted_sequence: R rays, `vals` ascending on each.
        values: the same R rays; either argument may be batched or flat.

    Returns:
        left, right: int64, shape of `values.vals`. With batched values they count within the ray, with flat ones within
        the flattened `sorted_sequence.vals`. On a ray whose sequence is empty they have no meaning.

    Raises:
        TypeError: not rays, not floating-point, different dtypes.
        ValueError: different numbers of rays or devices; flat values without packed_info and ray_indices; bad chunks.

    >>> sequence = RayIntervals(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    >>> left, right = searchsorted(sequence, RaySamples(torch.tensor([[-1.0, 1.0, 2.5, 9.0]])))
    >>> left.tolist(), right.tolist()
    ([[0, 1, 2, 2]], [[0, 2, 3, 3]])
    """
    key, query = _rays("sorted_sequence", sorted_sequence), _rays("values", values)
    if key.values.dtype != query.values.dtype:
        raise TypeError(f"values.vals: expected dtype {key.values.dtype} as sorted_sequence, got {query.values.dtype}")
    _check.same_device("sorted_sequence.vals", key.values, values=query.values)
    # Ray ids alone leave open how many rays follow the last sample.
    counted = all(d.packed_info is not None or d.vals.dim() > 1 for d in (sorted_sequence, values))
    rays, known = len(query.first), len(key.first)
    if rays > known or (counted and rays != known) or (known == 0 and query.values.numel()):
        raise ValueError(f"values: expected the {known} rays of sorted_sequence, got {rays}")
    layout = _layout_of("values", values, query)
    wanted = query.values if layout.ray is not None else query.values.view(rays, query.longest)
    left, right = _bracket(key, layout, wanted)
    if layout.ray is None:
        left, right = left - key.first[:, None], right - key.first[:, None]
    return left.reshape(values.vals.shape), right.reshape(values.vals.shape)


def _counts(n_intervals_per_ray: Tensor | int, rays: _Rays) -> Tensor:
    """Number of samples to draw on each ray [R], int64."""
    name = "n_intervals_per_ray"
    if not isinstance(n_intervals_per_ray, Tensor):
        if n_intervals_per_ray < 1:
            raise ValueError(f"{name}: expected at least 1, got {n_intervals_per_ray}")
        return torch.full_like(rays.first, n_intervals_per_ray)
    _check.floating(name, n_intervals_per_ray, INTEGERS)
    _check.same_device("intervals.vals", rays.values, n_intervals_per_ray=n_intervals_per_ray)
    counts = n_intervals_per_ray.reshape(-1).long()
    if n_intervals_per_ray.shape not in {rays.first.shape, rays.batch or rays.first.shape}:
        raise ValueError(f"{name}: expected shape {list(rays.first.shape)}, got {list(n_intervals_per_ray.shape)}")
    if values_at_hand(counts) and bool((counts < 0).any()):
        raise ValueError(f"{name}: expected at least 0, got {int(counts.min())}")
    return counts


def _draw(rays: _Rays, cdfs: Tensor, counts: Tensor, layout: _Layout, stratified: bool) -> Tensor:
    """Positions at which the piecewise linear CDF takes its midpoint (or jittered) values."""
    last = (rays.first + rays.held - 1).clamp_min(0)
    lowest = cdfs[torch.minimum(rays.first, last)]
    step = (cdfs[last] - lowest) / counts
    # One number per ray moves all of its strata together.
    bias = torch.rand_like(step) if stratified else torch.full_like(step, 0.5)
    u = layout.spread(lowest) + (layout.place + layout.spread(bias)) * layout.spread(step)
    left, right = _bracket(rays._replace(values=cdfs), layout, u)
    start, stop = rays.values[left], rays.values[right]
    below = cdfs[left]
    growth = cdfs[right] - below
    flat = growth < FLAT_CDF_STEP
    slope = (stop - start) / torch.where(flat, 1.0, growth)
    drawn = torch.where(flat, (start + stop) * 0.5, (u - below) * slope + start)
    return torch.where(layout.spread(rays.held) > 0, drawn, 0.0)


def _edges_between(rays: _Rays, drawn: Tensor, counts: Tensor, samples: _Layout, edges: _Layout) -> Tensor:
    """Edges half-way between drawn positions; the outer two as far outside, but within the ray's support."""
    drawn, place = drawn.reshape(-1), edges.place
    start, count = edges.spread(samples.start), edges.spread(counts)

    def at(k: Tensor) -> Tensor:
        return drawn[start + torch.minimum(k.clamp_min(0), count - 1)]

    lower = edges.spread(rays.values[rays.first.clamp_max(len(rays.values) - 1)])
    upper = edges.spread(rays.values[(rays.first + rays.held - 1).clamp_min(0)])
    before, after = at(place - 1), at(place)
    begin = torch.maximum(after - (at(place + 1) - after) * 0.5, lower)
    end = torch.minimum(before + (before - at(place - 2)) * 0.5, upper)
    # A single sample stands for the whole support.
    begin, end = torch.where(count == 1, lower, begin), torch.where(count == 1, upper, end)
    borders = torch.where(place == 0, begin, torch.where(place == count, end, (before + after) * 0.5))
    return torch.where(edges.spread(rays.held) > 0, borders, 0.0)


@torch.no_grad()
def importance_sampling(
    intervals: RayIntervals, cdfs: Tensor, n_intervals_per_ray: Tensor | int, stratified: bool = False
) -> tuple[RayIntervals, RaySamples]:
    """Draw new samples, and intervals around them, from the piecewise linear CDF of each ray.

    With n samples on a ray whose CDF runs from a to b, sample k lies where the CDF is ``a + (k + 1/2)(b - a)/n``; the
    edges of the new intervals lie half-way between samples. Nothing is differentiable here.

    Args:
        intervals: edges of R rays, ascending on each, batched or flat.
        cdfs: shape of `intervals.vals`: the CDF at the edges, ascending on each ray; it need not run from 0 to 1.
        n_intervals_per_ray: n >= 1 for all rays; or [R] integers n_r >= 0 (on a GPU their sum is waited for).
        stratified: shift the samples by a random part of a step, from -1/2 to 1/2, the same for all samples of a ray.

    Returns:
        RayIntervals and RaySamples in the dtype of `intervals.vals`. For one n, batched: [..., n + 1] and [..., n]. For
        n_r, flat: n_r + 1 edges (none if n_r = 0) and n_r samples per ray, with packed_info and ray_indices, and
        is_left and is_right of the edges. A single sample's interval is the whole ray. A ray without edges gets zeros.

    Raises:
        TypeError: not rays, not floating-point, a dtype of `cdfs` that differs, counts that are not integers.
        ValueError: shapes or devices that do not fit, n < 1, a negative n_r, bad chunks.

    >>> edges = RayIntervals(torch.tensor([[0.0, 1.0, 2.0]]))
    >>> finer, samples = importance_sampling(edges, torch.tensor([[0.0, 0.0, 1.0]]), 2)
    >>> finer.vals.tolist(), samples.vals.tolist()
    ([[1.0, 1.5, 2.0]], [[1.25, 1.75]])
    """
    rays = _rays("intervals", intervals)
    _check.floating("cdfs", cdfs, (rays.values.dtype,))
    if cdfs.shape != intervals.vals.shape:
        raise ValueError(f"cdfs: expected shape {list(intervals.vals.shape)} as intervals, got {list(cdfs.shape)}")
    _check.same_device("intervals.vals", rays.values, cdfs=cdfs)
    counts = _counts(n_intervals_per_ray, rays)
    known = None if isinstance(n_intervals_per_ray, Tensor) else n_intervals_per_ray
    edge_counts = torch.where(counts > 0, counts + 1, 0)
    if known is None:
        samples, edges = _Layout.ragged(counts), _Layout.ragged(edge_counts)
    else:
        samples, edges = (_Layout.rows(len(counts), n, rays.values.device) for n in (known, known + 1))
    cdfs = cdfs.reshape(-1)
    if rays.values.numel() == 0:
        rays, cdfs = rays._replace(values=rays.values.new_zeros(1)), cdfs.new_zeros(1)
    drawn = _draw(rays, cdfs, counts, samples, stratified)
    borders = _edges_between(rays, drawn, counts, samples, edges)
    if known is not None:
        batch = rays.first.shape if rays.batch is None else rays.batch
        return RayIntervals(borders.reshape(*batch, known + 1)), RaySamples(drawn.reshape(*batch, known))
    is_left, is_right = edges.place < edges.spread(counts), edges.place > 0
    edge_info, sample_info = (torch.stack(p, -1) for p in ((edges.start, edge_counts), (samples.start, counts)))
    return RayIntervals(borders, edge_info, edges.ray, is_left, is_right), RaySamples(drawn, sample_info, samples.ray)
