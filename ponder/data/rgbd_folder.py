"""Folders of posed RGB-D frames, as the 7-Scenes recordings and common fusion tools lay them out.

``frame-NNNNNN.color.jpg`` (or ``.png``), ``frame-NNNNNN.depth.png`` (16-bit millimetres along the camera
axis, 0 and 65535 = missing), ``frame-NNNNNN.pose.txt`` (4x4 camera-to-world, metres, OpenCV axes) and one
``camera-intrinsics.txt`` (3x3, pixels of the depth image, pixel centres at +0.5).

Colour that was not registered to depth is resampled into the depth view (`ponder.data.registration`). By how
much is read from an optional ``color-intrinsics.txt`` (3x3, pixels of the colour image), of which only the focal
lengths are used, or given, or estimated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ponder.data.fusion import fuse_frames
from ponder.data.registration import check_ratio, estimate_colour_ratio
from ponder.data.rgbd_files import (
    image_size,
    read_colour,
    read_depth,
    read_focal_ratio,
    read_intrinsics,
    read_pose,
    resize_colour,
    resize_depth,
)
from ponder.data.scene import DataError, Frames, Scene
from ponder.data.split import split_by_order
from ponder.data.threads import one_thread
from ponder.geometry import normals_from_depth, resize_intrinsics

INTRINSICS_NAME = "camera-intrinsics.txt"
COLOUR_INTRINSICS_NAME = "color-intrinsics.txt"
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


@dataclass(frozen=True)
class _Reading:
    """How images are brought to their returned form; as the arguments of `read_rgbd_frames`."""

    max_width: int | None
    max_depth: float
    colour_ratio: float


def read_rgbd_frames(
    folder: str | Path,
    *,
    max_width: int | None = None,
    max_depth: float = 8.0,
    names: Sequence[str] | None = None,
    colour_ratio: float = 1.0,
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
        colour_ratio: focal length of the colour camera over that of the depth camera, in (0.5, 1]; 1 takes
            colour as registered. A ``color-intrinsics.txt`` is for `read_rgbd_scene` and not looked at.

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
    reading = _Reading(max_width, max_depth, check_ratio("colour_ratio", colour_ratio))
    files = _find_frames(Path(folder), names)
    with one_thread():
        return _load(files, Path(folder) / INTRINSICS_NAME, reading)


def read_rgbd_scene(
    folder: str | Path,
    *,
    max_width: int | None = 320,
    max_depth: float = 8.0,
    holdout_every: int = 10,
    views: str | Path | None = None,
    voxel_size: float = 0.02,
    min_points: int = 3,
    colour_ratio: float | None = None,
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
        colour_ratio: focal length of the colour camera over that of the depth camera, in (0.5, 1]; None
            estimates it from the training frames. The folder's ``color-intrinsics.txt``, if any, goes first.

    Returns:
        The scene, named after the folder, with the ratio that the colour of all its frames, `views` included,
        was corrected for. The train and held-out images may differ in size if `views` is given.

    Raises:
        DataError: as `read_rgbd_frames`, `split_by_order` and `fuse_frames`; a bad ``color-intrinsics.txt``;
            or `views` repeats every frame.
    """
    if holdout_every < 2:
        raise DataError(f"holdout_every: expected at least 2, got {holdout_every}")
    folder = Path(folder)
    known = _known_ratio(folder, colour_ratio)
    ratio = 1.0 if known is None else known
    frames = read_rgbd_frames(folder, max_width=max_width, max_depth=max_depth, colour_ratio=ratio)
    if views is None:
        train, heldout = _split(folder, frames, holdout_every)
    else:
        heldout = read_rgbd_frames(views, max_width=max_width, max_depth=max_depth, colour_ratio=ratio)
        train = _without(folder, frames, heldout, views)
    if known is None:
        ratio = estimate_colour_ratio(train)
        train = _register(folder, train, ratio)
        heldout = _register(folder if views is None else Path(views), heldout, ratio)
    with one_thread():
        cloud = fuse_frames(train, voxel_size=voxel_size, max_depth=max_depth, min_points=min_points)
    return Scene(name=folder.resolve().name, cloud=cloud, train=train, heldout=heldout, colour_ratio=ratio)


def _split(folder: Path, frames: Frames, holdout_every: int) -> tuple[Frames, Frames]:
    """Train and held-out frames by order."""
    try:
        train, heldout = split_by_order(len(frames), holdout_every)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    return frames.select(train), frames.select(heldout)


def _without(folder: Path, frames: Frames, heldout: Frames, views: str | Path) -> Frames:
    """The frames that the held-out ones do not repeat, by name and pose."""
    repeated = dict(zip(heldout.names, heldout.camera_to_world, strict=True))
    kept = [
        i
        for i, name in enumerate(frames.names)
        if name not in repeated or not torch.equal(repeated[name], frames.camera_to_world[i])
    ]
    if not kept:
        raise DataError(f"{folder}: expected frames besides those of the views folder {views}, got none")
    return frames.select(kept)


def _known_ratio(folder: Path, given: float | None) -> float | None:
    """The focal ratio by the colour camera's own file, else the given one, checked; None if neither is there."""
    if given is not None:
        check_ratio("colour_ratio", given)
    path = folder / COLOUR_INTRINSICS_NAME
    if not path.exists():
        return given
    first = _find_frames(folder, None)[0]
    depth_size, colour_size = image_size(first.depth), image_size(first.color)
    ratio = read_focal_ratio(path, colour_size, _read_camera(folder / INTRINSICS_NAME), depth_size)
    _check_principal_point(path, read_intrinsics(path), colour_size, depth_size, "colour")
    return ratio


def _register(folder: Path, frames: Frames, ratio: float) -> Frames:
    """The frames with their colour in the depth view.

    The colour files are read again, since the ratio is estimated from reduced images but resampling those
    would blur them, and keeping all images at the stored size would take too much memory.
    """
    if ratio == 1:
        return frames
    height, width = frames.size
    centre = _centre(frames.intrinsics[0], (height, width))
    with one_thread():
        files = _find_frames(folder, frames.names)
        rgb = [resize_colour(read_colour(file.color), height, width, ratio, centre) for file in files]
    return replace(frames, rgb=torch.stack(rgb))


def _read_camera(path: Path) -> Tensor:
    """[3, 3] float64 intrinsics of the depth camera."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file with the 3x3 camera intrinsics, got none")
    return read_intrinsics(path)


def _load(files: list[_FrameFiles], intrinsics_path: Path, reading: _Reading) -> Frames:
    """The frames of the given files, seen through one camera of the stored size."""
    intrinsics = _read_camera(intrinsics_path)
    poses = torch.stack([read_pose(frame.pose) for frame in files])
    rgb, z_depth, (old_height, old_width) = _read_images(files, intrinsics_path, intrinsics, reading)
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
    files: list[_FrameFiles], intrinsics_path: Path, intrinsics: Tensor, reading: _Reading
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """All images, registered and reduced, and the stored size of the depth images.

    Returns:
        rgb [V, H, W, 3] uint8, z_depth [V, H, W] metres, (height, width) before reduction.
    """
    max_step = _MAX_SLOPE / float(intrinsics[0, 0])
    rgb: list[Tensor] = []
    z_depth: list[Tensor] = []
    size, colour_size = (0, 0), (0, 0)
    for frame in files:
        depth = read_depth(frame.depth, reading.max_depth)
        colour = read_colour(frame.color)
        if not rgb:
            size, colour_size = (depth.shape[0], depth.shape[1]), colour.size
            _check_principal_point(intrinsics_path, intrinsics, size, colour_size[::-1], "depth")
        _check_sizes(frame, depth, colour, size, colour_size, files[0].name)
        height, width = _reduced_size(size, reading.max_width)
        rgb.append(resize_colour(colour, height, width, reading.colour_ratio, _centre(intrinsics, size)))
        reduced = resize_depth(depth, height, width, max_step)
        if not bool((reduced > 0).any()):
            raise DataError(f"{frame.depth}: expected valid depth after reduction to {width}x{height}, got none")
        z_depth.append(reduced)
    return torch.stack(rgb), torch.stack(z_depth), size


def _centre(intrinsics: Tensor, size: tuple[int, int]) -> tuple[float, float]:
    """Principal point in shares of the width and height of an image of `size` (height, width)."""
    return float(intrinsics[0, 2]) / size[1], float(intrinsics[1, 2]) / size[0]


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


def _check_principal_point(
    path: Path, intrinsics: Tensor, size: tuple[int, int], other_size: tuple[int, int], kind: str
) -> None:
    """Require a principal point in or near the `kind` of image that the matrix is for; sizes are (height, width)."""
    height, width = size
    x, y = _centre(intrinsics, size)
    margin = _MAX_PRINCIPAL_POINT_MARGIN
    inside = -margin <= x <= 1 + margin and -margin <= y <= 1 + margin
    # The matrix of a larger colour image can pass for a cropped depth image's, or the other way round; its own
    # image's centre gives it away.
    offset = max(abs(x - 0.5), abs(y - 0.5))
    other_offset = max(abs(share - 0.5) for share in _centre(intrinsics, other_size))
    if not inside or (offset > margin and other_offset < margin / 2):
        cx, cy = float(intrinsics[0, 2]), float(intrinsics[1, 2])
        raise DataError(
            f"{path}: expected a principal point inside the {width}x{height} {kind} image, got ({cx:g}, {cy:g})"
        )


def _reduced_size(size: tuple[int, int], max_width: int | None) -> tuple[int, int]:
    """(height, width) after reduction to at most `max_width`, keeping the aspect to the nearest pixel."""
    height, width = size
    if max_width is None or width <= max_width:
        return height, width
    return max(round(height * max_width / width), 1), max_width
