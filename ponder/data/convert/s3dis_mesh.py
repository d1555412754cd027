"""Normals of S3DIS points from the textured meshes of 2D-3D-S."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.nearest_triangles import TriangleIndex
from ponder.data.convert.raw_files import why
from ponder.data.convert.sink import BrokenPieceError

# Area 5 was scanned in two halves; this brings the second into the frame of the first, in the axes of the meshes.
_HALF_B = np.array([[0, 0, -1, -4.09703582], [0, 1, 0, 0], [1, 0, 0, -6.22617759], [0, 0, 0, 1]])
# The axes of the meshes (y up) to those of the clouds (z up).
_UPRIGHT = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
# Metres around a room that its part of the mesh reaches.
_MARGIN = 0.1
_LINES_AT_ONCE = 1 << 16


class Mesh(NamedTuple):
    """Vertices [V, 3] in the axes of the clouds and triangles [T, 3]."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]


def room_normals(folders: tuple[Path, ...], coord: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normals of the triangles nearest to points.

    Args:
        folders: the folders of the area in 2D-3D-S, several where it was scanned in parts.
        coord: [N, 3] points of a room, as scanned.

    Returns:
        [N, 3] unit vectors.

    Raises:
        BrokenPieceError: the mesh is missing, damaged, or not where the room is.
    """
    mesh = area_mesh(folders)
    lower, upper = coord.min(0) - _MARGIN, coord.max(0) + _MARGIN
    inside = ((mesh.vertices >= lower) & (mesh.vertices <= upper)).all(1)
    faces = mesh.faces[inside[mesh.faces].all(1)]
    try:
        index = TriangleIndex(mesh.vertices[faces])
    except ValueError:
        raise BrokenPieceError("no normals: the area's mesh has nothing where the room is", str(folders[0])) from None
    return index.normals[index.nearest(coord)]


# One area at a time: rooms come in the order of the areas.
@lru_cache(maxsize=1)
def area_mesh(folders: tuple[Path, ...]) -> Mesh:
    """The mesh of an area.

    Raises:
        BrokenPieceError: a part is missing or damaged.
    """
    vertices, faces, count = [], [], 0
    for folder in folders:
        part = read_obj(folder / "3d" / "rgb.obj")
        points = part.vertices
        if folder.name.endswith("b"):
            points = points @ _HALF_B[:3, :3].T + _HALF_B[:3, 3]
        vertices.append(points @ _UPRIGHT.T)
        faces.append(part.faces + count)
        count += len(points)
    return Mesh(np.concatenate(vertices), np.concatenate(faces))


def read_obj(path: Path) -> Mesh:
    """Vertices and triangles of a Wavefront file; polygons become fans, everything else is ignored.

    Raises:
        BrokenPieceError: missing, unreadable, without triangles, or with faces of vertices it lacks.
    """
    vertices, faces = [], []
    try:
        with path.open("rb") as stream:
            while lines := stream.readlines(_LINES_AT_ONCE):
                rows = [line.split()[1:4] for line in lines if line.startswith(b"v ")]
                vertices.append(np.array(rows, dtype=np.float64))
                faces.append(np.array(_triangles(lines), dtype=np.int64))
    except FileNotFoundError:
        raise BrokenPieceError("no normals: the area's mesh is missing", str(path)) from None
    except (OSError, ValueError) as error:
        raise BrokenPieceError("no normals: the area's mesh cannot be read", f"{path} ({why(error)})") from None
    corners = np.concatenate([part.reshape(-1, 3) for part in vertices] or [np.zeros((0, 3))])
    numbers = np.concatenate([part.reshape(-1, 3) for part in faces] or [np.zeros((0, 3), dtype=np.int64)]) - 1
    if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= len(corners):
        detail = f"{path} ({len(numbers)} triangles of {len(corners)} vertices)"
        raise BrokenPieceError("no normals: the area's mesh has no faces of its own vertices", detail)
    return Mesh(corners, numbers)


def _triangles(lines: list[bytes]) -> list[list[int]]:
    found = []
    for line in lines:
        if line.startswith(b"f "):
            corners = [int(word.partition(b"/")[0]) for word in line.split()[1:]]
            found += [[corners[0], *corners[i : i + 2]] for i in range(1, len(corners) - 1)]
    return found
