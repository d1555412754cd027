"""Ray sampling in plain torch. Random numbers come in as tensors, so every function here is pure."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._constants import PDF_EPS


class RayInterval(NamedTuple):
    """Part of each ray inside a box.

    Attributes:
        near, far: [...] distances along the unit ray; both 0 where the ray misses.
        hit: [...] bool.
    """

    near: Tensor
    far: Tensor
    hit: Tensor


def intersect_aabb(origins: Tensor, directions: Tensor, box: Tensor, *, near_min: float = 0.0) -> RayInterval:
    """Intersect rays with axis-aligned boxes by the slab method.

    A direction component of exactly 0 is a ray parallel to that slab: it constrains nothing where the origin lies
    between the planes, and misses otherwise.

    Args:
        origins: [..., 3].
        directions: [..., 3] unit vectors.
        box: [..., 2, 3] lower and upper corner, broadcastable against the rays.
        near_min: lower bound of `near`, in the unit of the origins.

    Returns:
        RayInterval with the leading shape of the rays.

    Raises:
        TypeError, ValueError: wrong dtype or shape.
    """
    _check.floating("origins", origins)
    _check.floating("directions", directions)
    _check.floating("box", box)
    _check.shape("origins", origins, "... 3")
    _check.shape("directions", directions, "... 3")
    _check.shape("box", box, "... 2 3")
    # A tiny signed divisor keeps 0/0 out: the quotient becomes +-huge with the right sign of (plane - origin).
    tiny = torch.finfo(directions.dtype).tiny
    safe = torch.where(directions == 0, torch.full_like(directions, tiny), directions)
    low = ((box[..., 0, :] - origins) / safe).clamp(-1e30, 1e30)
    high = ((box[..., 1, :] - origins) / safe).clamp(-1e30, 1e30)
    near = torch.minimum(low, high).amax(-1).clamp_min(near_min)
    far = torch.maximum(low, high).amin(-1)
    hit = near < far
    zero = torch.zeros_like(near)
    return RayInterval(torch.where(hit, near, zero), torch.where(hit, far, zero), hit)


def stratified_edges(near: Tensor, far: Tensor, count: int, jitter: Tensor | None = None) -> Tensor:
    """Edges of `count` bins between near and far, uniform in distance, optionally jittered.

    With jitter, each edge moves uniformly between the midpoints to its neighbours (the end edges inwards only), so
    edges stay sorted.

    Args:
        near, far: [...].
        count: S >= 1 bins.
        jitter: [..., S + 1] uniform numbers in [0, 1), or None for regular bins.

    Returns:
        [..., S + 1] sorted distances.

    Raises:
        ValueError: count < 1 or a jitter of another shape.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    edges = torch.linspace(0, 1, count + 1, dtype=near.dtype, device=near.device)
    if jitter is not None:
        if jitter.shape != (*near.shape, count + 1):
            raise ValueError(f"jitter: expected shape {[*near.shape, count + 1]}, got {list(jitter.shape)}")
        middles = (edges[1:] + edges[:-1]) / 2
        lower = torch.cat([edges[:1], middles])
        upper = torch.cat([middles, edges[-1:]])
        edges = lower + (upper - lower) * jitter
    return edges * far.unsqueeze(-1) + (1 - edges) * near.unsqueeze(-1)


def resample_edges(edges: Tensor, weights: Tensor, count: int, jitter: Tensor | None = None) -> Tensor:
    """Draw positions from the piecewise-uniform density that the weights define (inverse CDF).

    Rays whose weights sum to less than PDF_EPS are padded evenly, so an empty ray is sampled uniformly.

    Args:
        edges: [..., S + 1] sorted.
        weights: [..., S] non-negative.
        count: K >= 1 positions.
        jitter: [..., K] or [..., 1] uniform numbers in [0, 1), or None for the middle of each stratum.

    Returns:
        [..., K] sorted positions, detached.

    Raises:
        ValueError: count < 1 or shapes that do not match.

    Reference:
        Mildenhall et al., NeRF, arXiv 2003.08934, section 5.2.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if edges.shape[:-1] != weights.shape[:-1] or edges.shape[-1] != weights.shape[-1] + 1:
        raise ValueError(f"weights: expected one per bin of edges {list(edges.shape)}, got {list(weights.shape)}")
    with torch.no_grad():
        total = weights.sum(-1, keepdim=True)
        pad = (PDF_EPS - total).clamp_min(0)
        pdf = (weights + pad / weights.shape[-1]) / (total + pad)
        cdf = pdf.cumsum(-1).clamp_max(1)
        cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], -1)
        strata = torch.arange(count, dtype=edges.dtype, device=edges.device) / count
        u = strata + (0.5 if jitter is None else jitter) / count
        u = u.expand(*edges.shape[:-1], count).contiguous()
        above = torch.searchsorted(cdf.contiguous(), u, right=True)
        below = (above - 1).clamp(0, weights.shape[-1])
        above = above.clamp(0, weights.shape[-1])
        cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
        step = cdf_above - cdf_below
        step = torch.where(step < PDF_EPS, torch.ones_like(step), step)
        fraction = ((u - cdf_below) / step).clamp(0, 1)
        start, stop = edges.gather(-1, below), edges.gather(-1, above)
        return start + fraction * (stop - start)


def merge_edges(first: Tensor, second: Tensor) -> Tensor:
    """Sorted union of two sets of positions: [..., K1], [..., K2] -> [..., K1 + K2]."""
    return torch.cat([first, second], -1).sort(-1).values
