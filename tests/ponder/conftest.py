"""Fixtures of the pipeline's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from ponder.cli import main
from tests.ponder.tiny import tiny

# Enough steps for the SDF of the room to cross zero.
FINISHED = ("steps=30", "preview_every=15", "optim.lr=1e-2", "loss.truncation=0.3")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run on one procedural room."""
    folder = tmp_path_factory.mktemp("run") / "out"
    assert main(["pretrain", "demo", *tiny(*FINISHED), "--out", str(folder), "--device", "cpu"]) == 0
    return folder
