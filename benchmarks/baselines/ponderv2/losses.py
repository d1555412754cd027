"""PonderV2's training losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_NAMES = (
    "depth_loss",
    "rgb_loss",
    "semantic_loss",
    "free_space_loss",
    "sdf_loss",
    "eikonal_loss",
    "sparse_points_sdf_loss",
)

# Cross entropy leaves out rows with this label.
IGNORED = -100


@dataclass(frozen=True)
class LossConfig:
    """What the losses need to know.

    Attributes:
        sensor_depth_truncation: half width of the band around the measured depth that counts as surface, in the units
            of the rays.
        weights: factor per loss; a loss that is not named, or not above 0, is not computed.
        temperature: of the semantic contrast; needed if that loss is on.
        val_ray_split: rays per contrast in evaluation.
    """

    sensor_depth_truncation: float
    weights: Mapping[str, float]
    temperature: float | None = None
    val_ray_split: int = 128

    def __post_init__(self) -> None:
        unknown = set(self.weights) - set(LOSS_NAMES)
        if unknown:
            raise ValueError(f"unknown losses {sorted(unknown)} in the loss weights; known: {', '.join(LOSS_NAMES)}")
        if self.weight("semantic_loss") > 0 and self.temperature is None:
            raise ValueError("semantic_loss needs a temperature")

    def weight(self, name: str) -> float:
        """Factor of a loss, 0 where none is given."""
        return self.weights.get(name, 0.0)


def compute_losses(
    preds: Mapping[str, Tensor], targets: Mapping[str, Tensor], config: LossConfig, training: bool
) -> dict[str, Tensor]:
    """Weighted losses that are switched on, by name, and "psnr" along with the colour loss.

    The training loss is the sum of the entries whose name contains "loss".

    Args:
        preds: output of a renderer.
        targets: "depth" [R, 1] along the ray (a value <= 0 is missing); "rgb" [R, 3] and "semantic" [R, K] (a zero row
            is missing) where their losses are on.
        config: weights and constants.
        training: contrast all rays with each other, else within chunks of `val_ray_split`.
    """
    depth = targets["depth"]
    valid = depth > 0.0
    terms: dict[str, Tensor] = {}
    if config.weight("depth_loss") > 0:
        terms["depth_loss"] = masked_mean((depth - preds["depth"]).abs(), valid)
    if config.weight("rgb_loss") > 0:
        terms["rgb_loss"] = F.l1_loss(preds["rgb"], targets["rgb"])
        # Logged, not optimised.
        terms["psnr"] = 20.0 * torch.log10(1.0 / (preds["rgb"] - targets["rgb"]).square().mean().sqrt())
    if config.weight("semantic_loss") > 0:
        assert config.temperature is not None
        rays = len(depth) if training else config.val_ray_split
        terms["semantic_loss"] = semantic_loss(
            preds["semantic"], targets["semantic"], valid[:, 0], config.temperature, rays, training
        )
    terms |= surface_losses(preds["sdf"][..., 0], preds["z_vals"][..., 0], depth, valid, config)
    if config.weight("eikonal_loss") > 0:
        terms["eikonal_loss"] = (preds["gradients"].norm(2, dim=-1) - 1).square().mean()
    if config.weight("sparse_points_sdf_loss") > 0:
        terms["sparse_points_sdf_loss"] = preds["sparse_points_sdf"].abs().mean()
    return {name: term * config.weights.get(name, 1.0) for name, term in terms.items()}


def surface_losses(sdf: Tensor, starts: Tensor, depth: Tensor, valid: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """Free space in front of the measured surface, signed distance around it.

    With truncation t: where ``start < depth - t`` the loss is ``relu(t - sdf)``; where ``|start - depth| <= t`` it is
    ``|start + sdf - depth|``; behind, nothing is known. Each is a mean over its own samples.

    Args:
        sdf, starts: [R, S].
        depth, valid: [R, 1].
        config: weights and constants.
    """
    truncation = config.sensor_depth_truncation
    front = valid & (starts < depth - truncation)
    back = valid & (starts > depth + truncation)
    near = valid & ~front & ~back
    terms = {}
    if config.weight("free_space_loss") > 0:
        terms["free_space_loss"] = masked_mean(F.relu(truncation - sdf), front)
    if config.weight("sdf_loss") > 0:
        terms["sdf_loss"] = masked_mean((starts + sdf - depth).abs(), near)
    return terms


def semantic_loss(
    pred: Tensor, target: Tensor, valid: Tensor, temperature: float, chunk: int, training: bool
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) between rendered and target embeddings: each ray against every other ray.

    ``logits = normalised(pred) target^T / temperature``, label i for row i. Rays without a target or without depth are
    left out as rows but stay as columns, and rays of one class are each other's negatives.

    PonderV2's own evaluation code stops with a NameError here; what it intends, the mean over chunks of rays each
    contrasted within itself, is what this computes.

    Args:
        pred, target: [R, K]; `target` is used at the length it has.
        valid: [R] bool, whether there is a depth.
        temperature: divides the logits.
        chunk: rays that are contrasted with each other.
        training: one chunk of all rays.

    Returns:
        Scalar; [1] zeros in training if no ray counts, as in PonderV2.
    """
    pred = F.normalize(pred, dim=-1)
    valid = valid & target.any(dim=-1)
    if training:
        return contrast(pred, target, valid, temperature)
    parts = zip(pred.split(chunk), target.split(chunk), valid.split(chunk), strict=True)
    return torch.stack([contrast(p, t, v, temperature).mean() for p, t, v in parts]).mean()


def contrast(pred: Tensor, target: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the R x R logits against the diagonal, mean over valid rows; [1] zeros without any."""
    labels = torch.arange(len(pred), device=pred.device)
    labels = torch.where(valid, labels, IGNORED)
    if not bool(valid.any()):
        return pred.new_zeros(1)
    return F.cross_entropy(pred @ target.t() / temperature, labels)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask holds; 0 where it holds nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1.0)
