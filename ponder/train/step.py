"""One optimisation step: rays, rendering, losses, gradients, and the guard against non-finite numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ponder.data.rays import SampledRays, sample_rays
from ponder.data.scene import Scene
from ponder.models.pretrainer import EncodedCloud, PonderModel
from ponder.render.losses import PixelTargets, loss_terms, ray_targets, total_loss
from ponder.render.renderer import RayBatch
from ponder.train.config import OptimConfig, TrainConfig
from ponder.train.schedule import one_cycle, scenes_of_step, step_generator


@dataclass(frozen=True)
class PreparedScene:
    """A scene, and its cloud as the network takes it, on the run's device."""

    scene: Scene
    encoded: EncodedCloud


class StepResult(NamedTuple):
    """What a step reports: loss terms and the total, gradient norm, learning rate; whether it was applied."""

    values: dict[str, float]
    applied: bool


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD; biases, norms and scalars are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99))


def _stack(parts: Sequence[SampledRays], device: torch.device) -> tuple[RayBatch, PixelTargets]:
    stacked = SampledRays(*(torch.stack(values).to(device) for values in zip(*parts, strict=True)))
    rays = RayBatch(stacked.origins, stacked.directions)
    return rays, PixelTargets(stacked.rgb, stacked.ray_depth, stacked.normal)


def compute_loss(
    model: PonderModel, scenes: Sequence[PreparedScene], config: TrainConfig, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a step and its unweighted terms: a function of the weights, the seed and the step."""
    generator = step_generator(config.seed, step)
    chosen = [scenes[i] for i in scenes_of_step(config.seed, step, config.scenes, len(scenes))]
    device = chosen[0].encoded.features.device
    sampled = [sample_rays(item.scene.train, config.views, config.rays, generator) for item in chosen]
    rays, pixels = _stack(sampled, device)
    volume = model.encode([item.encoded for item in chosen])
    targets = ray_targets(pixels, rays.directions, config.loss.truncation)
    rendered = model.renderer(volume.features, volume.box, rays, targets, generator)
    terms = loss_terms(rendered, pixels)
    return total_loss(terms, config.loss), terms


def train_step(
    model: PonderModel,
    optimizer: torch.optim.Optimizer,
    scenes: Sequence[PreparedScene],
    config: TrainConfig,
    step: int,
) -> StepResult:
    """Run one step. A non-finite loss or gradient leaves weights, buffers and optimiser untouched.

    Args:
        model: in training mode.
        optimizer: changed in place.
        scenes: all scenes of the run.
        config: the run's configuration.
        step: number of the step, from 0.
    """
    rate = one_cycle(step, config.steps, config.optim)
    for group in optimizer.param_groups:
        group["lr"] = rate
    # Batch-norm statistics are updated in the forward pass, before anything is known to be finite.
    buffers = [buffer.clone() for buffer in model.buffers()]
    optimizer.zero_grad(set_to_none=True)
    loss, terms = compute_loss(model, scenes, config, step)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
    summary = torch.stack([loss.detach(), norm.detach(), *(term.detach() for term in terms.values())]).tolist()
    values = dict(zip(("loss", "grad_norm", *terms), summary, strict=True)) | {"lr": rate}
    applied = bool(torch.isfinite(torch.stack([loss.detach(), norm.detach()])).all())
    if applied:
        optimizer.step()
    else:
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        optimizer.zero_grad(set_to_none=True)
    return StepResult(values, applied)
