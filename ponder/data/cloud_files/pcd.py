"""PCD, the format of the Point Cloud Library: ASCII and uncompressed binary files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ponder.data.cloud_files.raw import RawCloud, make_cloud
from ponder.data.scene import DataError

_KINDS = {"F": "f", "I": "i", "U": "u"}
_MAX_HEADER = 1 << 16


class _Header(NamedTuple):
    fields: list[str]
    kinds: list[str]
    counts: list[int]
    points: int
    encoding: str
    start: int


def read_pcd(path: Path) -> RawCloud:
    """The points of a PCD file: x y z, and rgb (or rgba) and normal_x normal_y normal_z where it has them."""
    header = _read_header(path)
    missing = {"x", "y", "z"} - set(header.fields)
    if missing or len(set(header.fields)) < len(header.fields):
        raise DataError(f"{path}: expected distinct fields with x, y and z among them, got {header.fields}")
    columns = _read_ascii(path, header) if header.encoding == "ascii" else _read_binary(path, header)
    coord = np.stack([columns[axis] for axis in "xyz"], 1)
    packed = columns.get("rgb", columns.get("rgba"))
    names = ("normal_x", "normal_y", "normal_z")
    normal = np.stack([columns[name] for name in names], 1) if set(names) <= columns.keys() else None
    return make_cloud(str(path), coord, None if packed is None else _unpack(packed), normal)


def _read_header(path: Path) -> _Header:
    found: dict[str, list[str]] = {}
    start = 0
    with path.open("rb") as stream:
        for line in stream.read(_MAX_HEADER).splitlines(keepends=True):
            start += len(line)
            words = line.decode("latin-1").split()
            if words and not words[0].startswith("#"):
                found[words[0]] = words[1:]
            if "DATA" in found:
                break
    try:
        fields, sizes, types = found["FIELDS"], found["SIZE"], found["TYPE"]
        counts = [int(text) for text in found.get("COUNT", ["1"] * len(fields))]
        kinds = [_KINDS[kind] + str(int(size)) for kind, size in zip(types, sizes, strict=True)]
        for kind, _ in zip(kinds, fields, strict=True):
            np.dtype(kind)
        header = _Header(fields, kinds, counts, int(found["POINTS"][0]), found["DATA"][0], start)
    except (KeyError, ValueError, IndexError, TypeError):
        raise DataError(f"{path}: expected a PCD header with FIELDS, SIZE, TYPE, POINTS and DATA, got none") from None
    if len(counts) != len(fields) or min(counts) < 1 or header.points < 0:
        raise DataError(f"{path}: expected one positive COUNT for each of the fields {fields}, got {counts}")
    if header.encoding not in ("ascii", "binary"):
        raise DataError(f"{path}: expected DATA ascii or binary, got {header.encoding}; save it uncompressed")
    return header


def _read_binary(path: Path, header: _Header) -> dict[str, NDArray]:
    rows = zip(header.fields, header.kinds, header.counts, strict=True)
    layout = np.dtype([(name, "<" + kind, (count,)) for name, kind, count in rows])
    needed, present = header.start + header.points * layout.itemsize, path.stat().st_size
    if present < needed:
        raise DataError(f"{path}: truncated: {header.points} points need {needed} bytes, the file has {present}")
    table = np.fromfile(path, layout, header.points, offset=header.start)
    return {name: np.ascontiguousarray(table[name][:, 0]) for name in header.fields}


def _read_ascii(path: Path, header: _Header) -> dict[str, NDArray]:
    with path.open("rb") as stream, warnings.catch_warnings():
        stream.seek(header.start)
        warnings.simplefilter("ignore", UserWarning)
        try:
            table = np.loadtxt(stream, np.float64, comments=None, ndmin=2, max_rows=header.points)
        except ValueError as error:
            raise DataError(f"{path}: a line of its points cannot be read: {error}") from None
    if header.points and (len(table) < header.points or table.shape[1] != sum(header.counts)):
        raise DataError(
            f"{path}: truncated: the header promises {header.points} points of {sum(header.counts)} numbers, "
            f"got {list(table.shape)}"
        )
    table = table.reshape(header.points, sum(header.counts))
    starts = np.cumsum([0, *header.counts[:-1]])
    rows = zip(header.fields, header.kinds, starts, strict=True)
    return {name: table[:, column].astype(kind) for name, kind, column in rows}


def _unpack(packed: NDArray) -> NDArray[np.uint8]:
    """Colours [N, 3] from 0xRRGGBB in the bits of a 4-byte number."""
    bits = np.ascontiguousarray(packed).view(np.uint32) if packed.dtype.itemsize == 4 else packed.astype(np.uint32)
    return np.stack([bits >> 16 & 255, bits >> 8 & 255, bits & 255], 1).astype(np.uint8)
