"""Renderers from PonderV2's configuration dictionaries."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from ponder.registry import choose, construct, mapping
from ponder.render.decoders import Decoder
from ponder.render.ponderv2.colliders import AABBBoxCollider, Collider, NearFarCollider
from ponder.render.ponderv2.error_bounded import ErrorBoundedSampler
from ponder.render.ponderv2.field import SDFField
from ponder.render.ponderv2.losses import LossConfig
from ponder.render.ponderv2.model import NeuSModel, RaySampler, SurfaceModel, VolSDFModel
from ponder.render.ponderv2.parity import Parity
from ponder.render.ponderv2.samplers import NeuSSampler, UniSurfSampler

Config = Mapping[str, Any]

MODELS: dict[str, type[SurfaceModel]] = {"NeuSModel": NeuSModel, "VolSDFModel": VolSDFModel}
COLLIDERS: dict[str, type[Collider]] = {"AABBBoxCollider": AABBBoxCollider, "NearFarCollider": NearFarCollider}
SAMPLERS: dict[str, type[RaySampler]] = {
    "NeuSSampler": NeuSSampler,
    "ErrorBoundedSampler": ErrorBoundedSampler,
    "UniSurfSampler": UniSurfSampler,
}

# PonderV2's NeuS hands its sampler no density, its VolSDF no occupancy.
FITTING = {"NeuSModel": ("NeuSSampler", "UniSurfSampler"), "VolSDFModel": ("NeuSSampler", "ErrorBoundedSampler")}


def build_renderer(cfg: Config, parity: Parity | None = None) -> SurfaceModel:
    """The renderer that a configuration describes, randomly initialised as PonderV2's is from the same seed.

    Args:
        cfg: the `renderer` dictionary of a PonderV2 configuration: type, field, collider, sampler, loss. Left as it is.
        parity: which departures of PonderV2's code to keep; None: all.

    Returns:
        A module with PonderV2's parameter names and shapes: call it with a RayBundle and a list of volumes, hand the
        dictionary that comes back to `get_loss`.

    Raises:
        ValueError: on an unknown type, a missing or unknown key, a sampler that does not fit the model, a width that
            does not fit, or a loss on an output that the field does not have. Unknown keys of decoders, which PonderV2
            swallows, give a warning.
        TypeError: a part that is no dictionary.
    """
    parity = parity or Parity()
    name, model, rest = choose(cfg, MODELS, "renderer")
    missing = {"field", "collider", "sampler", "loss"} - set(rest)
    if missing:
        raise ValueError(f"renderer: lacks {', '.join(sorted(missing))}")
    field = _build_field(rest.pop("field"), parity)
    _, collider, collider_args = choose(rest.pop("collider"), COLLIDERS, "collider")
    sampler_name, sampler, sampler_args = choose(rest.pop("sampler"), SAMPLERS, "sampler")
    if sampler_name not in FITTING[name]:
        raise ValueError(f"sampler: {name} takes {' or '.join(FITTING[name])}, got {sampler_name}")
    loss = construct(LossConfig, mapping(rest.pop("loss"), "loss"), "loss")
    for term, decoder in (("rgb_loss", field.rgb_decoder), ("semantic_loss", field.semantic_decoder)):
        if loss.weight(term) > 0 and decoder is None:
            raise ValueError(f"loss: {term} is on but the field has no {term.removesuffix('_loss')}_decoder")
    own = {"unsigned_offset": parity.unsigned_direction_offset} if collider is AABBBoxCollider else {}
    parts: dict[str, Any] = {
        "field": field,
        "collider": construct(collider, collider_args, "collider", own),
        "sampler": construct(sampler, sampler_args, "sampler"),
        "loss": loss,
    }
    return construct(model, rest, "renderer", parts | {"parity": parity})


def _build_field(cfg: Config, parity: Parity) -> SDFField:
    _, field, args = choose(cfg, {"SDFField": SDFField}, "field")
    # The renderer reads volumes in this way only.
    for key, only in (("volume_type", "default"), ("padding_mode", "zeros")):
        if args.pop(key, only) != only:
            raise ValueError(f"field.{key}: expected {only!r}, got {cfg[key]!r}")
    # In this order, so that one seed initialises them as PonderV2 does.
    for key in ("sdf_decoder", "rgb_decoder", "semantic_decoder", "feature_decoder"):
        if args.get(key) is not None:
            args[key] = _build_decoder(mapping(args[key], f"field.{key}"), key)
    built = construct(field, args, "field", {"raw_sampler_points": parity.raw_sampler_points})
    _check_widths(built)
    return built


def _build_decoder(cfg: Config, name: str) -> Decoder:
    """The decoder of `field.<name>`; in_dim and out_dim as in PonderV2, whose colour decoder has 3 rows by default."""

    def decoder(
        in_dim: int, out_dim: int, hidden_size: int = 256, n_blocks: int = 5, points_factor: float = 1.0
    ) -> Decoder:
        return Decoder(
            in_dim, out_dim, hidden_size, n_blocks, points_factor,
            keep_points_layer=True, points_layer_first=name != "sdf_decoder",
        )  # fmt: skip

    known = inspect.signature(decoder).parameters
    unknown = [key for key in cfg if key not in known]
    if unknown:
        warnings.warn(f"field.{name}: no decoder reads {', '.join(unknown)}, in PonderV2 neither", stacklevel=4)
    read = {key: value for key, value in cfg.items() if key in known}
    if name == "rgb_decoder":
        read.setdefault("out_dim", 3)
    return construct(decoder, read, f"field.{name}")


def _check_widths(field: SDFField) -> None:
    """Require that the other decoders read what the SDF decoder and the volumes give."""
    geometry = field.sdf_decoder.out_channels - 1
    for name, decoder, directed in (
        ("rgb_decoder", field.rgb_decoder, 3),
        ("semantic_decoder", field.semantic_decoder, 0),
        ("feature_decoder", field.feature_decoder, 0),
    ):
        if decoder is None:
            continue
        gradient = 3 if field.use_gradient else 0
        expected = gradient + field.sdf_decoder.in_channels + geometry + directed
        if decoder.in_channels != expected:
            raise ValueError(
                f"field.{name}.in_dim: expected {expected} (gradient {gradient}, features"
                f" {field.sdf_decoder.in_channels}, geometry {geometry}, direction {directed}), got"
                f" {decoder.in_channels}"
            )
