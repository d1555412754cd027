"""PonderV2's learning rate schedules as functions of the number of updates done, without hidden state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from ponder.render.ponderv2 import Parity
from ponder.train.checkpoint import CheckpointError
from ponder.train.config import ConfigError
from ponder.train.ponderv2.arguments import Arguments

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "OneCycleLR": (
        "max_lr", "pct_start", "anneal_strategy", "cycle_momentum", "base_momentum", "max_momentum", "div_factor",
        "final_div_factor", "three_phase",
    ),
    "PolyLR": ("power",),
    "MultiStepLR": ("milestones", "gamma"),
    "MultiStepWithWarmupLR": ("milestones", "gamma", "warmup_rate", "warmup_scale"),
    "ExpLR": ("gamma",),
    "CosineAnnealingLR": ("eta_min",),
}  # fmt: skip


class Rates(NamedTuple):
    """What an optimiser step uses.

    Attributes:
        lrs: learning rate of each parameter group.
        momentum: of all groups (Adam's beta1); None leaves the optimiser's own.
    """

    lrs: tuple[float, ...]
    momentum: float | None


@dataclass(frozen=True)
class Schedule:
    """Learning rates and momentum of a run.

    Attributes:
        kind: PonderV2's name of it.
        total_steps: updates of the whole run.
        lrs: for each group, updates done -> learning rate.
        momentum: updates done -> momentum, or None.
        group_values: what torch's scheduler of that kind keeps in each group of the optimiser, such as initial_lr.
    """

    kind: str
    total_steps: int
    lrs: tuple[Callable[[int], float], ...]
    group_values: tuple[dict[str, Any], ...]
    momentum: Callable[[int], float] | None = None

    def rates(self, step: int) -> Rates:
        """What the update after `step` updates uses.

        Raises:
            ValueError: step is not from 0 to total_steps.
        """
        if not 0 <= step <= self.total_steps:
            raise ValueError(f"step: expected 0 .. {self.total_steps}, got {step}")
        momentum = None if self.momentum is None else self.momentum(step)
        return Rates(tuple(lr(step) for lr in self.lrs), momentum)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Give the optimiser what the update after `step` updates uses, and what PonderV2's scheduler keeps in it."""
        rates = self.rates(step)
        for group, lr, values in zip(optimizer.param_groups, rates.lrs, self.group_values, strict=True):
            group.update(values)
            group["lr"] = lr
            if rates.momentum is not None and "betas" in group:
                group["betas"] = (rates.momentum, *group["betas"][1:])
            elif rates.momentum is not None:
                group["momentum"] = rates.momentum

    def state_dict(self, step: int) -> dict[str, Any]:
        """A state after `step` updates that PonderV2's scheduler of the same settings can load."""
        state: dict[str, Any] = {
            "base_lrs": [group["initial_lr"] for group in self.group_values],
            "last_epoch": step,
            "_step_count": step + 1,
            "_last_lr": list(self.rates(step).lrs),
        }
        if self.kind in ("PolyLR", "MultiStepWithWarmupLR", "ExpLR"):
            state["lr_lambdas"] = [None] * len(self.lrs)
        return state


def updates_done(state: Mapping[str, Any]) -> int:
    """The number of updates after which a scheduler's state, PonderV2's or that of `Schedule.state_dict`, was saved.

    Raises:
        CheckpointError: the state does not say.
    """
    step = state.get("last_epoch") if isinstance(state, Mapping) else None
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise CheckpointError(f"the scheduler's state: expected a count of updates as last_epoch, got {step!r}")
    return step


def build_schedule(
    cfg: Mapping[str, Any], optimizer: torch.optim.Optimizer, total_steps: int, parity: Parity | None = None
) -> Schedule:
    """The schedule of a config.

    Args:
        cfg: the config's `scheduler`: type OneCycleLR, PolyLR, MultiStepLR, MultiStepWithWarmupLR, ExpLR or
            CosineAnnealingLR, and PonderV2's arguments of it.
        optimizer: its groups' learning rates are what all but OneCycleLR scale.
        total_steps: updates of the whole run.
        parity: `cycled_momentum` decides whether OneCycleLR moves the momentum if the config does not say.

    Raises:
        ConfigError: an unknown type or argument, or an impossible value.
        ValueError: total_steps is not positive.

    Reference:
        PonderV2, ponder/utils/scheduler.py; torch.optim.lr_scheduler for the formulas.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps: expected at least 1, got {total_steps}")
    given = Arguments(cfg, "scheduler", ARGUMENTS)
    if given.type == "OneCycleLR":
        return _one_cycle(given, optimizer, total_steps, parity or Parity())
    bases = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    factor = _factor(given, total_steps)
    lowest = given.number("eta_min", 0.0, 0) if given.type == "CosineAnnealingLR" else 0.0
    lrs = tuple(_scaled(base, lowest, factor) for base in bases)
    return Schedule(given.type, total_steps, lrs, tuple({"initial_lr": base} for base in bases))


def _scaled(base: float, lowest: float, factor: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: lowest + (base - lowest) * factor(step)


def _factor(given: Arguments, total_steps: int) -> Callable[[int], float]:
    """What the base rates are multiplied with (the cosine: their part above the lowest rate)."""
    if given.type == "PolyLR":
        power = given.number("power", 0.9, 0)
        return lambda step: (1 - step / (total_steps + 1)) ** power
    if given.type == "CosineAnnealingLR":
        return lambda step: (1 + math.cos(math.pi * step / total_steps)) / 2
    gamma = given.number("gamma", 0.9 if given.type == "ExpLR" else 0.1, 0)
    if given.type == "ExpLR":
        return lambda step: gamma ** (step / total_steps)
    milestones = [rate * total_steps for rate in given.numbers("milestones", None, 0, 1)]
    if given.type == "MultiStepLR":
        return _steps_at_whole(milestones, gamma)
    rate, scale = given.number("warmup_rate", 0.05, 0, 1), given.number("warmup_scale", 1e-6, 0)

    def with_warmup(step: int) -> float:
        rising = rate > 0 and step <= rate * total_steps
        warmup = 1 - (1 - step / rate / total_steps) * (1 - scale) if rising else 1.0
        reached = takewhile(lambda milestone: step >= milestone, milestones)
        return warmup * math.prod(gamma for _ in reached)

    return with_warmup


def _steps_at_whole(milestones: Sequence[float], gamma: float) -> Callable[[int], float]:
    """torch's MultiStepLR, which compares the step with the milestone for equality."""
    whole = [milestone for milestone in milestones if milestone == int(milestone)]
    for milestone in milestones:
        if milestone not in whole:
            text = (
                f"scheduler.milestones: {milestone:g} is no whole number of updates, so MultiStepLR never decays there"
            )
            warnings.warn(text, UserWarning, stacklevel=4)
    return lambda step: gamma ** sum(milestone <= step for milestone in whole)


class _Phase(NamedTuple):
    """A stretch of the one-cycle schedule: from the end of the one before to `end`, in updates."""

    end: float
    lrs: tuple[float, float]
    momenta: tuple[float, float]


def _one_cycle(given: Arguments, optimizer: torch.optim.Optimizer, total_steps: int, parity: Parity) -> Schedule:
    peaks = _peaks(given, len(optimizer.param_groups))
    rise, fall = given.number("div_factor", 25.0, 1e-12), given.number("final_div_factor", 1e4, 1e-12)
    share = given.number("pct_start", 0.3, 0, 1)
    low, high = given.number("base_momentum", 0.85, 0, 1), given.number("max_momentum", 0.95, 0, 1)
    anneal = _cosine if given.choice("anneal_strategy", "cos", ("cos", "linear")) == "cos" else _linear
    three, cycled = given.flag("three_phase", False), given.flag("cycle_momentum", parity.cycled_momentum)

    def phases(peak: float) -> list[_Phase]:
        start = peak / rise
        last = start / fall
        first = _Phase(float(share * total_steps) - 1, (start, peak), (high, low))
        if not three:
            return [first, _Phase(total_steps - 1, (peak, last), (low, high))]
        back = _Phase(float(2 * share * total_steps) - 2, (peak, start), (low, high))
        return [first, back, _Phase(total_steps - 1, (start, last), (high, high))]

    def rate(peak: float, step: int) -> float:
        phase, fraction = _place(phases(peak), step)
        return anneal(*phase.lrs, fraction)

    def momentum(step: int) -> float:
        phase, fraction = _place(phases(1.0), step)
        return anneal(*phase.momenta, fraction)

    values: list[dict[str, Any]] = [
        {"initial_lr": peak / rise, "max_lr": peak, "min_lr": peak / rise / fall} for peak in peaks
    ]
    for kept, group in zip(values, optimizer.param_groups, strict=True):
        # Without the cycle the optimiser's own momentum also replaces that of a loaded state which had it.
        own: dict[str, Any] = {name: group[name] for name in ("momentum", "betas") if name in group}
        kept |= {"max_momentum": high, "base_momentum": low} if cycled else own
    lrs = tuple(partial(rate, peak) for peak in peaks)
    return Schedule(given.type, total_steps, lrs, tuple(values), momentum if cycled else None)


def _peaks(given: Arguments, groups: int) -> list[float]:
    """max_lr of each group; a single number counts for all, whatever their own rates are."""
    if not isinstance(given.given("max_lr"), list | tuple):
        return [given.number("max_lr", least=0)] * groups
    peaks = given.numbers("max_lr", None, 0, math.inf)
    if len(peaks) != groups:
        raise ConfigError(f"scheduler.max_lr: expected a number for each of the {groups} groups, got {len(peaks)}")
    return peaks


def _place(phases: Sequence[_Phase], step: int) -> tuple[_Phase, float]:
    """The phase that a step lies in, and the fraction of it that has passed."""
    start = 0.0
    for phase in phases[:-1]:
        if step <= phase.end:
            # A rise of one step only, which torch divides by zero for, is at its peak.
            return phase, (step - start) / (phase.end - start) if phase.end > start else 1.0
        start = phase.end
    length = phases[-1].end - start
    return phases[-1], (step - start) / length if length else 1.0


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * fraction) + 1)


def _linear(start: float, end: float, fraction: float) -> float:
    return (end - start) * fraction + start
