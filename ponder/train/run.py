"""A pre-training run: folder, scenes, model, steps, checkpoints, previews, final metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ponder.data.sources import load_scenes
from ponder.models.pretrainer import PonderModel, voxelise
from ponder.render.memory import keep_at_most
from ponder.tasks.view_synthesis import ViewMetrics, evaluate_views, summarise
from ponder.train.checkpoint import CheckpointError, load_weights, read_checkpoint, save_checkpoint
from ponder.train.config import ConfigError, TrainConfig, differences, to_dict
from ponder.train.files import OutputError, make_output_folder, remove_leftovers, write_json
from ponder.train.preview import panel, save_png
from ponder.train.progress import Stage
from ponder.train.records import Recorder
from ponder.train.step import PreparedScene, make_optimizer, train_step

CHECKPOINT = "checkpoint.pt"
# Previews show this many scenes, the first held-out view of each.
PREVIEW_SCENES = 4


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence."""


@dataclass
class Progress:
    """What a checkpoint remembers beside weights and optimiser."""

    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0
    initial: dict[str, float] | None = None


@dataclass
class Run:
    """The state of a run in memory."""

    config: TrainConfig
    folder: Path
    device: torch.device
    console: Console
    progress: Progress = field(default_factory=Progress)
    new_folder: bool = False

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        self.model = PonderModel(self.config.model, self.device.type).to(self.device)
        self.optimizer = make_optimizer(self.model, self.config.optim)
        self.scenes: list[PreparedScene] = []

    @property
    def checkpoint(self) -> Path:
        """Where the run's checkpoint lies."""
        return self.folder / CHECKPOINT

    def load_data(self) -> None:
        """Read or generate the scenes."""
        with Stage("preparing scenes", self.console) as stage:
            for scene in load_scenes(self.config.data, stage):
                encoded = voxelise(scene.cloud, self.config.model).to(self.device)
                self.scenes.append(PreparedScene(scene, encoded))

    def save(self) -> None:
        """Write the checkpoint."""
        state = {name: getattr(self.progress, name) for name in Progress.__dataclass_fields__}
        save_checkpoint(self.checkpoint, self.config, self.model, optimizer=self.optimizer.state_dict(), progress=state)

    def restore(self, content: dict[str, Any]) -> None:
        """Continue from a checkpoint's content."""
        load_weights(self.model, content["model"], str(self.checkpoint))
        try:
            self.optimizer.load_state_dict(content["optimizer"])
            self.progress = Progress(**content["progress"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint {self.checkpoint} holds no state to resume from: {error}") from None

    def evaluate(self, tag: str, every_view: bool) -> dict[str, float]:
        """Render held-out views, write previews `preview/<tag>-<scene>.png`, return mean metrics."""
        folder = self.folder / "preview"
        make_output_folder(folder)
        self.model.eval()
        found: list[ViewMetrics] = []
        scenes = self.scenes if every_view else self.scenes[:PREVIEW_SCENES]
        with torch.no_grad(), Stage(f"rendering held-out views ({tag})", self.console) as stage:
            for number, item in enumerate(scenes):
                volume = self.model.encode([item.encoded])
                held = item.scene.heldout
                frames = held if every_view else held.select([0])
                base, total = number * len(frames), len(scenes) * len(frames)
                metrics, images = evaluate_views(self.model, volume, frames, _shifted(stage, base, total))
                found += metrics
                if number < PREVIEW_SCENES:
                    save_png(folder / f"{tag}-{item.scene.name}.png", panel(frames, 0, images[0]))
        self.model.train()
        return summarise(found)

    def train(self) -> None:
        """Run the remaining steps. Memory of volumes' gradients is not kept: the networks need it."""
        config, state = self.config, self.progress
        keep_at_most(0)
        recorder = Recorder(self.folder, state.step)
        self.model.train()
        try:
            if state.initial is None:
                state.initial = self.evaluate(_tag(0), every_view=True)
                recorder.write(0, "heldout", state.initial)
                self.save()
            while state.step < config.steps:
                self._train_until(self._next_pause(), recorder)
                if state.step < config.steps:
                    recorder.write(state.step, "heldout", self.evaluate(_tag(state.step), every_view=False))
        finally:
            recorder.close()

    def _next_pause(self) -> int:
        every = self.config.preview_every
        return min(self.config.steps, (self.progress.step // every + 1) * every) if every else self.config.steps

    def _train_until(self, stop: int, recorder: Recorder) -> None:
        config, state = self.config, self.progress
        with Stage("training", self.console, start=state.step) as stage:
            while state.step < stop:
                began = time.monotonic()
                result = train_step(self.model, self.optimizer, self.scenes, config, state.step)
                state.step += 1
                self._count(result.applied, result.values)
                state.seconds += time.monotonic() - began
                if state.step % config.log_every == 0 or not result.applied:
                    extra = {"seconds": state.seconds, "skipped": float(state.skipped)}
                    recorder.write(state.step, "train", result.values | extra)
                if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                    self.save()
                stage(state.step, config.steps, _note(result.values, state.skipped))

    def _count(self, applied: bool, values: dict[str, float]) -> None:
        state = self.progress
        if applied:
            state.bad_in_a_row = 0
            return
        state.skipped += 1
        state.bad_in_a_row += 1
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        self.console.print(f"step {state.step}: not finite ({bad}); skipped, {state.skipped} so far", highlight=False)
        if state.bad_in_a_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"training stopped at step {state.step}: {state.bad_in_a_row} non-finite steps in a row ({bad})"
            )


def _shifted(stage: Stage, base: int, total: int) -> Callable[[int, int], None]:
    """Reports of one part of a stage as reports of the whole."""
    return lambda done, _: stage(base + done, total)


def _tag(step: int) -> str:
    return f"step-{step:06d}"


def _note(values: dict[str, float], skipped: int) -> str:
    shown = " ".join(f"{name} {values[name]:.3f}" for name in ("loss", "colour", "depth", "sdf") if name in values)
    return f"{shown} skipped {skipped}" if skipped else shown


def open_run(config: TrainConfig, folder: Path, device: torch.device, resume: bool, console: Console) -> Run:
    """Start or resume a run in a folder.

    A folder that was killed before its first checkpoint starts from the beginning.

    Raises:
        OutputError: the folder cannot be written, or holds a run and `resume` is False.
        CheckpointError, ConfigError: the checkpoint is unusable or belongs to other settings.
    """
    checkpoint = folder / CHECKPOINT
    new_folder = not folder.exists()
    if not resume:
        if folder.is_dir() and any((folder / name).exists() for name in (CHECKPOINT, "config.json")):
            raise OutputError(f"output folder {folder} already holds a run: add --resume, or choose another --out")
        make_output_folder(folder)
    elif not folder.is_dir():
        raise OutputError(f"--resume: there is no run in {folder}")
    content = None
    if checkpoint.exists():
        saved, content = read_checkpoint(checkpoint)
        changed = differences(saved, config)
        if changed:
            raise ConfigError(f"--resume: the run in {folder} has other settings ({'; '.join(changed)})")
    make_output_folder(folder)
    run = Run(config, folder, device, console, new_folder=new_folder)
    if content is not None:
        run.restore(content)
        console.print(f"resuming {folder} at step {run.progress.step} of {config.steps}", highlight=False)
    elif resume:
        console.print(f"{folder} has no checkpoint yet: starting at step 0", highlight=False)
    return run


def pretrain(run: Run) -> dict[str, Any]:
    """Run to the end; returns what `metrics.json` holds."""
    remove_leftovers(run.folder)
    try:
        run.load_data()
    except BaseException:
        if run.new_folder:
            run.folder.rmdir()  # nothing was written yet
        raise
    write_json(run.folder / "config.json", to_dict(run.config))
    if not run.checkpoint.exists():
        run.save()
    run.train()
    return finish(run)


def finish(run: Run) -> dict[str, Any]:
    """Final views, mesh and summary."""
    from ponder.train.finish import mesh_report

    final = run.evaluate(_tag(run.progress.step), every_view=True)
    mesh = mesh_report(run)
    summary = {
        "steps": run.progress.step,
        "skipped_steps": run.progress.skipped,
        "training_seconds": round(run.progress.seconds, 1),
        "device": str(run.device),
        "initial": run.progress.initial,
        "final": final,
        "mesh": mesh,
    }
    write_json(run.folder / "metrics.json", summary)
    return summary
