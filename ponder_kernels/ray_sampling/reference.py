"""Ray sampling in plain torch: the definitions, and their CPU backend.

Random numbers come in as tensors, so every function here is pure.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._constants import DIRECTION_MIN, DISTANCE_LIMIT, PDF_EPS, WEIGHT_LIMIT

SPACINGS = ("uniform", "disparity", "sqrt", "log", "piecewise")
# Those that do not take every distance.
BOUNDED = ("disparity", "sqrt", "log")


class RayInterval(NamedTuple):
    """Part of each ray inside a box.

    Attributes:
        near, far: [...] distances along the ray, in units of its direction's length; both 0 where the ray misses.
        hit: [...] bool.
    """

    near: Tensor
    far: Tensor
    hit: Tensor


def intersect_aabb_reference(origins: Tensor, directions: Tensor, box: Tensor, near_min: float) -> RayInterval:
    """Slab method: a ray is inside the box from its last entry into a slab to its first exit from one.

    The slab is picked without gradients and its distance computed again from what was picked: a slab that does not
    decide has no gradient, not even 0 times an overflow.

    Args:
        origins, directions: [..., 3]; a direction component below DIRECTION_MIN is parallel to its slab.
        box: [..., 2, 3] lower and upper corner; leading dims of all three broadcast.
        near_min: lower bound of `near`.

    Returns:
        RayInterval.
    """
    corners = box.unbind(-2)
    origins, directions, lower, upper = torch.broadcast_tensors(origins, directions, *corners)
    ahead = directions > 0
    entry, leave = torch.where(ahead, lower, upper), torch.where(ahead, upper, lower)
    with torch.no_grad():
        parallel = directions.abs() < DIRECTION_MIN
        divisor = torch.where(parallel, 1.0, directions)
        into = torch.where(parallel, -DISTANCE_LIMIT, (entry - origins) / divisor)
        out = torch.where(parallel, DISTANCE_LIMIT, (leave - origins) / divisor)
        last_in, first_out = into.max(-1), out.min(-1)
        near, far = (x.values.clamp(-DISTANCE_LIMIT, DISTANCE_LIMIT) for x in (last_in, first_out))
        possible = torch.where(parallel, (lower <= origins) & (origins < upper), lower <= upper).all(-1)
        # NaN is the largest and the smallest number to max and min, and compares false.
        hit = possible & (near.clamp_min(near_min) < far)
        held = torch.where(hit, near.clamp_min(near_min), 0.0)
        far_held = torch.where(hit, far, 0.0)
        moves = hit & (near >= near_min) & (near.abs() < DISTANCE_LIMIT)
        far_moves = hit & (far.abs() < DISTANCE_LIMIT)
    ray = (origins, directions)
    return RayInterval(
        torch.where(moves, _distance(*ray, entry, last_in.indices, moves), held),
        torch.where(far_moves, _distance(*ray, leave, first_out.indices, far_moves), far_held),
        hit,
    )


def _distance(origins: Tensor, directions: Tensor, planes: Tensor, axis: Tensor, valid: Tensor) -> Tensor:
    """Distance to the plane of one axis per ray; divides by 1 where it is not valid."""
    axis = axis.unsqueeze(-1)
    direction = torch.where(valid, directions.gather(-1, axis).squeeze(-1), 1.0)
    return (planes.gather(-1, axis) - origins.gather(-1, axis)).squeeze(-1) / direction


def stratified_edges_reference(near: Tensor, far: Tensor, jitter: Tensor | None, count: int, spacing: str) -> Tensor:
    """Edges of `count` bins that are equally wide in a coordinate s: ``t = s^-1((1 - u) s(near) + u s(far))``.

    u = k / S without jitter; with it, edge k moves between the midpoints to its neighbours, the two end edges inwards
    only. Sorted in spite of rounding: every step from u to t is monotone in floating point (or made so), and the result
    is clamped to [near, far]; gradients are those of the formula.

    Args:
        near, far: [...].
        jitter: None or [..., S + 1] in [0, 1].
        count: S.
        spacing: one of SPACINGS.

    Returns:
        [..., S + 1].
    """
    near, far = near.unsqueeze(-1), far.unsqueeze(-1)
    if spacing in BOUNDED:
        outside = not_allowed(near, far, spacing)
        near, far = near.masked_fill(outside, float("nan")), far.masked_fill(outside, float("nan"))
    if jitter is None:
        position = torch.arange(1, count, dtype=near.dtype, device=near.device)
        inner = _between(near, far, position, count, spacing)
        return torch.cat([near, inner, far], -1)
    index = torch.arange(count + 1, dtype=near.dtype, device=near.device)
    lowest = (index - 0.5).clamp_min(0)
    width = (index + 0.5).clamp_max(count) - lowest
    return _between(near, far, lowest + width * jitter.clamp(0, 1), count, spacing)


def not_allowed(near: Tensor, far: Tensor, spacing: str) -> Tensor:
    """Rays whose ends one of the BOUNDED spacings does not take."""
    if spacing == "sqrt":
        return (near < 0) | (far < 0)
    return ((near <= 0) | (far <= 0)) & (near != far)


def _between(near: Tensor, far: Tensor, position: Tensor, count: int, spacing: str) -> Tensor:
    """Distances at positions in [0, S], for near and far of shape [..., 1]."""
    if spacing == "uniform":
        return _mix(near, far, position, count)
    # The limit of every spacing, and its very values where s is linear on all of the ray.
    linear = near == far
    if spacing == "piecewise":
        linear = linear | (torch.maximum(near, far) < 1)
    start, stop = (torch.where(linear, t, _to_s(torch.where(linear, 1.0, t), spacing)) for t in (near, far))
    s = _mix(start, stop, position, count)
    t = torch.where(linear, s, _from_s(torch.where(linear, -1.0, s), spacing))
    with torch.no_grad():
        fixed = t
        if spacing == "log":
            # Rounded exponentials need not be in order.
            fixed = torch.where(far > near, fixed.cummax(-1).values if fixed.shape[-1] else fixed, fixed)
        fixed = torch.minimum(torch.maximum(fixed, torch.minimum(near, far)), torch.maximum(near, far))
        correction = torch.where(fixed == t, 0.0, fixed - t)
    return t + correction


def _mix(start: Tensor, stop: Tensor, position: Tensor, count: int) -> Tensor:
    """Linear interpolation from the nearer end: monotone in floating point, and exact at both ends.

    Interpolating from one end only would cancel at the other where that one is much smaller.
    """
    length = stop - start
    first = 2 * position <= count
    weight = torch.where(first, position, position - count) / count
    s = torch.where(first, start, stop) + weight * length
    # Neither half crosses the middle by rounding.
    middle = start + 0.5 * length
    rising = length >= 0
    across = torch.where(first == rising, s > middle, s < middle)
    return torch.where(across, middle, s)


def _to_s(t: Tensor, spacing: str) -> Tensor:
    """s(t), rising. Disparity is negated; piecewise is 1 less than in its definition: no digits are lost far out."""
    if spacing == "disparity":
        return -1 / t
    if spacing == "sqrt":
        # The slope at 0 is infinite; 0 instead.
        return torch.where(t == 0, 0.0, torch.where(t == 0, 1.0, t).sqrt())
    if spacing == "log":
        return t.log()
    if spacing == "piecewise":
        return torch.where(t < 1, 0.5 * t - 1, -0.5 / t.clamp_min(1))
    return t


def _from_s(s: Tensor, spacing: str) -> Tensor:
    """The inverse of `_to_s`."""
    if spacing == "disparity":
        return -1 / s
    if spacing == "sqrt":
        return s.square()
    if spacing == "log":
        return s.exp()
    if spacing == "piecewise":
        return torch.where(s < -0.5, 2 * (s + 1), -0.5 / s.clamp_min(-0.5))
    return s


@torch.no_grad()
def resample_edges_reference(edges: Tensor, weights: Tensor, jitter: Tensor | None, count: int) -> Tensor:
    """Positions where the CDF of the weights, linear within each bin, is ``u_k = (k + jitter) / K``.

    A weight that is negative or NaN counts as 0, one above WEIGHT_LIMIT as that; a sum below PDF_EPS is padded up to it
    evenly over the bins.

    Args:
        edges: [..., S + 1] sorted.
        weights: [..., S], S >= 1.
        jitter: None (0.5), [..., K] or [..., 1] in [0, 1].
        count: K.

    Returns:
        [..., K] sorted, in [edges[0], edges[S]], without gradient.
    """
    bins = weights.shape[-1]
    weights = torch.where(weights > 0, weights, 0.0).clamp_max(WEIGHT_LIMIT)
    cdf = weights.cumsum(-1)
    pad = (PDF_EPS - cdf[..., -1:]).clamp_min(0) / bins
    weights = weights + pad
    index = torch.arange(bins, device=weights.device)
    cdf = cdf + pad * (index + 1)
    total = cdf[..., -1:]
    # Rounding may leave a small target at or above the total: it belongs to the last bin that has any weight.
    last = torch.where(weights > 0, index, 0).amax(-1, keepdim=True)
    strata = torch.arange(count, dtype=edges.dtype, device=edges.device)
    u = (strata + (0.5 if jitter is None else jitter.clamp(0, 1))) / count
    target = (u * total).expand(*weights.shape[:-1], count).contiguous()
    found = torch.searchsorted(cdf.contiguous(), target, right=True)
    chosen = torch.minimum(found, last)
    below = torch.where(chosen > 0, cdf.gather(-1, (chosen - 1).clamp_min(0)), 0.0)
    step = cdf.gather(-1, chosen) - below
    fraction = torch.where(step > 0, (target - below) / torch.where(step > 0, step, 1.0), 0.0).clamp(0, 1)
    fraction = torch.where(weights.gather(-1, chosen) > 0, fraction, 0.0)
    fraction = torch.where(found > last, 1.0, fraction)
    start, stop = edges.gather(-1, chosen), edges.gather(-1, chosen + 1)
    position = torch.minimum(start + fraction * (stop - start), stop)
    return torch.where(target.isnan(), target, position)


def merge_edges_reference(first: Tensor, second: Tensor) -> Tensor:
    """Sorted union along the last dim: [..., S], [..., K] -> [..., S + K]; of equal edges, those of `first` come first.

    NaN counts as larger than every number.
    """
    return torch.cat([first, second], -1).sort(dim=-1, stable=True).values
