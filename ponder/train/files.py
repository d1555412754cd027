"""Files that are either whole or absent: written beside their place, flushed, then renamed over it."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


class OutputError(OSError):
    """An output folder or file that cannot be written; the message is one sentence."""


def write_atomically(path: Path, write: Callable[[BinaryIO], None], durable: bool = True) -> None:
    """Call `write` on a temporary file in the same folder, then rename it to `path`.

    A reader, or a process killed at any moment, finds the old content or the new, never a part of it. Unless `durable`,
    which waits for the disk, a power failure soon afterwards may leave less.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as stream:
            write(stream)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file atomically."""

    def write(stream: BinaryIO) -> None:
        stream.write(data)

    write_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, since JSON has no way to write them."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of a process that was killed while writing."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def make_output_folder(folder: Path) -> Path:
    """Create a folder and make sure that files can be written into it.

    Raises:
        OutputError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe."):
            pass
    except OSError as error:
        raise OutputError(f"output folder {folder} is not writable: {error.strerror or error}") from None
    return folder
