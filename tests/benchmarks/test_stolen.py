"""Rounds from which the host of a virtual machine took time away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks import measure, stolen
from benchmarks.contenders import Contender
from benchmarks.measure import Rounds
from benchmarks.stolen import Patience, Stolen, stolen_seconds

LINE = "cpu  8822678 1163721 1267713 5783681 31530 0 10913 {ticks} 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of /proc/stat."""
    stat = tmp_path / "stat"
    stat.write_text(LINE.format(ticks=0))
    monkeypatch.setattr(stolen, "stolen_seconds", lambda: stolen_seconds(stat))
    return stat


def test_what_linux_counts(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(LINE.format(ticks=250))
    assert stolen_seconds(stat) == 250 / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("text", ["", "cpu 1 2 3 4", "intr 1 2 3 4 5 6 7 8 9"], ids=["empty", "old", "other"])
def test_nobody_counts(text: str, tmp_path: Path) -> None:
    assert stolen_seconds(tmp_path / "missing") is None
    (tmp_path / "stat").write_text(text)
    assert stolen_seconds(tmp_path / "stat") is None


def test_share_of_the_processors(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stolen.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(stolen.os, "cpu_count", lambda: 2)
    ticks = os.sysconf("SC_CLK_TCK")
    share = Stolen()
    now[0] += 1.0
    host.write_text(LINE.format(ticks=1))
    assert share.share() == 0.0  # may have been taken before
    host.write_text(LINE.format(ticks=1 + ticks // 2))
    assert share.share() == pytest.approx(0.25)
    host.unlink()
    assert share.share() == 0.0


def test_a_disturbed_round_is_run_again_while_patience_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.9, 0.0, 0.5, 0.6, 0.0, 0.7])

    class Host:
        def share(self) -> float:
            return next(shares)

    monkeypatch.setattr(measure, "Stolen", Host)
    runs: list[int] = []
    contender = Contender(lambda: None, {"whole": lambda: runs.append(1)}, dict)
    patience = Patience(60.0)
    rounds = Rounds({"only": contender}, torch.device("cpu"), patience)
    rounds()  # the warm-up, however disturbed
    assert rounds.conditions.stolen == [] and len(runs) == 1
    rounds()
    assert rounds.conditions.stolen == [0.0]
    rounds()
    assert rounds.conditions.stolen == [0.0, 0.5, 0.6]  # once more, no oftener
    assert patience.left < 60
    patience.spend(60)
    rounds()
    rounds()
    assert rounds.conditions.stolen == [0.0, 0.5, 0.6, 0.0, 0.7] and len(rounds.seconds["only"]["whole"]) == 5
