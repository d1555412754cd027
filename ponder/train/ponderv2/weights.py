"""Weights in PonderV2's files: read into a model by name and shape, written so that PonderV2 reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ponder.train.checkpoint import CheckpointError, read_file
from ponder.train.files import write_atomically

# What parallel training puts before every name.
PREFIX = "module."
SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's weights.

    Attributes:
        source: the file.
        loaded: names in the model that took the file's values.
        missing: names in the model that the file lacks.
        unexpected: names in the file that the model lacks.
        mismatched: names in both whose shapes differ; the model keeps its own values.
        shapes: of these, the shape in the file and that in the model.
    """

    source: Path
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    shapes: dict[str, tuple[list[int], list[int]]]

    @property
    def complete(self) -> bool:
        """Whether file and model agree in every name and shape."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        lines = [f"loaded {len(self.loaded)} of {total} tensors from {self.source}"]
        different = [f"{name} {there}, here {here}" for name, (there, here) in self.shapes.items()]
        for title, names in (
            ("missing in the file", self.missing),
            ("unknown to the model", self.unexpected),
            ("of another shape", different),
        ):
            if names:
                lines.append(f"  {len(names)} {title}: {_first(names)}")
        return "\n".join(lines)


def _first(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def read_weights(path: str | PathLike[str]) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint ({"state_dict": ...}) or of a bare state dict, names as they are in the file.

    Raises:
        CheckpointError: missing, truncated or without weights.
    """
    content = read_file(Path(path))
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"checkpoint {path} holds no state dict")
    tensors = {str(name): value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"checkpoint {path} holds no weights")
    return tensors


def load_checkpoint(
    model: nn.Module, path: str | PathLike[str], keywords: str = "", replacement: str | None = None
) -> LoadReport:
    """Load the weights that fit a model by name and shape, and report the rest.

    Names match with or without PonderV2's "module." in the file and around the model, on any number of processes.

    Args:
        model: is changed; a DistributedDataParallel around it is looked through.
        path: a checkpoint of PonderV2 or of `save_checkpoint`, or a bare state dict.
        keywords: part of the file's names, which begin with "module." here, that is replaced wherever it stands.
        replacement: what is put for it; None changes no name. Weights of a bare model fit one that holds it as
            `backbone` with keywords "module." and replacement "module.backbone.".

    Returns:
        a report; `str` of it is a few readable lines.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or nothing in it fits the model.

    Reference:
        PonderV2, ponder/engines/hooks/misc.py, CheckpointLoader, whose one-process branch cuts names that have no
        "module." and whose load fails for other shapes.
    """
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) else model
    own: dict[str, torch.Tensor] = bare.state_dict()
    found = {_renamed(name, keywords, replacement): value for name, value in read_weights(path).items()}
    common = [name for name in own if name in found]
    fitting = {name: found[name] for name in common if found[name].shape == own[name].shape}
    mismatched = [name for name in common if name not in fitting]
    report = LoadReport(
        source=Path(path),
        loaded=list(fitting),
        missing=[name for name in own if name not in found],
        unexpected=[name for name in found if name not in own],
        mismatched=mismatched,
        shapes={name: (list(found[name].shape), list(own[name].shape)) for name in mismatched},
    )
    if not fitting:
        raise CheckpointError(
            f"checkpoint {path} has nothing that fits the model: it holds {_first(list(found))}; "
            f"the model holds {_first(list(own))}"
        )
    bare.load_state_dict(fitting, strict=False)
    return report


def _renamed(name: str, keywords: str, replacement: str | None) -> str:
    name = PREFIX + name.removeprefix(PREFIX)
    if keywords and replacement is not None:
        name = name.replace(keywords, replacement)
    return name.removeprefix(PREFIX)


def save_checkpoint(path: str | PathLike[str], model: nn.Module, module_prefix: bool = False, **state: Any) -> None:
    """Write a checkpoint with PonderV2's keys, atomically.

    Args:
        path: file to write.
        model: its weights and buffers are stored; a DistributedDataParallel around it is looked through.
        module_prefix: put "module." before every name, as PonderV2's loader expects on a single process.
        state: values of PonderV2's other keys, epoch (0 if not given), optimizer, scheduler, scaler (None) and
            best_metric_value (-inf), and of keys of your own: state dicts, tensors and plain values.
    """
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) else model
    prefix = PREFIX if module_prefix else ""
    content = {
        "epoch": 0,
        "state_dict": {prefix + name: value for name, value in bare.state_dict().items()},
        "optimizer": None,
        "scheduler": None,
        "scaler": None,
        "best_metric_value": -math.inf,
        **state,
    }
    write_atomically(Path(path), lambda stream: torch.save(content, stream))
