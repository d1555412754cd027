"""Views of a scene: which frames a sample takes, what it does about unusable ones, and how they are stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ponder.data.ponderv2.base import PointDataset
from ponder.data.ponderv2.files import Array, load_dict, read_teacher
from ponder.data.ponderv2.skips import (
    BAD_LABELS,
    BAD_POSE,
    LITTLE_DEPTH,
    LITTLE_MASK,
    MISSING,
    OTHER_SIZE,
    UNREADABLE,
    UnusableError,
)
from ponder.data.ponderv2.transforms import Sample
from ponder.data.scene import DataError

Frame = TypeVar("Frame")
# Arrays of one frame: intrinsic [3, 3] or [4, 4], extrinsic [4, 4], rgb [H, W, 3], depth [H, W], semantic, teacher.
View = dict[str, Array]
_LEAST_MASK = 0.25
_DEPTH_MISSING = 65535
# Above this, image labels of S3DIS and Structured3D are no classes.
_LAST_LABEL = 40


@dataclass(eq=False, kw_only=True)
class ViewDataset(PointDataset):
    """Scenes with posed RGB-D views.

    Attributes:
        num_cameras: V, views per sample.
        render_semantic: read class images.
        keep_class_zero: images of S3DIS and Structured3D keep class 0; PonderV2 takes it as unlabelled.
        min_depth_pixels: pixels of known depth that a frame needs, at least the rays drawn per view.
        teacher_root: folder of feature files beside the images, which become `teacher` [V, H', W', C]; None = none.
    """

    num_cameras: int = 5
    render_semantic: bool = True
    keep_class_zero: bool = False
    min_depth_pixels: int = 256
    teacher_root: str | None = None

    def __post_init__(self) -> None:
        if self.num_cameras < 1:
            raise ValueError(f"num_cameras: expected at least 1, got {self.num_cameras}")
        self._unusable: dict[Any, str] = {}
        super().__post_init__()

    def _views(
        self, frames: Sequence[Frame], read: Callable[[Frame], View], rng: np.random.Generator
    ) -> tuple[Sample, list[Frame]] | None:
        """`num_cameras` random frames, stacked, and which ones; None if none can be used.

        Frames differ from each other as far as there are enough usable ones.
        """
        count = self.num_cameras
        found: list[tuple[Frame, View]] = []
        for place in rng.permutation(len(frames)):
            view = self._attempt(frames[place], read, found)
            found += [] if view is None else [(frames[place], view)]
            if len(found) == count <= len(frames):
                break
        if not found:
            return None
        if count > len(frames):
            found = [found[place] for place in rng.integers(len(found), size=count)]
        found += [found[place] for place in rng.integers(len(found), size=count - len(found))]
        views = [view for _, view in found]
        return {key: np.stack([view[key] for view in views]) for key in views[0]}, [frame for frame, _ in found]

    def _attempt(self, frame: Frame, read: Callable[[Frame], View], found: list[tuple[Frame, View]]) -> View | None:
        reason = self._unusable.get(frame)
        if reason is None:
            try:
                view = read(frame)
                if not found or all(view[key].shape == array.shape for key, array in found[0][1].items()):
                    return view
                self.skips.add(OTHER_SIZE)
                return None
            except UnusableError as error:
                reason = self._unusable[frame] = error.reason
        self.skips.add(reason)
        return None

    def _check_depth(self, depth: Array, path: Path) -> None:
        if np.count_nonzero(depth) < self.min_depth_pixels:
            raise UnusableError(LITTLE_DEPTH, path)

    def _teacher(self, *place: str) -> View:
        """{"teacher": features} of the frame at this place below `teacher_root`; nothing without one."""
        if self.teacher_root is None:
            return {}
        stem = Path(self.teacher_root, *place)
        with unusable_files(stem):
            return {"teacher": read_teacher(stem)}

    def _saved_view(self, path: Path) -> View:
        """A frame of S3DIS or Structured3D: a saved dict with camera-to-world `extrinsic` and a mask of its depth."""
        with unusable_files(path):
            data = self._load_frame(path)
        mask = data["depth_mask"].astype(bool)
        if mask.mean() < _LEAST_MASK:
            raise UnusableError(LITTLE_MASK, path)
        stored = data["depth"]
        depth = np.where(mask & (stored < _DEPTH_MISSING), stored, 0).astype(np.float32)
        self._check_depth(depth, path)
        view = {
            "intrinsic": data["intrinsic"].astype(np.float32),
            "extrinsic": inverted(data["extrinsic"], path).astype(np.float32),
            "rgb": np.ascontiguousarray(data["rgb"]),
            "depth": depth,
        }
        if self.render_semantic:
            view["semantic"] = self._image_labels(data["semantic_map"])
        return view

    def _load_frame(self, path: Path) -> dict[str, Array]:
        data = load_dict(path)
        for key in ("intrinsic", "extrinsic", "rgb", "depth", "depth_mask", "semantic_map"):
            if not isinstance(data.get(key), np.ndarray):
                raise DataError(f"{path}: expected an array {key!r}, got {type(data.get(key)).__name__}")
        return data

    def _image_labels(self, stored: Array) -> Array:
        least = 0 if self.keep_class_zero else 1
        known = (stored >= least) & (stored <= _LAST_LABEL)
        if self.num_classes is not None:
            wrong = known & (stored >= self.num_classes)
            if wrong.any():
                self.skips.add(BAD_LABELS)
            known &= ~wrong
        return np.where(known, stored, -1).astype(np.int16)


@contextmanager
def unusable_files(path: Path) -> Iterator[None]:
    """Turn errors of a frame's files into `UnusableError`."""
    try:
        yield
    except DataError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        raise UnusableError(MISSING if missing else UNREADABLE, path) from error


def inverted(pose: Array, path: Path) -> Array:
    """World-to-camera [4, 4] float64 from a camera-to-world pose."""
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise UnusableError(BAD_POSE, path)
    try:
        return np.linalg.inv(pose.astype(np.float64))
    except np.linalg.LinAlgError:
        raise UnusableError(BAD_POSE, path) from None
