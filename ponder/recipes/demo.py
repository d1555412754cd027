"""The embedded demo: procedural rooms, a few minutes on two CPU cores."""

from __future__ import annotations

from ponder.data.config import DataConfig
from ponder.models.pretrainer import ModelConfig
from ponder.train.config import TrainConfig


def demo() -> TrainConfig:
    """Four procedural rooms at 160 x 120, a small model, 300 steps."""
    return TrainConfig(recipe="demo", steps=300, data=DataConfig(source="rooms", rooms=4), model=ModelConfig())
