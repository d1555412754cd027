"""LAS and LAZ, the formats of airborne and terrestrial laser scanning, by the optional package laspy."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ponder.data.cloud_files.raw import RawCloud, make_cloud
from ponder.data.scene import DataError

_HEADER, _HEADER_OF_1_4 = 227, 375
# Smallest variable-length records, before and behind the points.
_RECORD, _LATE_RECORD = 54, 60


def read_las(path: Path) -> RawCloud:
    """The points of a LAS or LAZ file, and their colours where the point format has them.

    Colours are 16 bit by the standard; files that hold 8-bit values are recognised by their highest value.
    """
    try:
        import laspy
    except ImportError:
        raise DataError(f'{path}: reading {path.suffix} needs laspy: pip install "ponder[data]"') from None
    # The decoder of one thread: the parallel one ends the process where a damaged file asks for too much memory.
    decoder = laspy.LazBackend.Lazrs
    if _check_header(path) and not decoder.is_available():
        raise DataError(f'{path}: reading compressed points needs lazrs: pip install "ponder[data]"')
    # Decoders raise errors of their own; the Rust one of LAZ derives from RuntimeError.
    damage = (
        laspy.LaspyException, ValueError, TypeError, OSError, EOFError, LookupError, ArithmeticError, AttributeError,
        AssertionError, NotImplementedError, struct.error, RuntimeError,
    )  # fmt: skip
    try:
        # Scales of a damaged header may overflow; the positions are checked below.
        with laspy.open(path, laz_backend=decoder) as reader, np.errstate(over="ignore", invalid="ignore"):
            promised = reader.header.point_count
            points = reader.read()
            coord = np.stack([np.asarray(points[axis], dtype=np.float64) for axis in "xyz"], 1)
    except damage as error:
        sentence = " ".join(str(error).split())
        raise DataError(f"{path}: is truncated or not a {path.suffix} file: {sentence}") from None
    if len(coord) != promised:
        raise DataError(f"{path}: truncated: the header promises {promised} points, got {len(coord)}")
    names = ("red", "green", "blue")
    if not set(names) <= set(points.point_format.dimension_names):
        return make_cloud(str(path), coord)
    colour = np.stack([np.asarray(points[name]) for name in names], 1)
    # Writers that have no colour leave the fields of the point format at 0.
    return make_cloud(str(path), coord, colour if colour.any() else None)


def _check_header(path: Path) -> bool:
    """Whether points are compressed. A header that promises more than the file can hold is refused: laspy would look
    for it record by record."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(_HEADER_OF_1_4)
    if len(head) < _HEADER or not head.startswith(b"LASF"):
        raise DataError(f"{path}: is truncated or not a {path.suffix} file: expected a header that begins with 'LASF'")
    length, start, records = struct.unpack_from("<HII", head, 94)
    (record, points) = struct.unpack_from("<HI", head, 105)
    if length + _RECORD * records > start or start > size:
        raise DataError(f"{path}: truncated: points begin at byte {start} behind {records} records, of {size} bytes")
    if head[25] >= 4 and len(head) == _HEADER_OF_1_4:
        late_start, late, points = struct.unpack_from("<QIQ", head, 235)
        if late and late_start + _LATE_RECORD * late > size:
            raise DataError(f"{path}: truncated: {late} records begin at byte {late_start}, of {size} bytes")
    compressed = head[104] & 0xC0 != 0
    if compressed:
        _check_chunks(path, start, size)
    elif start + record * points > size:
        raise DataError(f"{path}: truncated: {points} points need {start + record * points} bytes, the file has {size}")
    return compressed


def _check_chunks(path: Path, start: int, size: int) -> None:
    """Refuse a LAZ file whose table of chunks lies outside it or lists more of them than it has bytes."""
    with path.open("rb") as stream:
        stream.seek(start)
        table = int.from_bytes(stream.read(8), "little", signed=True)
        if table == -1:
            # Written by a program that could not go back: the position stands at the very end.
            stream.seek(max(size - 8, 0))
            table = int.from_bytes(stream.read(8), "little", signed=True)
        if not start < table <= size - 8:
            raise DataError(f"{path}: truncated: its table of chunks begins at byte {table}, of {size} bytes")
        stream.seek(table + 4)
        chunks = int.from_bytes(stream.read(4), "little")
    if chunks > size:
        raise DataError(f"{path}: truncated: its table lists {chunks} chunks, the file has {size} bytes")
