"""`ponder pretrain`, `finetune` and `evaluate` with a config file of PonderV2's."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table

from ponder.train.config import ConfigError

if TYPE_CHECKING:
    from ponder.compat.ponderv2 import Config
    from ponder.train.ponderv2.run import RunOptions

# Models of each command.
PRETRAINED = ("PonderIndoor-v2", "PonderOutdoor-v2")
SEGMENTED = ("DefaultSegmentor", "PPT-v1m1")
SCORES = ("mIoU", "mAcc", "allAcc")


def pretrain(options: argparse.Namespace, console: Console) -> None:
    """`ponder pretrain CONFIG.py`."""
    _train(options, console, PRETRAINED, "finetune", SEGMENTED)


def finetune(options: argparse.Namespace, console: Console) -> None:
    """`ponder finetune CONFIG.py`."""
    _train(options, console, SEGMENTED, "pretrain", PRETRAINED)


def evaluate(options: argparse.Namespace, console: Console) -> None:
    """`ponder evaluate CONFIG.py --weights FILE`: the test protocol of a semantic-segmentation config."""
    from ponder.train.ponderv2.run import run_test

    with spoken_warnings():
        config = _config(options.checkpoint, options)
        _check_model(config, SEGMENTED, "pretrain", PRETRAINED)
        found = run_test(config, _run_options(options.checkpoint, config, options))
    _show_scores(found, console)


def _train(
    options: argparse.Namespace, console: Console, models: tuple[str, ...], other: str, theirs: tuple[str, ...]
) -> None:
    from ponder.train.ponderv2.run import run_config

    with spoken_warnings():
        config = _config(options.recipe, options)
        _check_model(config, models, other, theirs)
        summary = run_config(config, _run_options(options.recipe, config, options))
    for name in ("validation", "test"):
        if name in summary:
            _show_scores(summary[name], console, name)


def _config(path: str, options: argparse.Namespace) -> Config:
    from ponder.compat.ponderv2 import load_config

    return load_config(path, options.overrides)


def _check_model(config: Config, models: tuple[str, ...], other: str, theirs: tuple[str, ...]) -> None:
    for section in ("model", "data", "optimizer", "scheduler"):
        if not isinstance(config.get(section), dict):
            raise ConfigError(f"{config.filename}: expected a dict named {section!r}")
    kind = config["model"].get("type")
    if kind in theirs:
        raise ConfigError(f"model.type: {kind} is trained by `ponder {other}`")
    if kind not in models:
        raise ConfigError(f"model.type: expected one of {', '.join(models)}, got {kind!r}")


def _run_options(path: str, config: Config, options: argparse.Namespace) -> RunOptions:
    from ponder.render.ponderv2 import Parity
    from ponder.train.ponderv2.run import RunOptions

    return RunOptions(
        name=Path(path).stem,
        text=config.pretty_text,
        data=None if options.data is None else Path(options.data),
        out=options.out,
        weights=options.weights,
        resume=getattr(options, "resume", False),
        device=options.device,
        embeddings=options.text,
        parity=Parity.corrected() if options.parity == "corrected" else Parity(),
    )


@contextmanager
def spoken_warnings() -> Iterator[None]:
    """Show each warning once, on one rank only, as a sentence without the line of code it came from."""
    told: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        first_rank = os.environ.get("RANK", "0") == "0"
        if first_rank and issubclass(category, UserWarning) and str(message) not in told:
            told.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _show_scores(found: dict[str, Any], console: Console, title: str | None = None) -> None:
    table = Table("class", "IoU", "accuracy", title=title)
    for name, value in found.items():
        if name.startswith("iou/"):
            label = name.removeprefix("iou/")
            table.add_row(label, f"{value:.4f}", f"{found[f'acc/{label}']:.4f}")
    console.print(table)
    console.print(" ".join(f"{name} {found[name]:.4f}" for name in SCORES), highlight=False)
