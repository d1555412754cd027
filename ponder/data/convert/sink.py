"""Where converters put their results: whole files, counted, and what was left out together with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ponder.data.scene import DataError

# Writes a file that is either whole or absent: path, and what fills an open file.
AtomicWriter = Callable[[Path, Callable[[BinaryIO], None]], None]
# A file below the output folder and its content: bytes, or the entries of a .pth dictionary.
Content = bytes | Mapping[str, Any]
_EXAMPLES = 3


class BrokenPieceError(DataError):
    """A piece of the raw data that cannot be used, while the rest of it can.

    Args:
        reason: what is wrong in a few words, the same for all pieces with this fault: they are counted by it.
        detail: which piece, and what exactly was found.
        count: number of pieces lost.
    """

    def __init__(self, reason: str, detail: str, count: int = 1) -> None:
        super().__init__(f"{detail}: {reason}")
        self.reason, self.detail, self.count = reason, detail, count

    # The default would call __init__ with one argument when a worker process sends the error back.
    def __reduce__(self) -> tuple[type, tuple[str, str, int]]:
        return type(self), (self.reason, self.detail, self.count)


@dataclass
class Skips:
    """Pieces left out for one reason: how many, and the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class PartReport:
    """What became of one part of a unit.

    Attributes:
        converted: pieces written.
        skipped: pieces left out, by reason.
        unusable: lines "scene frame" of frames that were written but must never be drawn.
    """

    converted: int = 0
    skipped: dict[str, Skips] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)

    def skip(self, reason: str, example: str, count: int = 1) -> None:
        """Count pieces left out."""
        skips = self.skipped.setdefault(reason, Skips())
        skips.count += count
        if len(skips.examples) < _EXAMPLES:
            skips.examples.append(example)

    def merge(self, other: PartReport) -> None:
        """Add another report to this one."""
        self.converted += other.converted
        self.unusable += other.unusable
        for reason, skips in other.skipped.items():
            mine = self.skipped.setdefault(reason, Skips())
            mine.count += skips.count
            mine.examples += skips.examples[: _EXAMPLES - len(mine.examples)]

    def to_json(self) -> dict[str, Any]:
        """Plain data, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PartReport:
        """The report that `to_json` wrote; KeyError or TypeError if it did not."""
        skipped = {str(reason): Skips(**skips) for reason, skips in data["skipped"].items()}
        return cls(int(data["converted"]), skipped, [str(line) for line in data["unusable"]])


class Sink:
    """Takes what a converter makes of one unit.

    Args:
        out: output folder.
        write: writes one file, whole or not at all.
        tick: called with the number of finished steps of work; raises to stop early.
    """

    def __init__(self, out: Path, write: AtomicWriter, tick: Callable[[int], None]) -> None:
        self._out, self._write, self.tick = out, write, tick
        self.reports: dict[str, PartReport] = {}

    def report(self, part: str) -> PartReport:
        """The report of a part so far."""
        return self.reports.setdefault(part, PartReport())

    def save(self, files: Sequence[tuple[str, Content]]) -> None:
        """Write files that are no piece of their own, such as intrinsics."""
        for name, content in files:
            path = self._out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, _filler(content))

    def put(self, part: str, files: Sequence[tuple[str, Content]]) -> None:
        """Write one piece, its files in the given order, and count it."""
        self.save(files)
        self.report(part).converted += 1

    @contextmanager
    def attempt(self, part: str) -> Iterator[None]:
        """Count a `BrokenPieceError` raised inside and go on behind the block."""
        try:
            yield
        except BrokenPieceError as error:
            self.report(part).skip(error.reason, error.detail, error.count)


def _filler(content: Content) -> Callable[[BinaryIO], None]:
    def fill(stream: BinaryIO) -> None:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            torch.save(dict(content), stream)

    return fill
