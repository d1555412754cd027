"""The embedded demo: procedural rooms, a few minutes on two CPU cores."""

from __future__ import annotations

from ponder.data.config import DataConfig
from ponder.models.pretrainer import ModelConfig
from ponder.train.config import TrainConfig


def demo() -> TrainConfig:
    """Three procedural rooms at 160 x 120, a small model, 150 steps."""
    return TrainConfig(
        recipe="demo",
        steps=150,
        preview_every=75,
        data=DataConfig(source="rooms", rooms=3),
        model=ModelConfig(voxel=0.08, cell=0.08),
    )
