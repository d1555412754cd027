"""Scenes by name: procedural rooms and RGB-D folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ponder.data.config import DataConfig
from ponder.data.rgbd_folder import read_rgbd_frames, read_rgbd_scene
from ponder.data.scene import DataError, Frames, Scene
from ponder.data.synthetic import RoomConfig, room_scene

ROOM_PREFIX = "room:"


def load_scenes(config: DataConfig, progress: Callable[[int, int], None]) -> list[Scene]:
    """All scenes of a run.

    Args:
        config: the source.
        progress: called with (done, total) before the first and after each scene.

    Raises:
        DataError: the input cannot be used.
    """
    if config.source == "rgbd":
        if not config.path:
            raise DataError("data.path: an RGB-D recipe needs a folder, given with --data FOLDER")
        names = [config.path]
    else:
        names = [f"{ROOM_PREFIX}{config.first_seed + index}" for index in range(config.rooms)]
    progress(0, len(names))
    scenes = []
    for name in names:
        scenes.append(load_scene(name, config))
        progress(len(scenes), len(names))
    return scenes


def load_scene(name: str, config: DataConfig) -> Scene:
    """One scene: `room:SEED`, or the folder of an RGB-D sequence."""
    if name.startswith(ROOM_PREFIX):
        seed = name.removeprefix(ROOM_PREFIX)
        if not seed.isdigit():
            raise DataError(f"scene {name!r}: expected room:SEED with a whole number, got {seed!r}")
        return room_scene(int(seed), room_config(config))
    return read_rgbd_scene(
        Path(name),
        max_width=config.max_width,
        holdout_every=config.holdout_every,
        max_depth=config.max_depth,
        voxel_size=config.fuse_voxel,
        colour_ratio=config.colour_ratio or None,
    )


def load_views(folder: Path, config: DataConfig, colour_ratio: float) -> Frames:
    """All frames of an RGB-D folder, as views to compare with.

    Args:
        folder: the folder.
        config: image size and depth range.
        colour_ratio: the ratio that the scene's own frames were read with (`Scene.colour_ratio`), since one
            camera took both.

    Raises:
        DataError: the folder cannot be used.
    """
    return read_rgbd_frames(folder, max_width=config.max_width, max_depth=config.max_depth, colour_ratio=colour_ratio)


def room_config(config: DataConfig) -> RoomConfig:
    """The generator's settings."""
    return RoomConfig(
        train_views=config.train_views,
        heldout_views=config.heldout_views,
        width=config.width,
        height=config.height,
    )
