"""The points of an S3DIS room: one text file of `x y z r g b` lines per object."""

from __future__ import annotations

import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.raw_files import read_bytes
from ponder.data.convert.sink import BrokenPieceError, PartReport

CLASSES = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
)  # fmt: skip
_COLUMNS = 6
# The release has a line with such a byte between two numbers (Area_5/hallway_6).
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")


class RoomPoints(NamedTuple):
    """N points of a room in its own frame.

    Attributes:
        coord: [N, 3] float64 metres.
        colour: [N, 3] float64, 0..255.
        semantic: [N, 1] int64 index into CLASSES.
        instance: [N, 1] int64, position of the object's file among those of the room.
    """

    coord: NDArray[np.float64]
    colour: NDArray[np.float64]
    semantic: NDArray[np.int64]
    instance: NDArray[np.int64]


def object_files(room: Path) -> list[Path]:
    """The files of a room's objects, in the order that numbers them."""
    return sorted(room.glob("Annotations/*.txt"))


def read_room(room: Path, report: PartReport) -> RoomPoints:
    """Read all objects of a room; broken lines and objects are left out and counted.

    Raises:
        BrokenPieceError: no object can be read.
    """
    points, labels = [], []
    for number, path in enumerate(object_files(room)):
        try:
            found = read_object_points(path, report)
        except BrokenPieceError as error:
            report.skip(error.reason, error.detail)
            continue
        name = path.name.split("_")[0]
        label = CLASSES.index(name if name in CLASSES else "clutter")
        points.append(found)
        labels.append(np.tile(np.array([label, number], dtype=np.int64), (len(found), 1)))
    if not points:
        raise BrokenPieceError("room has no readable objects", str(room / "Annotations"))
    table, label_table = np.concatenate(points), np.concatenate(labels)
    coord, colour = np.ascontiguousarray(table[:, :3]), np.ascontiguousarray(table[:, 3:])
    return RoomPoints(coord, colour, label_table[:, :1].copy(), label_table[:, 1:].copy())


def read_object_points(path: Path, report: PartReport) -> NDArray[np.float64]:
    """[N, 6] position and colour from one file; lines that are not six finite numbers are left out and counted.

    Raises:
        BrokenPieceError: unreadable, or no line is left.
    """
    data = read_bytes(path, "object file")
    try:
        with warnings.catch_warnings():
            # "Input contained no data": said below.
            warnings.simplefilter("ignore", UserWarning)
            table = np.loadtxt(BytesIO(data), ndmin=2)
        lines = len(table)
        table = table[:, :_COLUMNS] if lines else np.zeros((0, _COLUMNS))
    except (ValueError, UnicodeDecodeError):
        table, lines = _parse_lines(data)
    table = table[np.isfinite(table).all(1)] if table.shape[1] == _COLUMNS else table[:0]
    if lines > len(table):
        report.skip("line of an object is not six finite numbers", str(path), lines - len(table))
    if len(table) == 0:
        raise BrokenPieceError("object has no points", str(path))
    return table


def _parse_lines(data: bytes) -> tuple[NDArray[np.float64], int]:
    """The rows that can be read, and the number of lines; stray control characters count as blanks."""
    rows, lines = [], 0
    for line in _CONTROL.sub(b" ", data).splitlines():
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        lines += 1
        try:
            rows.append([float(word) for word in words[:_COLUMNS]])
        except ValueError:
            continue
        if len(words) < _COLUMNS:
            rows.pop()
    return np.array(rows, dtype=np.float64).reshape(-1, _COLUMNS), lines
