"""Raw files on disk: read with one-sentence errors, and recognised when they change."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ponder.data.convert.sink import BrokenPieceError
from ponder.data.scene import DataError


def why(error: BaseException) -> str:
    """An error's own words on one line, without the path, which the message already has."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def read_bytes(path: Path, kind: str) -> bytes:
    """The content of a file of the raw data.

    Raises:
        BrokenPieceError: missing or unreadable; `kind` names the file in the reason.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BrokenPieceError(f"{kind} is missing", str(path)) from None
    except OSError as error:
        raise BrokenPieceError(f"{kind} cannot be read", f"{path} ({why(error)})") from None


def read_text(path: Path, kind: str) -> str:
    """A UTF-8 text file of the raw data.

    Raises:
        BrokenPieceError: missing, unreadable or not text.
    """
    try:
        return read_bytes(path, kind).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenPieceError(f"{kind} is not text", f"{path} ({why(error)})") from None


def read_object(path: Path, kind: str) -> dict[str, Any]:
    """The object of a JSON file of the raw data.

    Raises:
        BrokenPieceError: missing, unreadable or not a JSON object.
    """
    try:
        data = json.loads(read_text(path, kind))
    except json.JSONDecodeError as error:
        raise BrokenPieceError(f"{kind} is not JSON", f"{path} ({why(error)})") from None
    if not isinstance(data, dict):
        raise BrokenPieceError(f"{kind} is not a JSON object", str(path))
    return data


def subfolders(folder: Path, pattern: str) -> list[Path]:
    """Folders inside `folder` that match a pattern, sorted.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    return sorted(path for path in folder.glob(pattern) if path.is_dir())


def stamp(paths: Iterable[Path]) -> str:
    """A short text that changes when one of the files appears, disappears or is replaced."""
    check = 0
    for path in paths:
        try:
            status = path.stat()
            line = f"{path.name} {status.st_size} {status.st_mtime_ns}\n"
        except OSError:
            line = f"{path.name} absent\n"
        check = zlib.crc32(line.encode(), check)
    return f"{check:08x}"
