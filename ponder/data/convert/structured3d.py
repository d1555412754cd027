"""Structured3D: zip archives to <split>/<scene>/room_<r>.pth and room_<r>_rgbd/frame_<f>.pth."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.archives import SceneFiles, list_scenes
from ponder.data.convert.raw_files import stamp
from ponder.data.convert.sink import BrokenPieceError, PartReport, Sink
from ponder.data.convert.structured3d_views import Pixels, read_panorama, read_perspective
from ponder.data.convert.units import CLOUD, FRAMES, Part, Plan, Unit
from ponder.data.ponderv2.transforms.sampling import GridSample
from ponder.data.scene import DataError

PERSPECTIVE, PANORAMA = "perspective", "panorama"
_ROOT = "Structured3D/"
# The release's split by scene number: the first number that is not of the split.
_SPLITS = (("train", 3000), ("val", 3250), ("test", 1 << 62))


@dataclass(frozen=True)
class Structured3DOptions:
    """What to convert, and how.

    Attributes:
        data: folder of the zip archives.
        grid_size: one random point is kept in each cube of this side, metres; 0: all points.
        views: kinds of views that clouds are made of, PERSPECTIVE, PANORAMA or both.
        seed: draws the points that are kept.
        every: spacing of the frames of a room (clouds are made of all).
        parts: CLOUD, FRAMES or both.
    """

    data: Path
    grid_size: float = 0.01
    views: tuple[str, ...] = (PERSPECTIVE, PANORAMA)
    seed: int = 0
    every: int = 1
    parts: tuple[str, ...] = (CLOUD, FRAMES)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise DataError(f"every: expected at least 1, got {self.every}")
        if not 0 <= self.grid_size < np.inf:
            raise DataError(f"grid_size: expected a length of at least 0, got {self.grid_size}")
        if self.seed < 0:
            raise DataError(f"seed: expected at least 0, got {self.seed}")
        if not self.views or not set(self.views) <= {PERSPECTIVE, PANORAMA}:
            raise DataError(f"views: expected {PERSPECTIVE}, {PANORAMA} or both, got {self.views}")


@dataclass(frozen=True)
class _House:
    name: str
    split: str
    archives: tuple[Path, ...]
    options: Structured3DOptions

    @property
    def out(self) -> str:
        return f"{self.split}/{self.name}"


def plan_structured3d(options: Structured3DOptions) -> Plan:
    """All scenes of a download.

    Raises:
        DataError: no readable archives, or no scenes in them.
    """
    if not options.data.is_dir():
        raise DataError(f"{options.data}: there is no such folder")
    paths = sorted(options.data.glob("*.zip"))
    archives, views = defaultdict(list), dict[str, int]()
    skipped = PartReport()
    for path in paths:
        try:
            found = list_scenes(path, _ROOT, "/rgb_rawlight.png")
        except BrokenPieceError as error:
            skipped.skip(error.reason, error.detail)
            continue
        for scene, count in found.items():
            if re.fullmatch(r"scene_\d+", scene):
                archives[scene].append(path)
                views[scene] = views.get(scene, 0) + count
    if not archives:
        damaged = "".join(f"; {skips.examples[0]}: {reason}" for reason, skips in skipped.skipped.items())
        raise DataError(f"{options.data}: expected zip archives with {_ROOT}scene_*, got none{damaged}")
    houses = [_House(name, _split(name), tuple(archives[name]), options) for name in sorted(archives)]
    return Plan("structured3d", "scenes", [_unit(house, views[house.name]) for house in houses], _convert, skipped)


def _split(scene: str) -> str:
    number = int(scene.rpartition("_")[2])
    return next(name for name, end in _SPLITS if number < end)


def _unit(house: _House, views: int) -> Unit:
    options, inputs = house.options, stamp(house.archives)
    cloud = {"grid_size": options.grid_size, "views": sorted(options.views), "seed": options.seed}
    possible = {
        CLOUD: Part(CLOUD, (f"{house.out}/room_*.pth",), cloud, inputs),
        FRAMES: Part(FRAMES, (f"{house.out}/room_*_rgbd",), {"every": options.every}, inputs),
    }
    return Unit(house.name, tuple(possible[part] for part in options.parts), views, house)


def _convert(unit: Unit, parts: frozenset[str], sink: Sink) -> None:
    house: _House = unit.source
    try:
        files = SceneFiles(house.archives, f"{_ROOT}{house.name}/2D_rendering/")
    except BrokenPieceError as error:
        for part in sorted(parts):
            sink.report(part).skip(error.reason, error.detail)
        return
    for room in files.children(""):
        pixels = list(_views(house, files, room, parts, sink))
        if CLOUD in parts:
            with sink.attempt(CLOUD):
                sink.put(CLOUD, [(f"{house.out}/room_{room}.pth", _cloud(house, room, pixels))])


def _views(house: _House, files: SceneFiles, room: str, parts: frozenset[str], sink: Sink) -> Iterator[Pixels]:
    """The points of a room, view by view; writes its frames on the way."""
    wants_cloud, options = CLOUD in parts, house.options
    fused = PERSPECTIVE in options.views and wants_cloud
    folder = f"{room}/perspective/full/"
    for number, frame in enumerate(files.children(folder)):
        wanted = FRAMES in parts and number % options.every == 0
        # A damaged view is counted once, with the frames if they are wanted.
        with sink.attempt(FRAMES if wanted else CLOUD):
            if wanted or fused:
                view = read_perspective(files, f"{folder}{frame}/")
                if wanted:
                    sink.put(FRAMES, [(f"{house.out}/room_{room}_rgbd/frame_{frame}.pth", view.frame)])
                if fused:
                    yield view.pixels
        sink.tick(1)
    if PANORAMA in options.views and wants_cloud:
        with sink.attempt(CLOUD):
            yield read_panorama(files, f"{room}/panorama/")


def _cloud(house: _House, room: str, pixels: list[Pixels]) -> dict[str, NDArray]:
    """The entries of a room's .pth file."""
    if not pixels:
        raise BrokenPieceError("room has no usable view", f"{house.name} room {room}")
    names = ("coord", "color", "normal", "semantic_gt")
    data = {name: np.concatenate(column) for name, column in zip(names, zip(*pixels, strict=True), strict=True)}
    pixels.clear()
    if house.options.grid_size > 0:
        generator = np.random.default_rng([house.options.seed, zlib.crc32(f"{house.name}/{room}".encode())])
        GridSample(house.options.grid_size, keys=names)(data, generator)
    return data
