"""Single operators: seconds in interleaved rounds, after everybody has given the eager formula's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import agreement
from benchmarks.competitors import TRUTH
from benchmarks.measure import Rounds
from benchmarks.operators import OPERATORS, refuses
from benchmarks.suite import MOST_TURNS, OPERATOR_SITTINGS, About, Suite, Timing, sittings


@pytest.mark.parametrize(("device", "sitting"), sittings(OPERATOR_SITTINGS))
@pytest.mark.parametrize("name", OPERATORS)
def bench_operator(name: str, device: str, sitting: int, suite: Suite, benchmark: Any) -> None:
    """Seconds of every part. Operators are timed whichever renderers are asked for."""
    operator = OPERATORS[name]
    sizes = suite.sizes(operator.sizes, device)

    def prepare() -> Timing:
        reasons = {competitor: refuses(competitor, device) for competitor in operator.competitors}
        absent = {competitor: reason for competitor, reason in reasons.items() if reason is not None}
        contenders = {c: operator.contender(c, sizes, device) for c in operator.competitors if c not in absent}
        errors = agreement.check(contenders, TRUTH, agreement.FLOAT32[device])
        rounds = Rounds(contenders, torch.device(device), suite.patience, MOST_TURNS)
        return Timing(rounds, errors, absent, operator.work(sizes))

    about = About(name, operator.title, sizes.label, device)
    suite.sit(benchmark, about, sitting // OPERATOR_SITTINGS, sizes.rounds, prepare)
