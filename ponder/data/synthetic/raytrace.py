"""First hits of rays with a room, exact to rounding, by marching every ray against the solids it may meet.

Along a ray the distance to a convex solid is a convex function of the path length. Newton's method started
before the solid therefore walks monotonically towards the first hit and never past it, with steps at least as
long as those of sphere tracing, and a distance that stops falling proves a miss. Bounding boxes choose the
pairs of a ray and a solid to march; pairs of a kind march together, and finished ones leave the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ponder.data.synthetic.primitives import ShapeSet
from ponder.data.synthetic.solids import SHELL_FACES, Solids

# A marched point this close to its solid is a hit; float64 rounding in a room is a few 1e-16 m.
HIT_DISTANCE = 1e-10
# Newton halves the remaining path at worst (a tangent ray): 100 steps leave room for every float64 path.
_MAX_STEPS = 100
# Stands in for 1 / 0 of rays parallel to an axis, so that no product with it is undefined.
_TINY = 1e-30


def _box_span(origin: Tensor, inverse: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Path lengths at which rays enter and leave axis-aligned boxes (leave < enter where they miss)."""
    enter = torch.zeros(torch.broadcast_shapes(origin.shape, lower.shape)[:-1], dtype=origin.dtype)
    leave = torch.full_like(enter, torch.inf)
    for axis in range(3):
        first = (lower[..., axis] - origin[..., axis]) * inverse[..., axis]
        second = (upper[..., axis] - origin[..., axis]) * inverse[..., axis]
        enter = torch.maximum(enter, torch.minimum(first, second))
        leave = torch.minimum(leave, torch.maximum(first, second))
    return enter, leave


def _candidates(solids: Solids, origin: Tensor, inverse: Tensor, far: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All (ray, solid) pairs whose bounding boxes meet: ray [K], solid [K], entry path length [K]."""
    rays, members, entries = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)], [far[:0]]
    for number in range(len(solids.pieces)):
        enter, leave = _box_span(origin, inverse, solids.object_lower[number], solids.object_upper[number])
        near = ((enter <= leave) & (enter < far)).nonzero()[:, 0]
        if near.numel() == 0:
            continue
        own = (solids.owner[SHELL_FACES:] == number).nonzero()[:, 0]
        # One row per solid keeps the rays contiguous.
        enter, leave = _box_span(origin[near], inverse[near], solids.lower[own][:, None], solids.upper[own][:, None])
        row, column = (enter <= leave).nonzero(as_tuple=True)
        rays.append(near[column])
        members.append(own[row])
        entries.append(enter[row, column])
    return torch.cat(rays), torch.cat(members), torch.cat(entries)


def march(shapes: ShapeSet, origin: Tensor, direction: Tensor, start: Tensor) -> Tensor:
    """Path length of each ray to its own convex solid, inf where it misses.

    Args:
        shapes: K solids, one per ray.
        origin, direction: [K, 3] metres and unit vectors, float64.
        start: [K] path lengths at or before the first hit, outside or on the solid.

    Returns:
        [K] float64.

    Raises:
        RuntimeError: a ray neither hit nor missed within the step limit.
    """
    result = torch.full_like(start, torch.inf)
    active, path = torch.arange(start.shape[0]), start.clone()
    for _ in range(_MAX_STEPS):
        distance, gradient = shapes.distance_and_gradient(origin + path[:, None] * direction)
        slope = (gradient * direction).sum(1)
        hit = distance <= HIT_DISTANCE
        result[active[hit]] = path[hit]
        going = ((~hit) & (slope < 0)).nonzero()[:, 0]
        if going.numel() == 0:
            return result
        path = path[going] - distance[going] / slope[going]
        active, origin, direction, shapes = active[going], origin[going], direction[going], shapes.take(going)
    raise RuntimeError(f"{active.numel()} of {start.shape[0]} rays did not converge in {_MAX_STEPS} steps")


def trace(solids: Solids, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """First hit of every ray.

    Args:
        solids: the room.
        origin: [R, 3] float64 metres, in free space (not checked).
        direction: [R, 3] float64 unit vectors.

    Returns:
        path length [R] in metres and surface number [R].

    Raises:
        ValueError: an origin outside the room (inside a solid, the path is 0).
        RuntimeError: a ray that did not converge.
    """
    safe = torch.where(direction.abs() < _TINY, torch.full_like(direction, _TINY), direction)
    inverse = 1 / safe
    walls = torch.where(safe > 0, solids.size - origin, -origin) / safe
    best, axis = walls.min(1)
    surface = 2 * axis + (safe.gather(1, axis[:, None])[:, 0] > 0)
    if bool((best <= 0).any()):
        raise ValueError("origin: expected ray origins inside the room")
    ray, solid, entry = _candidates(solids, origin, inverse, best)
    for first, shapes in zip(solids.first_of_kind(), solids.kinds, strict=True):
        begin = first - SHELL_FACES
        # What the kinds before already hide needs no marching.
        own = ((solid >= begin) & (solid < begin + len(shapes)) & (entry < best[ray])).nonzero()[:, 0]
        if own.numel() == 0:
            continue
        rays = ray[own]
        path = march(shapes.take(solid[own] - begin), origin[rays], direction[rays], entry[own])
        nearest = best.scatter_reduce(0, rays, path, "amin")
        # Coincident surfaces: the lowest number wins, whatever the order of the pairs.
        wins = (path == nearest[rays]) & (path < best[rays])
        winner = torch.full_like(surface, torch.iinfo(torch.long).max)
        winner = winner.scatter_reduce(0, rays[wins], solid[own][wins] + SHELL_FACES, "amin")
        surface = torch.where(nearest < best, winner, surface)
        best = nearest
    return best, surface
