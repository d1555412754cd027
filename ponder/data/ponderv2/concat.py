"""Several datasets in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from torch.utils.data import Dataset

from ponder.data.ponderv2.base import PointDataset, SampleKey
from ponder.data.ponderv2.transforms import Sample


class ConcatDataset(Dataset[Sample]):
    """Datasets one after the other.

    `MultiDatasetLoader` takes the `loop` of each dataset as its share of the batches instead, and `loop` of this one
    as how often an epoch goes through the first.

    Args:
        datasets: at least one.
        loop: how often one epoch goes through all of them.
    """

    def __init__(self, datasets: Sequence[PointDataset], loop: int = 1) -> None:
        if not datasets:
            raise ValueError("datasets: expected at least one, got none")
        if not isinstance(loop, int) or loop < 1:
            raise ValueError(f"loop: expected an integer of at least 1, got {loop!r}")
        self.datasets = list(datasets)
        self.loop = loop
        self.epoch = 0
        self._ends = list(accumulate(len(dataset) for dataset in self.datasets))

    @property
    def skipped(self) -> Counter[str]:
        """The datasets' `skipped`, summed."""
        return sum((dataset.skipped for dataset in self.datasets), Counter())

    def set_epoch(self, epoch: int) -> None:
        """As of the datasets."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._ends[-1] * self.loop

    def __getitem__(self, key: int | SampleKey) -> Sample:
        epoch, turn, index = key if isinstance(key, tuple) else (self.epoch, 0, int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        dataset, place = self._find(index)
        # Every round through the datasets draws anew.
        return dataset[SampleKey(epoch, turn + index // self._ends[-1], place)]

    def get_data_name(self, index: int) -> str:
        """Name of the scene."""
        dataset, place = self._find(index)
        return dataset.get_data_name(place)

    def _find(self, index: int) -> tuple[PointDataset, int]:
        place = index % self._ends[-1]
        number = next(i for i, end in enumerate(self._ends) if place < end)
        return self.datasets[number], place - (self._ends[number] - len(self.datasets[number]))
