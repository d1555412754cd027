"""Whole renderers: seconds in interleaved rounds, bytes saved for the backward pass, peak memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import agreement, memory
from benchmarks.cases import RENDER_CASES, TRAINING_CASES, RenderCase, Sizes
from benchmarks.competitors import COMPETITORS, TRUTH
from benchmarks.contenders import Contender, render_contender
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.measure import Rounds, saved_bytes
from benchmarks.suite import DEVICES, MOST_TURNS, About, Suite, Timing, sittings
from benchmarks.work import render_work

WITH_MEMORY = [name for name, case in TRAINING_CASES.items() if case.sizes["full"].memory_rays]
INEXACT = frozenset(name for name, competitor in COMPETITORS.items() if not competitor.exact)
# Run in float64 as well, by the very code that is timed in float32.
IN_FLOAT64 = ("ponder", "eager", "eager2")


def absent(case: RenderCase, suite: Suite, device: str) -> dict[str, str]:
    """Why competitors do not take part, by name."""
    reasons = {name: suite.reason(name, c.refuses(case, device)) for name, c in COMPETITORS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _contenders(names: Iterable[str], case: RenderCase, inputs: Inputs) -> dict[str, Contender]:
    return {name: render_contender(COMPETITORS[name].build(case), case, inputs) for name in names}


def prepare(case: RenderCase, sizes: Sizes, suite: Suite, device: str) -> Timing:
    """Competitors that have given the eager baseline's numbers."""
    missing = absent(case, suite, device)
    inputs = make_inputs(case, sizes, device)
    if device == "cpu":
        # On a GPU float64 is not what is timed.
        agreement.check(_contenders(IN_FLOAT64, case, inputs.to(torch.float64)), TRUTH, agreement.FLOAT64)
    contenders = _contenders([n for n in COMPETITORS if n not in missing or n == TRUTH], case, inputs)
    errors = agreement.check(contenders, TRUTH, agreement.FLOAT32[device], INEXACT)
    timed = {n: c for n, c in contenders.items() if n not in missing}
    rounds = Rounds(timed, torch.device(device), suite.patience, MOST_TURNS)
    return Timing(rounds, errors, missing, render_work(case, sizes))


@pytest.mark.parametrize(("device", "sitting"), sittings())
@pytest.mark.parametrize("name", RENDER_CASES)
def bench_time(name: str, device: str, sitting: int, suite: Suite, benchmark: Any) -> None:
    """Seconds of every part."""
    case = RENDER_CASES[name]
    sizes = suite.sizes(case.sizes, device)
    about = About(name, case.title, sizes.label, device)
    suite.sit(benchmark, about, sitting, sizes.rounds, lambda: prepare(case, sizes, suite, device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TRAINING_CASES)
def bench_saved(name: str, device: str, suite: Suite, benchmark: Any) -> None:
    """Bytes that autograd keeps per ray between forward and backward, without inputs and parameters.

    What is kept once per step, whatever the rays, is shared among them, so it is counted at the most rays there are.
    """
    case = RENDER_CASES[name]
    sizes = suite.sizes(case.sizes, device)
    sizes = replace(sizes, rays=max(sizes.rays, *sizes.memory_rays, 0))
    missing = absent(case, suite, device)
    missing.setdefault("compiled", "would have to be compiled for this number of rays")
    inputs = make_inputs(case, sizes, device)
    found: dict[str, float] = {}

    def measure() -> None:
        for name in COMPETITORS:
            if name not in missing:
                found[name] = _saved_per_ray(name, case, inputs, sizes.all_rays)

    benchmark.pedantic(measure, rounds=1, iterations=1)
    about = About(name, case.title, sizes.label, device)
    suite.record(benchmark, "saved", about, {"bytes_per_ray": found, "absent": missing})


def _saved_per_ray(name: str, case: RenderCase, inputs: Inputs, rays: int) -> float:
    renderer = COMPETITORS[name].build(case)
    contender = render_contender(renderer, case, inputs)
    return saved_bytes(contender, [*inputs.own(), *renderer.model.parameters()]) / rays


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", WITH_MEMORY)
def bench_memory(name: str, device: str, suite: Suite, benchmark: Any) -> None:
    """Peak memory at several numbers of rays."""
    case = RENDER_CASES[name]
    sizes = suite.sizes(case.sizes, device)
    missing = absent(case, suite, device)
    if device == "cpu":
        # A child would compile first, and its peak would be the compiler's.
        missing.setdefault("compiled", "a process' peak would be the compiler's")
    found: dict[str, dict[int, int]] = {}

    def measure() -> None:
        for name in COMPETITORS:
            if name not in missing:
                found[name] = memory.peaks(case.name, name, sizes, device)

    benchmark.pedantic(measure, rounds=1, iterations=1)
    slopes = {name: memory.slope(peaks) for name, peaks in found.items()}
    about = About(name, case.title, sizes.label, device)
    suite.record(benchmark, "memory", about, {"peak_bytes": found, "bytes_per_ray": slopes, "absent": missing})
