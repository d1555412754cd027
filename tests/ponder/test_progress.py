"""What a person sees while a run works, and when it cannot go on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ponder.cli import main
from ponder.train import progress as progress_module
from ponder.train import step as step_module
from ponder.train.progress import Stage
from tests.ponder.tiny import tiny


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_lines_with_an_estimate_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    text = io.StringIO()
    with Stage("training", Console(file=text, width=200), start=10) as stage:
        for done in range(10, 31):
            clock.now += 1.0
            stage(done, 100, "loss 1.0")
    lines = text.getvalue().splitlines()
    assert lines[0] == "training ..."
    assert lines[1] == "  training 14/100, 0:05 gone, 1:48 left  loss 1.0"
    assert len(lines) == 1 + 4 + 1 and lines[-1] == "training: done in 0:21"


def test_a_bar_on_a_terminal() -> None:
    text = io.StringIO()
    with Stage("training", Console(file=text, force_terminal=True, width=100)) as stage:
        stage(3, 10, "loss 2.5")
        stage(10, 10, "loss 1.5")
    assert "10/10" in text.getvalue() and "loss 1.5" in text.getvalue()


def test_non_finite_steps_are_reported_and_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = step_module.compute_loss

    def poisoned(model, scenes, config, step):
        loss, terms = real(model, scenes, config, step)
        return (loss * float("nan") if step >= 2 else loss), terms

    monkeypatch.setattr(step_module, "compute_loss", poisoned)
    out = tmp_path / "run"
    code = main(["pretrain", "demo", *tiny("steps=9", "max_bad_steps=3", "checkpoint_every=1"), "--out", str(out)])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.strip() == ("error: training stopped at step 5: 3 non-finite steps in a row (loss, grad_norm)")
    assert "step 3: not finite (loss, grad_norm); skipped, 1 so far" in captured.out
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    bad = [record for record in records if record["step"] == 3]
    assert bad[0]["loss"] is None and bad[0]["skipped"] == 1.0
    content = torch.load(out / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in content["model"].values())
