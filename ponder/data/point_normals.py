"""Normals of points that came without: the plane through each point's nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

# About 5 x 5 neighbours where the points sample a surface evenly.
NEIGHBOURS = 24
# A plane needs three points.
_MIN_NEIGHBOURS = 3
# Middle over largest variance of a neighbourhood; below it the points lie on a line and leave the plane open.
_MIN_WIDTH = 1e-6
# Neighbourhoods gathered at a time: 24 neighbours of 3 doubles are 38 MB.
_POINTS_AT_ONCE = 1 << 16


def estimate_normals(
    coord: Tensor,
    towards: Tensor | None = None,
    neighbours: int = NEIGHBOURS,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Unit normals by principal component analysis of the nearest neighbours (Hoppe et al. 1992).

    Args:
        coord: [N, 3] float64 metres, near the origin.
        towards: [3] metres; normals point to the side of this viewpoint. None: upwards (+z), which leaves the sign
            of normals of walls to chance.
        neighbours: points per plane, the point itself included; fewer where there are fewer.
        progress: called with (points finished, points in all).

    Returns:
        [N, 3] float32, 0 where the neighbours lie on a line or in a point.

    Raises:
        ValueError: fewer than 3 neighbours were asked for.
    """
    if neighbours < _MIN_NEIGHBOURS:
        raise ValueError(f"neighbours: expected at least {_MIN_NEIGHBOURS}, got {neighbours}")
    points = coord.numpy()
    normals = np.zeros((len(points), 3), np.float32)
    if len(points) >= _MIN_NEIGHBOURS:
        tree = cKDTree(points)
        for start in range(0, len(points), _POINTS_AT_ONCE):
            part = points[start : start + _POINTS_AT_ONCE]
            _, nearest = tree.query(part, min(neighbours, len(points)), workers=-1)
            found = _plane_normals(points[nearest])
            up = np.broadcast_to([0.0, 0.0, 1.0], part.shape) if towards is None else towards.numpy() - part
            normals[start : start + len(part)] = _oriented(found, up)
            if progress is not None:
                progress(start + len(part), len(points))
    return torch.from_numpy(normals)


def _plane_normals(neighbourhoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M, 3] normals of the planes that fit [M, k, 3] points best; 0 where undetermined."""
    offsets = neighbourhoods - neighbourhoods.mean(1, keepdims=True)
    variances, axes = np.linalg.eigh(offsets.transpose(0, 2, 1) @ offsets)
    return np.where(variances[:, 1:2] > _MIN_WIDTH * variances[:, 2:], axes[:, :, 0], 0.0)


def _oriented(normals: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flip normals [M, 3] to the side of the directions [M, 3]; those at right angles to the positive side."""
    side = (normals * wanted).sum(1, keepdims=True)
    largest = np.take_along_axis(normals, np.abs(normals).argmax(1)[:, None], 1)
    return np.where(np.where(side == 0, largest, side) < 0, -normals, normals)
