"""ScanNet as PonderV2 prepares it: point clouds with 20 or 200 classes, and RGB-D recordings beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ponder.data.ponderv2.base import PointDataset
from ponder.data.ponderv2.files import (
    Array,
    columns,
    labels,
    load_dict,
    read_axis_alignment,
    read_image,
    read_numbers,
    resize_colour,
    resize_labels,
)
from ponder.data.ponderv2.rgbd import View, ViewDataset, inverted, unusable_files
from ponder.data.ponderv2.skips import LISTED, NO_FRAMES
from ponder.data.ponderv2.transforms import Sample
from ponder.data.scene import DataError

# NYU40 ids of the 20 classes, in the order of their labels.
NYU40_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
# Splits of which PonderV2 looks at every tenth frame only.
_THINNED = ("val", "test")
_THINNING = 10


def _label_of_nyu40() -> Array:
    table = np.full(1 << 16, -1, dtype=np.int16)
    table[list(NYU40_IDS)] = np.arange(len(NYU40_IDS))
    return table


_LABEL_OF_NYU40 = _label_of_nyu40()


@dataclass(eq=False, kw_only=True)
class ScanNetDataset(PointDataset):
    """Point clouds of ScanNet with the 20 classes of its benchmark.

    Attributes:
        lr_file: text file with the names of the training scenes to use (few scenes); None = all of the split.
        la_file: saved dict from scene names to the points whose label may be used (few labels); None = all.
    """

    data_root: str = "data/scannet"
    lr_file: str | None = None
    la_file: str | None = None

    num_classes: ClassVar[int | None] = 20
    label_key: ClassVar[str] = "semantic_gt20"

    def __post_init__(self) -> None:
        self._chosen = None if self.lr_file is None else _words(Path(self.lr_file))
        self._labelled = None if self.la_file is None else load_dict(Path(self.la_file))
        super().__post_init__()

    def _list_items(self) -> Iterable[Any]:
        if self._chosen is None:
            return self._files("*.pth")
        paths = [Path(self.data_root) / "train" / f"{name}.pth" for name in self._chosen]
        for path in paths:
            if not path.is_file():
                raise DataError(f"{path}: expected the scene that {self.lr_file} names, got nothing")
        return paths

    def _cloud(self, path: Path) -> Sample:
        """coord, color, normal [N, 3], segment, instance [N], scene_id, and sampled_index [K] with few labels."""
        data = self._load(path)
        coord, colour, normal = columns(data, ("coord", "color", "normal"), path)
        sample: Sample = {
            "coord": coord,
            "normal": normal,
            "color": colour,
            "segment": self._checked(labels(data, self.label_key, len(coord), path), path),
            "instance": labels(data, "instance_gt", len(coord), path),
            "scene_id": data.get("scene_id", path.stem),
        }
        if self._labelled is None:
            return sample
        name = path.name.split(".")[0]
        if name not in self._labelled:
            raise DataError(f"{self.la_file}: expected labelled points of scene {name!r}, got none")
        index = np.asarray(self._labelled[name], dtype=np.int64).reshape(-1)
        if len(index) and not 0 <= index.min() <= index.max() < len(coord):
            raise DataError(f"{self.la_file}: expected points 0 to {len(coord) - 1} of {name!r}, got {index.max()}")
        hidden = np.full_like(sample["segment"], self.ignore_index)
        hidden[index] = sample["segment"][index]
        return sample | {"segment": hidden, "sampled_index": index}


@dataclass(eq=False, kw_only=True)
class ScanNet200Dataset(ScanNetDataset):
    """Point clouds of ScanNet with 200 classes."""

    num_classes: ClassVar[int | None] = 200
    label_key: ClassVar[str] = "semantic_gt200"


class _Recording(NamedTuple):
    """A scene's file and the frames that samples draw from."""

    path: Path
    frames: tuple[str, ...]


class _Frame(NamedTuple):
    scene: str
    stem: str


@dataclass(eq=False, kw_only=True)
class ScanNetRGBDDataset(ViewDataset, ScanNetDataset):
    """ScanNet with views of its recordings.

    Samples draw from the frames `head`, `head + frame_interval`, ... up to `tail` frames before the end, where head is
    nearby_num * nearby_interval and tail (nearby_num + 1) * nearby_interval; in `val` and `test` ten times as far
    apart. Frames go by their number: where only some were exported, the next one that was takes a missing one's place.
    Frames named in `data_root`/skip.lst (lines of scene and number) are left out. With `la_file` images have no labels.

    Attributes:
        rgbd_root: folder of the recordings; None = `rgbd` below `data_root`.
        frame_interval, nearby_num, nearby_interval: see above, in frames.
        align_axis: turn poses by the scenes' axisAlignment (the clouds must have been turned alike).
    """

    data_root: str = "data/scannet"
    rgbd_root: str | None = None
    frame_interval: int = 10
    nearby_num: int = 2
    nearby_interval: int = 20
    align_axis: bool = False

    def __post_init__(self) -> None:
        if self.frame_interval < 1 or self.nearby_num < 0 or self.nearby_interval < 0:
            raise ValueError(
                "frame_interval, nearby_num, nearby_interval: expected at least 1, 0 and 0, got "
                f"{self.frame_interval}, {self.nearby_num} and {self.nearby_interval}"
            )
        self._recordings = Path(self.data_root) / "rgbd" if self.rgbd_root is None else Path(self.rgbd_root)
        super().__post_init__()

    def _list_items(self) -> Iterable[_Recording]:
        if not self._recordings.is_dir():
            raise DataError(f"{self._recordings}: expected a folder of recordings, got nothing")
        chosen = None if self._chosen is None else set(self._chosen)
        skipped = _skip_list(Path(self.data_root) / "skip.lst")
        for path in self._files("*.pth"):
            scene = path.name.split(".")[0]
            if chosen is not None and scene not in chosen:
                continue
            pool = self._pool(scene, path.parent.name in _THINNED)
            frames = tuple(stem for number, stem in pool if (scene, number) not in skipped)
            if len(frames) < len(pool):
                self.skips.add(LISTED, len(pool) - len(frames))
            if frames:
                yield _Recording(path, frames)
            else:
                self.skips.add(NO_FRAMES)

    def _pool(self, scene: str, thinned: bool) -> list[tuple[int, str]]:
        """Numbers and names of the frames to draw from."""
        folder = self._recordings / scene / "color"
        stems = [path.stem for path in folder.glob("*.jpg")] if folder.is_dir() else []
        by_number = {int(stem): stem for stem in stems if stem.isdigit()}
        head = self.nearby_num * self.nearby_interval
        numbers = frame_pool(
            sorted(by_number),
            head,
            head + self.nearby_interval,
            self.frame_interval,
            _THINNING if thinned else 1,
        )
        return [(number, by_number[number]) for number in numbers]

    def _name(self, item: Any) -> str:
        return super()._name(item.path)

    def _read(self, item: Any, rng: np.random.Generator) -> Sample | None:
        scene = self._name(item)
        frames = [_Frame(scene, stem) for stem in item.frames]
        views = self._views(frames, self._view, rng)
        if views is None:
            return None
        stacked, drawn = views
        if self._labelled is not None and "semantic" in stacked:
            stacked["semantic"] = np.full_like(stacked["semantic"], -1)
        number = int(drawn[0].stem)
        return self._cloud(item.path) | stacked | {"depth_scale": 1 / 1000, "id": f"{scene}/{number}"}

    def _view(self, frame: _Frame) -> View:
        """One frame at the size of its depth image; depth in millimetres, poses in float64."""
        folder = self._recordings / frame.scene
        where = folder / "color" / f"{frame.stem}.jpg"
        with unusable_files(where):
            pose = read_numbers(folder / "pose" / f"{frame.stem}.txt", (4, 4))
            if self.align_axis:
                pose = read_axis_alignment(folder / f"{frame.scene}.txt") @ pose
            extrinsic = inverted(pose, where)
            depth = read_image(folder / "depth" / f"{frame.stem}.png").astype(np.float32)
            self._check_depth(depth, where)
            view = {
                "intrinsic": read_numbers(folder / "intrinsic" / "intrinsic_depth.txt", (4, 4)),
                "extrinsic": extrinsic,
                "rgb": resize_colour(read_image(where, colour=True), *depth.shape),
                "depth": depth,
            }
            if self.render_semantic:
                ids = resize_labels(read_image(folder / "label" / f"{frame.stem}.png"), *depth.shape)
                view["semantic"] = _LABEL_OF_NYU40[ids]
        return view | self._teacher(frame.scene, frame.stem)


def frame_pool(numbers: Sequence[int], head: int, tail: int, step: int, thinning: int = 1) -> list[int]:
    """Which of the exported frames samples draw from.

    Where all were exported these are numbers[::thinning][head:-tail:step], as in PonderV2. Otherwise the same rule is
    applied to the frames that there would be, and each takes the next exported number before the following one's.

    Args:
        numbers: of the exported frames, ascending.
        head, tail: frames left out at both ends, after thinning.
        step: spacing, after thinning.
        thinning: look at every so many frames.
    """
    if not numbers:
        return []
    first = numbers[0]
    length = -(-(numbers[-1] - first + 1) // thinning)
    start, stop, spacing = first + head * thinning, first + (length - tail) * thinning, step * thinning
    chosen, wanted = [], start
    for number in numbers:
        if wanted <= number < stop:
            chosen.append(number)
            wanted = start + ((number - start) // spacing + 1) * spacing
    return chosen


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file with scene names, got {error}") from error


def _skip_list(path: Path) -> set[tuple[str, int]]:
    """Scenes and numbers of frames to leave out; empty without the file."""
    if not path.exists():
        return set()
    words = _words(path)
    if len(words) % 2 or not all(word.isdigit() for word in words[1::2]):
        raise DataError(f"{path}: expected lines of a scene and a frame number, got something else")
    return {(scene, int(number)) for scene, number in zip(words[::2], words[1::2], strict=True)}
