"""Batches of one dataset or of several, the same whatever the number of loader processes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ponder.data.ponderv2.base import MIX_STREAM, ORDER_STREAM, PointDataset, SampleKey, generator
from ponder.data.ponderv2.batch import collate, mix
from ponder.data.ponderv2.concat import ConcatDataset
from ponder.data.ponderv2.skips import Skips
from ponder.data.scene import DataError

Seed = int | Sequence[int]


class _Plan(Sampler[list[SampleKey]]):
    """Which samples make which batches of one rank; iterating gives those that `request` asks for.

    Knows nothing of the loader: loader processes take seconds to end if theirs is part of a reference cycle.
    """

    def __init__(
        self, size: int, batch_size: int, seed: Seed, rank: int, world: int, shuffle: bool, drop_last: bool
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world, self.shuffle, self.drop_last = rank, world, shuffle, drop_last
        self.request = 0, 0, 0

    def __len__(self) -> int:
        """Batches of one pass."""
        if self.drop_last:
            return self.size // (self.batch_size * self.world)
        return -(-len(range(self.rank, self.size, self.world)) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """`count` batches of an epoch from number `start` on; a pass is followed by others of the same epoch."""
        epoch, start, count = self.request
        order, ordered = np.empty(0, dtype=np.int64), -1
        for number in range(start, start + count):
            turn, place = divmod(number, len(self))
            if turn != ordered:
                order, ordered = self._order(epoch, turn), turn
            chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
            yield [SampleKey(epoch, turn, int(index)) for index in chosen]

    def _order(self, epoch: int, turn: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The samples of this rank, in the order of one pass."""
        order = np.arange(self.size)
        if self.shuffle:
            order = generator(ORDER_STREAM, self.seed, epoch, turn).permutation(order)
        if not self.drop_last:
            return order[self.rank :: self.world]
        full = len(self) * self.batch_size * self.world
        return order[:full].reshape(len(self), self.world, self.batch_size)[:, self.rank].reshape(-1)


class Loader:
    """Batches of one dataset for one of `world` ranks.

    An epoch is one permutation of the samples; ranks take the batches of it in turn, all equally many. Batch b of an
    epoch is the same however many processes load and wherever an iteration starts.

    Args:
        dataset: items are dicts of tensors.
        batch_size_per_rank: samples per batch, at least 1.
        workers: loader processes of this rank; 0 loads in this one.
        seed: of the order and of Mix3D.
        rank, world: this rank's number and the number of ranks.
        mix_prob, max_point: see `collate`.
        shuffle: False keeps the order of the dataset.
        drop_last: leave out the samples that do not fill a batch of every rank; None = `shuffle`. Otherwise ranks may
            differ by one batch.
        pin_memory: put batches into page-locked memory.

    Raises:
        ValueError: a setting out of range, or too few samples for one batch of every rank with `drop_last`.
    """

    def __init__(
        self,
        dataset: PointDataset | ConcatDataset,
        batch_size_per_rank: int,
        workers: int = 0,
        seed: Seed = 0,
        rank: int = 0,
        world: int = 1,
        mix_prob: float = 0.0,
        max_point: int | None = None,
        shuffle: bool = True,
        drop_last: bool | None = None,
        pin_memory: bool = False,
    ) -> None:
        for name, value, least in (
            ("batch_size_per_rank", batch_size_per_rank, 1),
            ("workers", workers, 0),
            ("world", world, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not 0 <= rank < world:
            raise ValueError(f"rank: expected 0 to {world - 1}, got {rank}")
        self.dataset, self.seed, self.rank, self.mix_prob = dataset, seed, rank, mix_prob
        drop_last = shuffle if drop_last is None else drop_last
        if drop_last and len(dataset) < batch_size_per_rank * world:
            raise ValueError(
                f"batch_size_per_rank: expected at most {len(dataset) // world} for {len(dataset)} samples and "
                f"{world} ranks, got {batch_size_per_rank}"
            )
        self.epoch, self.start = 0, 0
        self._skips = Skips()
        self._plan = _Plan(len(dataset), batch_size_per_rank, seed, rank, world, shuffle, drop_last)
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=partial(collate, max_point=max_point, skips=self._skips),
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            # Its own, since loaders draw from one: those of the caller must not depend on how often it iterates.
            generator=torch.Generator(),
        )

    @property
    def skipped(self) -> Counter[str]:
        """What the dataset and the limit of points left out so far, by reason."""
        return self.dataset.skipped + self._skips.counter()

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iterations, and the batch that the next one alone starts with."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches of one epoch on this rank."""
        return len(self._plan)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start, self.start = self.start, 0
        return self.batches(self.epoch, start)

    def batches(self, epoch: int, start: int = 0, count: int | None = None) -> Iterator[dict[str, Any]]:
        """Batches `start`, `start` + 1, ... of an epoch.

        Args:
            epoch: at least 0.
            start: number of the first one.
            count: how many; None = to the end of the epoch. Beyond it, further permutations of the same epoch follow.
        """
        count = max(len(self) - start, 0) if count is None else count
        self._plan.request = epoch, start, count
        try:
            for number, batch in enumerate(self._loader, start):
                yield mix(batch, self.mix_prob, generator(MIX_STREAM, self.seed, epoch, number, self.rank))
        except DataError as error:
            # Loader processes put their traceback before the message.
            raise DataError(str(error).strip().splitlines()[-1].rpartition("DataError: ")[2]) from error


class MultiDatasetLoader:
    """Batches of several datasets, each batch of one: `loop` batches of the first, then of the second, and so on.

    The `loop` of each dataset is its share. An epoch goes `loop` of the concatenation times through the first dataset
    and ends with it; the others start anew as often as needed. The loader processes are divided among the datasets.

    Args:
        concat: the datasets.
        batch_size_per_rank, workers, seed, rank, world, mix_prob, max_point, pin_memory: see `Loader`.

    Raises:
        ValueError: as `Loader`.
    """

    def __init__(
        self,
        concat: ConcatDataset,
        batch_size_per_rank: int,
        workers: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        mix_prob: float = 0.0,
        max_point: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.ratios = [dataset.loop for dataset in concat.datasets]
        self.epoch, self.start = 0, 0
        # A dataset that has loader processes at all keeps one.
        each = max(1, workers // len(self.ratios)) if workers else 0
        self.loaders = []
        for number, dataset in enumerate(concat.datasets):
            part = copy.copy(dataset)
            part.loop = concat.loop if number == 0 else 1
            self.loaders.append(
                Loader(
                    part,
                    batch_size_per_rank,
                    each,
                    (seed, number),
                    rank,
                    world,
                    mix_prob,
                    max_point,
                    pin_memory=pin_memory,
                )
            )

    @property
    def skipped(self) -> Counter[str]:
        """What was left out so far, by reason."""
        return sum((loader.skipped for loader in self.loaders), Counter())

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """As `Loader.set_epoch`."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        cycles, rest = divmod(len(self.loaders[0]), self.ratios[0])
        return cycles * sum(self.ratios) + rest

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start, self.start = self.start, 0
        return self.batches(self.epoch, start)

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Batches `start`, `start` + 1, ... to the end of an epoch."""
        done, total = self._taken(start), self._taken(len(self))
        sources = [
            loader.batches(epoch, first, last - first)
            for loader, first, last in zip(self.loaders, done, total, strict=True)
        ]
        turns = [number for number, ratio in enumerate(self.ratios) for _ in range(ratio)]
        for place in range(start, len(self)):
            yield next(sources[turns[place % len(turns)]])

    def _taken(self, count: int) -> list[int]:
        """How many of the first `count` batches come from each dataset."""
        cycles, rest = divmod(count, sum(self.ratios))
        taken = []
        for ratio in self.ratios:
            taken.append(cycles * ratio + min(rest, ratio))
            rest = max(rest - ratio, 0)
        return taken
