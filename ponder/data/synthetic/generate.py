"""From a seed to a room and from a room to a scene."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ponder.data.scene import Frames, PointCloud, Scene
from ponder.data.synthetic.layout import furnish
from ponder.data.synthetic.palette import Palette, scaled
from ponder.data.synthetic.rendering import render_room
from ponder.data.synthetic.room import Room, assemble_room
from ponder.data.synthetic.textures import Texture, pattern, solid
from ponder.data.synthetic.viewpoints import pinhole, viewpoints
from ponder.geometry import unproject_depth

# Independent random streams of one seed: more views or noise never change the room itself.
_ROOM_STREAM, _VIEW_STREAM, _NOISE_STREAM = 0, 1, 2


@dataclass(frozen=True)
class RoomConfig:
    """What to generate.

    Attributes:
        train_views: views that supervise rendering and give the cloud, at least 1.
        heldout_views: views between them that are kept out of both.
        width, height: image size in pixels.
        horizontal_fov: degrees, square pixels.
        min_furniture, max_furniture: range of the number of furniture groups (a set of table and chairs is
            one) that the room is offered; what does not fit is left out. Door, windows, rug and pictures come
            on top.
        cloud_noise: standard deviation of Gaussian noise added to the cloud's coordinates, metres.
    """

    train_views: int = 12
    heldout_views: int = 2
    width: int = 160
    height: int = 120
    horizontal_fov: float = 75.0
    min_furniture: int = 6
    max_furniture: int = 10
    cloud_noise: float = 0.0

    def __post_init__(self) -> None:
        least = {
            "train_views": 1,
            "heldout_views": 0,
            "width": 1,
            "height": 1,
            "min_furniture": 0,
            "max_furniture": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < bound:
                raise ValueError(f"{name}: expected an integer of at least {bound}, got {value!r}")
        if self.max_furniture < self.min_furniture:
            raise ValueError(f"max_furniture: expected at least min_furniture, got {self.max_furniture}")
        if not 10.0 <= self.horizontal_fov <= 150.0:
            raise ValueError(f"horizontal_fov: expected 10 to 150 degrees, got {self.horizontal_fov}")
        if not (math.isfinite(self.cloud_noise) and self.cloud_noise >= 0):
            raise ValueError(f"cloud_noise: expected a finite length of at least 0, got {self.cloud_noise}")


def _generator(seed: int, stream: int) -> np.random.Generator:
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: expected an integer of at least 0, got {seed!r}")
    return np.random.default_rng([seed, stream])


def _shell(paint: Palette) -> list[Texture]:
    """Paints of the four walls (two alike, two accents), the floor and the ceiling."""
    plain = paint.pale()
    walls = [solid(plain) for _ in range(4)]
    accents = [int(w) for w in paint.generator.permutation(4)[: 2 + int(paint.generator.integers(2))]]
    for wall in accents:
        axes = "yzx" if wall < 2 else "xzy"
        kind = paint.choice(("stripes", "checker", "dots", "noise", "solid"))
        first = paint.vivid()
        second = paint.pale() if paint.generator.uniform() < 0.6 else scaled(first, 0.55)
        walls[wall] = pattern(kind, first, second, paint.between(0.4, 0.8), axes, paint.between(0, 1))
    floor = paint.wood()
    if paint.generator.uniform() < 0.35:
        floor = pattern("checker", paint.pale(), paint.deep(), paint.between(0.35, 0.55), "xy", 0.2, 8.0)
    return [*walls, floor, solid((0.96, 0.96, 0.94))]


def make_room(seed: int, config: RoomConfig | None = None) -> Room:
    """The furnished room of a seed.

    Args:
        seed: at least 0.
        config: furniture range; None = defaults.

    Raises:
        ValueError: a negative or non-integer seed.
    """
    config = config or RoomConfig()
    generator = _generator(seed, _ROOM_STREAM)
    size = (
        float(generator.uniform(3.2, 4.5)),
        float(generator.uniform(3.0, 4.0)),
        float(generator.uniform(2.4, 2.7)),
    )
    paint = Palette(generator)
    shell = _shell(paint)
    groups = int(generator.integers(config.min_furniture, config.max_furniture + 1))
    return assemble_room(size, shell, furnish(size, paint, groups))


def cloud_of_frames(frames: Frames) -> PointCloud:
    """All pixels with depth as one cloud: their world points, colours and normals."""
    points = unproject_depth(frames.z_depth, frames.intrinsics, frames.camera_to_world)
    seen = frames.z_depth > 0
    return PointCloud(points[seen], frames.rgb[seen].float() / 255, frames.normal[seen])


def room_scene(seed: int, config: RoomConfig | None = None) -> Scene:
    """The room of a seed with its views, cloud and boxes.

    Args:
        seed: at least 0.
        config: None = defaults.

    Returns:
        a scene named room-SEED; the cloud holds every pixel of the train views.

    Raises:
        ValueError: a negative or non-integer seed.
        RuntimeError: a room too crowded for a viewpoint.
    """
    config = config or RoomConfig()
    room = make_room(seed, config)
    poses = viewpoints(room, config.train_views, config.heldout_views, _generator(seed, _VIEW_STREAM))
    intrinsics = pinhole(config.width, config.height, config.horizontal_fov)
    frames = render_room(room, intrinsics, torch.cat(poses), config.width, config.height)
    train = frames.select(range(config.train_views))
    cloud = cloud_of_frames(train)
    if config.cloud_noise > 0:
        noise = _generator(seed, _NOISE_STREAM).normal(size=tuple(cloud.coord.shape)) * config.cloud_noise
        cloud = PointCloud(cloud.coord + torch.as_tensor(noise).float(), cloud.colour, cloud.normal)
    heldout = frames.select(range(config.train_views, len(frames)))
    return Scene(f"room-{seed:04d}", cloud, train, heldout, room.boxes)
