"""Pre-training on one recorded RGB-D sequence."""

from __future__ import annotations

from ponder.data.config import DataConfig
from ponder.models.pretrainer import ModelConfig
from ponder.train.config import TrainConfig


def rgbd() -> TrainConfig:
    """One RGB-D folder (give it with --data), sized for two CPU cores and some 15 minutes."""
    return TrainConfig(
        recipe="rgbd",
        steps=600,
        preview_every=200,
        data=DataConfig(source="rgbd"),
        model=ModelConfig(voxel=0.07, cell=0.07, max_cells=300_000),
    )
