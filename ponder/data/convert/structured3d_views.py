"""Views of Structured3D, perspective and panorama, as points in the frame of PonderV2's files.

The raw frame has z up and millimetres. PonderV2's script goes through a frame with y up and swaps y and z at the end,
which mirrors the scene: raw (x, y, z) becomes (y, x, z).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.archives import SceneFiles
from ponder.data.convert.images import decode_colour, decode_depth, decode_ids
from ponder.data.convert.sink import BrokenPieceError

# Position in this list = class number; NYU40 ids of the 25 frequent classes.
CLASSES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 17, 18, 19, 22, 24, 25, 32, 34, 35, 38, 39, 40)
MILLIMETRES = 1000
# Stored depth of a pixel that sees nothing.
NOTHING_SEEN = 65535
# Surfaces seen at a flatter angle (cosine) than this have unreliable depth.
_MIN_COSINE = 0.15
_MIN_DISTANCE = 10e-5
# (x, y, z) with z up to (y, z, x), whose second axis is up.
_TO_Y_UP = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=np.float32)
# Camera axes: (right, down, forward) to (forward, up, right).
_FORWARD_FIRST = np.array([[0, 0, 1], [0, -1, 0], [1, 0, 0]])
_SWAP_YZ = [0, 2, 1]


class Pixels(NamedTuple):
    """N points seen by a view.

    Attributes:
        coord: [N, 3] float32 metres.
        colour: [N, 3] uint8.
        normal: [N, 3] float32 unit vectors, 0 where unknown.
        semantic: [N, 1] int16 class number, -1 = none.
    """

    coord: NDArray[np.float32]
    colour: NDArray[np.uint8]
    normal: NDArray[np.float32]
    semantic: NDArray[np.int16]


class Perspective(NamedTuple):
    """A perspective view: its points, and the entries of its .pth file."""

    pixels: Pixels
    frame: dict[str, NDArray]


class _Images(NamedTuple):
    depth: NDArray[np.uint16]
    colour: NDArray[np.uint8]
    label: NDArray[np.uint16]


def read_perspective(files: SceneFiles, folder: str) -> Perspective:
    """A view of perspective/full/<frame>/.

    Args:
        files: those of the scene.
        folder: the view's, with a slash at its end.

    Returns:
        points, and intrinsic [3, 3], extrinsic [4, 4] (camera to room), rgb [H, W, 3] uint8, depth [H, W] uint16 mm,
        depth_mask [H, W] bool, semantic_map [H, W] int64.

    Raises:
        BrokenPieceError: a file is missing or damaged, or nothing that can be used is seen.
    """
    numbers = _numbers(files, f"{folder}camera_pose.txt", 11)
    images = _read_images(files, folder)
    rotation, position = _camera(numbers)
    height, width = images.depth.shape
    matrix = np.diag([1.0, 1.0, 1.0])
    matrix[0, 2], matrix[1, 2] = width / 2, height / 2
    matrix[0, 0], matrix[1, 1] = matrix[0, 2] / np.tan(numbers[9]), matrix[1, 2] / np.tan(numbers[10])
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, np.ones_like(rows)], -1).reshape(-1, 3).astype(np.float64)
    rays = (np.linalg.inv(matrix) @ pixels.T).T
    local = (images.depth.reshape(-1, 1) * rays).reshape(height, width, 3) @ _FORWARD_FIRST
    mask = _usable(local, pixel_normals(local), images)
    if not mask.any():
        raise BrokenPieceError("view has no usable pixels", folder)
    coord = np.matmul(local / MILLIMETRES, rotation.T) + position
    frame = {
        "intrinsic": matrix, "extrinsic": _extrinsic(rotation, position), "rgb": images.colour, "depth": images.depth,
        "depth_mask": mask, "semantic_map": class_map(images.label),
    }  # fmt: skip
    return Perspective(_select(coord, pixel_normals(coord), images, mask), frame)


def read_panorama(files: SceneFiles, folder: str) -> Pixels:
    """The points of panorama/.

    Args:
        files: those of the scene.
        folder: the panorama's, with a slash at its end.

    Raises:
        BrokenPieceError: a file is missing or damaged, or nothing that can be used is seen.
    """
    position = np.matmul(_TO_Y_UP, _numbers(files, f"{folder}camera_xyz.txt", 3)[:3] / MILLIMETRES)
    images = _read_images(files, f"{folder}full/")
    height, width = images.depth.shape
    turn = (np.arange(width, dtype=np.float32) / width * 2 * np.pi - np.pi)[None]
    rise = (np.arange(height, dtype=np.float32) / height * np.pi * -1 + np.pi / 2)[:, None]
    x = images.depth * np.cos(turn) * np.cos(rise)
    y = images.depth * np.sin(rise)
    z = images.depth * np.sin(turn) * np.cos(rise)
    coord = np.stack([x, y, z], -1) / MILLIMETRES
    normal = pixel_normals(coord)
    mask = _usable(coord, normal, images)
    if not mask.any():
        raise BrokenPieceError("view has no usable pixels", folder)
    return _select(coord + position, normal, images, mask)


def pixel_normals(points: NDArray) -> NDArray:
    """Normals of a grid of points from the differences to the next row and column.

    Args:
        points: [H, W, 3].

    Returns:
        [H, W, 3] unit vectors, towards the camera where the axes are (right, down, forward); 0 in the last row and
        column and where neighbours coincide.
    """
    padded = np.pad(points, ((0, 1), (0, 1), (0, 0)), mode="symmetric")
    to_next_column = (padded[:, :-1] - padded[:, 1:])[:-1]
    to_next_row = (padded[:-1] - padded[1:])[:, :-1]
    normal = np.cross(to_next_row, to_next_column)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return np.divide(normal, length, out=np.zeros_like(normal), where=length != 0)


def class_map(label: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Class numbers of NYU40 ids, -1 for those not among the 25, same shape."""
    lookup = np.full(1 << 16, -1, dtype=np.int64)
    lookup[list(CLASSES)] = np.arange(len(CLASSES))
    return lookup[label]


def _numbers(files: SceneFiles, name: str, least: int) -> NDArray[np.float32]:
    data = files.read(name, "camera")
    try:
        numbers = np.array([float(word) for word in data.split()], dtype=np.float32)
    except ValueError:
        numbers = np.zeros(0, dtype=np.float32)
    if len(numbers) < least or not np.isfinite(numbers).all():
        raise BrokenPieceError(f"camera is not {least} finite numbers", f"{name} ({data[:60]!r})")
    return numbers


def _read_images(files: SceneFiles, folder: str) -> _Images:
    depth = decode_depth(files.read(f"{folder}depth.png", "depth image"), f"{folder}depth.png")
    colour = decode_colour(files.read(f"{folder}rgb_rawlight.png", "colour image"), f"{folder}rgb_rawlight.png")
    label = decode_ids(files.read(f"{folder}semantic.png", "label image"), f"{folder}semantic.png")
    if colour.shape[:2] != depth.shape or label.shape != depth.shape:
        sizes = f"depth {depth.shape}, colour {colour.shape[:2]}, label {label.shape}"
        raise BrokenPieceError("images of a view differ in size", f"{folder} ({sizes})")
    depth[depth == 0] = NOTHING_SEEN
    return _Images(depth, colour, label)


def _camera(numbers: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rotation [3, 3] from (forward, up, right) to the frame with y up, and position [3] there in metres."""
    front, up = numbers[3:6], numbers[6:9]
    axes = np.stack((front, up, np.cross(front, up)), axis=1).astype(np.float32)
    return np.matmul(_TO_Y_UP, axes), np.matmul(_TO_Y_UP, numbers[:3] / MILLIMETRES)


def _extrinsic(rotation: NDArray[np.float32], position: NDArray[np.float32]) -> NDArray[np.float64]:
    """[4, 4] from (right, down, forward) to the frame of the files."""
    pose, axes, swap = np.eye(4), np.eye(4), np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, position
    axes[:3, :3] = _FORWARD_FIRST
    swap[:3, :3] = np.eye(3)[_SWAP_YZ]
    return swap @ np.linalg.inv(axes @ np.linalg.inv(pose))


def _usable(coord: NDArray, normal: NDArray, images: _Images) -> NDArray[np.bool_]:
    """[H, W] pixels that are labelled, have depth, and are not seen too flatly; coord relative to the camera."""
    distance = np.maximum(np.linalg.norm(coord, axis=-1, keepdims=True), _MIN_DISTANCE)
    cosine = np.abs(np.sum(coord * normal / distance, axis=-1))
    return (cosine > _MIN_COSINE) & (images.depth < NOTHING_SEEN) & (images.label > 0)


def _select(coord: NDArray, normal: NDArray, images: _Images, mask: NDArray[np.bool_]) -> Pixels:
    return Pixels(
        coord[mask][:, _SWAP_YZ].astype(np.float32),
        images.colour[mask],
        normal[mask][:, _SWAP_YZ].astype(np.float32),
        class_map(images.label)[mask][:, None].astype(np.int16),
    )
