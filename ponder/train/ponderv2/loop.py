"""The training loop of PonderV2's configurations: steps, records, checkpoints, validation after each epoch."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from rich.console import Console

from ponder.render.memory import keep_at_most
from ponder.train.checkpoint import CheckpointError, load_weights
from ponder.train.ponderv2 import state
from ponder.train.ponderv2.distributed import PeerError, mean_over_ranks, share_buffers
from ponder.train.ponderv2.settings import TrainerConfig
from ponder.train.ponderv2.signals import Stopped, StopRequest, stop_requests
from ponder.train.ponderv2.state import Progress
from ponder.train.ponderv2.step import Batch, Learner, StepResult, seed_step, train_step
from ponder.train.progress import Stage
from ponder.train.records import Recorder
from ponder.train.run import TrainingError

SHOWN = ("loss", "depth_loss", "rgb_loss", "semantic_loss")
MEBIBYTE = 2**20


class Validated(NamedTuple):
    """Result of a validation: all numbers to record, and the name of the one that chooses the best weights."""

    values: dict[str, float]
    chooses: str


class Batches(Protocol):
    """The training data of a rank."""

    def __len__(self) -> int:
        """Steps of an epoch."""
        ...

    @property
    def skipped(self) -> Counter[str]:
        """What was left out so far, by reason."""
        ...

    def steps(self, epoch: int, start: int) -> Iterator[Sequence[Batch]]:
        """The parts of each step of an epoch, from step `start` of it on."""
        ...


class Schedule(Protocol):
    """Learning rate and momentum as functions of the number of updates."""

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set them for a step."""
        ...

    def state_dict(self, step: int) -> dict[str, Any]:
        """What PonderV2's scheduler would save after that many steps."""
        ...


@dataclass
class Trainer:
    """A run in memory.

    Attributes:
        settings: of the run, with the seed decided.
        learner: model, optimiser and precision.
        batches: training data of this rank.
        schedule: of learning rate and momentum.
        folder: of the run; checkpoints lie in its `model` folder.
        console: where to speak; silent on all ranks but the first.
        validate: called after each epoch with the model in evaluation mode on rank 0's buffers; None does not validate.
        progress: where the run is.
    """

    settings: TrainerConfig
    learner: Learner
    batches: Batches
    schedule: Schedule
    folder: Path
    console: Console
    validate: Callable[[], Validated] | None = None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        if self.settings.seed is None:
            raise ValueError("settings.seed: expected a decided seed, got None")
        self.seed = self.settings.seed
        self.last: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self._recorder: Recorder | None = None

    @property
    def models(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "model"

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return len(self.batches) * self.settings.epochs

    def train(self) -> None:
        """Run the remaining steps. Memory of volumes' gradients is not kept: the networks need it.

        Raises:
            TrainingError: too many non-finite steps in a row.
            Stopped: asked to stop; the state is saved.
            PeerError: another rank was lost; rank 0 has saved the state of the last finished step.
        """
        keep_at_most(0)
        if self.learner.world.is_main:
            self._recorder = Recorder(self.folder, self.progress.step)
        try:
            with stop_requests() as request:
                self._run(request)
        finally:
            if self._recorder is not None:
                self._recorder.close()

    def _run(self, request: StopRequest) -> None:
        try:
            while self.progress.epoch < self.settings.epochs:
                self._train_epoch(request)
                self._end_epoch()
        except PeerError as error:
            # torchrun, too, sees that a process is gone, and ends the others.
            request.ending = True
            self.save()
            saved = f"the state after step {self.progress.step} is saved, go on with --resume"
            raise PeerError(f"{error}; {saved}") from error
        except RuntimeError as error:
            # Signals often go to the loader's processes too, whose end is then an error here.
            if request.number == 0 or isinstance(error, TrainingError):
                raise
            self._stop(request)

    def _train_epoch(self, request: StopRequest) -> None:
        done = self.progress
        self.learner.model.train()
        start = done.step - done.epoch * len(self.batches)
        title = f"epoch {done.epoch + 1}/{self.settings.epochs}"
        with Stage(title, self.console, start=start) as stage:
            before = time.monotonic()
            for parts in self.batches.steps(done.epoch, start):
                loaded = time.monotonic()
                result = self._step(parts, request)
                finished = time.monotonic()
                done.seconds += finished - before
                self._log(result, parts, loaded - before, finished - loaded)
                self._save_or_stop(result, request)
                stage(done.step - done.epoch * len(self.batches), len(self.batches), self._note())
                before = time.monotonic()

    def _step(self, parts: Sequence[Batch], request: StopRequest) -> StepResult:
        done = self.progress
        seed_step(self.seed, done.step, self.learner.world.rank)
        self.schedule.apply(self.learner.optimizer, done.updates)
        result = train_step(self.learner, parts, stop=request.number != 0)
        done.step += 1
        if result.applied:
            done.updates += 1
            done.bad_in_a_row = 0
        else:
            done.skipped += 1
            done.bad_in_a_row += result.bad
        return result

    def _log(self, result: StepResult, parts: Sequence[Batch], waited: float, computed: float) -> None:
        done = self.progress
        group = self.learner.optimizer.param_groups[0]
        scenes, points = _size(parts)
        self.last = result.values | {
            "lr": group["lr"],
            "data_seconds": waited,
            "step_seconds": computed,
            "scenes_per_second": self.learner.world.size * scenes / (waited + computed),
            "points_per_second": self.learner.world.size * points / (waited + computed),
            "memory_mib": _peak_memory(self.learner.device),
            "skipped": float(done.skipped),
        }
        if self.learner.scaler.is_enabled():
            self.last["loss_scale"] = self.learner.scaler.get_scale()
        if done.step % self.settings.log_every == 0 or not result.applied:
            self._record("train", mean_over_ranks(self.last, self.learner.world))
        if result.bad:
            self._report_bad(result.values)

    def _report_bad(self, values: dict[str, float]) -> None:
        done = self.progress
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        self.console.print(f"step {done.step}: not finite ({bad}); skipped, {done.skipped} so far", highlight=False)
        if done.bad_in_a_row >= self.settings.max_bad_steps:
            raise TrainingError(
                f"training stopped at step {done.step}: {done.bad_in_a_row} non-finite steps in a row ({bad})"
            )

    def _save_or_stop(self, result: StepResult, request: StopRequest) -> None:
        done = self.progress
        if result.stop:
            self._stop(request)
        if done.step % self.settings.save_every == 0:
            self.save()

    def _stop(self, request: StopRequest) -> NoReturn:
        self.save()
        text = f"stopped by {request.name} after step {self.progress.step} of {self.total_steps}"
        raise Stopped(f"{text}; continue with --resume", request.number) from None

    def _end_epoch(self) -> None:
        done = self.progress
        names = [state.LAST]
        done.epoch += 1
        if self.validate is not None and self._improved():
            names.append(state.BEST)
        every = self.settings.hooks.save_every_epochs
        if every is not None and done.epoch % every == 0:
            names.append(state.epoch_file(done.epoch))
        self.save(names)

    def _improved(self) -> bool:
        """Validate and record; whether the score is the best so far."""
        assert self.validate is not None
        # Each rank has seen other batches: all take the statistics that are saved.
        share_buffers(self.learner.model, self.learner.world)
        values, chooses = self.validate()
        done = self.progress
        self.validation = values
        self._record("validation", values)
        better = values[chooses] > done.best
        done.best = max(done.best, values[chooses])
        shown = " ".join(f"{name} {value:.4f}" for name, value in values.items() if "/" not in name)
        self.console.print(f"validation after epoch {done.epoch}: {shown}", highlight=False, soft_wrap=True)
        return better

    def _record(self, group: str, values: dict[str, float]) -> None:
        if self._recorder is not None:
            self._recorder.write(self.progress.step, group, values)

    def _note(self) -> str:
        shown = " ".join(f"{name} {self.last[name]:.3f}" for name in SHOWN if name in self.last)
        return f"{shown} skipped {self.progress.skipped}" if self.progress.skipped else shown

    def save(self, names: Sequence[str] = (state.LAST,)) -> None:
        """Write checkpoints; on rank 0 only."""
        if not self.learner.world.is_main:
            return
        scaler = self.learner.scaler
        content = {
            "epoch": self.progress.epoch,
            "optimizer": self.learner.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(self.progress.updates),
            "scaler": scaler.state_dict() if scaler.is_enabled() else None,
            "best_metric_value": self.progress.best,
            state.OWN_KEY: {"progress": asdict(self.progress), "settings": self.settings_of_a_run()},
        }
        state.write(self.models, self.learner.model, names, content)

    def settings_of_a_run(self) -> dict[str, Any]:
        """Numbers that a resumed run must share."""
        own = self.settings
        return {
            "trainer": own.trainer, "epochs": own.epochs, "loop": own.loop, "amp": own.amp, "mix_prob": own.mix_prob,
            "max_point": own.max_point, "sync_bn": own.sync_bn, "seed": own.seed, "accumulate": own.accumulate,
            "global_batch": own.batch_size * self.learner.world.size,
        }  # fmt: skip

    def restore(self, content: dict[str, Any], source: Path) -> None:
        """Continue from a checkpoint's content.

        Raises:
            CheckpointError: the checkpoint is of another model or optimiser.
        """
        load_weights(self.learner.model, _without_prefix(content["state_dict"]), str(source))
        try:
            self.learner.optimizer.load_state_dict(content["optimizer"])
            if self.learner.scaler.is_enabled() and content["scaler"] is not None:
                self.learner.scaler.load_state_dict(content["scaler"])
            self.progress = state.progress_of(content, len(self.batches))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint {source} holds no state to resume from: {error}") from None


def _without_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without the "module." that PonderV2's parallel runs write."""
    return {name.removeprefix("module."): value for name, value in weights.items()}


def _size(parts: Sequence[Batch]) -> tuple[int, int]:
    """Numbers of scenes and points of a step."""
    offsets = [part["offset"] for part in parts if "offset" in part]
    return sum(len(offset) for offset in offsets), sum(int(offset[-1]) for offset in offsets)


def _peak_memory(device: torch.device) -> float:
    """Most memory the run has used so far, MiB: allocated on the GPU, or resident where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEBIBYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024
