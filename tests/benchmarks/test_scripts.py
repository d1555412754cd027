"""The measuring scripts run, and what they measure stays within its bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ponderv2_step, render_floor
from benchmarks.conditions import Conditions

ROOT = Path(__file__).parents[2]


def test_an_image_from_a_large_volume_needs_bounded_memory() -> None:
    """32 x 128 x 128 voxels of 128 channels, 256 MiB of them; more rays than are rendered at once."""
    command = [sys.executable, "-m", "benchmarks.render_image", "--size", "112x84"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finite"] and found["opaque"] > 0.5
    assert found["peak_megabytes"] < 1200
    assert "rendering 8192/9408" in done.stderr or "rendering 9408/9408" in done.stderr


def test_floor_table_is_up_to_date() -> None:
    written = render_floor.TABLE.read_text(encoding="utf-8").splitlines()
    made = render_floor.markdown().splitlines()
    undated = [[line for line in text if "benchmarks.render_floor" not in line] for text in (written, made)]
    assert undated[0] == undated[1], "run python -m benchmarks.render_floor"


def test_steps_of_all_renderers_are_timed() -> None:
    steps = ponderv2_step.time_steps(list(ponderv2_step.RENDERERS), rays=16, repeats=1)
    assert all(len(taken) == 1 and taken[0] > 0 for taken in steps.seconds.values())
    assert len(steps.conditions.stolen) == len(steps.conditions.handover) == 1


def test_disturbed_steps_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"ponder": [1.0, 9.0, 1.0], "eager": [14.0, 30.0, 16.0]}
    ponderv2_step.print_times(ponderv2_step.Steps(seconds, Conditions([0.0, 0.4, 0.01], [4e-6] * 3)), 8)
    first, ours, eager = capsys.readouterr().out.splitlines()
    assert first == "8 rays  3 rounds, of which the 2 count in which the machine was disturbed least"
    assert "1.000 s (1.000 to 1.000)" in ours and "15.000 s (14.000 to 16.000)   15.0 x ponder" in eager
