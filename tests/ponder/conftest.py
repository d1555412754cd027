"""Fixtures of the pipeline's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ponder.cli import main
from ponder.data.synthetic.ponderv2_layouts import write_s3dis, write_scannet, write_structured3d
from tests.ponder.tiny import tiny

# Enough steps for the SDF of the room to cross zero.
FINISHED = ("steps=30", "preview_every=15", "optim.lr=1e-2", "loss.truncation=0.3")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run on one procedural room."""
    folder = tmp_path_factory.mktemp("run") / "out"
    assert main(["pretrain", "demo", *tiny(*FINISHED), "--out", str(folder), "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three datasets, to read only."""
    root = tmp_path_factory.mktemp("data")
    for write in (write_scannet, write_s3dis, write_structured3d):
        write(root, points=3000)
    return root


@pytest.fixture
def own(world: Path, tmp_path: Path) -> Path:
    """A copy of the datasets to break; of the recordings only the first training scene."""
    ignore = shutil.ignore_patterns("scene0001_00*", "scene0002_00*", "scene0003_00*")
    shutil.copytree(world, tmp_path / "data", ignore=ignore)
    return tmp_path / "data"
