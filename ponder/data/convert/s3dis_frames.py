"""RGB-D frames of S3DIS rooms from the raw images of 2D-3D-S."""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ponder.data.convert.images import decode_colour, decode_depth
from ponder.data.convert.raw_files import read_bytes, read_object, read_text, why
from ponder.data.convert.s3dis_points import RoomPoints
from ponder.data.convert.sink import BrokenPieceError
from ponder.data.convert.undistort import Lens, UndistortMap

DEPTH_UNITS_PER_METRE = 4000.0
# Stored depths from here on mean "nothing seen".
_NOTHING_SEEN = 65500
# A pixel is trusted if its point lies this close to the cloud, metres.
_MAX_DISTANCE = 0.1
# The second half of area 5 in the frame of the first, in the axes of the clouds.
_HALF_B = np.array([[0, 1, 0, -4.09703582], [-1, 0, 0, 6.22617759], [0, 0, 1, 0], [0, 0, 0, 1]])


@lru_cache(maxsize=8)
def cameras_of_area(folder: Path) -> dict[str, tuple[str, ...]]:
    """Frames of each room of an area.

    Args:
        folder: area_<k> of 2D-3D-S.

    Returns:
        "<room>_<area>" -> sorted "<camera>_<pitch>_<yaw>".

    Raises:
        BrokenPieceError: the table of cameras is missing or damaged.
    """
    table = read_object(folder / "3d" / "camera_to_room.json", "table of the rooms of cameras")
    frames: defaultdict[str, list[str]] = defaultdict(list)
    for path in (folder / "raw").glob("*_pose_*.txt"):
        camera, _, view = path.stem.partition("_pose_")
        frames[camera].append(f"{camera}_{view}")
    rooms: defaultdict[str, list[str]] = defaultdict(list)
    for camera, room in table.items():
        rooms[str(room)] += frames.get(camera, [])
    return {room: tuple(sorted(names)) for room, names in rooms.items()}


class FrameMaker:
    """Makes the frames of one room.

    Args:
        points: the room's cloud, in the frame that the poses shall be in.
        align: [4, 4] from the scanned frame to that of the cloud.
    """

    def __init__(self, points: RoomPoints, align: NDArray[np.float64]) -> None:
        # The leaf size decides between points equally near; this is the one that PonderV2's script has.
        self._tree = KDTree(points.coord, leafsize=10)
        self._semantic, self._align = points.semantic, align

    def make(self, folder: Path, frame: str) -> dict[str, Any]:
        """One frame.

        Args:
            folder: area_<k> of 2D-3D-S.
            frame: "<camera>_<pitch>_<yaw>".

        Returns:
            intrinsic [3, 3] and extrinsic [4, 4] (camera to room) float64; rgb [H, W, 3] uint8 and depth [H, W] uint16
            (1/4000 m) without distortion; depth_mask [H, W] bool, whether the pixel lies on the cloud; semantic_map
            [H, W] int64, class of the nearest point there, else -1.

        Raises:
            BrokenPieceError: a file is missing or damaged.
        """
        raw = folder / "raw"
        camera, pitch, yaw = frame.split("_")
        lens = read_lens(raw / f"{camera}_intrinsics_{pitch}.txt")
        numbers = _numbers(raw / f"{camera}_pose_{pitch}_{yaw}.txt", "pose")
        if numbers.size != 16 or not np.isfinite(numbers).all():
            raise BrokenPieceError("pose is not a finite 4x4 matrix", f"{raw} {frame}")
        pose = numbers.reshape(4, 4)
        if folder.name.endswith("5b"):
            pose = _HALF_B @ pose
        pose = self._align @ pose
        rgb = _image(decode_colour, raw / f"{camera}_i{pitch}_{yaw}.jpg", "colour image")
        depth = _image(decode_depth, raw / f"{camera}_d{pitch}_{yaw}.png", "depth image")
        if rgb.shape[:2] != depth.shape or depth.shape != (lens.height, lens.width):
            sizes = f"colour {rgb.shape[:2]}, depth {depth.shape}, intrinsics {(lens.height, lens.width)}"
            raise BrokenPieceError("images are not of the size of the intrinsics", f"{raw} {frame} ({sizes})")
        undistort = _undistort_map(lens)
        rgb, depth = undistort.apply(rgb), undistort.apply(depth)
        mask, semantic = self._compare(depth, lens.matrix(), pose)
        return {
            "intrinsic": lens.matrix(), "extrinsic": pose, "rgb": rgb, "depth": depth, "depth_mask": mask,
            "semantic_map": semantic,
        }  # fmt: skip

    def _compare(
        self, depth: NDArray[np.uint16], matrix: NDArray[np.float64], pose: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which pixels lie on the cloud, and the class of the cloud there."""
        rows, columns = np.nonzero((depth > 0) & (depth < _NOTHING_SEEN))
        z = depth[rows, columns] / DEPTH_UNITS_PER_METRE
        x = (columns - matrix[0, 2]) / matrix[0, 0] * z
        y = (rows - matrix[1, 2]) / matrix[1, 1] * z
        points = np.stack([x, y, z], 1).astype(np.float32).astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
        _, nearest = self._tree.query(points, distance_upper_bound=_MAX_DISTANCE)
        close = nearest < self._tree.n
        mask = np.zeros(depth.shape, dtype=bool)
        semantic = np.full(depth.shape, -1, dtype=np.int64)
        mask[rows, columns] = close
        semantic[rows[close], columns[close]] = self._semantic[nearest[close], 0]
        return mask, semantic


def read_lens(path: Path) -> Lens:
    """Camera file: height width fx fy cx cy k1 k2 p1 p2 k3.

    Raises:
        BrokenPieceError: missing, or not eleven numbers of a camera.
    """
    numbers = _numbers(path, "intrinsics").reshape(-1)
    if numbers.size != 11 or not np.isfinite(numbers).all() or numbers[:4].min() <= 0:
        raise BrokenPieceError("intrinsics are not height width fx fy cx cy k1 k2 p1 p2 k3", f"{path} ({numbers.size})")
    return Lens(int(numbers[0]), int(numbers[1]), *numbers[2:].tolist())


# A camera has three lenses, one for each pitch.
@lru_cache(maxsize=3)
def _undistort_map(lens: Lens) -> UndistortMap:
    return UndistortMap(lens)


def _image(decode: Any, path: Path, kind: str) -> Any:
    return decode(read_bytes(path, kind), str(path))


def _numbers(path: Path, kind: str) -> NDArray[np.float64]:
    text = read_text(path, kind)
    try:
        with warnings.catch_warnings():
            # "Input contained no data": the caller counts.
            warnings.simplefilter("ignore", UserWarning)
            return np.loadtxt(StringIO(text), ndmin=1)
    except ValueError as error:
        raise BrokenPieceError(f"{kind} cannot be read", f"{path} ({why(error)})") from None
