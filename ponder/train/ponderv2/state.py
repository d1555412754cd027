"""Checkpoints of a run: PonderV2's files, with what an exact resume needs beside its keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ponder.train.checkpoint import CheckpointError, read_file
from ponder.train.files import write_bytes
from ponder.train.ponderv2.schedule import updates_done
from ponder.train.ponderv2.weights import save_checkpoint

LAST, BEST = "model_last.pth", "model_best.pth"
# Our own part of a file; the rest has PonderV2's keys.
OWN_KEY = "ponder"
KEYS = ("epoch", "state_dict", "optimizer", "scheduler", "scaler", "best_metric_value")


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: finished passes over the looped data.
        step: steps taken, skipped ones included; the place in the data.
        updates: steps that changed the weights; the place in the schedule.
        skipped: steps with numbers that were not finite.
        bad_in_a_row: of them, the last ones that a loss scale does not explain.
        seconds: spent in steps and waiting for data.
        best: best validation score, -inf before the first.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0
    best: float = -math.inf


def epoch_file(epoch: int) -> str:
    """Name of the checkpoint kept after an epoch, counted from 1."""
    return f"epoch_{epoch}.pth"


def write(folder: Path, model: torch.nn.Module, names: Sequence[str], content: dict[str, Any]) -> None:
    """Write a checkpoint under one or several names, each atomically.

    Args:
        folder: where to.
        model: its weights and buffers are stored.
        names: of the files.
        content: the values of PonderV2's other keys and of ours.
    """
    first, *others = names
    save_checkpoint(folder / first, model, **content)
    for name in others:
        write_bytes(folder / name, (folder / first).read_bytes())


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours or of PonderV2's.

    Raises:
        CheckpointError: missing, truncated, or without the keys of a checkpoint.
    """
    content = read_file(path)
    missing = [key for key in KEYS if key not in content] if isinstance(content, dict) else list(KEYS)
    if missing:
        raise CheckpointError(f"checkpoint {path} holds no run to resume: it lacks {', '.join(missing)}")
    return dict(content)


def progress_of(content: dict[str, Any], steps_per_epoch: int) -> Progress:
    """How far the run of a checkpoint is; PonderV2's own files are from the end of an epoch."""
    own = content.get(OWN_KEY)
    if own is not None:
        known = {field.name for field in fields(Progress)}
        return Progress(**{name: value for name, value in own["progress"].items() if name in known})
    epoch = int(content["epoch"])
    updates = updates_done(content["scheduler"])
    return Progress(epoch, epoch * steps_per_epoch, updates, best=float(content["best_metric_value"]))
