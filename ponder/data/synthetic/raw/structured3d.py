"""A raw Structured3D download: zip archives of perspective views and of panoramas."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ponder.data.synthetic.raw.world import Hits, cast, class_column, eyes, pixel_rays, png, small_room
from ponder.data.synthetic.room import Room

# The axes of our cameras (right, down, forward) to those of the release's poses (forward, up, right).
_FORWARD_UP_RIGHT = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])


@dataclass(frozen=True)
class RawHouse:
    """What one scene, of one room, was made of: V perspective views and a panorama.

    Attributes:
        name: scene_<number>.
        split: train, val or test.
        room: number of its room.
        geometry: the room, z up, metres.
        frames: names of the perspective views.
        depth: [V, H, W] uint16 millimetres along the camera axis.
        rgb: [V, H, W, 3] uint8.
        nyu40: [V, H, W] NYU40 id, 0 = none.
        intrinsic: [3, 3], pixel centres at integer coordinates.
        pose: [V, 4, 4] camera (right, down, forward) to the room, float64, as far as the files' digits tell.
        panorama_depth: [H, 2H] uint16 millimetres along the ray.
        panorama_rgb, panorama_nyu40: [H, 2H, 3] uint8, [H, 2H].
        panorama_eye: [3] metres.
    """

    name: str
    split: str
    room: str
    geometry: Room
    frames: tuple[str, ...]
    depth: NDArray[np.uint16]
    rgb: NDArray[np.uint8]
    nyu40: NDArray[np.int64]
    intrinsic: NDArray[np.float64]
    pose: NDArray[np.float64]
    panorama_depth: NDArray[np.uint16]
    panorama_rgb: NDArray[np.uint8]
    panorama_nyu40: NDArray[np.int64]
    panorama_eye: NDArray[np.float64]


def write_raw_structured3d(
    root: Path,
    scenes: tuple[int, ...] = (0, 3000, 3250),
    seed: int = 0,
    size: tuple[int, int] = (24, 32),
    views: int = 2,
) -> list[RawHouse]:
    """Write Structured3D_perspective_full_00.zip and Structured3D_panorama_00.zip into `root`.

    Args:
        root: an existing folder.
        scenes: scene numbers, which decide the split.
        seed: which rooms.
        size: (height, width) of the perspective views; panoramas are `height` x 2 `height`.
        views: perspective views of each room.
    """
    houses = [_house(scene, seed + number, size, views) for number, scene in enumerate(scenes)]
    with (
        zipfile.ZipFile(root / "Structured3D_perspective_full_00.zip", "w") as perspective,
        zipfile.ZipFile(root / "Structured3D_panorama_00.zip", "w") as panorama,
    ):
        for house in houses:
            folder = f"Structured3D/{house.name}/2D_rendering/{house.room}"
            for view, frame in enumerate(house.frames):
                place = f"{folder}/perspective/full/{frame}"
                perspective.writestr(f"{place}/camera_pose.txt", _camera_text(house, view))
                images = house.depth[view], house.rgb[view], house.nyu40[view]
                _write_images(perspective, place, *images)
            eye = " ".join(f"{value * 1000:.6g}" for value in house.panorama_eye)
            panorama.writestr(f"{folder}/panorama/camera_xyz.txt", eye)
            panorama.writestr(f"{folder}/panorama/layout.txt", "0 0\n")
            images = house.panorama_depth, house.panorama_rgb, house.panorama_nyu40
            _write_images(panorama, f"{folder}/panorama/full", *images)
    return houses


def _house(scene: int, seed: int, size: tuple[int, int], views: int) -> RawHouse:
    height, width = size
    geometry = small_room(seed)
    # Half the field of view, as the release gives it.
    half = np.array([0.8, np.arctan(np.tan(0.8) * height / width)])
    centre = np.array([width / 2, height / 2])
    focal = centre / np.tan(half)
    matrix = np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]])
    rays = pixel_rays(matrix, height, width)
    poses = eyes(geometry, views, seed)
    hits = [cast(geometry, pose[:3, 3], rays @ pose[:3, :3].T) for pose in poses]
    eye = np.rint(poses[0, :3, 3] * 1000) / 1000
    around = cast(geometry, eye, _sphere(height))
    return RawHouse(
        name=f"scene_{scene:05d}",
        split="train" if scene < 3000 else "val" if scene < 3250 else "test",
        room=str(100 + seed),
        geometry=geometry,
        frames=tuple(str(view) for view in range(views)),
        depth=np.stack([_millimetres(hit.path / np.linalg.norm(rays, axis=-1)) for hit in hits]),
        rgb=np.stack([hit.colour for hit in hits]),
        nyu40=np.stack([_nyu40(hit) for hit in hits]),
        intrinsic=matrix,
        pose=poses,
        panorama_depth=_millimetres(around.path),
        panorama_rgb=around.colour,
        panorama_nyu40=_nyu40(around),
        panorama_eye=eye,
    )


def _sphere(height: int) -> NDArray[np.float64]:
    """[height, 2 height, 3] directions of a panorama's pixels."""
    turn = np.arange(2 * height) / (2 * height) * 2 * np.pi - np.pi
    rise = np.pi / 2 - np.arange(height) / height * np.pi
    turn, rise = np.meshgrid(turn, rise)
    return np.stack([np.sin(turn) * np.cos(rise), np.cos(turn) * np.cos(rise), np.sin(rise)], -1)


def _millimetres(depth: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.rint(depth * 1000).astype(np.uint16)


def _nyu40(hits: Hits) -> NDArray[np.int64]:
    return class_column("nyu40")[hits.semantic]


def _camera_text(house: RawHouse, view: int) -> str:
    """Position (mm), front, up, half fields of view, and a 1 that nobody reads."""
    pose = house.pose[view]
    front, up = (pose[:3, :3] @ axis for axis in _FORWARD_UP_RIGHT[:2])
    half = np.arctan(house.intrinsic[[0, 1], 2] / house.intrinsic[[0, 1], [0, 1]])
    numbers = [*(pose[:3, 3] * 1000), *front, *up, *half, 1]
    return " ".join(f"{float(number):.9g}" for number in numbers)


def _write_images(
    archive: zipfile.ZipFile, folder: str, depth: NDArray[np.uint16], rgb: NDArray[np.uint8], nyu40: NDArray[np.int64]
) -> None:
    archive.writestr(f"{folder}/depth.png", png(depth))
    # The release's images have an opaque fourth channel.
    archive.writestr(f"{folder}/rgb_rawlight.png", png(np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], -1)))
    archive.writestr(f"{folder}/semantic.png", png(nyu40.astype(np.uint8), palette=True))
