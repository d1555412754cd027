"""A long run counts its steps, and stops at the first number that is not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import long_run

TINY = replace(
    long_run.SMALL,
    backbone="SpUNet-v1m1",
    points=200,
    views=2,
    rays=4,
    width=20,
    height=15,
    grid=(16, 16, 16),
    channels=(8,) * 8,
)


@pytest.mark.parametrize("precision", list(long_run.PRECISIONS))
def test_run(precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(long_run, "SMALL", TINY)
    assert long_run.main(["--steps", "3", "--every", "2", "--precision", precision, "--backbone", TINY.backbone]) == 0
    *_, second, third, last = capsys.readouterr().out.splitlines()
    assert second.startswith("    2 ") and third.startswith("    3 ") and "rgb_loss" in third
    assert last.startswith(f"{precision}: 3 steps, all finite")


def test_a_nan_ends_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def poisoned(setting: long_run.Setting, seed: int) -> dict[str, object]:
        batch = make(setting, seed)
        batch["rgb"] *= torch.nan if seed == 1 else 1
        return batch

    make = long_run.make_batch
    monkeypatch.setattr(long_run, "SMALL", TINY)
    monkeypatch.setattr(long_run, "make_batch", poisoned)
    assert long_run.main(["--steps", "3", "--backbone", TINY.backbone]) == 1
    assert "step 2: " in (found := capsys.readouterr().out) and "rgb_loss" in found.rpartition("step 2: ")[2]


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert long_run.parse(["--full"])[1].grid == (128, 128, 32)
    for wrong, message in ((["--steps", "0"], "at least 1"), (["--rate", "nan"], "--rate")):
        with pytest.raises(SystemExit):
            long_run.main(wrong)
        assert message in capsys.readouterr().err
