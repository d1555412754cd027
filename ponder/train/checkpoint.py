"""Checkpoints: one dictionary of tensors and plain values, written atomically, read without running code."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ponder.train.config import ConfigError, TrainConfig, from_dict, to_dict
from ponder.train.files import write_atomically
from ponder.train.foreign import read_foreign

FORMAT = "ponder-pretrain"
VERSION = 1
# What torch.load raises for files that are damaged or something else.
UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
)


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint; the message is one sentence."""


def save_checkpoint(path: Path, config: TrainConfig, model: nn.Module, **state: Any) -> None:
    """Write a checkpoint atomically.

    Args:
        path: file to write.
        config: the run's configuration.
        model: its weights and buffers are stored.
        state: further tensors, state dicts and plain values (optimiser, step, counters).
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": to_dict(config),
        "model": model.state_dict(),
        **state,
    }
    write_atomically(path, lambda stream: torch.save(content, stream))


def read_file(path: Path) -> Any:
    """What torch.save wrote: tensors, on the CPU, and plain values; other objects in it become `Placeholder`s.

    Raises:
        CheckpointError: missing, truncated or not such a file.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return read_foreign(path)
    except UNREADABLE:
        raise CheckpointError(f"checkpoint {path} is truncated or not a checkpoint file") from None


def read_checkpoint(path: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """Read a checkpoint.

    Returns:
        its configuration and the whole dictionary.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or of another version.
    """
    content = read_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} was not written by `ponder pretrain`")
    if content.get("version") != VERSION:
        raise CheckpointError(f"checkpoint {path}: expected version {VERSION}, got {content.get('version')}")
    try:
        return from_dict(content["config"]), content
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} holds a configuration this version cannot read: {error}") from None


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Load weights by name and shape, all or nothing.

    Raises:
        CheckpointError: the weights belong to another architecture; the first difference is named.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or extra or shapes:
        if shapes:
            name = shapes[0]
            detail = f"{name} has shape {list(weights[name].shape)}, expected {list(own[name].shape)}"
        else:
            detail = f"it lacks {missing[0]}" if missing else f"it has the unknown {extra[0]}"
        raise CheckpointError(f"checkpoint {source} is of another architecture: {detail}")
    model.load_state_dict(weights)
