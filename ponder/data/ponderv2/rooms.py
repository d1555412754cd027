"""S3DIS, Structured3D and plain folders as PonderV2 prepares them: point clouds, and RGB-D frames beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ponder.data.ponderv2.base import PointDataset
from ponder.data.ponderv2.files import columns, labels
from ponder.data.ponderv2.rgbd import View, ViewDataset
from ponder.data.ponderv2.skips import NO_FRAMES
from ponder.data.ponderv2.transforms import Sample


@dataclass(eq=False, kw_only=True)
class DefaultDataset(PointDataset):
    """Files of `coord`, `color`, `normal` [N, 3] and `semantic_gt` (N labels)."""

    def _cloud(self, path: Path) -> Sample:
        data = self._load(path)
        coord, colour, normal = columns(data, ("coord", "color", "normal"), path)
        segment = self._checked(labels(data, "semantic_gt", len(coord), path), path)
        return {"coord": coord, "normal": normal, "color": colour, "segment": segment}


@dataclass(eq=False, kw_only=True)
class Structured3DDataset(DefaultDataset):
    """Rooms of Structured3D in `split`/SCENE/ROOM.pth, with 25 classes."""

    num_classes: ClassVar[int | None] = 25

    def _list_items(self) -> Iterable[Any]:
        return self._files("*/*.pth")

    def _name(self, item: Any) -> str:
        return f"{item.parent.name}_{item.stem}"


@dataclass(eq=False, kw_only=True)
class S3DISDataset(PointDataset):
    """Rooms of S3DIS in `split`/ROOM.pth, the splits being areas, with 13 classes."""

    split: str | Sequence[str] = ("Area_1", "Area_2", "Area_3", "Area_4", "Area_6")
    data_root: str = "data/s3dis"

    num_classes: ClassVar[int | None] = 13

    def _cloud(self, path: Path) -> Sample:
        """As of `DefaultDataset`, and instance [N], name (the kind of room), scene_id; normal only where known."""
        data = self._load(path)
        names = ("coord", "color", "normal") if "normal" in data else ("coord", "color")
        points = dict(zip(names, columns(data, names, path), strict=True))
        count = len(points["coord"])
        return points | {
            "name": path.name.split("_")[0].replace("R", " r"),
            "segment": self._checked(labels(data, "semantic_gt", count, path), path),
            "instance": labels(data, "instance_gt", count, path),
            "scene_id": str(path),
        }


class _Room(NamedTuple):
    """A room's file and those of its frames."""

    path: Path
    frames: tuple[Path, ...]


@dataclass(eq=False, kw_only=True)
class _RoomViews(ViewDataset):
    """Rooms whose frames are the files of the folder ROOM_rgbd; rooms without are left out."""

    depth_unit: ClassVar[float]

    def _list_items(self) -> Iterable[Any]:
        for path in super()._list_items():
            frames = tuple(sorted(path.with_name(f"{path.stem}_rgbd").glob("*.pth")))
            if frames:
                yield _Room(path, frames)
            else:
                self.skips.add(NO_FRAMES)

    def _name(self, item: Any) -> str:
        return super()._name(item.path)

    def _read(self, item: Any, rng: np.random.Generator) -> Sample | None:
        views = self._views(item.frames, self._view, rng)
        return None if views is None else self._cloud(item.path) | views[0] | {"depth_scale": self.depth_unit}

    def _view(self, path: Path) -> View:
        room = path.parent.relative_to(self.data_root).with_name(path.parent.name.removesuffix("_rgbd"))
        return self._saved_view(path) | self._teacher(*room.parts, path.stem)


@dataclass(eq=False, kw_only=True)
class S3DISRGBDDataset(_RoomViews, S3DISDataset):
    """S3DIS with views.

    Attributes:
        six_fold: images are unlabelled, so that pre-training for six-fold validation sees no label of a test area.
    """

    split: str | Sequence[str] = ("Area_1", "Area_2", "Area_3", "Area_4", "Area_6")
    data_root: str = "data/s3dis"
    six_fold: bool = False

    depth_unit: ClassVar[float] = 1 / 4000

    def _read(self, item: Any, rng: np.random.Generator) -> Sample | None:
        sample = super()._read(item, rng)
        if sample is not None and self.six_fold and "semantic" in sample:
            sample["semantic"] = np.full_like(sample["semantic"], -1)
        return sample


@dataclass(eq=False, kw_only=True)
class Structured3DRGBDDataset(_RoomViews, Structured3DDataset):
    """Structured3D with views."""

    depth_unit: ClassVar[float] = 1 / 1000
