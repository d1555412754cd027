"""Interleaved rounds: every competitor at least once per round on the same inputs, in rotating order, part by part."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.conditions import Conditions
from benchmarks.contenders import Contender
from benchmarks.handover import handover_seconds
from benchmarks.stolen import QUIET, Patience, Stolen

# All parts of a round together.
WHOLE = "step"


class Spread(NamedTuple):
    """Median and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value."""
    p20, median, p80 = np.percentile(list(values), [20, 50, 80])
    return Spread(float(median), float(p20), float(p80))


def ratios(seconds: Iterable[float], ours: Iterable[float]) -> list[float]:
    """`seconds` by `ours`, round by round: what slowed a round down slowed both."""
    return [a / b for a, b in zip(seconds, ours, strict=True)]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Clock:
    """Moments on a device: events in its stream on a GPU, the wall clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.events: list[torch.cuda.Event] = []
        self.moments: list[float] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            self.events.append(torch.cuda.Event(enable_timing=True))
            self.events[-1].record(torch.cuda.current_stream(self.device))
        else:
            self.moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between neighbouring marks."""
        synchronise(self.device)
        # An event's elapsed time is in milliseconds.
        on_gpu = [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(self.events)]
        return on_gpu or [after - before for before, after in itertools.pairwise(self.moments)]


def time_parts(contender: Contender, device: torch.device) -> dict[str, float]:
    """Seconds of every part and of all together. Garbage is collected before, and not while, time is taken."""
    contender.reset()
    gc.collect()
    # What outlives a collection is left out of the next one, which would take longer than many a step.
    gc.freeze()
    gc.disable()
    try:
        synchronise(device)
        clock = _Clock(device)
        clock.mark()
        for work in contender.parts.values():
            work()
            clock.mark()
        taken = clock.seconds()
    finally:
        gc.enable()
    return dict(zip(contender.parts, taken, strict=True)) | {WHOLE: sum(taken)}


class Rounds:
    """Calling it runs one round. The first of a sitting is a warm-up and is not kept.

    What takes a fraction of the slowest competitor's time has several turns in a round, spread over it, and counts with
    their median: a disturbance of some milliseconds is little to the slowest and much to the fastest.

    A round from which the host of a virtual machine took time is kept, and another one is run, once, while `patience`
    lasts.

    Attributes:
        seconds: competitor -> part -> one number per round, of all sittings.
        conditions: of the machine, in every round.
        turns: competitor -> how many it has in this sitting's rounds, as the warm-up says.
    """

    def __init__(
        self,
        contenders: Mapping[str, Contender],
        device: torch.device,
        patience: Patience | None = None,
        most_turns: int = 1,
    ) -> None:
        self.contenders, self.device, self.patience = dict(contenders), device, patience or Patience(0)
        self.most_turns, self.turns = most_turns, dict.fromkeys(contenders, 1)
        self.done, self.warm = 0, False
        self.seconds: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
        self.conditions = Conditions()

    def sit_down(self) -> None:
        """Begin a sitting: something else ran before."""
        self.warm, self.turns = False, dict.fromkeys(self.contenders, 1)

    def __call__(self) -> None:
        if not self.warm:
            taken = self._round()[0]
            slowest = max(parts[WHOLE] for parts in taken.values())
            self.turns = {name: max(1, min(self.most_turns, int(slowest / p[WHOLE]))) for name, p in taken.items()}
            self.warm = True
            return
        self._keep(*self._round())
        if self.conditions.stolen[-1] > QUIET and self.patience.left > 0:
            start = time.perf_counter()
            self._keep(*self._round())
            self.patience.spend(time.perf_counter() - start)

    def _round(self) -> tuple[dict[str, dict[str, float]], float, float]:
        """Seconds by competitor and part, the largest share that was taken away, the slowest handover."""
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in self.contenders}
        most = slowest = 0.0
        for name in self._order():
            slowest = max(slowest, handover_seconds(self.device))
            stolen = Stolen()
            taken[name].append(time_parts(self.contenders[name], self.device))
            most = max(most, stolen.share())
            # Inputs are shared: nobody pays for what another one leaves in memory.
            self.contenders[name].reset()
        return {name: _medians(turns) for name, turns in taken.items()}, most, slowest

    def _keep(self, taken: Mapping[str, Mapping[str, float]], stolen: float, handover: float) -> None:
        for name, parts in taken.items():
            for part, value in parts.items():
                self.seconds[name].setdefault(part, []).append(value)
        self.conditions.stolen.append(stolen)
        self.conditions.handover.append(handover)
        self.done += 1

    def _order(self) -> list[str]:
        """Rotating, and every other time backwards, so that nobody always comes first or behind the same one."""
        names = list(self.contenders)
        first = self.done // 2 % len(names)
        rotated = names[first:] + names[:first]
        order = rotated[::-1] if self.done % 2 else rotated
        moments = [((turn + 0.5) / self.turns[name], name) for name in order for turn in range(self.turns[name])]
        return [name for _, name in sorted(moments, key=lambda moment: moment[0])]


def _medians(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds by part, given those of several turns."""
    return {part: float(np.median([taken[part] for taken in turns])) for part in turns[0]}


def saved_bytes(contender: Contender, left_out: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward: distinct storages, but for those of `left_out`.

    Args:
        contender: whose part `saves` is run.
        left_out: parameters, volumes and other inputs, which exist anyway.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in left_out}
    found: dict[int, int] = {}
    # A freed storage's address would be used again.
    alive = []

    def pack(value: Tensor) -> Tensor:
        alive.append(value)
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    contender.reset()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        contender.parts[contender.saves]()
    contender.reset()
    return sum(found.values())
