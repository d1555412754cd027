"""What a PonderV2 config says about its backbone that weights alone do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ponder.models.pdnorm_unet import CONDITIONS
from ponder.train.config import ConfigError

_BACKBONES = ("SpUNet-v1m1", "SpUNet-v1m3")
# PonderV2's names of features, and those of `network_inputs`.
_INPUTS = {"color": "colour", "normal": "normal", "coord": "coord"}


@dataclass(frozen=True)
class Ponderv2Settings:
    """Defaults are those of the configs that PonderV2 ships for its indoor models.

    Attributes:
        inputs: features per voxel, see `network_inputs`.
        voxel: metres.
        conditions: datasets in the order of the backbone's norms.
        contexts: datasets in the order of the rows of the model's embedding table.
    """

    inputs: tuple[str, ...] = ("colour", "normal")
    voxel: float = 0.02
    conditions: tuple[str, ...] = CONDITIONS
    contexts: tuple[str, ...] = ("Structured3D", "ScanNet", "S3DIS")


def settings_from_config(config: Mapping[str, Any]) -> Ponderv2Settings:
    """Settings of a PonderV2 config.

    Args:
        config: as `load_config` returns it: `model` is read for the backbone and its datasets, `data` for the voxel
            size (of the first GridSample) and the features (of the first Collect).

    Raises:
        ConfigError: no backbone that we have, or features other than colour, normal and coordinate.
    """
    settings = Ponderv2Settings()
    chain = _backbone_chain(config)
    if "conditions" in chain[-1]:
        settings = replace(settings, conditions=tuple(chain[-1]["conditions"]))
    around = next((part["conditions"] for part in reversed(chain[:-1]) if "conditions" in part), None)
    if around is not None:
        settings = replace(settings, contexts=tuple(around))
    data = config.get("data", {})
    grid = next(_steps(data, "GridSample"), {})
    if "grid_size" in grid:
        settings = replace(settings, voxel=float(grid["grid_size"]))
    keys = next(_steps(data, "Collect"), {}).get("feat_keys")
    if keys is None:
        return settings
    keys = [keys] if isinstance(keys, str) else list(keys)
    unknown = [key for key in keys if key not in _INPUTS]
    if unknown:
        raise ConfigError(f"--config: its backbone takes {unknown[0]!r}; expected features among {', '.join(_INPUTS)}")
    return replace(settings, inputs=tuple(_INPUTS[key] for key in keys))


def _backbone_chain(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The model, the models inside it that it calls backbone, and last the network itself."""
    chain: list[Mapping[str, Any]] = []
    part = config.get("model")
    while isinstance(part, Mapping):
        chain.append(part)
        part = part.get("backbone")
    if not chain or chain[-1].get("type") not in _BACKBONES:
        got = chain[-1].get("type") if chain else "no model"
        raise ConfigError(f"--config: expected a backbone of type {' or '.join(_BACKBONES)}, got {got}")
    return chain


def _steps(part: Any, kind: str) -> Iterator[Mapping[str, Any]]:
    """Transforms of a type, in the order in which the config names them."""
    if isinstance(part, Mapping):
        if part.get("type") == kind:
            yield part
        for value in part.values():
            yield from _steps(value, kind)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _steps(value, kind)
