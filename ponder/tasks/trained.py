"""A trained model with one scene encoded: what evaluate, render and mesh start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from ponder.data.config import DataConfig
from ponder.data.scene import DataError, Scene
from ponder.data.sources import ROOM_PREFIX, load_scene
from ponder.models.pretrainer import PonderModel, Volume, voxelise
from ponder.train.checkpoint import load_weights, read_checkpoint
from ponder.train.config import TrainConfig
from ponder.train.device import choose_device
from ponder.train.progress import Stage


@dataclass(frozen=True)
class Trained:
    """Model in eval mode, its configuration, a scene and its volume."""

    config: TrainConfig
    model: PonderModel
    scene: Scene
    volume: Volume


def default_scene(config: DataConfig) -> str:
    """Name of the first scene that a run was trained on."""
    return config.path if config.source == "rgbd" else f"{ROOM_PREFIX}{config.first_seed}"


def open_trained(checkpoint: str, data: str | None, device: str, console: Console) -> Trained:
    """Load a checkpoint and encode a scene with it.

    Raises:
        CheckpointError, DataError, DeviceError: see their modules.
    """
    target = choose_device(device)
    config, content = read_checkpoint(Path(checkpoint))
    model = PonderModel(config.model, target.type)
    load_weights(model, content["model"], checkpoint)
    model.to(target).eval()
    name = data if data is not None else default_scene(config.data)
    with Stage("preparing the scene", console):
        scene = load_scene(name, config.data)
        if len(scene.cloud) == 0:
            raise DataError(f"{name}: the fused point cloud is empty")
        with torch.no_grad():
            volume = model.encode([voxelise(scene.cloud, config.model).to(target)])
    return Trained(config, model, scene, volume)
