"""Progress for people: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Seconds between lines where the output is not a terminal.
LINE_INTERVAL = 5.0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


class Stage:
    """One stage of work with a known number of units.

    Args:
        title: what is being done.
        console: where to show it.
        start: units already done (a resumed run).
    """

    def __init__(self, title: str, console: Console, start: int = 0) -> None:
        self.title, self.console, self._start = title, console, start
        self._began = self._last = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Stage:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description:<22}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task(self.title, total=None, note="")
            self._bar.start()
        else:
            self.console.print(f"{self.title} ...", highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self.console.print(f"{self.title}: done in {_duration(time.monotonic() - self._began)}", highlight=False)

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units are finished."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if done >= total or now - self._last >= LINE_INTERVAL:
            self._last = now
            rate = (done - self._start) / max(now - self._began, 1e-9)
            left = f", {_duration((total - done) / rate)} left" if rate > 0 and done < total else ""
            text = f"  {self.title} {done}/{total}, {_duration(now - self._began)} gone{left}  {note}"
            self.console.print(text.rstrip(), highlight=False, soft_wrap=True)
