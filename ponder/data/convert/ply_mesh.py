"""Triangle meshes of binary PLY files with all their vertex properties."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.raw_files import read_bytes
from ponder.data.convert.sink import BrokenPieceError

_KINDS = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}


class PlyMesh(NamedTuple):
    """V vertices and F triangles.

    Attributes:
        vertices: property name -> [V] array, in the type that the header gives.
        faces: [F, 3] int64 vertex numbers.
    """

    vertices: dict[str, NDArray]
    faces: NDArray[np.int64]

    def columns(self, *names: str) -> NDArray | None:
        """[V, len(names)] of the named properties; None if one is absent."""
        if not set(names) <= self.vertices.keys():
            return None
        return np.stack([self.vertices[name] for name in names], 1)


class _Header(NamedTuple):
    vertex: np.dtype
    vertices: int
    face: np.dtype
    faces: int
    start: int


def read_mesh(path: Path, kind: str = "mesh") -> PlyMesh:
    """Read a mesh whose elements are vertices of numbers and faces with one list each, as scanners write them.

    Args:
        path: the file.
        kind: what it is, for messages.

    Raises:
        BrokenPieceError: missing, truncated, of another layout, empty, or faces that are not triangles of its
            vertices.
    """
    data = read_bytes(path, kind)
    header = _read_header(data, str(path), kind)
    vertices = _table(data, header.start, header.vertex, header.vertices, str(path), kind)
    if header.vertices == 0:
        raise BrokenPieceError(f"{kind} is empty", str(path))
    # Lists have a length each; this layout holds while all of them are 3.
    start = header.start + vertices.nbytes
    table = _table(data, start, header.face, header.faces, str(path), kind)
    if not np.all(table["length"] == 3):
        raise BrokenPieceError(f"{kind} has faces that are not triangles", str(path))
    faces = table["corners"].astype(np.int64)
    if faces.size and not (faces.min() >= 0 and faces.max() < header.vertices):
        raise BrokenPieceError(f"{kind} has faces of vertices that it lacks", str(path))
    return PlyMesh({name: vertices[name] for name in header.vertex.names or ()}, faces)


def _table(data: bytes, start: int, layout: np.dtype, count: int, source: str, kind: str) -> NDArray:
    needed = start + count * layout.itemsize
    if len(data) < needed:
        raise BrokenPieceError(f"{kind} is truncated", f"{source} ({needed} bytes expected, {len(data)} there)")
    return np.frombuffer(data, layout, count, start)


def _read_header(data: bytes, source: str, kind: str) -> _Header:
    reason = f"{kind} is not a binary PLY file of vertices and faces"
    mark = data.find(b"end_header", 0, 1 << 16)
    start = data.find(b"\n", mark) + 1
    if not data.startswith(b"ply") or mark < 0 or start == 0:
        raise BrokenPieceError(reason, f"{source} (no PLY header)")
    order, counts, vertex, face = "", {}, [], []
    for line in data[:mark].decode("latin-1").splitlines()[1:]:
        match line.split():
            case ["format", name, _] if name in _ORDERS:
                order = _ORDERS[name]
            case ["element", ("vertex" | "face") as name, count] if count.isdigit() and name not in counts:
                counts[name] = int(count)
            case ["property", number, name] if list(counts) == ["vertex"] and number in _KINDS:
                vertex.append((name, order + _KINDS[number]))
            case ["property", "list", length, number, _] if "face" in counts and length in _KINDS and number in _KINDS:
                face += [("length", order + _KINDS[length]), ("corners", order + _KINDS[number], (3,))]
            case [] | ["comment" | "obj_info", *_]:
                pass
            case _:
                raise BrokenPieceError(reason, f"{source} (header line {line.strip()!r})")
    names = [name for name, _ in vertex]
    complete = order and list(counts) == ["vertex", "face"] and len(face) == 2
    if not complete or len(set(names)) < len(names) or not {"x", "y", "z"} <= set(names):
        raise BrokenPieceError(reason, f"{source} (elements {list(counts)}, vertex properties {names})")
    return _Header(np.dtype(vertex), counts["vertex"], np.dtype(face), counts["face"], start)
