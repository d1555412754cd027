"""Optimisers as PonderV2's configs describe them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ponder.registry import suggest
from ponder.train.config import ConfigError
from ponder.train.ponderv2.arguments import Arguments, check_number

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "SGD": ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
    "Adam": ("lr", "betas", "eps", "weight_decay", "amsgrad"),
    "AdamW": ("lr", "betas", "eps", "weight_decay", "amsgrad"),
}
GROUP_KEYS = ("keyword", "lr", "lr_scale", "momentum", "weight_decay")


def build_optimizer(
    model: nn.Module, cfg: Mapping[str, Any], param_dicts: Sequence[Mapping[str, Any]] | None = None
) -> torch.optim.Optimizer:
    """The optimiser of a config.

    Args:
        model: all its parameters take part in their order, frozen ones too, so that a saved state fits.
        cfg: the config's `optimizer`: type SGD, Adam or AdamW, lr, and arguments of torch's class of that name.
        param_dicts: the config's `param_dicts`: for each a group of the parameters whose name contains `keyword` (the
            first that fits), with its own `lr`, or `lr_scale` times the lr, `momentum` (SGD) or `weight_decay`. The
            first group holds the parameters that are left.

    Raises:
        ConfigError: an unknown type, argument or group setting, or an impossible value.

    Reference:
        PonderV2, ponder/utils/optimizer.py. It ignores `lr_scale`, which its default_runtime.py shows as the example.
    """
    given = Arguments(cfg, "optimizer", ARGUMENTS)
    options = _sgd_options(given) if given.type == "SGD" else _adam_options(given)
    groups = _groups(model, given.type, options["lr"], param_dicts)
    maker: type[torch.optim.Optimizer] = getattr(torch.optim, given.type)
    try:
        return maker(groups, **options)
    except ValueError as error:
        raise ConfigError(f"optimizer: {error}") from None


def _sgd_options(given: Arguments) -> dict[str, Any]:
    return {
        "lr": given.number("lr", least=0),
        "momentum": given.number("momentum", 0.0, 0, 1),
        "dampening": given.number("dampening", 0.0),
        "weight_decay": given.number("weight_decay", 0.0, 0),
        "nesterov": given.flag("nesterov", False),
    }


def _adam_options(given: Arguments) -> dict[str, Any]:
    decay = 0.01 if given.type == "AdamW" else 0.0
    betas = given.numbers("betas", (0.9, 0.999), 0, 1)
    if len(betas) != 2:
        raise ConfigError(f"optimizer.betas: expected two numbers, got {betas}")
    return {
        "lr": given.number("lr", least=0),
        "betas": tuple(betas),
        "eps": given.number("eps", 1e-8, 0),
        "weight_decay": given.number("weight_decay", decay, 0),
        "amsgrad": given.flag("amsgrad", False),
    }


def _groups(
    model: nn.Module, kind: str, lr: float, param_dicts: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    if param_dicts is None:
        return [{"params": list(model.parameters())}]
    groups: list[dict[str, Any]] = [{"params": [], "lr": lr}]
    groups += [_group(entry, f"param_dicts[{i}]", kind, lr) for i, entry in enumerate(param_dicts)]
    keywords = [entry["keyword"] for entry in param_dicts]
    for name, parameter in model.named_parameters():
        chosen = next((i + 1 for i, keyword in enumerate(keywords) if keyword in name), 0)
        groups[chosen]["params"].append(parameter)
    for keyword, group in zip(keywords, groups[1:], strict=True):
        if not group["params"]:
            warnings.warn(f"param_dicts: no parameter is left for the keyword {keyword!r}", UserWarning, stacklevel=3)
    return groups


def _group(entry: Any, where: str, kind: str, lr: float) -> dict[str, Any]:
    """Settings of one group, still without parameters."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("keyword"), str) or not entry["keyword"]:
        raise ConfigError(f"{where}: expected a dict with a keyword, got {entry!r}")
    for name in entry:
        if name not in GROUP_KEYS:
            raise ConfigError(f"{where}: unknown key {name!r}{suggest(str(name), GROUP_KEYS)}")
    if "lr" in entry and "lr_scale" in entry:
        raise ConfigError(f"{where}: expected lr or lr_scale, got both")
    if "momentum" in entry and kind != "SGD":
        raise ConfigError(f"{where}: {kind} has no momentum")
    group: dict[str, Any] = {"params": []}
    if "lr_scale" in entry:
        group["lr"] = lr * check_number(entry["lr_scale"], f"{where}.lr_scale", 0)
    for name in ("lr", "momentum", "weight_decay"):
        if name in entry:
            group[name] = check_number(entry[name], f"{where}.{name}", 0)
    return group
