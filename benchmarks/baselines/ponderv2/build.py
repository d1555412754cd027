"""Renderers from PonderV2's configuration dictionaries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from benchmarks.baselines.ponderv2.colliders import AABBBoxCollider, Collider, NearFarCollider
from benchmarks.baselines.ponderv2.decoders import RGBDecoder, SDFDecoder, SemanticDecoder
from benchmarks.baselines.ponderv2.field import SDFField
from benchmarks.baselines.ponderv2.losses import LossConfig
from benchmarks.baselines.ponderv2.model import NeuSModel, RaySampler, SurfaceModel, VolSDFModel
from benchmarks.baselines.ponderv2.samplers import ErrorBoundedSampler, NeuSSampler, UniSurfSampler
from benchmarks.baselines.ponderv2.trilinear import TrilinearSampler, torch_trilinear

Config = Mapping[str, Any]
T = TypeVar("T")

MODELS: dict[str, type[SurfaceModel]] = {"NeuSModel": NeuSModel, "VolSDFModel": VolSDFModel}
COLLIDERS: dict[str, type[Collider]] = {"AABBBoxCollider": AABBBoxCollider, "NearFarCollider": NearFarCollider}
SAMPLERS: dict[str, type[RaySampler]] = {
    "NeuSSampler": NeuSSampler,
    "ErrorBoundedSampler": ErrorBoundedSampler,
    "UniSurfSampler": UniSurfSampler,
}

# PonderV2's NeuS hands its sampler no density, its VolSDF no occupancy.
FITTING = {"NeuSModel": {"NeuSSampler", "UniSurfSampler"}, "VolSDFModel": {"NeuSSampler", "ErrorBoundedSampler"}}

# Written in PonderV2's configurations, read by none of its decoders.
WITHOUT_MEANING = {"pos_enc"}


def build_renderer(cfg: Config, trilinear: TrilinearSampler = torch_trilinear) -> SurfaceModel:
    """The renderer that a configuration describes, randomly initialised.

    Args:
        cfg: the `renderer` dictionary of a PonderV2 configuration: type, field, collider, sampler, loss.
        trilinear: reads volumes; see `TrilinearSampler`.

    Raises:
        ValueError: on an unknown type, a missing or unknown key, a sampler that does not fit the model, or a loss on an
            output that the field does not have.
    """
    name, model, rest = _choose(cfg, MODELS, "renderer")
    missing = {"field", "collider", "sampler", "loss"} - set(rest)
    if missing:
        raise ValueError(f"renderer lacks {sorted(missing)}")
    if rest["sampler"].get("type") in SAMPLERS and rest["sampler"]["type"] not in FITTING[name]:
        raise ValueError(f"{name} cannot use {rest['sampler']['type']}; it takes {sorted(FITTING[name])}")
    field = build_field(rest.pop("field"), trilinear)
    _, collider, collider_args = _choose(rest.pop("collider"), COLLIDERS, "collider")
    _, sampler, sampler_args = _choose(rest.pop("sampler"), SAMPLERS, "sampler")
    loss = _construct(LossConfig, rest.pop("loss"), "loss")
    for term, decoder in (("rgb_loss", field.rgb_decoder), ("semantic_loss", field.semantic_decoder)):
        if loss.weight(term) > 0 and decoder is None:
            raise ValueError(f"{term} is on but the field has no {term.removesuffix('_loss')}_decoder")
    parts = {
        "field": field,
        "collider": _construct(collider, collider_args, "collider"),
        "sampler": _construct(sampler, sampler_args, "sampler"),
        "loss": loss,
    }
    return _construct(model, parts | rest, "renderer")


def build_field(cfg: Config, trilinear: TrilinearSampler = torch_trilinear) -> SDFField:
    """The field that the `field` part of a configuration describes; errors as in `build_renderer`."""
    _, field, args = _choose(cfg, {"SDFField": SDFField}, "field")
    # What volumes are and how they end is settled by the trilinear sampler.
    for key, only in (("volume_type", "default"), ("padding_mode", "zeros")):
        if args.pop(key, only) != only:
            raise ValueError(f"field: {key} must be {only!r}, got {cfg[key]!r}")
    # In this order, so that one seed initialises them as PonderV2 does.
    for key, decoder in (
        ("sdf_decoder", SDFDecoder),
        ("rgb_decoder", RGBDecoder),
        ("semantic_decoder", SemanticDecoder),
    ):
        if args.get(key) is not None:
            read = {k: v for k, v in args[key].items() if k not in WITHOUT_MEANING}
            args[key] = _construct(decoder, read, f"field.{key}")
    return _construct(field, args | {"trilinear": trilinear}, "field")


def _choose(cfg: Config, choices: Mapping[str, T], part: str) -> tuple[str, T, dict[str, Any]]:
    """The name and class that `cfg["type"]` names, and the other keys."""
    if "type" not in cfg:
        raise ValueError(f"{part} has no type; known: {', '.join(choices)}")
    if cfg["type"] not in choices:
        raise ValueError(f"{part} type is {cfg['type']!r}; known: {', '.join(choices)}")
    return cfg["type"], choices[cfg["type"]], {key: value for key, value in cfg.items() if key != "type"}


def _construct(cls: Callable[..., T], args: Config, part: str) -> T:
    """`cls(**args)`, with a sentence where names do not fit."""
    accepted = inspect.signature(cls).parameters
    unknown = set(args) - set(accepted)
    if unknown:
        raise ValueError(f"{part} has unknown keys {sorted(unknown)}; known: {', '.join(accepted)}")
    missing = {n for n, p in accepted.items() if p.default is inspect.Parameter.empty} - set(args)
    if missing:
        raise ValueError(f"{part} lacks {sorted(missing)}")
    return cls(**args)
