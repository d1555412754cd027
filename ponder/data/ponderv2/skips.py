"""What was left out and why, counted across loader processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch.utils.data import get_worker_info

MISSING = "frame with a file missing"
UNREADABLE = "frame with a file that cannot be read"
BAD_POSE = "frame whose pose is infinite or has no inverse"
LITTLE_DEPTH = "frame with too few pixels of known depth"
LITTLE_MASK = "frame whose depth mask keeps less than a quarter"
OTHER_SIZE = "frame of another size than the first of its scene"
LISTED = "frame named in skip.lst"
NO_FRAMES = "scene without usable frames"
BAD_LABELS = "scene or frame with class numbers out of range (taken as unlabelled)"
DROPPED = "sample beyond the batch's limit of points"

REASONS = (
    MISSING,
    UNREADABLE,
    BAD_POSE,
    LITTLE_DEPTH,
    LITTLE_MASK,
    OTHER_SIZE,
    LISTED,
    NO_FRAMES,
    BAD_LABELS,
    DROPPED,
)
# Rows of the table of counts: one for the main process and one per loader process, so that none writes to another's.
_ROWS = 257


class UnusableError(Exception):
    """A frame that cannot be used, and which of the `REASONS` it is."""

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class Skips:
    """Counts by reason in memory that loader processes share, whether they are forked or started afresh."""

    def __init__(self) -> None:
        self._table = torch.zeros(_ROWS, len(REASONS), dtype=torch.int64).share_memory_()

    def add(self, reason: str, count: int = 1) -> None:
        """Count one more of a reason of `REASONS`."""
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % (_ROWS - 1)
        self._table[row, REASONS.index(reason)] += count

    def counter(self) -> Counter[str]:
        """Counts of all processes so far, reasons without any left out."""
        totals = self._table.sum(dim=0).tolist()
        return Counter({reason: total for reason, total in zip(REASONS, totals, strict=True) if total})


def describe(skipped: Counter[str]) -> str:
    """One line for a log: '3 x frame named in skip.lst, 1 x ...', most frequent first; empty if nothing was skipped."""
    return ", ".join(f"{count} x {reason}" for reason, count in skipped.most_common())
