"""What every benchmark of the suite does alike: choose sizes and competitors, and write down what was measured."""

from __future__ import annotations

import copy
import functools
import gc
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import torch

from benchmarks import ceilings
from benchmarks.measure import Rounds
from benchmarks.provenance import provenance
from benchmarks.stolen import Patience
from ponder_kernels._launch import Cost

SCHEMA = 3
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
SIZE_OF = {"cpu": "small", "cuda": "full"}
# A case is timed in as many sittings, spread over the run: what a shared machine's neighbours leave of a core changes
# from one second to the next, and rounds that follow one another all see the same.
SITTINGS = {"cpu": 8, "cuda": 5}
# And in so many more where there is time: they begin within the run's first MORE_SECONDS.
MORE_SITTINGS = {"cpu": 40, "cuda": 0}
MORE_SECONDS = 500.0
# Sittings of a single operator, which are short, for each of a renderer's.
OPERATOR_SITTINGS = 2
# Turns in a round of those that take a third of the slowest's time or less.
MOST_TURNS = 3


def sittings(times: int = 1) -> list[Any]:
    """Parameters (device, sitting): `times` those of SITTINGS and MORE_SITTINGS."""
    return [
        pytest.param(device, number, marks=[pytest.mark.gpu] if device == "cuda" else [])
        for device, count in SITTINGS.items()
        for number in range((count + MORE_SITTINGS[device]) * times)
    ]


# For rounds that are run again since the host took time away: of all cases together.
PATIENCE_SECONDS = 25.0
Size = TypeVar("Size")


class About(NamedTuple):
    """A case on a device: its short and long name, its size in words."""

    case: str
    title: str
    size: str
    device: str


@dataclass(frozen=True)
class Timing:
    """Competitors that agree, and what is said of them.

    Attributes:
        rounds: timed so far.
        errors: competitor -> largest difference from the eager baseline.
        absent: competitor -> why it is not timed.
        work: what the case has to move and compute, by part.
    """

    rounds: Rounds
    errors: dict[str, float]
    absent: dict[str, str]
    work: Mapping[str, Cost]

    def facts(self) -> dict[str, Any]:
        """As JSON has them."""
        work = {
            part: {"bytes": cost.bytes_read + cost.bytes_written, "flops": cost.flops}
            for part, cost in self.work.items()
        }
        measured = {"seconds": self.rounds.seconds, "conditions": self.rounds.conditions.facts()}
        return {**measured, "absent": self.absent, "errors": self.errors, "work": work}


@dataclass(frozen=True)
class Suite:
    """The command line's choices; None: as the case says.

    Attributes:
        size: one of cases.SIZES for every case.
        rounds: of every competitor in a sitting.
        competitors: names that are timed.
        lines: file to which every result is added as a line of JSON as soon as it exists.
        timings: (case, device) -> what was timed in earlier sittings.
        patience: with rounds that the host disturbs.
        seconds: from the beginning of the run in which sittings beyond SITTINGS begin.
        begun: when that was, on the monotonic clock.
    """

    size: str | None = None
    rounds: int | None = None
    competitors: tuple[str, ...] | None = None
    lines: Path | None = None
    timings: dict[tuple[str, str], Timing] = field(default_factory=dict)
    patience: Patience = field(default_factory=lambda: Patience(0))
    seconds: float = MORE_SECONDS
    begun: float = field(default_factory=time.monotonic)

    def sizes(self, of: Mapping[str, Size], device: str) -> Size:
        """Those of a case on a device."""
        return of[self.size or SIZE_OF[device]]

    def reason(self, name: str, refusal: str | None) -> str | None:
        """Why a competitor does not take part: not asked for, or its own refusal."""
        if self.competitors is not None and name not in self.competitors:
            return "not asked for"
        return refusal

    def sit(self, benchmark: Any, about: About, turn: int, rounds: int, prepare: Callable[[], Timing]) -> None:
        """One sitting of a case, and the record of all so far; skipped if it is one too many for the time there is.

        Args:
            benchmark: pytest-benchmark's fixture.
            about: the case.
            turn: number of sittings that every case has had.
            rounds: in this sitting, unless the command line says otherwise.
            prepare: what the first sitting begins with.
        """
        if turn >= SITTINGS[about.device] and time.monotonic() - self.begun >= self.seconds:
            pytest.skip(f"{self.seconds:g} s are over: {turn} sittings are enough")
        key = (about.case, about.device)
        if key not in self.timings:
            self.timings[key] = prepare()
        timing = self.timings[key]
        timing.rounds.sit_down()
        benchmark.pedantic(timing.rounds, rounds=self.rounds or rounds, iterations=1, warmup_rounds=1)
        # Frozen between rounds, see `time_parts`.
        gc.unfreeze()
        self.record(benchmark, "time", about, timing.facts())

    def record(self, benchmark: Any, kind: str, about: About, facts: Mapping[str, Any]) -> None:
        """Leave facts in the benchmark's JSON.

        Args:
            benchmark: pytest-benchmark's fixture.
            kind: "time", "saved" or "memory".
            about: the case.
            facts: the numbers.
        """
        benchmark.group = f"{about.case} on {about.device}"
        named = {"schema": SCHEMA, "kind": kind, "case": about.case, "title": about.title, "size": about.size}
        info = {**named, "machine": machine(about.device), **facts}
        # Later sittings add to the same lists.
        benchmark.extra_info.update(copy.deepcopy(info))
        if self.lines is not None:
            with self.lines.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(info) + "\n")


@functools.cache
def machine(device: str) -> dict[str, Any]:
    """Provenance and ceilings of a device, measured once in a run."""
    return provenance(device) | {"ceilings": ceilings.measure(torch.device(device))}
