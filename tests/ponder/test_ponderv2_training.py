"""Settings, steps and the loop of PonderV2's configurations, on a small model."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ponder.train.checkpoint import CheckpointError
from ponder.train.config import ConfigError
from ponder.train.ponderv2 import state
from ponder.train.ponderv2.loop import Trainer, Validated
from ponder.train.ponderv2.settings import HookConfig, TrainerConfig, differences, ignored, trainer_config
from ponder.train.ponderv2.signals import Stopped
from ponder.train.ponderv2.step import seed_step, train_step
from ponder.train.run import TrainingError
from tests.ponder.ponderv2_toys import ToyBatches, toy_learner, toy_trainer

# What PonderV2's default_runtime.py and a pre-training file say.
RUNTIME: dict[str, Any] = {
    "weight": None, "resume": False, "evaluate": False, "seed": None, "num_worker": 64, "batch_size": 32,
    "batch_size_val": None, "batch_size_test": None, "epoch": 2000, "eval_epoch": 100, "sync_bn": False,
    "enable_amp": True, "empty_cache": True, "find_unused_parameters": True, "mix_prob": 0, "max_point": 2000000,
    "train": {"type": "DefaultTrainer"},
    "hooks": [
        {"type": "CheckpointLoader"}, {"type": "IterationTimer", "warmup_iter": 2}, {"type": "InformationWriter"},
        {"type": "CheckpointSaver", "save_freq": None},
    ],
}  # fmt: skip


def test_settings_are_those_of_a_rank() -> None:
    found = trainer_config(RUNTIME, world_size=4)
    assert (found.epochs, found.loop, found.batch_size, found.workers) == (100, 20, 8, 16)
    assert (found.batch_size_val, found.amp, found.max_point, found.find_unused) == (1, "float16", 2_000_000, True)
    assert found.hooks == HookConfig()
    assert trainer_config(RUNTIME | {"amp_dtype": "bfloat16"}).amp == "bfloat16"
    assert trainer_config(RUNTIME | {"enable_amp": False}).amp is None
    assert trainer_config(RUNTIME, device_type="cpu").amp is None
    assert trainer_config(RUNTIME | {"amp_dtype": "float16"}, device_type="cpu").amp == "float16"
    assert trainer_config(RUNTIME | {"max_point": -1}).max_point is None
    assert trainer_config({}) == TrainerConfig(), "an empty file has the defaults of default_runtime.py"


HOOKS = [
    {"type": "CheckpointLoader", "keywords": "module.", "replacement": "module.backbone.", "strict": True},
    {"type": "SemSegEvaluator"},
    {"type": "CheckpointSaver", "save_freq": 5},
    {"type": "PreciseEvaluator", "test_last": True},
]


def test_hooks_are_read() -> None:
    found = trainer_config({"hooks": HOOKS, "evaluate": True}).hooks
    assert found == HookConfig("module.", "module.backbone.", True, 5, True, True, True)
    assert not trainer_config({"hooks": HOOKS, "evaluate": False}).hooks.validate
    assert trainer_config({"hooks": [{"type": "CheckpointLoader", "keywords": "a"}]}).hooks.replacement == "a"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 150}, "epoch: expected a multiple of eval_epoch 100, got 150"),
        ({"batch_size": 30}, "batch_size: expected a multiple of the 4 ranks, got 30"),
        ({"accumulate": 3}, "accumulate: expected a divisor of the 8 samples of a rank, got 3"),
        ({"enable_amp": 1}, "enable_amp: expected True or False, got 1"),
        ({"amp_dtype": "half"}, "amp_dtype: expected one of float16, bfloat16, got 'half'"),
        ({"mix_prob": 1.5}, "mix_prob: expected a number from 0 to 1"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
        ({"num_worker": -2}, "num_worker: expected a whole number from 0"),
        ({"max_point": 0}, "max_point: expected a positive number"),
        ({"timeout": 0}, "timeout: expected a number above 0"),
        ({"train": {"type": "Trainer"}}, "train.type: expected one of DefaultTrainer, MultiDatasetTrainer"),
        ({"hooks": [{"type": "Saver"}]}, r"hooks\[0\].type: expected one of CheckpointLoader"),
        ({"hooks": [{"type": "CheckpointSaver", "every": 1}]}, r"hooks\[0\]: CheckpointSaver has no argument 'every'"),
        ({"hooks": [{"type": "CheckpointSaver", "save_freq": 0}]}, r"hooks\[0\].save_freq: expected a positive"),
    ],
)
def test_impossible_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_config(RUNTIME | change, world_size=4)


def test_settings_without_effect_have_a_reason() -> None:
    assert set(ignored(RUNTIME | {"test_only": False})) == {"empty_cache"}
    profiler = {"hooks": [{"type": "RuntimeProfiler"}], "num_gpu": 4}
    assert set(ignored(profiler)) == {"num_gpu", "RuntimeProfiler"}


def gradients(learner: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    """With batch norm on its running statistics, which the parts do not share in training."""
    found = []
    for parts in (1, 4):
        learner = toy_learner(noise=0.0)
        learner.model.train()
        learner.model.net[1].eval()
        result = train_step(learner, next(ToyBatches(batch=8, parts=parts).steps(0, 0)))
        found.append((result.values["loss"], result.values["depth_loss"], gradients(learner)))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-6)
    assert found[0][2].keys() == found[1][2].keys()
    for name, gradient in found[0][2].items():
        torch.testing.assert_close(found[1][2][name], gradient, rtol=1e-5, atol=1e-7)


def test_terms_outside_the_loss_teach_nothing() -> None:
    learner = toy_learner()
    train_step(learner, next(ToyBatches().steps(0, 0)))
    assert learner.model.outside.weight.grad is None and "net.0.weight" in gradients(learner)


def poison(batch: dict[str, torch.Tensor], how: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """A batch whose loss, or only its gradient, is not finite."""
    if how == "loss":
        return batch | {"target": batch["target"] * math.nan}
    weight = model.net[3].weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    return batch


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("amp", [None, torch.float16])
def test_a_non_finite_step_changes_nothing(how: str, amp: torch.dtype | None) -> None:
    learner = toy_learner(amp=amp)
    batches = list(ToyBatches().steps(0, 0))
    learner.model.train()
    assert train_step(learner, batches[0]).applied
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    moments = [s["momentum_buffer"].clone() for s in learner.optimizer.state.values()]
    scale = learner.scaler.get_scale()
    result = train_step(learner, [poison(batches[1][0], how, learner.model)])
    assert not result.applied
    # An infinite gradient is how a gradient scaler finds its scale, a loss that is not finite is an accident.
    assert result.bad == (how == "loss" or amp is None)
    assert learner.scaler.get_scale() == (scale / 2 if amp else scale)
    for name, value in learner.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(
        torch.equal(s["momentum_buffer"], m) for s, m in zip(learner.optimizer.state.values(), moments, strict=True)
    )


@pytest.mark.parametrize("amp", [torch.float16, torch.bfloat16])
def test_half_precision_follows_single(amp: torch.dtype) -> None:
    single, half = toy_learner(noise=0.0), toy_learner(noise=0.0, amp=amp)
    batch = next(ToyBatches().steps(0, 0))
    expected, found = train_step(single, batch), train_step(half, batch)
    assert found.applied and found.values["loss"] == pytest.approx(expected.values["loss"], rel=0.05)
    assert found.values["loss"] != expected.values["loss"], "nothing ran in half precision"
    assert half.scaler.is_enabled() == (amp == torch.float16)
    # The scale is taken out before the optimiser sees the gradients.
    assert found.values["grad_norm"] == pytest.approx(expected.values["grad_norm"], rel=0.1)


def test_a_model_that_learns_nothing_is_reported() -> None:
    learner = toy_learner()
    learner.model.requires_grad_(False)
    with pytest.raises(RuntimeError):
        train_step(learner, next(ToyBatches().steps(0, 0)))


def test_draws_depend_on_seed_step_and_rank_only() -> None:
    drawn = []
    for key in [(0, 1, 0), (0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]:
        seed_step(*key)
        drawn.append(tuple(torch.rand(2).tolist()))
        torch.rand(7)
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4


def run(trainer: Trainer) -> Trainer:
    trainer.train()
    return trainer


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_checkpoints_have_the_keys_of_ponderv2(tmp_path: Path) -> None:
    trainer = run(toy_trainer(tmp_path, hooks=HookConfig(save_every_epochs=2)))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["epoch_2.pth", "model_last.pth"]
    content = torch.load(tmp_path / "model" / "model_last.pth", weights_only=True)
    assert set(content) == {*state.KEYS, "ponder"}
    assert content["epoch"] == 2 and content["scheduler"] == {"last_epoch": 12} and content["scaler"] is None
    assert content["state_dict"].keys() == trainer.learner.model.state_dict().keys()
    last = records(tmp_path)[-1]
    assert last["step"] == 12 and last["lr"] == pytest.approx(0.05 / 12)
    assert {"data_seconds", "step_seconds", "scenes_per_second", "points_per_second", "memory_mib"} <= last.keys()


class StoppingBatches(ToyBatches):
    """Batches during which a signal arrives, and maybe ends the loader's processes too."""

    def __init__(self, at: int, number: int, broken: bool = False) -> None:
        super().__init__()
        self.at, self.number, self.broken = at, number, broken

    def steps(self, epoch: int, start: int) -> Any:
        for step in super().steps(epoch, start):
            if self.loaded[-1] == self.at:
                os.kill(os.getpid(), self.number)
                if self.broken:
                    raise RuntimeError("a worker was killed by a signal")
            yield step


def same(first: Path, second: Path) -> None:
    """Two runs ended with the same weights, optimiser and counters."""
    contents = [torch.load(folder / "model" / "model_last.pth", weights_only=True) for folder in (first, second)]
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(contents[1][part], contents[0][part], rtol=0, atol=0)
    counters = [content["ponder"]["progress"] | {"seconds": 0} for content in contents]
    assert counters[0] == counters[1]


@pytest.mark.parametrize(("at", "number"), [(3, signal.SIGTERM), (5, signal.SIGTERM), (9, signal.SIGINT)])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(at: int, number: int, tmp_path: Path) -> None:
    run(toy_trainer(tmp_path / "whole"))
    trainer = toy_trainer(tmp_path / "broken")
    trainer.batches = StoppingBatches(at, number)
    with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name} after step {at + 1} of 12") as stopped:
        trainer.train()
    assert stopped.value.number == number
    last = tmp_path / "broken" / "model" / "model_last.pth"
    trainer = toy_trainer(tmp_path / "broken")
    trainer.restore(state.read(last), last)
    trainer.train()
    assert trainer.batches.loaded == list(range(at + 1, 12)), "batches that were trained on are not loaded again"
    same(tmp_path / "whole", tmp_path / "broken")
    assert [r["loss"] for r in records(tmp_path / "whole")] == [r["loss"] for r in records(tmp_path / "broken")]


def test_a_loader_that_dies_of_the_signal_stops_the_run_too(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    trainer.batches = StoppingBatches(7, signal.SIGTERM, broken=True)
    with pytest.raises(Stopped, match="after step 7 of 12"):
        trainer.train()
    assert state.read(trainer.models / "model_last.pth")["ponder"]["progress"]["step"] == 7
    # Without a signal it is an error of its own.
    trainer = toy_trainer(tmp_path)
    trainer.batches = StoppingBatches(7, 0, broken=True)
    with pytest.raises(RuntimeError, match="a worker was killed"):
        trainer.train()


def test_a_save_in_the_middle_is_where_a_killed_run_goes_on(tmp_path: Path) -> None:
    run(toy_trainer(tmp_path / "whole"))
    trainer = toy_trainer(tmp_path / "broken", save_every=4)
    trainer.batches = StoppingBatches(10, signal.SIGTERM)
    trainer.save = lambda names=("model_last.pth",), real=trainer.save: (  # type: ignore[method-assign]
        real(names) if trainer.progress.step < 10 else None
    )
    with pytest.raises(Stopped):
        trainer.train()
    last = tmp_path / "broken" / "model" / "model_last.pth"
    content = state.read(last)
    assert content["epoch"] == 1 and content["ponder"]["progress"]["step"] == 8
    trainer = toy_trainer(tmp_path / "broken", save_every=4)
    trainer.restore(content, last)
    same_run = run(trainer)
    assert same_run.batches.loaded[0] == 8
    same(tmp_path / "whole", tmp_path / "broken")


def test_the_schedule_waits_for_skipped_steps(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, epochs=1)
    steps = list(trainer.batches.steps(0, 0))
    steps[2] = [poison(steps[2][0], "loss", trainer.learner.model)]
    trainer.batches.steps = lambda epoch, start: iter(steps)  # type: ignore[method-assign]
    trainer.train()
    assert (trainer.progress.step, trainer.progress.updates, trainer.progress.skipped) == (6, 5, 1)
    assert trainer.progress.bad_in_a_row == 0
    rates = [record["lr"] for record in records(tmp_path)]
    assert rates == pytest.approx([0.05, 0.025, 0.05 / 3, 0.05 / 3, 0.0125, 0.01])
    assert records(tmp_path)[2]["loss"] is None


def test_too_many_bad_steps_end_the_run(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, max_bad_steps=3)
    steps = [[poison(part[0], "loss", trainer.learner.model)] for part in trainer.batches.steps(0, 0)]
    trainer.batches.steps = lambda epoch, start: iter(steps)  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"stopped at step 3: 3 non-finite steps in a row \(.*loss.*\)"):
        trainer.train()


def test_the_best_validation_is_kept(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, epochs=3)
    results = iter([0.3, 0.5, 0.4])
    trainer.validate = lambda: Validated({"mIoU": next(results), "loss": 1.0}, "mIoU")
    trainer.train()
    best = torch.load(tmp_path / "model" / "model_best.pth", weights_only=True)
    last = torch.load(tmp_path / "model" / "model_last.pth", weights_only=True)
    assert (best["epoch"], last["epoch"]) == (2, 3)
    assert best["best_metric_value"] == last["best_metric_value"] == 0.5
    assert [r["mIoU"] for r in records(tmp_path) if r["group"] == "validation"] == [0.3, 0.5, 0.4]


def test_checkpoints_of_ponderv2_are_resumed_at_the_end_of_their_epoch(tmp_path: Path) -> None:
    trainer = run(toy_trainer(tmp_path, epochs=1))
    content = state.read(trainer.models / "model_last.pth")
    del content["ponder"]
    content["state_dict"] = {f"module.{name}": value for name, value in content["state_dict"].items()}
    other = toy_trainer(tmp_path)
    other.restore(content, Path("theirs.pth"))
    assert (other.progress.epoch, other.progress.step, other.progress.updates) == (1, 6, 6)
    other.train()
    assert other.batches.loaded == list(range(6, 12))


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model_last.pth"
    with pytest.raises(CheckpointError, match="does not exist"):
        state.read(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        state.read(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="lacks epoch, optimizer, scheduler"):
        state.read(path)
    trainer = toy_trainer(tmp_path)
    trainer.save()
    content = state.read(trainer.models / "model_last.pth")
    content["optimizer"]["param_groups"] = []
    with pytest.raises(CheckpointError, match="no state to resume from"):
        toy_trainer(tmp_path).restore(content, path)


def test_changed_settings_are_named() -> None:
    before = {"epochs": 100, "seed": 3, "amp": None}
    assert differences(before, before | {"seed": 4, "amp": "float16"}) == ["amp: None -> float16", "seed: 3 -> 4"]
