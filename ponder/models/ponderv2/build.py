"""Models from PonderV2's configuration dictionaries."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ponder.models.dense_unet import SimpleConv3D
from ponder.models.ponderv2.distillation import Distillation
from ponder.models.ponderv2.indoor import PonderIndoor
from ponder.models.ponderv2.masking import MaskConfig
from ponder.models.ponderv2.networks import PromptedSpUNet, SpUNet, UNet3D, UNet3Dv1m2
from ponder.models.ponderv2.point_losses import build_criteria
from ponder.models.ponderv2.prompt_training import CLASS_NAMES, CONDITIONS, VALID_INDEX, PromptTraining
from ponder.models.ponderv2.segmentor import DefaultSegmentor
from ponder.models.ponderv2.text import TextTable, class_rows, make_text_table
from ponder.registry import check_keys, choose, construct, mapping
from ponder.render.ponderv2 import Parity, SurfaceModel, build_renderer

Config = Mapping[str, Any]

CLIP_MODEL = "ViT-B/16"
NOT_YET = ("PG-v1m1", "PonderOutdoor-v2")
# Point prompt training needs norms that know the dataset.
PROMPTED = ("SpUNet-v1m3",)


@dataclass(frozen=True)
class Settings:
    """What a model needs to know that its configuration does not say.

    Attributes:
        parity: which departures of PonderV2's code to keep.
        text: the class embeddings, or the source to make them from.
        device: type of device the model will run on.
    """

    parity: Parity
    text: TextTable | str | None
    device: str

    def table(self, class_name: Sequence[str], template: str | Sequence[str], clip_model: str) -> TextTable:
        """The embeddings of the classes.

        Raises:
            ValueError: those given are of another number of classes, or the source cannot serve.
        """
        if isinstance(self.text, TextTable):
            if len(self.text.embedding) != len(class_name):
                raise ValueError(f"text: expected {len(class_name)} classes, got {len(self.text.embedding)}")
            return self.text
        if self.text is None:
            warnings.warn(
                "no text source was given: classes are embedded offline, from their words alone, not by CLIP (a"
                " checkpoint brings its own embeddings)",
                stacklevel=6,
            )
        scrambled = self.parity.scrambled_templates
        return make_text_table(class_name, template, self.text or "offline", clip_model, scrambled)

    def rows(
        self, conditions: Sequence[str], valid_index: Sequence[Sequence[int]], class_name: Sequence[str]
    ) -> list[tuple[int, ...]]:
        """Of every condition, the rows of the table that its labels mean."""
        if len(conditions) != len(valid_index):
            raise ValueError(
                f"valid_index: expected one entry for each of {len(conditions)} conditions, got {len(valid_index)}"
            )
        order = self.parity.class_rows_in_global_order
        return [class_rows(name, own, class_name, order) for name, own in zip(conditions, valid_index, strict=True)]


Builder = Callable[[dict[str, Any], str, Settings], nn.Module]


def build_model(
    cfg: Config, parity: Parity | None = None, text: TextTable | str | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """The model, or part of one, that a configuration describes.

    Args:
        cfg: the `model` dictionary of a PonderV2 configuration, or that of a backbone or projection. Left as it is.
        parity: which departures of PonderV2's code to keep; None: all.
        text: class embeddings, for models that compare with texts: a table, or the source to make it from (see
            `make_text_table`); None: "offline", with a warning.
        device: where the model goes.

    Returns:
        A module with PonderV2's parameter names and shapes, called with a batch dictionary (projections: with a
        volume).

    Raises:
        ValueError: on an unknown type, a missing or unknown key, or values that do not fit each other.
        TypeError: a part that is no dictionary.
        SparseEngineError: no sparse-convolution library for the device.
    """
    settings = Settings(parity or Parity(), text, torch.device(device).type)
    return _build(cfg, "model", settings).to(device)


def _build(cfg: Any, part: str, settings: Settings) -> nn.Module:
    kind = mapping(cfg, part).get("type")
    if kind in NOT_YET:
        raise ValueError(f"{part}: {kind} is not available yet")
    _, builder, rest = choose(cfg, MODELS, part)
    return builder(rest, part, settings)


def _network(make: type[nn.Module]) -> Builder:
    """Builder of a class whose arguments are the configuration's."""

    def build(cfg: dict[str, Any], part: str, settings: Settings) -> nn.Module:
        return construct(make, cfg, part)

    return build


def _sparse(make: type[nn.Module]) -> Builder:
    """Builder of a sparse network."""

    def build(cfg: dict[str, Any], part: str, settings: Settings) -> nn.Module:
        own = {"device": settings.device, "reinterpreted_kernels": settings.parity.reinterpreted_kernels}
        return construct(make, cfg, part, own, hidden=("engine", "norm_momentum"))

    return build


# Keys of PonderIndoor-v2 that its class does not read itself, and arguments of the class that are no keys.
INDOOR_TEXT_KEYS = ("template", "clip_model", "class_name")
INDOOR_KEYS = (*INDOOR_TEXT_KEYS, "ppt_criteria")
INDOOR_OWN = ("text", "parity", "point_loss")


def _indoor(cfg: dict[str, Any], part: str, settings: Settings) -> PonderIndoor:
    known = [name for name in inspect.signature(PonderIndoor).parameters if name not in INDOOR_OWN]
    check_keys(cfg, [*known, *INDOOR_KEYS], part)
    missing = [key for key in ("backbone", "projection", "renderer", "conditions") if cfg.get(key) is None]
    if missing:
        raise ValueError(f"{part}: lacks {', '.join(missing)}")
    own: dict[str, Any] = {"parity": settings.parity}
    own |= _indoor_text(cfg, part, settings)
    if cfg.get("mask") is not None:
        own["mask"] = construct(MaskConfig, mapping(cfg["mask"], f"{part}.mask"), f"{part}.mask")
    if cfg.get("distillation") is not None:
        where = f"{part}.distillation"
        own["distillation"] = construct(Distillation, mapping(cfg["distillation"], where), where)
    # In this order, so that one seed initialises them as PonderV2 does.
    own["backbone"] = _build(cfg["backbone"], f"{part}.backbone", settings)
    own["projection"] = _build(cfg["projection"], f"{part}.projection", settings)
    own["renderer"] = build_renderer(cfg["renderer"], settings.parity)
    _check_width(own["renderer"], own.get("text"), part)
    rest = {key: value for key, value in cfg.items() if key not in own and key not in INDOOR_KEYS}
    return construct(PonderIndoor, rest, part, own, hidden=INDOOR_OWN)


def _check_width(renderer: SurfaceModel, text: TextTable | None, part: str) -> None:
    """Require that the renderer's semantics and the class embeddings can be compared."""
    decoder = renderer.field.semantic_decoder
    if decoder is not None and text is not None and decoder.out_channels != text.embedding.shape[1]:
        raise ValueError(
            f"{part}.renderer.field.semantic_decoder.out_dim: expected {text.embedding.shape[1]}, the width of the text"
            f" embeddings, got {decoder.out_channels}"
        )


def _indoor_text(cfg: Config, part: str, settings: Settings) -> dict[str, Any]:
    """Arguments of PonderIndoor that have to do with texts and with the points' classes."""
    if not cfg.get("render_semantic", False):
        return {"valid_index": None}
    missing = [key for key in ("template", "class_name") if cfg.get(key) is None]
    if missing:
        raise ValueError(f"{part}: render_semantic is on, but {', '.join(missing)} missing")
    names = cfg["class_name"]
    found: dict[str, Any] = {"text": settings.table(names, cfg["template"], cfg.get("clip_model") or CLIP_MODEL)}
    valid_index = cfg.get("valid_index")
    found["valid_index"] = None if valid_index is None else settings.rows(cfg["conditions"], valid_index, names)
    if cfg.get("ppt_loss_weight", 1.0) > 0:
        if cfg.get("ppt_criteria"):
            found["point_loss"] = build_criteria(cfg["ppt_criteria"])
        else:
            # PonderV2's own configurations for S3DIS and Structured3D alone lack it, and it stops there.
            warnings.warn(
                f"{part}: lacks ppt_criteria, so the points' own classes have no loss (ppt_loss_weight=0)",
                stacklevel=5,
            )
            found["ppt_loss_weight"] = 0.0
    return found


def _prompt_training(cfg: dict[str, Any], part: str, settings: Settings) -> PromptTraining:
    def make(
        backbone: Config,
        criteria: Sequence[Config] | None = None,
        backbone_out_channels: int = 96,
        context_channels: int = 256,
        conditions: Sequence[str] = CONDITIONS,
        template: str | Sequence[str] = "[x]",
        clip_model: str = CLIP_MODEL,
        class_name: Sequence[str] = CLASS_NAMES,
        valid_index: Sequence[Sequence[int]] = VALID_INDEX,
        backbone_mode: bool = False,
    ) -> PromptTraining:
        kind = mapping(backbone, f"{part}.backbone").get("type")
        if kind not in PROMPTED and kind in MODELS:
            raise ValueError(f"{part}.backbone: expected type {' or '.join(PROMPTED)}, got {kind}")
        network = _build(backbone, f"{part}.backbone", settings)
        sizes = (conditions, context_channels, backbone_out_channels)
        if backbone_mode:
            return PromptTraining(network, *sizes)
        rows = settings.rows(conditions, valid_index, class_name)
        text = settings.table(class_name, template, clip_model)
        return PromptTraining(network, *sizes, text=text, rows=rows, criteria=build_criteria(criteria))

    return construct(make, cfg, part)


def _segmentor(cfg: dict[str, Any], part: str, settings: Settings) -> DefaultSegmentor:
    def make(backbone: Config, criteria: Sequence[Config]) -> DefaultSegmentor:
        return DefaultSegmentor(_build(backbone, f"{part}.backbone", settings), build_criteria(criteria))

    return construct(make, cfg, part)


MODELS: dict[str, Builder] = {
    "SpUNet-v1m1": _sparse(SpUNet),
    "SpUNet-v1m3": _sparse(PromptedSpUNet),
    "UNet3D-v1m1": _network(UNet3D),
    "UNet3D-v1m2": _network(UNet3Dv1m2),
    "SimpleConv3D-v1m1": _network(SimpleConv3D),
    "PonderIndoor-v2": _indoor,
    "PPT-v1m1": _prompt_training,
    "DefaultSegmentor": _segmentor,
}
