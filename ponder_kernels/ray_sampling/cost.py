"""Traffic and arithmetic of ray sampling as functions of shape.

Edges, distances and coordinates are float32. Selections are not counted; roots, logarithms, divisions, minima, maxima
and the comparisons of a search count as one FLOP each. Scratch and what a search reads again come from cache.
"""

from __future__ import annotations

from ponder_kernels._launch import Cost

# Per edge, without jitter: u and 1 - u (4), the mix (8); then s of both ends, its inverse and the cut to the ends.
MIX_FLOPS = {"uniform": 12, "disparity": 15, "sqrt": 15, "log": 44, "piecewise": 20}
# Per edge: the slopes at both ends, the products with the weights and the upstream gradient, two sums.
SLOPE_FLOPS = {"uniform": 6, "disparity": 10, "sqrt": 10, "log": 8, "piecewise": 10}
JITTER_FLOPS = 3


def _search_steps(length: int) -> int:
    """Steps of a binary search for one of length + 1 places."""
    return length.bit_length()


def intersect_aabb_cost(rays: int, boxes: int) -> Cost:
    """Forward: rays and boxes in; two distances and a flag out. Bound by bandwidth."""
    return Cost(bytes_read=24 * rays + 24 * boxes, bytes_written=9 * rays, flops=19 * rays)


def intersect_aabb_backward_cost(rays: int, boxes: int) -> Cost:
    """Backward: rays, boxes and two upstream gradients in; gradients of all of them out. Bound by bandwidth.

    The gradient to shared boxes passes memory per ray on its way (24 B written and read again), which is left out.
    """
    return Cost(bytes_read=32 * rays + 24 * boxes, bytes_written=24 * rays + 24 * boxes, flops=43 * rays)


def stratified_edges_cost(rays: int, count: int, spacing: str = "uniform", jittered: bool = False) -> Cost:
    """Forward: both ends of each ray and the jitter in, S + 1 edges out. Bound by bandwidth."""
    edges = rays * (count + 1)
    flops = MIX_FLOPS[spacing] + JITTER_FLOPS * jittered
    return Cost(bytes_read=8 * rays + 4 * edges * jittered, bytes_written=4 * edges, flops=flops * edges)


def stratified_edges_backward_cost(rays: int, count: int, spacing: str = "uniform", jittered: bool = False) -> Cost:
    """Backward: the forward's inputs and the upstream gradient in, two gradients a ray out. Bound by bandwidth."""
    edges = rays * (count + 1)
    flops = MIX_FLOPS[spacing] + JITTER_FLOPS * jittered + SLOPE_FLOPS[spacing]
    return Cost(bytes_read=8 * rays + 4 * edges * (1 + jittered), bytes_written=8 * rays, flops=flops * edges)


def resample_edges_cost(rays: int, bins: int, count: int, jitters: int = 0) -> Cost:
    """Edges, weights and `jitters` random numbers a ray (0, 1 or K) in, K positions out.

    Bound by the latency of the search: each step waits for the last. A step scales, adds and compares.
    """
    flops = bins + count * (3 * _search_steps(bins) + 12)
    return Cost(bytes_read=4 * rays * (2 * bins + 1 + jitters), bytes_written=4 * rays * count, flops=rays * flops)


def merge_edges_cost(rays: int, first: int, second: int) -> Cost:
    """Forward: both rows in, their union out. Bound by the latency of the search: each step waits for the last."""
    edges = rays * (first + second)
    steps = _search_steps(min(first, second)) + 1
    return Cost(bytes_read=4 * edges, bytes_written=4 * edges, flops=edges * steps)


def merge_edges_backward_cost(rays: int, first: int, second: int) -> Cost:
    """Backward: both rows and the upstream gradient in, two gradients out. Bound as the forward is."""
    edges = rays * (first + second)
    flops = rays * (first * _search_steps(second) + second * _search_steps(first))
    return Cost(bytes_read=8 * edges, bytes_written=4 * edges, flops=flops)
