"""Frozen configuration of a pre-training run, and its `key=value` overrides."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ponder.data.config import SOURCES, DataConfig
from ponder.data.registration import MIN_RATIO
from ponder.models.pretrainer import ModelConfig
from ponder.registry import suggest
from ponder.render.losses import LossConfig

OPTIMIZERS = ("adamw", "sgd")


class ConfigError(ValueError):
    """A setting that does not exist or has an impossible value; the message is one sentence."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule.

    Attributes:
        name: "adamw" or "sgd" (Nesterov, momentum 0.9).
        lr: peak of the one-cycle schedule.
        weight_decay: on matrices and kernels only.
        warmup: fraction of the steps spent rising to the peak.
        initial_div, final_div: the rate starts at lr / initial_div and ends at lr / final_div.
        clip: bound on the global gradient norm.
    """

    name: str = "adamw"
    lr: float = 4e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    initial_div: float = 10.0
    final_div: float = 200.0
    clip: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a run.

    Attributes:
        recipe: name of the recipe it came from.
        seed: seed of the initial weights and of every step's random draws.
        steps: optimiser steps.
        scenes: scenes per step.
        views: views per scene and step.
        rays: rays per scene and step.
        max_bad_steps: consecutive non-finite steps after which the run stops.
        checkpoint_every, preview_every, log_every: in steps; preview_every 0 leaves only the first and the last.
        mesh_cell: edge of the marching-cubes lattice of the final mesh, metres.
    """

    recipe: str = "demo"
    seed: int = 0
    steps: int = 300
    scenes: int = 1
    views: int = 8
    rays: int = 1024
    max_bad_steps: int = 20
    checkpoint_every: int = 20
    preview_every: int = 100
    log_every: int = 1
    mesh_cell: float = 0.05
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


def validate(config: TrainConfig) -> TrainConfig:
    """Return the config if its values are possible, else raise ConfigError naming the key."""
    positive = ("steps", "scenes", "views", "rays", "max_bad_steps", "checkpoint_every", "log_every", "mesh_cell",
                "data.rooms", "data.train_views", "data.heldout_views", "data.max_depth", "data.fuse_voxel",
                "model.voxel", "model.cell", "model.max_cells", "model.sparse_base", "model.dense_base",
                "model.renderer.sdf_channels", "model.renderer.hidden", "model.renderer.uniform_samples",
                "model.renderer.sampler_inv_s", "optim.lr", "optim.initial_div", "optim.final_div", "optim.clip",
                "loss.truncation")  # fmt: skip
    for key in positive:
        value = get_value(config, key)
        if not value > 0:
            raise ConfigError(f"{key}: expected a value above 0, got {value}")
    not_negative = ("preview_every", "model.margin", "model.renderer.near", "model.renderer.importance_samples",
                    "model.renderer.colour_channels", "model.renderer.geometry_channels", "optim.weight_decay",
                    "loss.colour", "loss.depth", "loss.normal", "loss.sdf", "loss.free_space",
                    "loss.eikonal")  # fmt: skip
    for key in not_negative:
        value = get_value(config, key)
        if not value >= 0:
            raise ConfigError(f"{key}: expected 0 or more, got {value}")
    if not 0 < config.optim.warmup < 1:
        raise ConfigError(f"optim.warmup: expected a fraction between 0 and 1, got {config.optim.warmup}")
    if not 0 <= config.model.outliers < 0.1:
        raise ConfigError(f"model.outliers: expected a fraction from 0 to below 0.1, got {config.model.outliers}")
    if config.data.source not in SOURCES:
        raise ConfigError(f"data.source: expected one of {', '.join(SOURCES)}, got {config.data.source!r}")
    ratio = config.data.colour_ratio
    if ratio != 0 and not MIN_RATIO < ratio <= 1:
        raise ConfigError(
            f"data.colour_ratio: expected 0 (estimate it) or above {MIN_RATIO} and at most 1, got {ratio}"
        )
    if config.optim.name not in OPTIMIZERS:
        raise ConfigError(f"optim.name: expected one of {', '.join(OPTIMIZERS)}, got {config.optim.name!r}")
    return config


def get_value(config: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def all_keys(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of every setting."""
    keys = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        name = prefix + item.name
        keys += all_keys(value, name + ".") if dataclasses.is_dataclass(value) else [name]
    return keys


def apply_overrides(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """Apply `key=value` strings; dotted keys reach into nested configs.

    Raises:
        ConfigError: no "=", an unknown key (the nearest known key is suggested) or a value of the wrong type.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"override {text!r}: expected key=value")
        known = all_keys(config)
        if key not in known:
            raise ConfigError(f"unknown key {key!r}{suggest(key, known)}")
        config = _replace(config, key.split("."), value, key)
    return validate(config)


def _replace(config: Any, parts: list[str], text: str, key: str) -> Any:
    name, *rest = parts
    if rest:
        return dataclasses.replace(config, **{name: _replace(getattr(config, name), rest, text, key)})
    value = _parse(text, typing.get_type_hints(type(config))[name], key)
    return dataclasses.replace(config, **{name: value})


def _parse(text: str, kind: Any, key: str) -> Any:
    if kind is str:
        return text
    try:
        value = float(text) if kind is float else json.loads(text)
    except ValueError:
        raise ConfigError(f"{key}: expected {_kind_name(kind)}, got {text!r}") from None
    return coerce(value, kind, key)


def _kind_name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)) if not typing.get_origin(kind) else "a list of whole numbers"


def coerce(value: Any, kind: Any, key: str) -> Any:
    """Check a JSON value against a field's type; lists become tuples, ints serve as floats."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind is str and isinstance(value, str):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(coerce(item, typing.get_args(kind)[0], key) for item in value)
    raise ConfigError(f"{key}: expected {_kind_name(kind)}, got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any], kind: Any = TrainConfig, prefix: str = "") -> Any:
    """Inverse of `to_dict`.

    Raises:
        ConfigError: a key is missing, unknown or of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    unknown = set(data) - set(hints)
    if unknown:
        name = sorted(unknown)[0]
        raise ConfigError(f"unknown key {prefix + name!r}{suggest(name, list(hints))}")
    values = {}
    for name, hint in hints.items():
        if name not in data:
            raise ConfigError(f"missing key {prefix + name!r}")
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        convert = from_dict(data[name], hint, f"{prefix}{name}.") if nested else coerce(data[name], hint, prefix + name)
        values[name] = convert
    return kind(**values)


def differences(first: TrainConfig, second: TrainConfig) -> list[str]:
    """Dotted keys whose values differ, as "key: a -> b"."""
    return [
        f"{key}: {get_value(first, key)} -> {get_value(second, key)}"
        for key in all_keys(first)
        if get_value(first, key) != get_value(second, key)
    ]
