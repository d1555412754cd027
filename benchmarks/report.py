"""Tables and plots from results of the suite.

``python -m benchmarks.report RESULT.json`` writes DEVICE-DATE.md and its plots to benchmarks/results; several files are
one report, and what is measured twice counts as in the last. ``--readme`` prints the short table instead.
``--check A.json B.json`` prints how far the median ratios of two runs are apart, and fails beyond 15 %.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import plots, tables
from benchmarks.results_file import CaseResult, ResultError, load
from ponder.train.files import write_text

RESULTS = Path(__file__).parent / "results"
# Largest allowed ratio of two runs' median ratios, less 1.
APART = 0.15

Results = Mapping[tuple[str, str], CaseResult]


def stem(results: Sequence[CaseResult]) -> str:
    """Device and date, as a file name."""
    machine = results[0].machine
    device = re.sub(r"[^a-z0-9]+", "-", str(machine["device"]).lower()).strip("-")
    return f"{device}-{machine['date']}"


def write(found: Results, folder: Path, commit: str | None = None) -> list[Path]:
    """A table and its plots for every kind of device; the files, tables first."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in dict.fromkeys(kind for kind, _ in found):
        results = [result for (of, _), result in found.items() if of == kind]
        if commit is not None:
            for result in results:
                result.machine = {**result.machine, "commit": commit}
                result.commits = dict.fromkeys(result.commits, commit)
        name = stem(results)
        pictures = plots.write(results, folder, name)
        table = folder / f"{name}.md"
        write_text(table, tables.full(results, [picture.name for picture in pictures]))
        written += [table, *pictures]
    return written


def differences(first: Results, second: Results) -> dict[str, float]:
    """How far the median ratios of two runs are apart: larger by smaller, less 1; by device, case, competitor, part.

    Raises:
        ResultError: the runs did not time the same.
    """
    apart = {}
    for (device, case), result in first.items():
        other = second.get((device, case))
        for name, parts in result.seconds.items():
            for part in parts:
                if other is None or part not in other.seconds.get(name, {}):
                    raise ResultError(f"{case} on {device}: {name} was not timed in both runs")
                here, there = result.ratio(name, part), other.ratio(name, part)
                if here is not None and there is not None:
                    low, high = sorted((here.median, there.median))
                    apart[f"{case} on {device}, {name}, {part}"] = high / low - 1
    if not apart:
        raise ResultError("no ratios to compare")
    return apart


def check(first: Path, second: Path) -> str:
    """One line on two runs; SystemExit with it where they are too far apart."""
    apart = differences(load([first]), load([second]))
    where, most = max(apart.items(), key=lambda item: item[1])
    line = f"largest difference of {len(apart)} median ratios: {most:.1%} ({where})"
    if most > APART:
        beyond = sum(value > APART for value in apart.values())
        sys.exit(f"{line}; {beyond} beyond {APART:.0%}")
    return line


def main(arguments: list[str]) -> None:
    """Write, print or check."""
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables and plots")
    parser.add_argument("--commit", help="what was measured, where the machine had no git checkout")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--readme", action="store_true", help="print the short table")
    what.add_argument("--check", action="store_true", help="compare the ratios of two runs")
    options = parser.parse_args(arguments)
    if options.check and len(options.results) != 2:
        parser.error("--check: expected two result files")
    try:
        if options.check:
            print(check(*options.results))
        elif options.readme:
            print(tables.short(list(load(options.results).values())))
        else:
            print("\n".join(map(str, write(load(options.results), options.out, options.commit))))
    except (ResultError, OSError) as error:
        sys.exit(f"benchmarks.report: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
