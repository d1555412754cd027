"""What a run of the suite left in pytest-benchmark's JSON, case by case."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases import RENDER_CASES
from benchmarks.competitors import OURS
from benchmarks.conditions import Conditions
from benchmarks.measure import WHOLE, Spread, ratios, spread
from benchmarks.suite import SCHEMA

# Of files that --bench-lines writes; others are those of --benchmark-json.
LINES = ".jsonl"


class ResultError(ValueError):
    """A file that is no result of the suite; the message is one sentence."""


@dataclass
class CaseResult:
    """Everything measured of a case on one device.

    Attributes:
        name, title, size: of the case; the size in words.
        machine: provenance and ceilings.
        seconds: competitor -> part -> seconds, one per round.
        conditions: of the machine, round by round.
        work: part -> bytes and FLOPs.
        errors: competitor -> largest difference from the eager baseline.
        saved: competitor -> bytes per ray.
        memory: competitor -> bytes per ray.
        peaks: competitor -> rays -> peak bytes.
        absent: competitor -> why it was not timed.
        commits: "time", "saved" and "memory" -> commit that was measured.
    """

    name: str
    title: str
    size: str
    machine: Mapping[str, Any]
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    conditions: Conditions = field(default_factory=Conditions)
    work: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    saved: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, dict[int, int]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)

    @property
    def competitors(self) -> list[str]:
        """Timed ones first, then those that are absent."""
        return [*self.seconds, *(name for name in self.absent if name not in self.seconds)]

    def rounds(self, competitor: str, part: str = WHOLE) -> list[float]:
        """Seconds of a part in the rounds that count."""
        seconds = self.seconds[competitor][part]
        return [seconds[number] for number in self.conditions.counted()]

    def time(self, competitor: str, part: str = WHOLE) -> Spread:
        """Seconds of a part."""
        return spread(self.rounds(competitor, part))

    def ratio(self, competitor: str, part: str = WHOLE) -> Spread | None:
        """How many times longer than ours a part takes, from rounds side by side; None where ours was not timed."""
        if OURS not in self.seconds:
            return None
        return spread(ratios(self.rounds(competitor, part), self.rounds(OURS, part)))

    def share_of_ceiling(self, competitor: str, what: str) -> float:
        """The work's "bytes" or "flops" per second of the whole, by what the machine can do."""
        ceiling = {"bytes": "copy_bytes_per_second", "flops": "matmul_flops_per_second"}[what]
        rate = self.work[WHOLE][what] / self.time(competitor).median
        return rate / self.machine["ceilings"][ceiling]


def load(paths: Iterable[Path]) -> dict[tuple[str, str], CaseResult]:
    """(kind of device, case) -> result, merged over files; what comes later replaces what it measures again.

    Raises:
        ResultError: a file that cannot be read or holds something else.
    """
    found: dict[tuple[str, str], CaseResult] = {}
    for path in paths:
        for info in _entries(path):
            _merge(found, info, path)
    if not found:
        raise ResultError("no results of the suite in these files")
    # As the cases are listed; single operators after them.
    order = [*RENDER_CASES, *sorted(case for _, case in found)]
    return dict(sorted(found.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == LINES:
            return [json.loads(line) for line in text.splitlines()]
        data = json.loads(text)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list):
        raise ResultError(f"{path}: expected a file of --benchmark-json")
    return [b["extra_info"] for b in data["benchmarks"] if "schema" in b.get("extra_info", {})]


def _merge(found: dict[tuple[str, str], CaseResult], info: Mapping[str, Any], path: Path) -> None:
    if info["schema"] != SCHEMA:
        raise ResultError(f"{path}: expected schema {SCHEMA}, got {info['schema']}; measure again")
    machine = info["machine"]
    key = (machine["kind"], info["case"])
    result = found.setdefault(key, CaseResult(info["case"], info["title"], info["size"], machine))
    result.commits[info["kind"]] = machine["commit"]
    if info["kind"] == "time":
        result.seconds, result.work, result.errors = info["seconds"], info["work"], info["errors"]
        result.conditions = Conditions(**info["conditions"])
        result.size, result.machine = info["size"], machine
        # Reasons of this measurement; the others leave out more.
        result.absent = dict(info["absent"])
    elif info["kind"] == "saved":
        result.saved = info["bytes_per_ray"]
    else:
        result.memory = info["bytes_per_ray"]
        result.peaks = {name: {int(r): b for r, b in peaks.items()} for name, peaks in info["peak_bytes"].items()}
