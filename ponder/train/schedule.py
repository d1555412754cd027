"""Learning rate and random draws as pure functions of the step, so that a resumed run needs no hidden state."""

from __future__ import annotations

import math

import torch

from ponder.train.config import OptimConfig


def one_cycle(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of a step: cosine up to the peak, cosine down to almost nothing.

    Args:
        step: 0 .. steps - 1.
        steps: length of the run.
        config: peak, warm-up fraction and divisors.

    Reference:
        Smith and Topin, Super-Convergence, arXiv 1708.07120.
    """
    position = step / max(1, steps - 1)
    low, peak, end = config.lr / config.initial_div, config.lr, config.lr / config.final_div
    if position < config.warmup:
        start, stop, fraction = low, peak, position / config.warmup
    else:
        start, stop, fraction = peak, end, (position - config.warmup) / (1 - config.warmup)
    return stop + (start - stop) * (1 + math.cos(math.pi * fraction)) / 2


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step's random draws."""
    return torch.Generator().manual_seed((seed << 32) + step)


def scenes_of_step(seed: int, step: int, per_step: int, count: int) -> list[int]:
    """Scene numbers of a step: every scene once per epoch, each epoch in its own random order."""
    chosen = []
    for position in range(step * per_step, (step + 1) * per_step):
        epoch, index = divmod(position, count)
        # The upper half of the range keeps epoch generators apart from those of the steps.
        order = torch.randperm(count, generator=step_generator(seed, 2**31 + epoch))
        chosen.append(int(order[index]))
    return chosen
