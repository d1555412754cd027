"""Time that the host of a virtual machine gave to others while this machine wanted to run.

Linux counts it as "steal" in /proc/stat. A step that was interrupted is longer, and one whose threads wait for each
other much longer, so that not everybody is slowed down alike.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
# Column of the first line, "cpu  user nice system idle iowait irq softirq steal ...".
_STEAL = 8
# A round of which more was taken is disturbed.
QUIET = 0.02


def stolen_seconds(stat: Path = STAT) -> float | None:
    """Since the machine was started, of all its processors together; None where nobody counts it."""
    try:
        fields = stat.read_text(encoding="ascii").partition("\n")[0].split()
    except OSError:
        return None
    return int(fields[_STEAL]) / _ticks() if len(fields) > _STEAL and fields[0] == "cpu" else None


def _ticks() -> int:
    """Per second, in which Linux counts."""
    return int(os.sysconf("SC_CLK_TCK"))


class Stolen:
    """What share of the processors was taken away since this was made."""

    def __init__(self) -> None:
        self._before, self._start = stolen_seconds(), time.perf_counter()

    def share(self) -> float:
        """0 to 1, of what is surely taken, for one tick may have begun before; 0 where nobody counts it."""
        now = stolen_seconds()
        if now is None or self._before is None:
            return 0.0
        taken = max(0.0, now - self._before - 1 / _ticks())
        return taken / ((time.perf_counter() - self._start) * (os.cpu_count() or 1))


class Patience:
    """Seconds that may be spent on measuring again."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def spend(self, seconds: float) -> None:
        """Have used some."""
        self.left -= seconds
