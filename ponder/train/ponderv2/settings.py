"""What a PonderV2 configuration says about a run, as one frozen and checked dataclass."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ponder.train.config import ConfigError

TRAINERS = ("DefaultTrainer", "MultiDatasetTrainer")
AMP_TYPES = ("float16", "bfloat16")
# Keys of PonderV2's files that change nothing here, and why.
IGNORED = {
    "empty_cache": "the allocator keeps its cache: emptying it at every step only costs time",
    "test_only": "a test is `ponder evaluate`",
    "num_gpu": "the number of processes is that of torchrun",
}
IGNORED_HOOKS = {
    "DataCacheOperator": "files are read when they are needed",
    "RuntimeProfiler": "use torch.profiler",
}
# Times, throughput, memory and loss terms are recorded in any case.
ALWAYS = ("IterationTimer", "InformationWriter")
HOOKS = ("CheckpointLoader", "CheckpointSaver", "SemSegEvaluator", "PreciseEvaluator", *ALWAYS, *IGNORED_HOOKS)
SEED_RANGE = 2**31


@dataclass(frozen=True)
class HookConfig:
    """What the hooks of a configuration ask for.

    Attributes:
        keywords, replacement: part of the names of a weights file, and what stands for it in the model.
        strict: whether every weight of the model must be in the file, and the other way round.
        save_every_epochs: keep `epoch_K.pth` each time that many epochs end; None keeps none.
        validate: evaluate semantic segmentation after every epoch.
        test: run the test protocol after the last epoch; None does not.
        test_last: with the last weights rather than the best.
    """

    keywords: str = ""
    replacement: str = ""
    strict: bool = False
    save_every_epochs: int | None = None
    validate: bool = False
    test: bool = False
    test_last: bool = False


@dataclass(frozen=True)
class TrainerConfig:
    """Everything the loop needs beside model, data, optimiser and schedule.

    Attributes:
        trainer: "DefaultTrainer" or "MultiDatasetTrainer".
        epochs: passes over the looped training data, with a checkpoint (and a validation) after each.
        loop: how often one pass goes through the training data; PonderV2's epoch // eval_epoch.
        batch_size: samples per step on this rank, over all accumulated parts.
        batch_size_val, batch_size_test: samples per forward pass on this rank.
        workers: loader processes of this rank.
        amp: "float16" (with a gradient scaler), "bfloat16" or None for float32.
        accumulate: parts that a step's batch is divided into, one forward and backward pass each.
        max_point: points per part above which samples are left out; None does not count.
        mix_prob: chance that neighbours of a batch are merged into one scene (Mix3D).
        seed: of weights, data and every step's draws; None takes one at random.
        sync_bn: batch norm over all ranks.
        find_unused: tell DistributedDataParallel to look for parameters without gradient.
        weight: file of weights to start from.
        resume: continue the run of the output folder.
        hooks: what the hooks ask for.
        max_bad_steps: consecutive non-finite steps after which the run stops.
        log_every: steps between records.
        save_every: steps between checkpoints within an epoch.
        timeout: seconds after which a silent rank counts as lost.
    """

    trainer: str = "DefaultTrainer"
    epochs: int = 100
    loop: int = 1
    batch_size: int = 16
    batch_size_val: int = 1
    batch_size_test: int = 1
    workers: int = 16
    amp: str | None = None
    accumulate: int = 1
    max_point: int | None = None
    mix_prob: float = 0.0
    seed: int | None = None
    sync_bn: bool = False
    find_unused: bool = False
    weight: str | None = None
    resume: bool = False
    hooks: HookConfig = field(default_factory=HookConfig)
    max_bad_steps: int = 20
    log_every: int = 10
    save_every: int = 500
    timeout: float = 1800.0


def trainer_config(config: Mapping[str, Any], world_size: int = 1, device_type: str = "cuda") -> TrainerConfig:
    """Read and check the settings of a run.

    Args:
        config: a whole configuration with PonderV2's keys; absent keys take the values of its default_runtime.py.
            Keys of our own: amp_dtype, accumulate, max_bad_steps, log_every, save_every, timeout.
        world_size: number of ranks, which share batches and loader processes.
        device_type: "cpu" turns mixed precision off unless amp_dtype asks for it: it is slower than float32 there.

    Raises:
        ConfigError: an impossible value; the key is named.
    """
    default = TrainerConfig()
    epoch, passes = _count(config, "epoch", 100), _count(config, "eval_epoch", 100)
    if epoch % passes:
        raise ConfigError(f"epoch: expected a multiple of eval_epoch {passes}, got {epoch}")
    accumulate = _count(config, "accumulate", default.accumulate)
    batch_size = _share(config, "batch_size", 16, world_size)
    if batch_size % accumulate:
        raise ConfigError(f"accumulate: expected a divisor of the {batch_size} samples of a rank, got {accumulate}")
    return TrainerConfig(
        trainer=_one_of(_type_of(config, "train", default.trainer), "train.type", TRAINERS),
        epochs=passes,
        loop=epoch // passes,
        batch_size=batch_size,
        batch_size_val=_share(config, "batch_size_val", world_size, world_size),
        batch_size_test=_share(config, "batch_size_test", world_size, world_size),
        workers=_workers(config.get("num_worker", 16), world_size),
        amp=_amp(config, device_type),
        accumulate=accumulate,
        max_point=_max_point(config.get("max_point")),
        mix_prob=_fraction(config, "mix_prob"),
        seed=_seed(config.get("seed")),
        sync_bn=_flag(config, "sync_bn"),
        find_unused=_flag(config, "find_unused_parameters"),
        weight=config.get("weight"),
        resume=_flag(config, "resume"),
        hooks=hook_config(config.get("hooks") or (), _flag(config, "evaluate", True)),
        max_bad_steps=_count(config, "max_bad_steps", default.max_bad_steps),
        log_every=_count(config, "log_every", default.log_every),
        save_every=_count(config, "save_every", default.save_every),
        timeout=_positive(config, "timeout", default.timeout),
    )


def hook_config(hooks: Sequence[Mapping[str, Any]], evaluate: bool) -> HookConfig:
    """Read the list of hooks.

    Raises:
        ConfigError: a hook, or an argument of one, that does not exist here.
    """
    found: dict[str, Any] = {}
    for number, hook in enumerate(hooks):
        name = _one_of(hook.get("type"), f"hooks[{number}].type", HOOKS)
        values = {key: value for key, value in hook.items() if key != "type"}
        if name in (*ALWAYS, *IGNORED_HOOKS):
            continue
        found |= _hook_values(name, values, evaluate, f"hooks[{number}]")
        if values:
            raise ConfigError(f"hooks[{number}]: {name} has no argument {sorted(values)[0]!r}")
    return HookConfig(**found)


def _hook_values(name: str, values: dict[str, Any], evaluate: bool, where: str) -> dict[str, Any]:
    if name == "CheckpointLoader":
        keywords = values.pop("keywords", "")
        replacement = values.pop("replacement", None)
        loader = {"keywords": keywords, "replacement": keywords if replacement is None else replacement}
        return loader | {"strict": bool(values.pop("strict", False))}
    if name == "CheckpointSaver":
        every = values.pop("save_freq", None)
        if every is not None and not (isinstance(every, int) and every > 0):
            raise ConfigError(f"{where}.save_freq: expected a positive number of epochs or None, got {every!r}")
        return {"save_every_epochs": every}
    if name == "SemSegEvaluator":
        return {"validate": evaluate}
    return {"test": True, "test_last": bool(values.pop("test_last", False))}


def ignored(config: Mapping[str, Any]) -> dict[str, str]:
    """Keys (but those that are off) and hooks of a configuration that change nothing, with the reason of each."""
    keys = {key: reason for key, reason in IGNORED.items() if config.get(key)}
    hooks = {str(hook.get("type")) for hook in config.get("hooks") or ()}
    return keys | {name: reason for name, reason in IGNORED_HOOKS.items() if name in hooks}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings whose change would make a resumed run another run, as `key: old -> new`."""
    keys = ("trainer", "epochs", "loop", "amp", "mix_prob", "max_point", "sync_bn", "seed", "global_batch")
    return [f"{key}: {saved[key]} -> {now[key]}" for key in keys if key in saved and saved[key] != now[key]]


def _count(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}: expected a whole number above 0, got {value!r}")
    return value


def _positive(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{key}: expected a number above 0, got {value!r}")
    return float(value)


def _share(config: Mapping[str, Any], key: str, default: int, world_size: int) -> int:
    """A rank's part of a number of samples, which is that of all ranks in the file."""
    total = default if config.get(key) is None else _count(config, key, default)
    if total % world_size:
        raise ConfigError(f"{key}: expected a multiple of the {world_size} ranks, got {total}")
    return total // world_size


def _workers(value: Any, world_size: int) -> int:
    total = (os.cpu_count() or 1) if value is None else value
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise ConfigError(f"num_worker: expected a whole number from 0, got {value!r}")
    return total // world_size


def _flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: expected True or False, got {value!r}")
    return value


def _fraction(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{key}: expected a number from 0 to 1, got {value!r}")
    return float(value)


def _amp(config: Mapping[str, Any], device_type: str) -> str | None:
    kind = config.get("amp_dtype")
    if kind is not None:
        _one_of(kind, "amp_dtype", AMP_TYPES)
    if not _flag(config, "enable_amp") or (kind is None and device_type == "cpu"):
        return None
    return kind or AMP_TYPES[0]


def _max_point(value: Any) -> int | None:
    if value is None or value == -1:  # PonderV2 writes no limit as -1
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"max_point: expected a positive number of points or -1, got {value!r}")
    return value


def _seed(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < SEED_RANGE):
        raise ConfigError(f"seed: expected a whole number from 0 to {SEED_RANGE - 1} or None, got {value!r}")
    return value


def _type_of(config: Mapping[str, Any], key: str, default: str) -> Any:
    section = config.get(key) or {}
    return section.get("type", default)


def _one_of(value: Any, key: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ConfigError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")
    return str(value)
