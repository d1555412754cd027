"""A whole run from a PonderV2 configuration: folder, data, model, training, test, summary."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ponder.data.ponderv2 import describe
from ponder.data.scene import DataError
from ponder.models.ponderv2.build import build_model
from ponder.models.sparse_engine import SparseEngineError
from ponder.render.ponderv2 import Parity
from ponder.train.checkpoint import CheckpointError
from ponder.train.config import ConfigError
from ponder.train.device import choose_device
from ponder.train.files import OutputError, make_output_folder, remove_leftovers, write_json, write_text
from ponder.train.folders import output_folder
from ponder.train.ponderv2 import state
from ponder.train.ponderv2.distributed import World, from_main, local_device, process_group
from ponder.train.ponderv2.evaluation import Segmentation, run_protocol
from ponder.train.ponderv2.keys import unknown_keys
from ponder.train.ponderv2.loaders import training_batches
from ponder.train.ponderv2.loop import Trainer
from ponder.train.ponderv2.optim import build_optimizer
from ponder.train.ponderv2.schedule import build_schedule
from ponder.train.ponderv2.settings import SEED_RANGE, TrainerConfig, differences, ignored, trainer_config
from ponder.train.ponderv2.step import Learner
from ponder.train.ponderv2.sync_batch_norm import convert
from ponder.train.ponderv2.weights import load_checkpoint
from ponder.train.records import finite

Config = Mapping[str, Any]
# Errors that say themselves what they are about.
EXPECTED = (CheckpointError, ConfigError, DataError, SparseEngineError)
# PonderV2's default folder, which stands for none.
DEFAULT_FOLDER = "exp/default"
CONFIG_FILE = "config.py"


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about a run.

    Attributes:
        name: of the default output folder.
        text: the configuration as text, kept in the output folder.
        data: folder that stands for the "data" at the start of the configuration's paths.
        out: output folder; None takes the configuration's `save_path`, else the first free default.
        weights: file to start from; None takes the configuration's `weight`.
        resume: continue the run of the output folder.
        device: "auto", "cpu" or "cuda".
        embeddings: source of class embeddings, see `make_text_table`; None is the model's default.
        parity: which departures of PonderV2's code to keep.
    """

    name: str
    text: str = ""
    data: Path | None = None
    out: str | None = None
    weights: str | None = None
    resume: bool = False
    device: str = "auto"
    embeddings: str | None = None
    parity: Parity = field(default_factory=Parity)


@contextmanager
def config_errors(section: str) -> Iterator[None]:
    """Turn the errors of a section's values, which name what is wrong, into ConfigError."""
    try:
        yield
    except EXPECTED:
        raise
    except (ValueError, TypeError) as error:
        text = str(error)
        raise ConfigError(text if text.startswith(section) else f"{section}: {text}") from error


def run_config(config: Config, options: RunOptions) -> dict[str, Any]:
    """Train as a configuration says, on this rank of as many as torchrun started.

    Args:
        config: of PonderV2's form.
        options: of the command line.

    Returns:
        what `metrics.json` holds.

    Raises:
        ConfigError, DataError, CheckpointError, OutputError: something that was asked for cannot be done.
        TrainingError, Stopped, PeerError: see `Trainer.train`.
    """
    device = choose_device(options.device)
    settings = trainer_config(config, device_type=device.type)
    with process_group(device, settings.timeout) as world:
        trainer = open_run(config, options, local_device(device, world), world)
        trainer.train()
        return finish(trainer, config, options)


def open_run(config: Config, options: RunOptions, device: torch.device, world: World) -> Trainer:
    """Build everything, go to where a resumed run was, and prepare the output folder."""
    settings = trainer_config(config, world.size, device.type)
    console = Console(quiet=not world.is_main)
    resume = options.resume or settings.resume
    folder = _folder(config, options, resume, device, world)
    content = _resumed(folder, resume, console)
    settings = replace(settings, seed=_seed(settings, content, device, world))
    ranks = f" and {world.size - 1} more" if world.size > 1 else ""
    console.print(f"{options.name} on {device}{ranks}, writing to {folder}", highlight=False, soft_wrap=True)
    _speak(config, settings, console)
    with config_errors("data"):
        batches = training_batches(config, settings, world, options.data, options.parity, device.type == "cuda")
        segmentation = Segmentation(config, settings, world, options.data) if settings.hooks.validate else None
    model = build(config, options, device, settings.seed or 0)
    if settings.sync_bn and world.size > 1:
        convert(model)
    if content is None:
        load_weights(model, options.weights or settings.weight, settings, console)
    optimizer = build_optimizer(model, config["optimizer"], config.get("param_dicts"))
    schedule = build_schedule(config["scheduler"], optimizer, len(batches) * settings.epochs, options.parity)
    amp = None if settings.amp is None else getattr(torch, settings.amp)
    learner = Learner(model, optimizer, device, world, amp, settings.find_unused)
    trainer = Trainer(settings, learner, batches, schedule, folder, console)
    if segmentation is not None:
        trainer.validate = lambda: segmentation.validate(model, device)
    if content is not None:
        _continue(trainer, content)
    if world.is_main:
        _prepare(trainer, options.text)
    return trainer


def build(config: Config, options: RunOptions, device: torch.device, seed: int) -> nn.Module:
    """The model of a configuration, with the same weights on every rank and in every run of a seed."""
    torch.manual_seed(seed)
    with config_errors("model"):
        return build_model(config["model"], options.parity, options.embeddings, device)


def load_weights(model: nn.Module, path: str | None, settings: TrainerConfig, console: Console) -> None:
    """Load the weights to start from, as the CheckpointLoader hook says.

    Raises:
        CheckpointError: no such file, nothing in it fits, or not all of it where the hook is strict.
    """
    if path is None:
        return
    hooks = settings.hooks
    report = load_checkpoint(model, path, hooks.keywords, hooks.replacement)
    console.print(str(report), highlight=False, soft_wrap=True)
    if hooks.strict and not report.complete:
        raise CheckpointError(f"checkpoint {path} does not hold the model's weights exactly, and the hook is strict")


def load_exactly(model: nn.Module, path: str | Path) -> None:
    """Load weights that a model was trained to.

    Raises:
        CheckpointError: no such file, or it is of another model.
    """
    report = load_checkpoint(model, path)
    if not report.complete:
        raise CheckpointError(f"checkpoint {path} is not of this model: {' '.join(str(report).split())}")


def _folder(config: Config, options: RunOptions, resume: bool, device: torch.device, world: World) -> Path:
    """The output folder, which all ranks choose before any of them writes."""
    own = config.get("save_path", DEFAULT_FOLDER)
    folder = output_folder(options.out or (own if own != DEFAULT_FOLDER else None), options.name, resume)
    started = any((folder / name).exists() for name in (CONFIG_FILE, "model"))
    from_main(0, device, world)
    if started and not resume:
        raise OutputError(f"output folder {folder} already holds a run: add --resume, or choose another --out")
    if resume and not folder.is_dir():
        raise OutputError(f"--resume: there is no run in {folder}")
    return folder


def _resumed(folder: Path, resume: bool, console: Console) -> dict[str, Any] | None:
    """Content of the last checkpoint of a run that goes on."""
    path = folder / "model" / state.LAST
    if not resume:
        return None
    if not path.exists():
        console.print(f"{folder} has no checkpoint yet: starting at step 0", highlight=False, soft_wrap=True)
        return None
    return state.read(path)


def _seed(settings: TrainerConfig, content: dict[str, Any] | None, device: torch.device, world: World) -> int:
    """The seed of the run: the configuration's, else that of the run that goes on, else one at random."""
    if settings.seed is not None:
        return settings.seed
    if content is not None and state.OWN_KEY in content:
        return int(content[state.OWN_KEY]["settings"]["seed"])
    return from_main(secrets.randbelow(SEED_RANGE), device, world)


def _speak(config: Config, settings: TrainerConfig, console: Console) -> None:
    """Say what of the configuration has no effect."""
    for key, reason in ignored(config).items():
        console.print(f"{key} has no effect: {reason}", highlight=False, soft_wrap=True, markup=False)
    for sentence in unknown_keys(config):
        console.print(sentence, highlight=False, soft_wrap=True, style="yellow")
    if config.get("enable_amp") and settings.amp is None:
        console.print("mixed precision is off on the CPU; amp_dtype=bfloat16 turns it on", highlight=False)


def _continue(trainer: Trainer, content: dict[str, Any]) -> None:
    """Go to the state of a checkpoint.

    Raises:
        ConfigError: the run had other settings.
    """
    own = content.get(state.OWN_KEY)
    changed = differences(own["settings"], trainer.settings_of_a_run()) if own is not None else []
    if changed:
        raise ConfigError(f"--resume: the run in {trainer.folder} has other settings ({'; '.join(changed)})")
    trainer.restore(content, trainer.models / state.LAST)
    text = f"resuming {trainer.folder} at step {trainer.progress.step} of {trainer.total_steps}"
    trainer.console.print(text, highlight=False, soft_wrap=True)


def _prepare(trainer: Trainer, text: str) -> None:
    make_output_folder(trainer.folder)
    make_output_folder(trainer.models)
    remove_leftovers(trainer.folder)
    remove_leftovers(trainer.models)
    if not (trainer.folder / CONFIG_FILE).exists():
        write_text(trainer.folder / CONFIG_FILE, text)


def finish(trainer: Trainer, config: Config, options: RunOptions) -> dict[str, Any]:
    """Run the test protocol if a hook asks for it, and write `metrics.json`."""
    done, settings, learner = trainer.progress, trainer.settings, trainer.learner
    summary: dict[str, Any] = {
        "epochs": done.epoch,
        "steps": done.step,
        "updates": done.updates,
        "skipped_steps": done.skipped,
        "training_seconds": round(done.seconds, 1),
        "device": str(learner.device),
        "processes": learner.world.size,
        "seed": settings.seed,
        "last_step": {name: finite(value) for name, value in trainer.last.items()},
    }
    if trainer.batches.skipped:
        summary["left_out"] = dict(trainer.batches.skipped)
        trainer.console.print(f"left out: {describe(trainer.batches.skipped)}", highlight=False, soft_wrap=True)
    if trainer.validation:
        summary["validation"] = {name: finite(value) for name, value in trainer.validation.items()}
        summary["best"] = finite(done.best)
    if settings.hooks.test:
        best = trainer.models / state.BEST
        if not settings.hooks.test_last and best.exists():
            load_exactly(learner.model, best)
        with config_errors("data"):
            summary["test"] = run_protocol(
                config, settings, learner.model, learner.world, options.data, trainer.folder, trainer.console
            )
    if learner.world.is_main:
        write_json(trainer.folder / "metrics.json", summary)
    trainer.console.print(f"outputs in {trainer.folder}", highlight=False, soft_wrap=True)
    return summary


def run_test(config: Config, options: RunOptions) -> dict[str, float]:
    """Run the test protocol of a semantic-segmentation configuration with the weights of a file.

    Returns:
        mIoU, mAcc, allAcc, and iou/NAME and acc/NAME of each class; also in `metrics.json` of the output folder.

    Raises:
        ConfigError, DataError, CheckpointError, OutputError: something that was asked for cannot be done.
    """
    device = choose_device(options.device)
    settings = trainer_config(config, device_type=device.type)
    path = options.weights or settings.weight
    if path is None or options.out is None:
        raise ConfigError(f"{'--weights' if path is None else '--out'}: expected a path, got none")
    with process_group(device, settings.timeout) as world:
        device, console = local_device(device, world), Console(quiet=not world.is_main)
        folder = Path(options.out)
        if world.is_main:
            make_output_folder(folder)
        from_main(0, device, world)
        model = build(config, options, device, settings.seed or 0)
        load_exactly(model, path)
        with config_errors("data"):
            found = run_protocol(config, settings, model, world, options.data, folder, console)
        if world.is_main:
            write_json(folder / "metrics.json", found)
        return found
