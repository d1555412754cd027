"""Tables of numbers: text files, NumPy's arrays, and the scenes that PonderV2's preprocessing writes."""

from __future__ import annotations

import itertools
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from numpy.typing import NDArray

from ponder.data.cloud_files.raw import RawCloud, make_cloud
from ponder.data.scene import DataError

_LAYOUTS = "3 (x y z), 6 (and red green blue) or 9 (and nx ny nz)"
_COMMENTS = ("#", "//")
# What np.load raises for files that are damaged or something else; it parses headers as Python literals.
_DAMAGE = (
    ValueError, TypeError, OSError, EOFError, LookupError, RuntimeError, ArithmeticError, SyntaxError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _from_columns(source: str, table: NDArray) -> RawCloud:
    if table.ndim != 2 or table.shape[1] not in (3, 6, 9):
        raise DataError(f"{source}: expected columns: {_LAYOUTS}; got shape {list(table.shape)}")
    colour = table[:, 3:6] if table.shape[1] > 3 else None
    normal = table[:, 6:9] if table.shape[1] > 6 else None
    return make_cloud(source, table[:, :3], colour, normal)


def read_text(path: Path) -> RawCloud:
    """Lines of 3, 6 or 9 numbers, apart by white space, commas or semicolons; `#` and `//` start a comment.

    One line of column names may come first.
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            first, second = itertools.islice(itertools.chain(_content(stream), ["", ""]), 2)
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected a text file of numbers, got something else") from None
    delimiter = next((mark for mark in ",;" if mark in (second or first)), None)
    skip = 0 if _is_number(first.replace(",", " ").replace(";", " ").split()[:1]) else 1
    with path.open(encoding="utf-8-sig") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        lines = itertools.islice(_content(stream), skip, None)
        try:
            table = np.loadtxt(lines, np.float64, comments=_COMMENTS, delimiter=delimiter, ndmin=2)
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: expected lines of numbers: {error}") from None
    if table.size == 0:
        raise DataError(f"{path}: expected at least one point, got none")
    return _from_columns(str(path), table)


def _content(stream: TextIO) -> Iterator[str]:
    return (line for line in stream if line.strip() and not line.lstrip().startswith(_COMMENTS))


def _is_number(words: list[str]) -> bool:
    try:
        float(words[0]) if words else None
    except ValueError:
        return False
    return True


def read_npy(path: Path) -> RawCloud:
    """An array [N, 3], [N, 6] or [N, 9]."""
    with path.open("rb") as stream:
        table = _load(path, stream)
        if not isinstance(table, np.ndarray):
            raise DataError(f"{path}: expected one array, got an archive of several; name it .npz")
    return _from_columns(str(path), table)


def read_npz(path: Path) -> RawCloud:
    """Arrays `coord` [N, 3] and, where present, `color` (or `colour`) and `normal`, both [N, 3]."""
    # Opened here: np.load leaves a damaged archive that it opened itself open.
    with path.open("rb") as stream:
        archive = _load(path, stream)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path}: expected an archive with 'coord', got a single array; name it .npy")
        names = set(archive.files)
        if "coord" not in names:
            raise DataError(f"{path}: expected an array 'coord', got {sorted(names)}")
        colour = next((name for name in ("color", "colour") if name in names), None)
        normal = "normal" if "normal" in names else None
        try:
            arrays = [archive[name] if name else None for name in ("coord", colour, normal)]
        except _DAMAGE:
            raise DataError(f"{path}: is truncated or not an archive of plain arrays") from None
    assert arrays[0] is not None
    return make_cloud(str(path), arrays[0], arrays[1], arrays[2])


def _load(path: Path, stream: BinaryIO) -> Any:
    try:
        return np.load(stream, allow_pickle=False)
    except _DAMAGE:
        raise DataError(f"{path}: is truncated or not a NumPy file of plain numbers") from None
