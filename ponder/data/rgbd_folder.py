"""Folders of posed RGB-D frames, as the 7-Scenes recordings and common fusion tools lay them out.

``frame-NNNNNN.color.jpg`` (or ``.png``), ``frame-NNNNNN.depth.png`` (16-bit millimetres along the camera
axis, 0 and 65535 = missing), ``frame-NNNNNN.pose.txt`` (4x4 camera-to-world, metres, OpenCV axes) and one
``camera-intrinsics.txt`` (3x3, pixels of the depth image, pixel centres at +0.5).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ponder.data.fusion import fuse_frames
from ponder.data.rgbd_files import (
    read_colour,
    read_depth,
    read_intrinsics,
    read_pose,
    resize_colour,
    resize_depth,
)
from ponder.data.scene import DataError, Frames, Scene
from ponder.data.split import split_by_order
from ponder.data.threads import one_thread
from ponder.geometry import resize_intrinsics
from ponder.geometry.normals import normals_from_depth

INTRINSICS_NAME = "camera-intrinsics.txt"
_FILE = re.compile(r"(frame-(\d+))\.(?:(color)\.(?:jpg|jpeg|png)|(depth)\.png|(pose)\.txt)")
_EXAMPLE = {"color": "color.jpg or .color.png", "depth": "depth.png", "pose": "pose.txt"}
MIN_WIDTH = 8
# Colour and depth sensors of one device differ slightly in aspect (1296x968 and 640x480 are 0.4% apart).
_MAX_ASPECT_DIFFERENCE = 0.01
# A cropped image may have its principal point a little outside; farther off, the matrix is of another image.
_MAX_PRINCIPAL_POINT_MARGIN = 0.25
# Neighbouring depth samples on one surface differ by at most this slope (tangent of 79 degrees) times their
# angle.
_MAX_SLOPE = 5.0


@dataclass(frozen=True)
class _FrameFiles:
    """The three files of one frame."""

    name: str
    color: Path
    depth: Path
    pose: Path


def read_rgbd_frames(
    folder: str | Path,
    *,
    max_width: int | None = None,
    max_depth: float = 8.0,
    names: Sequence[str] | None = None,
) -> Frames:
    """Read the posed RGB-D frames of a folder.

    Images wider than `max_width` are reduced: colour by area average, depth by the samples next to the new
    pixel centres without mixing surfaces, intrinsics to match. A colour image of another size than the depth
    image, but the same aspect, is brought to the depth image's size. Normals are estimated from the reduced
    depth.

    Args:
        folder: the folder.
        max_width: largest width in pixels of the returned images, at least 8; None keeps the stored width.
        max_depth: metres; farther depth becomes missing.
        names: which frames (such as ``"frame-000020"``), in the wanted order; None reads all, by frame
            number.

    Returns:
        The frames; poses are exactly rigid.

    Raises:
        DataError: a bad argument, or a missing, unreadable or inconsistent file. All frames must be good; the
            message names the one that is not.
    """
    if max_width is not None and max_width < MIN_WIDTH:
        raise DataError(f"max_width: expected at least {MIN_WIDTH} pixels, got {max_width}")
    if not max_depth > 0:
        raise DataError(f"max_depth: expected a positive number of metres, got {max_depth}")
    files = _find_frames(Path(folder), names)
    intrinsics_path = Path(folder) / INTRINSICS_NAME
    if not intrinsics_path.is_file():
        raise DataError(f"{intrinsics_path}: expected a file with the 3x3 camera intrinsics, got none")
    intrinsics = read_intrinsics(intrinsics_path)

    with one_thread():
        return _load(files, intrinsics_path, intrinsics, max_width, max_depth)


def read_rgbd_scene(
    folder: str | Path,
    *,
    max_width: int | None = 320,
    max_depth: float = 8.0,
    holdout_every: int = 10,
    views: str | Path | None = None,
    voxel_size: float = 0.02,
    min_points: int = 3,
) -> Scene:
    """Read a recording as a scene, with a cloud fused from the training views only.

    Without `views`, frame i in order is held out if ``i % holdout_every == holdout_every // 2``
    (`split_by_order`). With `views`, the held-out frames are those of that folder, and all frames of `folder`
    are trained on, except those that `views` repeats (same name and same pose), so that no held-out view ever
    reaches the cloud.

    Args:
        folder: the recording.
        max_width: largest image width in pixels, at least 8; None keeps the stored width.
        max_depth: metres; farther depth becomes missing.
        holdout_every: one frame in this many is held out, at least 2.
        views: another RGB-D folder, in the same world frame, whose frames are the held-out ones.
        voxel_size: spacing of the cloud in metres.
        min_points: voxels seen by fewer pixels are dropped from the cloud.

    Returns:
        The scene, named after the folder. The train and held-out images may differ in size if `views` is
        given.

    Raises:
        DataError: as `read_rgbd_frames`, `split_by_order` and `fuse_frames`; or `views` repeats every frame.
    """
    if holdout_every < 2:
        raise DataError(f"holdout_every: expected at least 2, got {holdout_every}")
    frames = read_rgbd_frames(folder, max_width=max_width, max_depth=max_depth)
    if views is None:
        try:
            train_index, heldout_index = split_by_order(len(frames), holdout_every)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error
        train, heldout = frames.select(train_index), frames.select(heldout_index)
    else:
        heldout = read_rgbd_frames(views, max_width=max_width, max_depth=max_depth)
        repeated = dict(zip(heldout.names, heldout.camera_to_world, strict=True))
        train_index = [
            i
            for i, name in enumerate(frames.names)
            if name not in repeated or not torch.equal(repeated[name], frames.camera_to_world[i])
        ]
        if not train_index:
            raise DataError(f"{folder}: expected frames besides those of the views folder {views}, got none")
        train = frames.select(train_index)
    with one_thread():
        cloud = fuse_frames(train, voxel_size=voxel_size, max_depth=max_depth, min_points=min_points)
    return Scene(name=Path(folder).resolve().name, cloud=cloud, train=train, heldout=heldout)


def _load(
    files: list[_FrameFiles],
    intrinsics_path: Path,
    intrinsics: Tensor,
    max_width: int | None,
    max_depth: float,
) -> Frames:
    """The frames of the given files, seen through one camera of the stored size."""
    poses = torch.stack([read_pose(frame.pose) for frame in files])
    rgb, z_depth, (old_height, old_width) = _read_images(files, intrinsics_path, intrinsics, max_width, max_depth)
    height, width = z_depth.shape[1:]
    scaled = resize_intrinsics(intrinsics, width / old_width, height / old_height).float()
    return Frames(
        names=tuple(frame.name for frame in files),
        rgb=rgb,
        z_depth=z_depth,
        normal=normals_from_depth(z_depth, scaled, poses),
        intrinsics=scaled.repeat(len(files), 1, 1),
        camera_to_world=poses,
    )


def _read_images(
    files: list[_FrameFiles],
    intrinsics_path: Path,
    intrinsics: Tensor,
    max_width: int | None,
    max_depth: float,
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """All images, reduced, and the stored size of the depth images.

    Returns:
        rgb [V, H, W, 3] uint8, z_depth [V, H, W] metres, (height, width) before reduction.
    """
    max_step = _MAX_SLOPE / float(intrinsics[0, 0])
    rgb: list[Tensor] = []
    z_depth: list[Tensor] = []
    size, colour_size = (0, 0), (0, 0)
    for frame in files:
        depth = read_depth(frame.depth, max_depth)
        colour = read_colour(frame.color)
        if not rgb:
            size, colour_size = (depth.shape[0], depth.shape[1]), colour.size
            _check_principal_point(intrinsics_path, intrinsics, size, colour_size)
        _check_sizes(frame, depth, colour, size, colour_size, files[0].name)
        height, width = _reduced_size(size, max_width)
        rgb.append(resize_colour(colour, height, width))
        reduced = resize_depth(depth, height, width, max_step)
        if not bool((reduced > 0).any()):
            raise DataError(f"{frame.depth}: expected valid depth after reduction to {width}x{height}, got none")
        z_depth.append(reduced)
    return torch.stack(rgb), torch.stack(z_depth), size


def _find_frames(folder: Path, names: Sequence[str] | None) -> list[_FrameFiles]:
    """The complete frames of a folder, by number or in the order of `names`.

    Raises:
        DataError: no such folder, no frames, an unknown or repeated name, or a frame with a file missing or
            double.
    """
    if not folder.exists():
        raise DataError(f"{folder}: expected a folder of RGB-D frames, but it does not exist")
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of RGB-D frames, got a file")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        kind = match[3] or match[4] or match[5]
        kinds = found.setdefault(match[1], {})
        if kind in kinds:
            raise DataError(f"{path}: expected one {kind} file per frame, got {kinds[kind].name} besides")
        kinds[kind] = path
    if not found:
        raise DataError(f"{folder}: expected files such as frame-000000.color.jpg, .depth.png and .pose.txt, got none")
    if names is None:
        chosen = sorted(found, key=lambda name: (int(name.removeprefix("frame-")), name))
    else:
        chosen = list(names)
        _check_names(folder, chosen, found)
    for name in chosen:
        for kind, ending in _EXAMPLE.items():
            if kind not in found[name]:
                raise DataError(f"{folder / name}: expected a file {name}.{ending}, got none")
    return [_FrameFiles(name, **found[name]) for name in chosen]


def _check_names(folder: Path, chosen: list[str], found: dict[str, dict[str, Path]]) -> None:
    """Require at least one name, each present and given once."""
    if not chosen:
        raise DataError("names: expected at least one frame name, got none")
    for name in chosen:
        if name not in found:
            raise DataError(f"names: expected frames of {folder}, got {name!r}, which it does not have")
        if chosen.count(name) > 1:
            raise DataError(f"names: expected each frame once, got {name!r} {chosen.count(name)} times")


def _check_sizes(
    frame: _FrameFiles,
    depth: Tensor,
    colour: Image.Image,
    size: tuple[int, int],
    colour_size: tuple[int, int],
    first: str,
) -> None:
    """Require the first frame's sizes, (height, width) and (width, height), and one aspect of both."""
    height, width = depth.shape
    if (height, width) != size:
        raise DataError(f"{frame.depth}: expected {size[1]}x{size[0]} pixels as in {first}, got {width}x{height}")
    if colour.size != colour_size:
        raise DataError(
            f"{frame.color}: expected {colour_size[0]}x{colour_size[1]} pixels as in {first}, "
            f"got {colour.size[0]}x{colour.size[1]}"
        )
    aspect, expected = colour.size[0] / colour.size[1], width / height
    if abs(aspect / expected - 1) > _MAX_ASPECT_DIFFERENCE:
        raise DataError(
            f"{frame.color}: expected the aspect of its {width}x{height} depth image, "
            f"got {colour.size[0]}x{colour.size[1]}"
        )


def _check_principal_point(path: Path, intrinsics: Tensor, size: tuple[int, int], colour_size: tuple[int, int]) -> None:
    """Require a principal point in or near the depth image; sizes are (height, width) and (width, height)."""
    height, width = size
    cx, cy = float(intrinsics[0, 2]), float(intrinsics[1, 2])
    margin = _MAX_PRINCIPAL_POINT_MARGIN
    inside = -margin <= cx / width <= 1 + margin and -margin <= cy / height <= 1 + margin
    # The matrix of a larger colour image can pass for a cropped depth image's; its own centre gives it away.
    offset = max(abs(cx / width - 0.5), abs(cy / height - 0.5))
    colour_offset = max(abs(cx / colour_size[0] - 0.5), abs(cy / colour_size[1] - 0.5))
    if not inside or (offset > margin and colour_offset < margin / 2):
        raise DataError(
            f"{path}: expected a principal point inside the {width}x{height} depth image, got ({cx:g}, {cy:g})"
        )


def _reduced_size(size: tuple[int, int], max_width: int | None) -> tuple[int, int]:
    """(height, width) after reduction to at most `max_width`, keeping the aspect to the nearest pixel."""
    height, width = size
    if max_width is None or width <= max_width:
        return height, width
    return max(round(height * max_width / width), 1), max_width
