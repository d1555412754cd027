"""One optimisation step on one or many ranks: parts of a batch, mixed precision, non-finite numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ponder.train.ponderv2.distributed import World, all_sum, data_parallel, peer_errors

Batch = Mapping[str, Any]
# A scale below this is no longer the scaler's search for a working one: float16 gradients overflow on their own.
SEARCHING_SCALE = 1.0


class StepResult(NamedTuple):
    """What a step reports.

    Attributes:
        values: loss and gradient norm, means over ranks; the loss's terms, of this rank; all means over parts.
        applied: whether the weights changed.
        bad: whether a number was not finite for a reason other than a loss scale still too high.
        stop: whether any rank was asked to stop.
    """

    values: dict[str, float]
    applied: bool
    bad: bool
    stop: bool


class _Losses(nn.Module):
    """The model with the loss as its only differentiable output.

    PonderV2 also returns terms that are not optimised. DistributedDataParallel would take the parameters behind them
    for used and wait for gradients that never come.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.model(batch)
        terms = {name: value.detach() for name, value in output.items() if _is_number(value) and name != "loss"}
        return output["loss"].reshape(()), terms


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


@dataclass
class Learner:
    """What a step changes, and how it computes.

    Attributes:
        model: takes a batch dict and returns a dict with "loss" in training mode.
        optimizer: over the model's parameters.
        device: of the model.
        world: this rank.
        amp: type of mixed precision, None for float32.
        find_unused: see `data_parallel`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    world: World = field(default_factory=World)
    amp: torch.dtype | None = None
    find_unused: bool = False

    def __post_init__(self) -> None:
        self.losses = data_parallel(_Losses(self.model), self.device, self.find_unused, self.world)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a forward pass."""
        if self.amp is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set torch's generators for a step, so that its draws depend on these three numbers only."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on a device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def train_step(learner: Learner, parts: Sequence[Batch], stop: bool = False) -> StepResult:
    """Run one step: gradients of the mean loss over parts and ranks, then the optimiser.

    A step with a non-finite loss or gradient leaves weights, buffers and optimiser untouched, on all ranks.

    Args:
        learner: its model in training mode; changed in place.
        parts: one batch, or equal parts of one, each run by itself to save memory.
        stop: whether this rank was asked to stop; shared with the others.

    Raises:
        PeerError: another rank was lost. Weights, buffers and optimiser are those before the step.
    """
    # Batch-norm statistics are updated in the forward pass, before anything is known to be finite.
    buffers = [buffer.clone() for buffer in learner.model.buffers()]
    try:
        with peer_errors(learner.world):
            loss, terms = _accumulate(learner, parts)
        learner.scaler.unscale_(learner.optimizer)
        norm = _gradient_norm(learner.model)
        values, stopping = _shared(learner, loss, terms, norm, stop)
    except BaseException:
        _restore(learner, buffers)
        raise
    finite = bool(np.isfinite([values["loss"], values["grad_norm"]]).all())
    searching = learner.scaler.is_enabled() and learner.scaler.get_scale() > SEARCHING_SCALE
    if finite:
        learner.scaler.step(learner.optimizer)
    else:
        _restore(learner, buffers)
    if learner.scaler.is_enabled():
        learner.scaler.update()
    bad = not finite and not (searching and np.isfinite(values["loss"]))
    return StepResult(values, finite, bad, stopping)


def _accumulate(learner: Learner, parts: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of the mean loss of the parts, and the means of the loss and its terms."""
    learner.optimizer.zero_grad(set_to_none=True)
    losses, collected = [], []
    for number, part in enumerate(parts):
        # Ranks exchange gradients once, with the last part.
        with _silence(learner.losses) if number < len(parts) - 1 else nullcontext():
            with learner.autocast():
                loss, terms = learner.losses(to_device(part, learner.device))
            learner.scaler.scale(loss / len(parts)).backward()
        losses.append(loss.detach().float())
        collected.append(terms)
    names = sorted(set.intersection(*(set(terms) for terms in collected)))
    means = {name: torch.stack([terms[name].float().reshape(()) for terms in collected]).mean() for name in names}
    return torch.stack(losses).mean(), means


def _silence(model: nn.Module) -> AbstractContextManager[Any]:
    """No exchange of gradients between ranks."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _gradient_norm(model: nn.Module) -> Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients:
        raise RuntimeError("the loss reaches no parameter of the model: nothing can be learned")
    return torch.nn.utils.get_total_norm(gradients)


def _shared(
    learner: Learner, loss: Tensor, terms: dict[str, Tensor], norm: Tensor, stop: bool
) -> tuple[dict[str, float], bool]:
    """The step's numbers, and whether any rank stops: one sum over ranks and one copy to the host per step."""
    common = torch.stack([loss, norm.to(loss), loss.new_tensor(float(stop))])
    common = all_sum(common, learner.world)
    total, norms, stopping, *own = torch.cat([common, *(term.reshape(1) for term in terms.values())]).tolist()
    size = learner.world.size
    return {"loss": total / size, "grad_norm": norms / size} | dict(zip(terms, own, strict=True)), stopping > 0


@torch.no_grad()
def _restore(learner: Learner, buffers: Sequence[Tensor]) -> None:
    for buffer, before in zip(learner.model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    learner.optimizer.zero_grad(set_to_none=True)
