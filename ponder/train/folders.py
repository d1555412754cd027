"""Default output folders: runs/RECIPE, runs/RECIPE-2, ..."""

from __future__ import annotations

import itertools
from pathlib import Path

from ponder.train.files import OutputError

RUNS = Path("runs")


def output_folder(out: str | None, recipe: str, resume: bool) -> Path:
    """The folder of a run: the given one, else the first free default, or for a resume the latest existing default.

    Raises:
        OutputError: nothing to resume.
    """
    if out is not None:
        return Path(out)
    candidates = (RUNS / (recipe if number == 1 else f"{recipe}-{number}") for number in itertools.count(1))
    latest: Path | None = None
    for folder in candidates:
        if not folder.exists():
            break
        latest = folder
    if not resume:
        return folder
    if latest is None:
        raise OutputError(f"--resume: there is no run in {RUNS / recipe}")
    return latest
