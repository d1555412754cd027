"""The triangle of a mesh nearest to each of many points, exactly."""

from __future__ import annotations

from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from trimesh.triangles import closest_point

# Points looked at together: bounds the candidates in memory.
_CHUNK = 2048
# Squared distances (m^2) closer than this are a tie, as in trimesh's own search.
_TIE = 1e-8


class TriangleIndex:
    """Triangles sorted by size, so that few are candidates for a point.

    The triangle nearest to a point at distance d from the surface has its centre within d + r, r = its radius. A tree
    of centres per power of two of the radius finds all such triangles.

    Args:
        triangles: [T, 3, 3] corners; those without area are never found.

    Raises:
        ValueError: no triangle has an area.
    """

    def __init__(self, triangles: NDArray[np.float64]) -> None:
        normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        area = np.linalg.norm(normal, axis=1)
        self._number = np.flatnonzero(area > 0)
        if len(self._number) == 0:
            raise ValueError(f"triangles: expected some with an area, got none among {len(triangles)}")
        self._triangles = triangles[self._number]
        self.normals = np.zeros_like(normal)
        self.normals[self._number] = normal[self._number] / area[self._number, None]
        centre = self._triangles.mean(1)
        radius = np.linalg.norm(self._triangles - centre[:, None], axis=2).max(1)
        size = np.frexp(radius)[1]
        self._groups = []
        for step in np.unique(size):
            members = np.flatnonzero(size == step)
            self._groups.append((KDTree(centre[members]), members, float(radius[members].max())))

    def nearest(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number of the nearest triangle of each point.

        Of triangles equally near, at an edge seen from off the surface, the one that faces the point most; on the
        surface, the first.

        Args:
            points: [N, 3].

        Returns:
            [N] indices into the triangles given.
        """
        parts = [self._nearest(points[start : start + _CHUNK]) for start in range(0, len(points), _CHUNK)]
        return self._number[np.concatenate(parts)] if parts else np.zeros(0, dtype=np.int64)

    def _nearest(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        bound = np.full(len(points), np.inf)
        for tree, members, _ in self._groups:
            seed = members[tree.query(points)[1]]
            offset = points - closest_point(self._triangles[seed], points)
            bound = np.minimum(bound, np.linalg.norm(offset, axis=1))
        rows, found = [], []
        for tree, members, radius in self._groups:
            # A little more, so that rounding loses none.
            lists = tree.query_ball_point(points, bound + radius * (1 + 1e-9) + 1e-9)
            counts = np.fromiter(map(len, lists), dtype=np.int64, count=len(points))
            rows.append(np.repeat(np.arange(len(points)), counts))
            found.append(members[np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=counts.sum())])
        return self._best(points, np.concatenate(rows), np.concatenate(found))

    def _best(
        self, points: NDArray[np.float64], row: NDArray[np.int64], triangle: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The winner of each point among (row, triangle) pairs; every point has at least one."""
        offset = points[row] - closest_point(self._triangles[triangle], points[row])
        squared = np.einsum("ij,ij->i", offset, offset)
        least = np.full(len(points), np.inf)
        np.minimum.at(least, row, squared)
        tied = squared <= least[row] + _TIE
        row, triangle, offset, squared = row[tied], triangle[tied], offset[tied], squared[tied]
        direction = offset / np.sqrt(np.maximum(squared, _TIE))[:, None]
        facing = np.einsum("ij,ij->i", direction, self.normals[self._number[triangle]])
        # On the surface directions mean nothing: the nearest, then the first.
        merit = np.where(least[row] > _TIE, -facing, squared)
        order = np.lexsort((triangle, merit, row))
        first = np.flatnonzero(np.diff(row[order], prepend=-1))
        return triangle[order[first]]
