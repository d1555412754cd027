"""Regression guard: figures that do not depend on the machine, compared with the committed ones. No GPU is needed.

``python -m benchmarks.guard`` measures, prints a table, and exits with 1 and one sentence if a figure grew by more than
its kind may. ``--update`` writes benchmarks/results/guard.json instead. Figures that depend on a compiler are only
compared where it is the recorded version; the table says which were not.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ponder.train.files import write_text

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "guard.json"
COMMAND = "python -m benchmarks.guard --update"
Figures = dict[str, dict[str, float]]


class Kind(NamedTuple):
    """How much figures of a kind may grow.

    Attributes:
        growth: largest allowed value, in recorded ones; 0: no value above 0.
        decided_by: the package whose version decides the figure; "": none, it is compared everywhere.
        reason: for both.
    """

    growth: float
    decided_by: str
    reason: str


# Counts are exact for one compiler, so that most may not grow at all: a deliberate growth is recorded with --update.
KINDS = {
    "saved bytes per ray": Kind(1.01, "", "exact; torch may keep a few bytes more in one version than in another"),
    "launches": Kind(1.0, "", "exact: the library's own launches"),
    "operations": Kind(1.03, "torch", "exact for one torch; room for a few small operations"),
    "allocations": Kind(1.05, "torch", "nearly exact: matrix products allocate workspaces as the processor needs"),
    "allocated bytes": Kind(1.05, "torch", "as the allocations"),
    "time over eager": Kind(2.0, "", "measured in one run, but on any machine and beside other processes"),
    "spilled bytes": Kind(0.0, "", "no kernel may spill, with whatever compiler"),
    "registers": Kind(1.05, "triton", "scheduling moves a few; more lose warps on a multiprocessor"),
    "shared bytes": Kind(1.0, "triton", "exact: the tiles that products exchange"),
    "instructions": Kind(1.03, "triton", "exact for one compiler; room for address arithmetic"),
    "loads": Kind(1.0, "triton", "exact: traffic from global memory"),
    "stores": Kind(1.0, "triton", "exact: traffic to global memory"),
    "atomics": Kind(1.0, "triton", "exact: the most expensive traffic"),
    "tensor-core instructions": Kind(1.0, "triton", "exact: products of the decoder"),
    "multiply-adds": Kind(1.03, "triton", "exact for one compiler; room for address arithmetic"),
}
SKIPPED = "skipped"
# Modules with `measure(match)`, each run in a process of its own.
GROUPS = {"steps": "benchmarks.guard_steps", "code": "benchmarks.guard_code"}


class Row(NamedTuple):
    """One compared figure; `verdict` is empty where it is fine, `failed` whether it turns the guard red."""

    kind: str
    subject: str
    recorded: float | None
    measured: float | None
    verdict: str
    failed: bool


def versions() -> dict[str, str]:
    """Of what decides figures; local parts such as +cpu left out."""
    found = {"python": platform.python_version()}
    for package in ("torch", "triton"):
        try:
            found[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def measure(groups: list[str], match: str = "") -> Figures:
    """Kind -> subject -> value, of subjects that contain `match`.

    Raises:
        RuntimeError: a measuring process failed, with what it said.
    """
    figures: Figures = {}
    # Interpreted kernels cannot be compiled.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    for group in groups:
        code = f"import json; from {GROUPS[group]} import measure; print(json.dumps(measure({match!r})))"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"measuring {group} failed:\n{done.stderr}")
        for kind, values in json.loads(done.stdout.splitlines()[-1]).items():
            figures.setdefault(kind, {}).update(values)
    if not figures.keys() <= KINDS.keys():
        raise RuntimeError(f"kinds of figures without a rule: {', '.join(figures.keys() - KINDS.keys())}")
    return figures


def compare(measured: Figures, record: Mapping[str, Any], present: Mapping[str, str]) -> list[Row]:
    """A row per figure of either side; `present` are the versions at hand."""
    return list(_rows(measured, record, present))


def _rows(measured: Figures, record: Mapping[str, Any], present: Mapping[str, str]) -> Iterator[Row]:
    for kind in KINDS:
        new, old = measured.get(kind, {}), record["figures"].get(kind, {})
        for subject in dict.fromkeys((*old, *new)):
            yield _row(kind, subject, old.get(subject), new.get(subject), record["versions"], present)


def _row(
    kind: str,
    subject: str,
    old: float | None,
    new: float | None,
    recorded: Mapping[str, str],
    present: Mapping[str, str],
) -> Row:
    growth, package, _ = KINDS[kind]
    if new is None:
        return Row(kind, subject, old, new, "was not measured", True)
    if growth == 0:
        return Row(kind, subject, old, new, "must be 0" if new else "", bool(new))
    if package and present[package] != recorded[package]:
        verdict = f"{SKIPPED}: {package} {present[package]}, recorded with {recorded[package]}"
        return Row(kind, subject, old, new, verdict, False)
    if old is None:
        return Row(kind, subject, old, new, "is not recorded", True)
    if new > old * growth:
        return Row(kind, subject, old, new, f"at most {number(old * growth)} allowed", True)
    return Row(kind, subject, old, new, "", False)


def number(value: float | None) -> str:
    """A count whole, a ratio with three digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}" if value < 100 else f"{value:.1f}"


def sentence(rows: list[Row]) -> str:
    """What turns the guard red; empty if nothing does."""
    failed = [row for row in rows if row.failed]
    if not failed:
        return ""
    kind, subject, old, new, verdict, _ = failed[0]
    more = f", and {len(failed) - 1} more figures are off" if len(failed) > 1 else ""
    what = f"{kind} of {subject!r}"
    if old is None or new is None:
        return f"{what} {verdict}{more}"
    return f"{what} went from {number(old)} to {number(new)} ({verdict}){more}"


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    header = ("figure", "subject", "recorded", "measured", "")
    body = [(r.kind, r.subject, number(r.recorded), number(r.measured), r.verdict) for r in rows]
    widths = [max(len(line[k]) for line in (header, *body)) for k in range(len(header))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (header, *body))
    return "\n".join(lines)


def read_record() -> dict[str, Any]:
    """The committed figures.

    Raises:
        RuntimeError: there are none, or the file is not theirs.
    """
    try:
        record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
        if not isinstance(record["figures"], dict) or not isinstance(record["versions"], dict):
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError):
        raise RuntimeError(f"no figures in {RECORD.name}: run {COMMAND}") from None
    return record


def update(figures: Figures) -> None:
    """Write the figures with what they belong to."""
    record = {
        "command": COMMAND,
        "date": str(datetime.date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "versions": versions(),
        "figures": figures,
    }
    write_text(RECORD, json.dumps(record, indent=1) + "\n")


def select(record: Mapping[str, Any], measured: Figures, match: str) -> dict[str, Any]:
    """The record without kinds that no chosen group measures and subjects that were not asked for."""
    figures = {
        kind: {subject: value for subject, value in record["figures"][kind].items() if match in subject}
        for kind in record["figures"]
        if kind in measured
    }
    return {**record, "figures": figures}


def main(arguments: list[str] | None = None) -> int:
    """Measure, then compare or write; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.guard", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the figures instead of comparing them")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), help="compare a part")
    parser.add_argument("--match", default="", metavar="TEXT", help="compare subjects that contain this")
    options = parser.parse_args(arguments)
    if options.update and (options.only or options.match):
        parser.error("--update: expected neither --only nor --match, the record is written as a whole")
    try:
        record = None if options.update else read_record()
        figures = measure(options.only or list(GROUPS), options.match)
    except RuntimeError as error:
        print(f"benchmarks.guard: {error}", file=sys.stderr)
        return 2
    if record is None:
        update(figures)
        print(f"{sum(map(len, figures.values()))} figures in {RECORD}")
        return 0
    if options.only or options.match:
        record = select(record, figures, options.match)
    rows = compare(figures, record, versions())
    print(table(rows))
    skipped = [row for row in rows if row.verdict.startswith(SKIPPED)]
    if skipped:
        print(f"{len(skipped)} figures were not compared, see their rows")
    found = sentence(rows)
    if found:
        print(f"benchmarks.guard: {found}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
