"""ScanNet: scans/<scene>/ to <split>/<scene>.pth and rgbd/<scene>/."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.ply_mesh import read_mesh
from ponder.data.convert.raw_files import read_text, stamp, subfolders
from ponder.data.convert.scannet_frames import convert_frames
from ponder.data.convert.scannet_labels import (
    CLASSES_20,
    LabelTable,
    class_number,
    read_label_table,
    read_vertex_labels,
)
from ponder.data.convert.sens import count_frames
from ponder.data.convert.sink import BrokenPieceError, PartReport, Sink
from ponder.data.convert.units import CLOUD, FRAMES, Part, Plan, Unit
from ponder.data.scene import DataError

SPLITS = ("train", "val", "test")
LABEL_TABLE = "scannetv2-labels.combined.tsv"
# Keeps the normal of a degenerate triangle, and of a vertex without triangles, finite.
_MIN_LENGTH = 1.0e-8


@dataclass(frozen=True)
class ScanNetOptions:
    """What to convert, and how.

    Attributes:
        data: folder of the download, which holds scans/ and perhaps scans_test/.
        splits: folder with scannetv2_train.txt and scannetv2_val.txt; scenes in neither belong to the test split.
            None: all scenes of scans/ belong to `split`.
        split: see `splits`; exactly one of the two is given.
        labels: the label table; None: the one in `data`.
        every: spacing of the frames; 1 for PonderV2's dataset, which takes frame numbers as positions.
        keep_jpeg: copy recorded colour images instead of encoding them again.
        parts: CLOUD, FRAMES or both.
    """

    data: Path
    splits: Path | None = None
    split: str | None = None
    labels: Path | None = None
    every: int = 1
    keep_jpeg: bool = False
    parts: tuple[str, ...] = (CLOUD, FRAMES)

    def __post_init__(self) -> None:
        if (self.splits is None) == (self.split is None):
            raise DataError(
                "splits: expected either a folder with scannetv2_train.txt and scannetv2_val.txt (--splits), or one "
                f"split for all scenes (--split train|val|test), got {'both' if self.splits else 'neither'}"
            )
        if self.split is not None and self.split not in SPLITS:
            raise DataError(f"split: expected one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.every < 1:
            raise DataError(f"every: expected at least 1, got {self.every}")


@dataclass(frozen=True)
class _Scene:
    folder: Path
    split: str
    table: Path
    every: int
    keep_jpeg: bool

    def file(self, suffix: str) -> Path:
        return self.folder / (self.folder.name + suffix)


def plan_scannet(options: ScanNetOptions) -> Plan:
    """All scenes of a download.

    Raises:
        DataError: no scenes, no label table, or no split lists.
    """
    folders = subfolders(options.data, "scans*/scene*")
    if not folders:
        raise DataError(f"{options.data}: expected folders scans/scene*, got none")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{options.data}: expected every scene once, got {twice} in several scans* folders")
    _table.cache_clear()
    table = options.labels or options.data / LABEL_TABLE
    _table(table)
    split_of = _splits(options)
    scenes = []
    for folder in folders:
        default = options.split or "test"
        split = split_of.get(folder.name, "test" if folder.parent.name == "scans_test" else default)
        scenes.append(_Scene(folder, split, table, options.every, options.keep_jpeg))
    return Plan("scannet", "scenes", [_unit(scene, options.parts) for scene in scenes], _convert)


def _splits(options: ScanNetOptions) -> dict[str, str]:
    if options.splits is None:
        return {}
    split_of: dict[str, str] = {}
    for split in ("val", "train"):
        text = read_text(options.splits / f"scannetv2_{split}.txt", f"list of the {split} split")
        split_of.update({line.strip(): split for line in text.splitlines() if line.strip()})
    return split_of


@lru_cache(maxsize=1)
def _table(path: Path) -> LabelTable:
    return read_label_table(path)


def _unit(scene: _Scene, parts: tuple[str, ...]) -> Unit:
    name = scene.folder.name
    recording = scene.file(".sens")
    mesh = scene.file("_vh_clean_2.ply")
    cloud_files = [mesh, *_label_files(scene), scene.table]
    frame_files = [recording, scene.file("_2d-label-filt.zip"), scene.file(".txt"), scene.table]
    cloud_options: dict[str, Any] = {"split": scene.split}
    frame_options: dict[str, Any] = {"every": scene.every, "keep_jpeg": scene.keep_jpeg}
    possible = {
        CLOUD: Part(CLOUD, (f"{scene.split}/{name}.pth",), cloud_options, stamp(cloud_files), not mesh.exists()),
        FRAMES: Part(FRAMES, (f"rgbd/{name}",), frame_options, stamp(frame_files), not recording.exists()),
    }
    frames = -(-count_frames(recording) // scene.every) if FRAMES in parts else 0
    return Unit(name, tuple(possible[part] for part in parts), frames + 1, scene)


def _label_files(scene: _Scene) -> tuple[Path, Path, Path]:
    return (
        scene.file("_vh_clean_2.0.010000.segs.json"),
        scene.file(".aggregation.json"),
        scene.file("_vh_clean_2.labels.ply"),
    )


def _convert(unit: Unit, parts: frozenset[str], sink: Sink) -> None:
    scene: _Scene = unit.source
    if CLOUD in parts:
        with sink.attempt(CLOUD):
            sink.put(CLOUD, [(f"{scene.split}/{unit.name}.pth", _cloud(scene, sink.report(CLOUD)))])
        sink.tick(1)
    if FRAMES in parts:
        nyu40, labelled = _table(scene.table).nyu40, scene.split != "test"
        convert_frames(scene.folder, nyu40, scene.every, scene.keep_jpeg, labelled, sink)


def _cloud(scene: _Scene, report: PartReport) -> dict[str, Any]:
    """The entries of a scene's .pth file, P = number of vertices of its mesh."""
    path = scene.file("_vh_clean_2.ply")
    mesh = read_mesh(path)
    coord, colour = mesh.columns("x", "y", "z"), mesh.columns("red", "green", "blue")
    assert coord is not None, "read_mesh checks"
    if colour is None:
        raise BrokenPieceError("mesh has no colours", str(path))
    finite = np.isfinite(coord).all(1)
    if not finite.any():
        raise BrokenPieceError("mesh is empty", f"{path} (no finite vertex)")
    if not finite.all():
        report.skip("vertex is not finite", str(path), int((~finite).sum()))
    faces = mesh.faces[finite[mesh.faces].all(1)]
    data: dict[str, NDArray] = {"coord": coord, "color": colour.astype(coord.dtype)}
    data["normal"] = vertex_normals(coord, faces)
    if scene.split != "test":
        data.update(_labels(scene, len(coord), report))
    return {"scene_id": scene.folder.name, **{key: values[finite] for key, values in data.items()}}


def _labels(scene: _Scene, count: int, report: PartReport) -> dict[str, NDArray[np.int64]]:
    """Vertex labels; where the object files fail, the 20 classes of the labelled mesh, if there is one."""
    segments, aggregation, labelled = _label_files(scene)
    try:
        return read_vertex_labels(segments, aggregation, count, _table(scene.table))
    except BrokenPieceError as error:
        report.skip(f"no instances and 200 classes: {error.reason}", error.detail)
    try:
        nyu40 = read_mesh(labelled, "labelled mesh").vertices["label"]
        if len(nyu40) != count:
            raise BrokenPieceError("labelled mesh is of another mesh", f"{labelled} ({len(nyu40)} vertices)")
    except (BrokenPieceError, KeyError) as error:
        reason = error.reason if isinstance(error, BrokenPieceError) else "labelled mesh has no labels"
        report.skip(f"no labels: {reason}", str(labelled))
        return {}
    lookup = np.array([class_number(label, CLASSES_20) for label in range(256)])
    return {"semantic_gt20": lookup[np.clip(nyu40, 0, 255).astype(np.int64)]}


def vertex_normals(coord: NDArray, faces: NDArray[np.int64]) -> NDArray:
    """Sum of the area-weighted normals of the triangles around each vertex, normalised.

    Computed in the type of `coord`, triangle after triangle, so that float32 sums round as in PonderV2's script.

    Args:
        coord: [V, 3] metres.
        faces: [F, 3] vertex numbers.

    Returns:
        [V, 3] unit vectors, 0 for vertices without triangles.
    """
    corners = [coord[faces[:, corner]] for corner in range(3)]
    vector = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    length = np.sqrt(np.sum(vector**2, axis=1, keepdims=True)) + _MIN_LENGTH
    weighted = vector / length * (length * 0.5)
    total = np.zeros_like(coord)
    np.add.at(total, faces.reshape(-1), np.repeat(weighted, 3, axis=0))
    return total / (np.sqrt(np.sum(total**2, axis=1, keepdims=True)) + _MIN_LENGTH)
