"""S3DIS: Area_<k>/<room>/Annotations/ to Area_<k>/<room>.pth, and 2D-3D-S images to Area_<k>/<room>_rgbd/."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.raw_files import read_text, stamp, subfolders
from ponder.data.convert.s3dis_frames import FrameMaker, cameras_of_area
from ponder.data.convert.s3dis_mesh import area_mesh, room_normals
from ponder.data.convert.s3dis_points import RoomPoints, object_files, read_room
from ponder.data.convert.sink import BrokenPieceError, PartReport, Sink
from ponder.data.convert.units import CLOUD, FRAMES, Part, Plan, Unit
from ponder.data.scene import DataError


@dataclass(frozen=True)
class S3DISOptions:
    """What to convert, and how.

    Attributes:
        data: folder of Stanford3dDataset_v1.2, which holds Area_1/ to Area_6/.
        images: folder of 2D-3D-S, which holds area_1/ to area_6/, for frames and normals; None: clouds only, without
            normals.
        align_angle: turn every room by its alignment angle.
        normals: compute normals from the meshes of `images`.
        every: spacing of the frames of a room.
        parts: CLOUD, FRAMES or both.
    """

    data: Path
    images: Path | None = None
    align_angle: bool = False
    normals: bool = True
    every: int = 1
    parts: tuple[str, ...] = (CLOUD, FRAMES)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise DataError(f"every: expected at least 1, got {self.every}")
        if self.images is None and self.parts == (FRAMES,):
            raise DataError("images: expected the folder of 2D-3D-S, without which there are no frames, got none")
        if self.images is not None and not self.images.is_dir():
            raise DataError(f"{self.images}: there is no such folder")


@dataclass(frozen=True)
class _Room:
    folder: Path
    area_folders: tuple[Path, ...]
    angle: float | None
    normals: bool
    every: int

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def camera_key(self) -> str:
        """How 2D-3D-S names the room."""
        return f"{self.folder.name}_{self.folder.parent.name.partition('_')[2]}"


def plan_s3dis(options: S3DISOptions) -> Plan:
    """All rooms of a download.

    Raises:
        DataError: no areas or rooms, or alignment angles wanted and missing.
    """
    for cached in (cameras_of_area, area_mesh):
        cached.cache_clear()
    units = []
    for area in subfolders(options.data, "Area_*"):
        angles = _angles(area) if options.align_angle else {}
        for folder in subfolders(area, "*"):
            # Folders such as those of a file manager are no rooms; rooms of which all is lost still count.
            if not ((folder / "Annotations").is_dir() or re.fullmatch(r"[A-Za-z]+_\d+", folder.name)):
                continue
            if options.align_angle and folder.name not in angles:
                raise DataError(f"{area}: expected an alignment angle of {folder.name}, got those of {sorted(angles)}")
            room = _Room(
                folder, _area_folders(options.images, area), angles.get(folder.name), options.normals, options.every
            )
            units.append(_unit(room, options))
    if not units:
        raise DataError(f"{options.data}: expected folders Area_*/<room>/Annotations, got none")
    return Plan("s3dis", "rooms", units, _convert)


def _angles(area: Path) -> dict[str, float]:
    """Alignment angle of each room of an area, degrees."""
    path = area / f"{area.name}_alignmentAngle.txt"
    rows = [line.split() for line in read_text(path, "file of alignment angles").splitlines()]
    try:
        return {row[0]: float(row[1]) for row in rows if row and not row[0].startswith("#")}
    except (IndexError, ValueError) as error:
        raise DataError(f"{path}: expected a room and its angle per line, but {error}") from None


def _area_folders(images: Path | None, area: Path) -> tuple[Path, ...]:
    """Folders of an area in 2D-3D-S; area 5 has two."""
    if images is None:
        return ()
    number = area.name.partition("_")[2]
    names = [f"area_{number}"] if number != "5" else ["area_5a", "area_5b"]
    return tuple(images / name for name in names)


def _unit(room: _Room, options: S3DISOptions) -> Unit:
    files = object_files(room.folder)
    folders = room.area_folders
    shared: dict[str, Any] = {"angle": room.angle}
    with_normals = room.normals and bool(folders)
    meshes = [folder / "3d" / "rgb.obj" for folder in folders] if with_normals else []
    possible = {
        CLOUD: Part(
            CLOUD, (f"{room.name}.pth",), {**shared, "normals": with_normals}, stamp([*files, *meshes]), not files
        ),
    }
    names = [(folder, name) for folder in folders for name in _frame_names(folder, room)]
    if folders:
        tables = [folder / "3d" / "camera_to_room.json" for folder in folders]
        poses = [folder / "raw" / name for folder, name in names]
        possible[FRAMES] = Part(
            FRAMES, (f"{room.name}_rgbd",), {**shared, "every": room.every},
            stamp([*files, *tables, *poses]), not any(folder.is_dir() for folder in folders),
        )  # fmt: skip
    parts = tuple(possible[part] for part in options.parts if part in possible)
    work = 1 + (len(names) if FRAMES in options.parts else 0)
    return Unit(room.name.replace("/", "."), parts, work, room)


def _frame_names(folder: Path, room: _Room) -> tuple[str, ...]:
    """The wanted frames of a room; none where the table of cameras is unusable, which the conversion reports."""
    try:
        return cameras_of_area(folder).get(room.camera_key, ())[:: room.every]
    except BrokenPieceError:
        return ()


def _convert(unit: Unit, parts: frozenset[str], sink: Sink) -> None:
    room: _Room = unit.source
    # What is wrong with the points is counted once, with the clouds if they are wanted.
    report = sink.report(CLOUD if CLOUD in parts else FRAMES)
    try:
        points = read_room(room.folder, report)
    except BrokenPieceError as error:
        for part in sorted(parts):
            sink.report(part).skip(error.reason, error.detail)
        return
    align = alignment(points.coord, room.angle)
    moved = points._replace(coord=_moved(points.coord, align)) if room.angle is not None else points
    if CLOUD in parts:
        sink.put(CLOUD, [(f"{room.name}.pth", _cloud(room, points, moved, align, report))])
        sink.tick(1)
    if FRAMES in parts:
        maker = FrameMaker(moved, align)
        for folder in room.area_folders:
            with sink.attempt(FRAMES):
                cameras_of_area(folder)
            for frame in _frame_names(folder, room):
                with sink.attempt(FRAMES):
                    sink.put(FRAMES, [(f"{room.name}_rgbd/{frame}.pth", maker.make(folder, frame))])
                sink.tick(1)


def _cloud(
    room: _Room, points: RoomPoints, moved: RoomPoints, align: NDArray[np.float64], report: PartReport
) -> dict[str, Any]:
    """The entries of a room's .pth file."""
    data: dict[str, Any] = {
        "coord": moved.coord, "color": points.colour, "semantic_gt": points.semantic, "instance_gt": points.instance,
        "room_center": _centre(points.coord),
    }  # fmt: skip
    if room.normals and room.area_folders:
        try:
            data["normal"] = room_normals(room.area_folders, points.coord) @ align[:3, :3].T
        except BrokenPieceError as error:
            report.skip(error.reason, error.detail)
    return data


def _centre(coord: NDArray[np.float64]) -> NDArray[np.float64]:
    return (coord.max(0) + coord.min(0)) / 2


def alignment(coord: NDArray[np.float64], angle: float | None) -> NDArray[np.float64]:
    """[4, 4] turn of a room about its centre by minus its alignment angle (degrees); None: the identity."""
    if angle is None:
        return np.eye(4)
    turn = (2 - angle / 180) * np.pi
    rotate, there, back = np.eye(4), np.eye(4), np.eye(4)
    rotate[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    there[:3, 3], back[:3, 3] = -_centre(coord), _centre(coord)
    return back @ rotate @ there


def _moved(coord: NDArray[np.float64], align: NDArray[np.float64]) -> NDArray[np.float64]:
    centre = _centre(coord)
    return (coord - centre) @ align[:3, :3].T + centre
