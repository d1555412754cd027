"""Shared by the tests of `ponder convert`: running it, and reading what it wrote."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from ponder.data.convert.runner import Outcome, Writers, run_plan
from ponder.data.convert.units import Plan
from ponder.data.ponderv2.files import load_dict
from ponder.train.files import write_atomically

WRITERS = Writers(partial(write_atomically, durable=False), write_atomically)


def run(plan: Plan, out: Path, writers: Writers = WRITERS) -> Outcome:
    """Convert in this process, without progress."""
    out.mkdir(parents=True, exist_ok=True)
    return run_plan(plan, out, writers, 1, lambda done, total, note: None)


def copy_of(raw: Path, place: Path) -> Path:
    """A copy of a raw tree that a test may damage."""
    return Path(shutil.copytree(raw, place / "raw"))


def load(path: Path) -> dict[str, Any]:
    """A .pth dictionary of arrays, as the datasets read it."""
    return load_dict(path)


def reasons(outcome: Outcome, part: str) -> dict[str, int]:
    """Reason -> count of what was left out."""
    return {reason: skips.count for reason, skips in outcome.total(part).skipped.items()}


def snapshot(folder: Path) -> dict[str, int]:
    """Every result file and when it was written, records and summary excluded."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".convert" not in path.parts)
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in files if p.name != "convert.json"}


def summary(out: Path) -> dict[str, Any]:
    """The parts of convert.json."""
    return json.loads((out / "convert.json").read_text(encoding="utf-8"))["parts"]
