"""PLY: the vertices of ASCII and binary files, and point clouds written as binary ones."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ponder.data.cloud_files.raw import RawCloud, make_cloud
from ponder.data.scene import DataError

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_COORD, _NORMAL = ("x", "y", "z"), ("nx", "ny", "nz")
_COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
# A header longer than this is no header.
_MAX_HEADER = 1 << 20


@dataclass
class _Element:
    name: str
    count: int
    # (name, NumPy type), or (name, "list") for properties of varying length.
    properties: list[tuple[str, str]] = field(default_factory=list)

    def dtype(self, source: str, order: str) -> np.dtype:
        """Layout of one binary entry."""
        if any(kind == "list" for _, kind in self.properties):
            raise DataError(f"{source}: element {self.name!r} stands before the points and has lists of varying length")
        return np.dtype([(name, order + kind) for name, kind in self.properties])


def read_ply(path: Path) -> RawCloud:
    """The points of a PLY file: x y z, and red green blue and nx ny nz where it has them."""
    source = str(path)
    with path.open("rb") as stream:
        head = stream.read(_MAX_HEADER)
    order, elements, start = _header(source, head)
    before = []
    for element in elements:
        if element.name == "vertex":
            break
        before.append(element)
    else:
        raise DataError(f"{source}: expected an element 'vertex', got {[e.name for e in elements]}")
    names = [name for name, _ in element.properties]
    if len(set(names)) < len(names) or not set(_COORD) <= set(names):
        raise DataError(f"{source}: expected the distinct properties x, y and z among its points', got {names}")
    read = _read_ascii if order == "" else _read_binary
    columns = read(path, start, before, element, order)

    def stacked(wanted: tuple[str, ...]) -> NDArray | None:
        return np.stack([columns[name] for name in wanted], 1) if set(wanted) <= columns.keys() else None

    colour = next((found for found in map(stacked, _COLOURS) if found is not None), None)
    coord = stacked(_COORD)
    assert coord is not None
    # 8-bit colours of ASCII files arrive as float64; the header says what they are.
    kinds = dict(element.properties)
    eight_bit = any(all(kinds.get(name) == "u1" for name in wanted) for wanted in _COLOURS)
    return make_cloud(source, coord, colour, stacked(_NORMAL), 255.0 if eight_bit else None)


def _header(source: str, head: bytes) -> tuple[str, list[_Element], int]:
    """Byte order ("" for ASCII), elements and the offset of the data."""
    mark = head.find(b"end_header")
    end = head.find(b"\n", mark)
    if not head.startswith(b"ply") or mark < 0 or end < 0:
        raise DataError(f"{source}: expected a PLY header from 'ply' to 'end_header', got none")
    order: str | None = None
    elements: list[_Element] = []
    for line in head[:mark].decode("latin-1").splitlines()[1:]:
        match line.split():
            case ["format", name, _] if name in _ORDERS:
                order = _ORDERS[name]
            case ["element", name, count] if count.isdigit():
                elements.append(_Element(name, int(count)))
            case ["property", "list", count, kind, name] if elements and count in _TYPES and kind in _TYPES:
                elements[-1].properties.append((name, "list"))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].properties.append((name, _TYPES[kind]))
            case [] | ["comment" | "obj_info", *_]:
                pass
            case _:
                raise DataError(f"{source}: cannot read the header line {line.strip()!r}")
    if order is None:
        raise DataError(f"{source}: expected a line 'format' of {', '.join(_ORDERS)} in the header, got none")
    return order, elements, end + 1


def _read_binary(path: Path, start: int, before: list[_Element], points: _Element, order: str) -> dict[str, NDArray]:
    for element in before:
        start += element.count * element.dtype(str(path), order).itemsize
    layout = points.dtype(str(path), order)
    needed, present = start + points.count * layout.itemsize, path.stat().st_size
    if present < needed:
        raise DataError(f"{path}: truncated: {points.count} points need {needed} bytes, the file has {present}")
    table = np.fromfile(path, layout, points.count, offset=start)
    return {name: table[name] for name in layout.names or ()}


def _read_ascii(path: Path, start: int, before: list[_Element], points: _Element, order: str) -> dict[str, NDArray]:
    if points.count == 0:
        return {name: np.zeros(0) for name, _ in points.properties}
    if any(kind == "list" for _, kind in points.properties):
        raise DataError(f"{path}: expected points of numbers only, got a list of varying length")
    with path.open("rb") as stream, warnings.catch_warnings():
        stream.seek(start)
        for _ in range(sum(element.count for element in before)):
            stream.readline()
        # "Input contained no data": said below.
        warnings.simplefilter("ignore", UserWarning)
        try:
            table = np.loadtxt(
                stream, np.float64, comments=None, ndmin=2, max_rows=points.count,
                usecols=range(len(points.properties)),
            )  # fmt: skip
        except ValueError as error:
            raise DataError(f"{path}: a line of its points cannot be read: {error}") from None
    if len(table) < points.count:
        raise DataError(f"{path}: truncated: the header promises {points.count} points, got {len(table)}")
    return {name: table[:, column] for column, (name, _) in enumerate(points.properties)}


def ply_bytes(coord: NDArray[np.float64], colour: NDArray[np.uint8]) -> bytes:
    """A binary little-endian PLY of points [N, 3] with 8-bit colours [N, 3]; positions are doubles."""
    layout = np.dtype([(name, "<f8") for name in _COORD] + [(name, "u1") for name in _COLOURS[0]])
    table = np.empty(len(coord), layout)
    for names, values in ((_COORD, coord), (_COLOURS[0], colour)):
        for axis, name in enumerate(names):
            table[name] = values[:, axis]
    properties = [f"property double {name}" for name in _COORD] + [f"property uchar {name}" for name in _COLOURS[0]]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(coord)}", *properties, "end_header\n"]
    return "\n".join(lines).encode() + table.tobytes()
