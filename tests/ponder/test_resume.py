"""Kills at random moments, resumes, and what is left on disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from ponder.train.checkpoint import read_checkpoint
from tests.ponder.tiny import tiny

ROOT = Path(__file__).parents[2]
KILLS = 10
SETTINGS = tiny("steps=12", "preview_every=6", "checkpoint_every=1")


def command(folder: Path, *extra: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "ponder",
        "pretrain",
        "demo",
        *SETTINGS,
        "--out",
        str(folder),
        "--device",
        "cpu",
        *extra,
    ]


def run(folder: Path, *extra: str) -> None:
    subprocess.run(command(folder, *extra), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def kill_after(folder: Path, seconds: float, *extra: str) -> bool:
    """Start a run and SIGKILL it; whether it was still running."""
    process = subprocess.Popen(command(folder, *extra), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True


def test_resumed_weights_equal_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    run(whole)
    duration = time.monotonic() - began
    moments = random.Random(0)
    checkpoint = broken / "checkpoint.pt"
    # Moments are spread over the part of a run in which it trains; every attempt starts from where the last was killed.
    killed = 0
    for attempt in range(KILLS):
        extra = ("--resume",) if broken.exists() else ()
        killed += kill_after(broken, moments.uniform(0.25, 0.7) * duration, *extra)
        if checkpoint.exists():
            config, content = read_checkpoint(checkpoint)
            assert 0 <= content["progress"]["step"] <= config.steps, attempt
    assert killed >= 1
    run(broken, "--resume")
    _, first = read_checkpoint(whole / "checkpoint.pt")
    _, second = read_checkpoint(checkpoint)
    assert first["progress"]["step"] == second["progress"]["step"] == 12
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    steps = [json.loads(line) for line in (broken / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in steps if record["group"] == "train"] == list(range(1, 13))
    metrics = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (whole, broken)]
    assert metrics[0]["final"] == metrics[1]["final"] and metrics[0]["initial"] == metrics[1]["initial"]
    assert not list(broken.glob(".*.tmp"))


WRITER = """
import sys, torch
from pathlib import Path
from ponder.train.files import write_atomically
print("ready", flush=True)
number = 0
while True:
    number += 1
    content = {"number": number, "block": torch.full((200_000,), float(number))}
    write_atomically(Path(sys.argv[1]), lambda stream: torch.save(content, stream))
"""


def test_a_file_killed_while_it_is_written_is_never_torn(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    moments = random.Random(1)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.05, 0.3))
        process.kill()
        process.wait()
        process.stdout.close()
        if path.exists():
            content = torch.load(path, weights_only=True)
            assert (content["block"] == content["number"]).all()
    assert path.exists()
