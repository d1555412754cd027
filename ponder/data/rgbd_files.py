"""The single files of an RGB-D folder: matrices, colour images and depth images, each checked on its own."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ponder.data.registration import check_ratio, register_colour
from ponder.data.scene import DataError
from ponder.geometry import nearest_rotation, rigid_error

# Recorded poses come from optimisers and are printed with few digits; the 7-Scenes ones deviate by up to
# 3e-4. # A matrix farther off than this is not a pose but a mistake (a scale, a transposed or a projection
# matrix).
MAX_RIGID_ERROR = 1e-2
# Colour and depth images of one device differ by up to a hundredth in aspect, and their focal ratios with it.
_MAX_FOCAL_DIFFERENCE = 0.02
_FOCAL_ROUNDING = 1e-3
_MILLIMETRES = 1000.0
# Written by some sensors for "no return" besides 0.
_MISSING = 65535
_DEPTH_MODES = ("I;16", "I;16L", "I;16B", "I")
_COLOUR_MODES = ("RGB", "RGBA", "L", "LA", "P")
# What the image library raises on files that are not, or not wholly, an image.
_IMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_matrix(path: Path, size: int) -> Tensor:
    """A square matrix from a text file: one row per line, numbers separated by blanks.

    Args:
        path: the file.
        size: its number of rows and columns.

    Returns:
        [size, size] float64, all finite.

    Raises:
        DataError: unreadable, other shape, not numbers, or not finite.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file with a {size}x{size} matrix, got {_reason(error)}") from error
    rows = [line.split() for line in lines if line.strip()]
    if len(rows) != size or any(len(row) != size for row in rows):
        lengths = ", ".join(str(len(row)) for row in rows[:8]) or "nothing"
        raise DataError(f"{path}: expected a {size}x{size} matrix, got {len(rows)} rows with columns: {lengths}")
    try:
        values = [[float(word) for word in row] for row in rows]
    except ValueError as error:
        raise DataError(f"{path}: expected {size * size} numbers, but {error}") from error
    matrix = torch.tensor(values, dtype=torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        bad = next(word for row in rows for word in row if not math.isfinite(float(word)))
        raise DataError(f"{path}: expected finite numbers, got {bad}")
    return matrix


def read_pose(path: Path) -> Tensor:
    """A camera-to-world pose with its rotation projected to the nearest exact one.

    Returns:
        [4, 4] float32 rigid, translation in metres.

    Raises:
        DataError: not a finite 4x4 matrix, or farther than `MAX_RIGID_ERROR` from a rigid motion.
    """
    matrix = read_matrix(path, 4)
    error = rigid_error(matrix)
    if error > MAX_RIGID_ERROR:
        raise DataError(
            f"{path}: expected a rigid camera-to-world pose (rotation, translation, last row 0 0 0 1), "
            f"got a matrix that deviates by {error:.2g}"
        )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = nearest_rotation(matrix[:3, :3])
    pose[:3, 3] = matrix[:3, 3]
    return pose.float()


def read_intrinsics(path: Path) -> Tensor:
    """A pinhole matrix.

    Returns:
        [3, 3] float64 in pixels.

    Raises:
        DataError: not a finite 3x3 matrix, focal length not positive, or lower rows not those of a pinhole
            camera.
    """
    matrix = read_matrix(path, 3)
    fx, fy = float(matrix[0, 0]), float(matrix[1, 1])
    if fx <= 0 or fy <= 0:
        raise DataError(f"{path}: expected positive focal lengths, got fx = {fx:g}, fy = {fy:g}")
    if matrix[1, 0] != 0 or matrix[2].tolist() != [0, 0, 1]:
        raise DataError(
            f"{path}: expected a pinhole matrix (fx s cx; 0 fy cy; 0 0 1), got the rows "
            f"{matrix[1].tolist()} and {matrix[2].tolist()}"
        )
    return matrix


def read_focal_ratio(
    path: Path, colour_size: tuple[int, int], intrinsics: Tensor, depth_size: tuple[int, int]
) -> float:
    """Focal length of the colour camera over that of the depth camera, brought to one image size.

    Args:
        path: pinhole matrix of the colour camera, in pixels of the colour image.
        colour_size, depth_size: (height, width) of the stored images.
        intrinsics: [3, 3] of the depth camera, in pixels of the depth image.

    Raises:
        DataError: as `read_intrinsics`; a ratio outside (0.5, 1], or not one for both axes.
    """
    colour = read_intrinsics(path)
    x = float(colour[0, 0] / intrinsics[0, 0]) * depth_size[1] / colour_size[1]
    y = float(colour[1, 1] / intrinsics[1, 1]) * depth_size[0] / colour_size[0]
    if abs(x / y - 1) > _MAX_FOCAL_DIFFERENCE:
        raise DataError(f"{path}: expected one focal ratio to the depth camera for both axes, got {x:g} and {y:g}")
    ratio = (x + y) / 2
    # The same focal length for two image sizes, printed with few digits, comes out a little above 1.
    return 1.0 if 1 < ratio < 1 + _FOCAL_ROUNDING else check_ratio(str(path), ratio)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image, from its header alone.

    Raises:
        DataError: unreadable.
    """
    try:
        with Image.open(path) as image:
            return image.size[1], image.size[0]
    except _IMAGE_ERRORS as error:
        raise DataError(f"{path}: expected a readable image, got {_reason(error)}") from error


def read_depth(path: Path, max_depth: float) -> Tensor:
    """A 16-bit depth image in millimetres.

    Args:
        path: the file.
        max_depth: metres; farther pixels become missing.

    Returns:
        [H, W] float32 z-depth in metres, 0 = missing (stored as 0 or 65535, or beyond `max_depth`).

    Raises:
        DataError: unreadable or truncated image, not one channel of 16 bits, or no valid pixel.
    """
    image = _open(path)
    if image.mode not in _DEPTH_MODES:
        raise DataError(f"{path}: expected a 16-bit one-channel depth image, got {_describe_mode(image.mode)}")
    stored = np.asarray(image).astype(np.int64)
    if stored.min() < 0 or stored.max() > _MISSING:
        raise DataError(f"{path}: expected 16-bit depth values, got {stored.min()} to {stored.max()}")
    z_depth = torch.from_numpy(stored).float() / _MILLIMETRES
    present = torch.from_numpy((stored > 0) & (stored < _MISSING))
    valid = present & (z_depth <= max_depth)
    if not bool(valid.any()):
        found = (
            "only missing pixels" if not bool(present.any()) else f"nothing nearer than {z_depth[present].min():g} m"
        )
        raise DataError(f"{path}: expected some valid depth up to {max_depth:g} m, got {found}")
    return torch.where(valid, z_depth, 0.0)


def read_colour(path: Path) -> Image.Image:
    """A fully decoded 8-bit RGB image; greyscale and palette images are expanded, transparency is dropped.

    Raises:
        DataError: unreadable or truncated image, or not 8 bits per channel.
    """
    image = _open(path)
    if image.mode not in _COLOUR_MODES:
        raise DataError(f"{path}: expected an 8-bit colour image, got {_describe_mode(image.mode)}")
    return image.convert("RGB")


def resize_colour(
    image: Image.Image,
    height: int,
    width: int,
    ratio: float = 1.0,
    centre: tuple[float, float] = (0.5, 0.5),
) -> Tensor:
    """Area average of the covered pixels (the nearest pixel where the image is enlarged), in the depth view.

    Args:
        image: as stored.
        height, width: new size.
        ratio: focal length of the colour camera over that of the depth camera (`register_colour`).
        centre: principal point in shares of the image's width and height.

    Returns:
        [height, width, 3] uint8.
    """
    if ratio != 1:
        point = (centre[0] * image.size[0], centre[1] * image.size[1])
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
        image = Image.fromarray(register_colour(pixels, ratio, point).numpy())
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(image, dtype=np.uint8))


def resize_depth(z_depth: Tensor, height: int, width: int, max_step: float) -> Tensor:
    """Depth at the centres of a coarser grid of pixels, never mixed across edges.

    The nearest valid sample decides the surface. The other samples around the centre are interpolated with it
    only if they lie on that surface: a new centre falls between two samples wherever the factor is even, and
    taking one of them alone would shift the whole depth map by half a pixel against the intrinsics.
    Interpolation is linear in inverse depth, hence exact on planes.

    Args:
        z_depth: [H, W] metres, 0 = missing.
        height, width: new size.
        max_step: largest relative depth difference of neighbouring samples on one surface.

    Returns:
        [height, width] metres, 0 where all samples next to the centre are missing.
    """
    old_height, old_width = z_depth.shape
    if (height, width) == (old_height, old_width):
        return z_depth
    rows, row_shares = _taps(height, old_height)
    columns, column_shares = _taps(width, old_width)
    sides = [(i, j) for i in (0, 1) for j in (0, 1)]
    lines = [z_depth.index_select(0, rows[i]) for i in (0, 1)]
    values = [lines[i].index_select(1, columns[j]) for i, j in sides]
    shares = [row_shares[i][:, None] * column_shares[j] for i, j in sides]
    weights = [share * (value > 0) for share, value in zip(shares, values, strict=True)]
    anchor, best = values[0], weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        # The first of equal weights stays, so that ties are broken the same way everywhere.
        anchor = torch.where(weight > best, value, anchor)
        best = torch.maximum(weight, best)
    limit = max_step * anchor
    total, inverse = torch.zeros_like(anchor), torch.zeros_like(anchor)
    for value, weight in zip(values, weights, strict=True):
        weight = weight * ((value - anchor).abs() <= limit)
        total += weight
        inverse += weight / value.clamp(min=1e-6)
    return torch.where(total > 0, total / inverse.clamp(min=1e-9), 0.0)


def _taps(new: int, old: int) -> tuple[Tensor, Tensor]:
    """Indices [2, new] of the samples on both sides of each new centre, and their linear weights [2, new]."""
    position = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5
    lower = position.floor()
    share = (position - lower).float()
    index = torch.stack([lower, lower + 1]).long().clamp(0, old - 1)
    return index, torch.stack([1 - share, share])


def _open(path: Path) -> Image.Image:
    """The decoded image; decoding here rather than later makes a truncated file fail with its name."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except _IMAGE_ERRORS as error:
        raise DataError(f"{path}: expected a readable image, got {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """An error's own words on one line, without the path, which the message already has."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())


def _describe_mode(mode: str) -> str:
    """A pixel format in words."""
    words = {
        "1": "1-bit black and white",
        "L": "8-bit greyscale",
        "P": "8-bit palette",
        "RGB": "8-bit RGB",
        "RGBA": "8-bit RGBA",
        "F": "32-bit float",
        "I": "32-bit integer",
        "I;16": "16-bit greyscale",
    }
    return words.get(mode, f"pixel format {mode}")
