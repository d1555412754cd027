"""What all of PonderV2's datasets share: the list of scenes, repetition, draws, transforms and the test protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from ponder.data.ponderv2.files import Array, load_dict
from ponder.data.ponderv2.skips import BAD_LABELS, NO_FRAMES, Skips, describe
from ponder.data.ponderv2.transforms import Compose, Sample, build_step, build_transform
from ponder.data.scene import DataError
from ponder.registry import check_keys

# Streams of random numbers of one seed, so that samples, their order and their mixing do not depend on each other.
SAMPLE_STREAM, ORDER_STREAM, MIX_STREAM = 1, 2, 3


class SampleKey(NamedTuple):
    """Which draw of which sample: loaders ask for these, so that their processes need not know the epoch."""

    epoch: int
    turn: int
    place: int


def generator(stream: int, seed: int | Sequence[int], *place: int) -> np.random.Generator:
    """Random numbers that depend on these integers (at least 0) only."""
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    if min(seeds) < 0:
        raise ValueError(f"seed: expected an integer of at least 0, got {seed}")
    # SeedSequence takes [0] and [0, 0] for the same: the length keeps seeds of different depth apart.
    return np.random.default_rng([stream, len(seeds), *seeds, *place])


class EvaluationProtocol:
    """From one transformed scene to the fragments that a model is tested on.

    Args:
        config: `voxelize` (a transform with fragments, or None for the whole cloud), `crop` (a transform, or None),
            `post_transform` (a list) and `aug_transform` (a list of lists).
    """

    _KEYS = ("voxelize", "crop", "post_transform", "aug_transform")

    def __init__(self, config: Mapping[str, Any] | None) -> None:
        if config is None:
            raise ValueError("test_cfg: expected a dict with test_mode=True, got None")
        check_keys(config, self._KEYS, "test_cfg")
        steps = {key: config[key] for key in ("voxelize", "crop") if config.get(key) is not None}
        self._steps = {key: build_step(step, f"test_cfg.{key}") for key, step in steps.items()}
        self._finish = build_transform(config.get("post_transform"), "test_cfg.post_transform")
        variants = config.get("aug_transform") or [[]]
        self._variants = [build_transform(v, f"test_cfg.aug_transform[{i}]") for i, v in enumerate(variants)]

    def fragments(self, sample: Sample, rng: np.random.Generator) -> list[Sample]:
        """All fragments of all variants, each with `index` [K] of its points in the sample."""
        whole = sample | {"index": np.arange(len(sample["coord"]))}
        parts: list[Any] = []
        for variant in self._variants:
            pieces = _list(self._apply("voxelize", variant(dict(whole), rng), rng))
            parts += [part for piece in pieces for part in _list(self._apply("crop", piece, rng))]
        return [self._finish(part, rng) for part in parts]

    def _apply(self, key: str, sample: Sample, rng: np.random.Generator) -> Any:
        return self._steps[key](sample, rng) if key in self._steps else sample


def _list(value: Any) -> list[Sample]:
    return value if isinstance(value, list) else [value]


@dataclass(eq=False, kw_only=True)
class PointDataset(Dataset[Sample], ABC):
    """Scenes of labelled points. Every draw depends on (seed, epoch, turn, index) only.

    Attributes:
        split: a folder below `data_root`, or several.
        data_root: folder of the dataset.
        transform: PonderV2's list of transform dicts; None = none.
        ignore_index: class of points without label.
        test_mode: items are dicts of `fragment_list`, `segment` [N] and `name` (and `origin_segment`, `inverse`).
        test_cfg: see `EvaluationProtocol`; needed in test mode.
        cache: keep the scenes' files in memory (of each loader process) once read.
        loop: how often one epoch goes through the scenes; 1 in test mode.
        seed: at least 0.
        items: the scenes.
        epoch: the one that plain integers as indices refer to.

    Raises:
        DataError: a folder is missing or has no scenes.
        ValueError: wrong transforms or settings.
    """

    split: str | Sequence[str] = "train"
    data_root: str = "data/dataset"
    transform: Sequence[Mapping[str, Any]] | None = None
    ignore_index: int = -1
    test_mode: bool = False
    test_cfg: Mapping[str, Any] | None = None
    cache: bool = False
    loop: int = 1
    seed: int | Sequence[int] = 0

    # Classes of the labels; None = not known.
    num_classes: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not isinstance(self.loop, int) or self.loop < 1:
            raise ValueError(f"loop: expected an integer of at least 1, got {self.loop!r}")
        self.loop = 1 if self.test_mode else self.loop
        self.epoch = 0
        self.skips = Skips()
        self._chain: Compose = build_transform(self.transform)
        self._test = EvaluationProtocol(self.test_cfg) if self.test_mode else None
        self._cached: dict[Path, dict[str, Any]] = {}
        self.items: list[Any] = list(self._list_items())
        if not self.items:
            found = describe(self.skipped)
            why = f" ({found})" if found else ""
            raise DataError(f"{self.data_root}: expected scenes in {self.split!r}, found none{why}")

    @property
    def skipped(self) -> Counter[str]:
        """How often frames and scenes were left out so far, by reason, in all loader processes."""
        return self.skips.counter()

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws that integer indices give. (Loaders ask with `SampleKey`s instead.)"""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.items) * self.loop

    def __getitem__(self, key: int | SampleKey) -> Sample:
        epoch, turn, index = key if isinstance(key, tuple) else (self.epoch, 0, int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        rng = generator(SAMPLE_STREAM, self.seed, epoch, turn, index)
        if self._test is not None:
            return self._test_sample(self._test, index, rng)
        return self._chain(self._usable(index % len(self.items), rng), rng)

    def get_data_name(self, index: int) -> str:
        """Name of the scene."""
        return self._name(self.items[index % len(self.items)])

    def _usable(self, place: int, rng: np.random.Generator) -> Sample:
        """The scene at `place`, or in place of one without usable frames another one."""
        sample = self._read(self.items[place], rng)
        if sample is not None:
            return sample
        self.skips.add(NO_FRAMES)
        for other in rng.permutation(len(self.items)):
            sample = None if other == place else self._read(self.items[other], rng)
            if sample is not None:
                return sample
            self.skips.add(NO_FRAMES, int(other != place))
        raise DataError(f"{self.data_root}: no scene of {self.split!r} can be used: {describe(self.skipped)}")

    def _test_sample(self, protocol: EvaluationProtocol, index: int, rng: np.random.Generator) -> Sample:
        item = self.items[index % len(self.items)]
        sample = self._read(item, rng)
        if sample is None:
            raise DataError(f"{self._name(item)}: no usable frames: {describe(self.skipped)}")
        sample = self._chain(sample, rng)
        result = {"segment": sample.pop("segment"), "name": self._name(item)}
        if "origin_segment" in sample:
            if "inverse" not in sample:
                raise ValueError("transform: 'origin_segment' needs GridSample(return_inverse=True) in test mode")
            result |= {key: sample.pop(key) for key in ("origin_segment", "inverse")}
        return result | {"fragment_list": protocol.fragments(sample, rng)}

    def _list_items(self) -> Iterable[Any]:
        """The scenes, in an order that does not depend on the file system."""
        return self._files("*.pth")

    def _read(self, item: Any, rng: np.random.Generator) -> Sample | None:
        """One scene before its transforms; None if nothing of it can be used."""
        return self._cloud(item)

    @abstractmethod
    def _cloud(self, path: Path) -> Sample:
        """The points of a scene's file."""

    def _name(self, item: Any) -> str:
        return Path(item).name.split(".")[0]

    def _splits(self) -> list[str]:
        return [self.split] if isinstance(self.split, str) else list(self.split)

    def _files(self, pattern: str) -> list[Path]:
        """Files of the splits, sorted split by split."""
        found = []
        for split in self._splits():
            folder = Path(self.data_root) / split
            if not folder.is_dir():
                raise DataError(f"{folder}: expected a folder of prepared scenes, got nothing")
            found += sorted(folder.glob(pattern))
        return found

    def _load(self, path: Path) -> dict[str, Any]:
        """The content of a scene's file."""
        if path not in self._cached:
            data = load_dict(path)
            if not self.cache:
                return data
            for value in data.values():
                if isinstance(value, np.ndarray):
                    value.setflags(write=False)
            self._cached[path] = data
        return dict(self._cached[path])

    def _checked(self, segment: Array, path: Path) -> Array:
        """Labels with those that are no classes of the dataset taken as unlabelled."""
        wrong = segment < -1
        if self.num_classes is not None:
            wrong |= segment >= self.num_classes
        if wrong.any():
            self.skips.add(BAD_LABELS)
        none = wrong | (segment == -1)
        return np.where(none, self.ignore_index, segment) if none.any() else segment
