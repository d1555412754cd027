"""PonderV2's indoor datasets, transforms, batches and loaders.

    dataset = build_dataset(config.data.train, root="/where/the/datasets/are", seed=0)
    for batch in Loader(dataset, batch_size_per_rank=8, workers=8):
        ...

Every random draw depends on (seed, epoch, index) only: loader processes and ranks change nothing, and `set_epoch(epoch,
start)` continues an epoch at any batch.
"""

from ponder.data.ponderv2.base import PointDataset, SampleKey
from ponder.data.ponderv2.batch import Batch, collate
from ponder.data.ponderv2.build import DATASETS, build_dataset
from ponder.data.ponderv2.concat import ConcatDataset
from ponder.data.ponderv2.loader import Loader, MultiDatasetLoader
from ponder.data.ponderv2.skips import describe
from ponder.data.ponderv2.transforms import TRANSFORMS, build_transform

__all__ = [
    "DATASETS",
    "TRANSFORMS",
    "Batch",
    "ConcatDataset",
    "Loader",
    "MultiDatasetLoader",
    "PointDataset",
    "SampleKey",
    "build_dataset",
    "build_transform",
    "collate",
    "describe",
]
