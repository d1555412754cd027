"""The data of a run, as its trainer takes them: steps of an epoch, validation batches, test scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder.data.convert.scannet_labels import CLASSES_20, CLASSES_200
from ponder.data.ponderv2 import (
    ConcatDataset,
    Loader,
    MultiDatasetLoader,
    PointDataset,
    build_dataset,
)
from ponder.render.ponderv2 import Parity
from ponder.train.config import ConfigError
from ponder.train.ponderv2.distributed import World
from ponder.train.ponderv2.settings import TrainerConfig

Config = Mapping[str, Any]
Batch = Mapping[str, Any]
# How the benchmarks of these datasets number the classes.
CLASS_IDS = {"ScanNetDataset": CLASSES_20, "ScanNet200Dataset": CLASSES_200}


class TrainingBatches:
    """Batches of a loader, so many per step as it is divided into.

    Args:
        loader: of batches of a step's part.
        parts: batches per step; all of the same dataset.
    """

    def __init__(self, loader: Loader | MultiDatasetLoader, parts: int) -> None:
        self.loader, self.parts = loader, parts

    def __len__(self) -> int:
        return len(self.loader) // self.parts

    @property
    def skipped(self) -> Counter[str]:
        """What was left out so far, by reason."""
        return self.loader.skipped

    def steps(self, epoch: int, start: int) -> Iterator[Sequence[Batch]]:
        """The parts of each step of an epoch, from step `start` of it on."""
        source = self.loader.batches(epoch, start * self.parts)
        for _ in range(start, len(self)):
            yield [next(source) for _ in range(self.parts)]


def training_batches(
    config: Config, settings: TrainerConfig, world: World, root: Path | None, parity: Parity, pin_memory: bool = False
) -> TrainingBatches:
    """The training data of this rank.

    Args:
        config: its `data.train` describes the dataset, whose `loop` is that of the settings.
        settings: of the run, with the seed decided.
        world: this rank.
        root: folder that stands for the "data" at the start of the configuration's paths; None leaves them.
        parity: `no_target_for_class_zero` also decides whether images keep class 0.
        pin_memory: put batches into page-locked memory.

    Raises:
        ConfigError, ValueError: a setting that does not fit.
        DataError: missing or unusable files.
    """
    section = dict(config["data"]["train"]) | {"loop": settings.loop}
    keep_zero = None if parity.no_target_for_class_zero else True
    dataset = build_dataset(section, root, settings.seed or 0, keep_zero, config["model"].get("ray_nsample"))
    size = settings.batch_size // settings.accumulate
    common = (size, settings.workers, settings.seed or 0, world.rank, world.size, settings.mix_prob)
    loader: Loader | MultiDatasetLoader
    if settings.trainer == "MultiDatasetTrainer":
        if not isinstance(dataset, ConcatDataset):
            raise ConfigError(f"data.train.type: MultiDatasetTrainer needs a ConcatDataset, got {section['type']}")
        for part in dataset.datasets:
            # All parts of a step come from the same dataset.
            part.loop *= settings.accumulate
        loader = MultiDatasetLoader(dataset, *common, settings.max_point, pin_memory=pin_memory)
    else:
        if isinstance(dataset, ConcatDataset) and len({type(part) for part in dataset.datasets}) > 1:
            raise ConfigError("train.type: expected MultiDatasetTrainer for several datasets, got DefaultTrainer")
        loader = Loader(dataset, *common, settings.max_point, pin_memory=pin_memory)
    batches = TrainingBatches(loader, settings.accumulate)
    if not len(batches):
        raise ConfigError(f"batch_size: the {len(dataset)} training samples do not fill one step")
    return batches


def validation_batches(config: Config, settings: TrainerConfig, world: World, root: Path | None) -> Loader:
    """The validation scenes of this rank, each once and in order.

    Raises:
        ConfigError, ValueError: a setting that does not fit.
        DataError: missing or unusable files.
    """
    dataset = build_dataset(_section(config, "val"), root, settings.seed or 0)
    return Loader(
        dataset, settings.batch_size_val, settings.workers, settings.seed or 0, world.rank, world.size, shuffle=False
    )


class TestScenes:
    """The test scenes of this rank, each an item of a dataset in test mode.

    Attributes:
        class_ids: how the dataset's benchmark numbers the classes [K]; None where it has no numbers of its own.
    """

    __test__ = False

    def __init__(self, config: Config, settings: TrainerConfig, world: World, root: Path | None) -> None:
        section = _section(config, "test")
        self.class_ids = CLASS_IDS.get(str(section.get("type")))
        dataset = build_dataset(section, root, settings.seed or 0)
        if not isinstance(dataset, PointDataset) or not dataset.test_mode:
            raise ConfigError("data.test.test_mode: expected True and one dataset")
        self.dataset = dataset
        self.places = range(world.rank, len(dataset), world.size)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Batch]:
        return (self.dataset[place] for place in self.places)


def _section(config: Config, name: str) -> Config:
    section = config["data"].get(name)
    if not isinstance(section, Mapping):
        raise ConfigError(f"data.{name}: expected a dict of a dataset, got {section!r}")
    return section
