"""The union of a room's shell and everything in it: signed distance, nearest surface, tight boxes.

Surfaces are numbered: 0 to 5 are the inner faces of the shell (x = 0, x = size, y = 0, y = size, floor,
ceiling), 6 + i is solid i. Solids are ordered by kind (boxes, frustums, capsules) and by object within a
kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.data.synthetic.primitives import Boxes, Capsules, Frustums, ShapeSet
from ponder.data.synthetic.shapes import Box, Capsule, Frustum, Shape
from ponder.data.threads import one_thread

SHELL_FACES = 6
# Points handled together: few enough to stay in the cache, many enough to hide the cost of each call.
CHUNK = 1 << 14


@dataclass(frozen=True)
class Solids:
    """The geometry of a room.

    Attributes:
        size: [3] float64, the room spans 0..size, metres.
        kinds: boxes, frustums and capsules.
        pieces: per object, per kind: the shapes of that object, tensors [K, 1, ...].
        starts: per object, per kind: the solid number of the first of them.
        owner: [6 + P] object of every surface, -1 for the shell.
        lower, upper: [P, 3] tight boxes of the solids.
        object_lower, object_upper: [M, 3] tight boxes of the objects.
    """

    size: Tensor
    kinds: tuple[ShapeSet, ...]
    pieces: tuple[tuple[ShapeSet, ...], ...]
    starts: tuple[tuple[int, ...], ...]
    owner: Tensor
    lower: Tensor
    upper: Tensor
    object_lower: Tensor
    object_upper: Tensor

    def _shell(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the shell [N], positive inside the room, and the nearest face [N], of [3, N] points."""
        half = self.size[:, None] / 2
        offset = columns - half
        depth_x, depth_y, depth_z = (half - offset.abs()).unbind(0)
        nearest, axis = torch.minimum(depth_x, depth_y), (depth_y < depth_x).long()
        axis = torch.where(depth_z < nearest, 2, axis)
        nearest = torch.minimum(nearest, depth_z)
        face = 2 * axis + (offset.gather(0, axis[None])[0] > 0)
        outside = (offset.abs() - half).clamp(min=0).square().sum(0).sqrt()
        return torch.where(nearest < 0, -outside, nearest), face

    def _nearest_chunk(self, points: Tensor, limit: Tensor | None) -> tuple[Tensor, Tensor]:
        # Coordinates along dim 0: see `primitives`.
        columns = points.T.contiguous()
        best, surface = self._shell(columns)
        if limit is not None:
            best = torch.minimum(best, limit)
        centre, half = (
            (self.object_lower + self.object_upper) / 2,
            (self.object_upper - self.object_lower) / 2,
        )
        for number, (pieces, starts) in enumerate(zip(self.pieces, self.starts, strict=True)):
            # No point of an object is nearer than its bounding box: far objects need no evaluation.
            gap_x, gap_y, gap_z = ((columns - centre[number][:, None]).abs() - half[number][:, None]).unbind(0)
            near = (torch.maximum(torch.maximum(gap_x, gap_y), gap_z) < best).nonzero()[:, 0]
            if near.numel() == 0:
                continue
            close, known = columns[:, near].T, best[near]
            for shapes, start in zip(pieces, starts, strict=True):
                if len(shapes):
                    distance, index = shapes.distance(close).min(0)
                    closer = (distance < known).nonzero()[:, 0]
                    known[closer] = distance[closer]
                    surface[near[closer]] = index[closer] + (SHELL_FACES + start)
            best[near] = known
        return best, surface

    def nearest(self, points: Tensor, limit: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Signed distance and nearest surface.

        Args:
            points: [N, 3] metres, in the precision of the solids.
            limit: [N]; distances above it are reported as the limit (cheaper; the surface then means
            nothing).

        Returns:
            distance [N] (positive in free space) and surface numbers [N].
        """
        chunks = points.split(CHUNK)
        limits = [None] * len(chunks) if limit is None else limit.split(CHUNK)
        with one_thread():
            parts = [self._nearest_chunk(*chunk) for chunk in zip(chunks, limits, strict=True)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def to(self, dtype: torch.dtype) -> Solids:
        """The same geometry in another precision, for points of that precision."""
        corners = ("size", "lower", "upper", "object_lower", "object_upper")
        return replace(
            self,
            kinds=tuple(shapes.to(dtype) for shapes in self.kinds),
            pieces=tuple(tuple(shapes.to(dtype) for shapes in own) for own in self.pieces),
            **{name: getattr(self, name).to(dtype) for name in corners},
        )

    def normal(self, points: Tensor, surface: Tensor) -> Tensor:
        """Unit normals into free space at points on the given surfaces, [N, 3]."""
        normal = torch.zeros_like(points)
        shell = surface < SHELL_FACES
        sign = 1.0 - 2.0 * (surface[shell] % 2).to(points.dtype)
        # Faces come in pairs along x, y and z.
        axis = (surface[shell] // 2) % 3
        normal[shell] = torch.nn.functional.one_hot(axis, 3).to(points.dtype) * sign[:, None]
        for first, shapes in zip(self.first_of_kind(), self.kinds, strict=True):
            own = ((surface >= first) & (surface < first + len(shapes))).nonzero()[:, 0]
            if own.numel():
                normal[own] = shapes.take(surface[own] - first).distance_and_gradient(points[own])[1]
        return normal

    def first_of_kind(self) -> list[int]:
        """The surface number at which each kind's solids begin."""
        first, starts = SHELL_FACES, []
        for shapes in self.kinds:
            starts.append(first)
            first += len(shapes)
        return starts


def build_solids(size: Sequence[float], objects: Sequence[Sequence[Shape]]) -> tuple[Solids, list[tuple[int, int]]]:
    """Stack the shapes of M objects.

    Args:
        size: room extents (x, y, z), metres.
        objects: per object its shapes in room coordinates.

    Returns:
        the solids, and for each solid in order the (object, part) it came from.
    """
    boxes: list[Box] = []
    frustums: list[Frustum] = []
    capsules: list[Capsule] = []
    origin: tuple[list[tuple[int, int]], ...] = ([], [], [])
    for number, shapes in enumerate(objects):
        for part, shape in enumerate(shapes):
            if isinstance(shape, Box):
                boxes.append(shape)
            elif isinstance(shape, Frustum):
                frustums.append(shape)
            else:
                capsules.append(shape)
            origin[(Box, Frustum, Capsule).index(type(shape))].append((number, part))
    kinds: tuple[ShapeSet, ...] = (Boxes.stack(boxes), Frustums.stack(frustums), Capsules.stack(capsules))
    bounds = [shapes.bounds() for shapes in kinds]
    lower, upper = torch.cat([b[0] for b in bounds]), torch.cat([b[1] for b in bounds])
    flat = [pair for pairs in origin for pair in pairs]
    owner = torch.tensor([pair[0] for pair in flat], dtype=torch.long)
    pieces, starts = [], []
    for number in range(len(objects)):
        before, own_pieces, own_starts = 0, [], []
        for kind, pairs in zip(kinds, origin, strict=True):
            inside = [i for i, pair in enumerate(pairs) if pair[0] == number]
            begin = inside[0] if inside else 0
            own_pieces.append(kind.take((slice(begin, begin + len(inside)), None)))
            own_starts.append(before + begin)
            before += len(pairs)
        pieces.append(tuple(own_pieces))
        starts.append(tuple(own_starts))
    belongs = [owner == number for number in range(len(objects))]
    no_corner = torch.zeros(0, 3, dtype=torch.float64)
    solids = Solids(
        size=torch.tensor(list(size), dtype=torch.float64),
        kinds=kinds,
        pieces=tuple(pieces),
        starts=tuple(starts),
        owner=torch.cat([torch.full((SHELL_FACES,), -1), owner]),
        lower=lower,
        upper=upper,
        object_lower=torch.stack([lower[b].amin(0) for b in belongs]) if belongs else no_corner,
        object_upper=torch.stack([upper[b].amax(0) for b in belongs]) if belongs else no_corner,
    )
    return solids, flat
