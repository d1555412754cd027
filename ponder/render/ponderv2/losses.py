"""PonderV2's training losses with little memory kept for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.render.ponderv2.parity import Parity
from ponder.render.ponderv2.sample_losses import eikonal_loss, surface_losses
from ponder.render.ponderv2.semantic import Classes, classes_of_labels, classes_of_rows, semantic_loss

# By loss: what it compares, from the predictions and from the targets.
INPUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "depth_loss": (("depth",), ("depth",)),
    "rgb_loss": (("rgb",), ("rgb",)),
    "semantic_loss": (("semantic",), ()),
    "free_space_loss": (("sdf", "z_vals"), ("depth",)),
    "sdf_loss": (("sdf", "z_vals"), ("depth",)),
    "eikonal_loss": (("gradients",), ()),
    "sparse_points_sdf_loss": (("sparse_points_sdf",), ()),
}


@dataclass(frozen=True)
class LossConfig:
    """What the losses need to know.

    Attributes:
        sensor_depth_truncation: half width of the band around the measured depth that counts as surface, in the unit of
            the rays.
        weights: factor per loss; a loss that is not named, or not above 0, is not computed.
        temperature: of the semantic contrast; needed if that loss is on.
        val_ray_split: rays per contrast in evaluation.
    """

    sensor_depth_truncation: float
    weights: Mapping[str, float]
    temperature: float | None = None
    val_ray_split: int = 128

    def __post_init__(self) -> None:
        unknown = set(self.weights) - set(INPUTS)
        if unknown:
            raise ValueError(f"loss.weights: unknown losses {sorted(unknown)}; known: {', '.join(INPUTS)}")
        if self.weight("semantic_loss") > 0 and self.temperature is None:
            raise ValueError("loss: semantic_loss needs a temperature")

    def weight(self, name: str) -> float:
        """Factor of a loss, 0 where none is given."""
        return self.weights.get(name, 0.0)


def compute_losses(
    preds: Mapping[str, Tensor], targets: Mapping[str, Tensor], config: LossConfig, parity: Parity, training: bool
) -> dict[str, Tensor]:
    """Weighted losses that are switched on, by name, and "psnr" along with the colour loss.

    The training loss is the sum of the entries whose name contains "loss". Of no rays every loss is 0 (in PonderV2 some
    are NaN).

    Args:
        preds: output of a renderer.
        targets: "depth" [R, 1] along the ray (a value <= 0 is missing); "rgb" [R, 3] and "semantic" [R, E] (a row of
            zeros is missing) where their losses are on. Instead of the latter, "semantic_class" [R] integer (negative
            is missing) and "semantic_table" [K, E] save expanding them.
        config: weights and constants.
        parity: switches.
        training: contrast all rays with each other, else within chunks of `val_ray_split`.

    Raises:
        ValueError: naming an entry that is missing or of the wrong shape.
    """
    on = {name for name in INPUTS if config.weight(name) > 0}
    _check_entries(preds, targets, on)
    depth = targets["depth"]
    measured = depth > 0.0
    terms: dict[str, Tensor] = {}
    if "depth_loss" in on:
        terms["depth_loss"] = ((depth - preds["depth"]).abs() * measured).sum() / measured.sum().clamp(min=1.0)
    if "rgb_loss" in on:
        terms |= _colour(preds["rgb"], targets["rgb"], None if parity.black_pixels_without_depth else measured)
    if "semantic_loss" in on:
        assert config.temperature is not None
        pred, chunk = preds["semantic"], None if training else config.val_ray_split
        terms["semantic_loss"] = semantic_loss(
            pred, _classes(pred, targets), measured[:, 0], config.temperature, chunk, parity.same_class_negatives
        )
    if on & {"free_space_loss", "sdf_loss"}:
        found = surface_losses(preds["sdf"][..., 0], preds["z_vals"][..., 0], depth, config.sensor_depth_truncation)
        pairs = zip(("free_space_loss", "sdf_loss"), found, strict=True)
        terms |= {name: value for name, value in pairs if name in on}
    if "eikonal_loss" in on:
        terms["eikonal_loss"] = eikonal_loss(preds["gradients"])
    if "sparse_points_sdf_loss" in on:
        distances = preds["sparse_points_sdf"].abs()
        terms["sparse_points_sdf_loss"] = distances.sum() / max(distances.numel(), 1)
    return {name: term * config.weights.get(name, 1.0) for name, term in terms.items()}


def _colour(pred: Tensor, target: Tensor, counted: Tensor | None) -> dict[str, Tensor]:
    """L1 loss and signal-to-noise ratio of [R, 3], of the rays that count ([R, 1] bool; None: all)."""
    if counted is None:
        numbers = max(pred.numel(), 1)
        loss = F.l1_loss(pred, target, reduction="sum") / numbers
        squared = (pred - target).square().sum() / numbers
    else:
        values = 3 * counted.sum().clamp(min=1)
        loss = ((pred - target).abs() * counted).sum() / values
        squared = ((pred - target).square() * counted).sum() / values
    # Logged, not optimised.
    return {"rgb_loss": loss, "psnr": 20.0 * torch.log10(1.0 / squared.sqrt())}


def _classes(pred: Tensor, targets: Mapping[str, Tensor]) -> Classes:
    rays, width = pred.shape
    if "semantic_class" in targets:
        labels, table = targets["semantic_class"], targets.get("semantic_table")
        if labels.shape != (rays,) or labels.is_floating_point():
            raise ValueError(f"semantic_class: expected integers [R={rays}], got {labels.dtype} {list(labels.shape)}")
        if table is None or table.dim() != 2 or table.shape[1] != width:
            found = "none" if table is None else str(list(table.shape))
            raise ValueError(f"semantic_table: expected shape [K, {width}] beside semantic_class, got {found}")
        return classes_of_labels(labels, table)
    return classes_of_rows(targets["semantic"])


def _check_entries(preds: Mapping[str, Tensor], targets: Mapping[str, Tensor], on: set[str]) -> None:
    """Require the entries of the losses that are on, with R rays each."""
    if "depth" not in targets:
        raise ValueError("targets: lacks 'depth'")
    rays = len(targets["depth"])
    wanted = {"depth": (rays, 1)}
    if "rgb_loss" in on:
        wanted["rgb"] = (rays, 3)
    missing = [key for name in INPUTS if name in on for key in INPUTS[name][0] if key not in preds]
    if missing:
        raise ValueError(f"preds_dict: lacks {missing[0]!r}")
    if "semantic_loss" in on and "semantic_class" not in targets:
        wanted["semantic"] = (rays, preds["semantic"].shape[-1])
    for key, shape in wanted.items():
        if key not in targets:
            raise ValueError(f"targets: lacks {key!r}")
        if targets[key].shape != shape:
            raise ValueError(f"targets[{key!r}]: expected shape {list(shape)}, got {list(targets[key].shape)}")
    for name in on:
        for key in INPUTS[name][0]:
            if name != "sparse_points_sdf_loss" and len(preds[key]) != rays:
                raise ValueError(f"preds_dict[{key!r}]: expected R={rays} rays, got {len(preds[key])}")
