"""Which rounds count, given what the machine was like, and how that is measured."""

from __future__ import annotations

import pytest
import torch

from benchmarks import handover, measure
from benchmarks.conditions import Conditions
from benchmarks.contenders import Contender
from benchmarks.handover import handover_seconds
from benchmarks.measure import Rounds

FAST, SLOW = 4e-6, 6e-6


@pytest.mark.parametrize(
    ("stolen", "which"),
    [
        ([], []),
        ([0.0, 0.5, 0.02, 0.021], [0, 2]),
        ([0.3, 0.1, 0.2, 0.4, 0.5, 0.6], [1, 2]),
        ([0.9], [0]),
    ],
    ids=["none", "quiet ones", "a quarter", "one"],
)
def test_rounds_from_which_little_was_stolen_count(stolen: list[float], which: list[int]) -> None:
    assert Conditions(stolen, [FAST] * len(stolen)).counted() == which
    # A GPU has no handovers.
    assert Conditions(stolen, [0.0] * len(stolen)).counted() == which


@pytest.mark.parametrize(
    ("handover", "which"),
    [
        ([FAST, SLOW, 1.2 * FAST, SLOW, FAST] * 2, [0, 2, 4, 5, 7, 9]),
        ([SLOW, 1.1 * SLOW] * 5, list(range(10))),
        ([9 * FAST] * 3 + [FAST] + [9 * FAST] * 3 + [4 * FAST] + [5 * FAST] * 2, [3, 7, 8]),
        # A lucky one in twenty does not make all others slow.
        ([FAST] + [SLOW] * 19, list(range(20))),
        ([FAST, SLOW, FAST, SLOW], list(range(4))),
    ],
    ids=["both kinds", "all slow", "a quarter", "luck", "few"],
)
def test_rounds_with_fast_handovers_count(handover: list[float], which: list[int]) -> None:
    assert Conditions([0.0] * len(handover), handover).counted() == which


def test_a_round_must_not_be_disturbed_in_either_way() -> None:
    conditions = Conditions([0.5] + [0.0] * 9, [FAST, SLOW] + [FAST] * 8)
    assert conditions.counted() == list(range(2, 10))
    assert conditions.words() == "10 rounds, of which the 8 count in which the machine was disturbed least"
    assert Conditions([0.0], [FAST]).words() == "1 rounds"


def test_handovers_are_the_best_of_some_and_none_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = handover_seconds(torch.device("cpu"))
    assert 0 < seconds < 1e-2
    taken = iter([9e-4, 6e-4, 7e-4])
    monkeypatch.setattr(handover, "_once", lambda *_: next(taken))
    assert handover_seconds(torch.device("cpu")) == pytest.approx(6e-4 / handover.OPERATIONS)
    assert handover_seconds(torch.device("cuda")) == 0.0


def test_a_rounds_handover_is_the_slowest_before_any_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    before_turns = iter([FAST, FAST, FAST, SLOW, FAST, FAST])
    monkeypatch.setattr(measure, "handover_seconds", lambda device: next(before_turns))
    contenders = {name: Contender(lambda: None, {"whole": lambda: None}, dict) for name in ("a", "b")}
    rounds = Rounds(contenders, torch.device("cpu"))
    for _ in range(3):
        rounds()
    assert rounds.conditions.handover == [SLOW, FAST] and len(rounds.conditions.stolen) == 2
