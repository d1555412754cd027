"""The single files of PonderV2's datasets: saved dicts of arrays, images, poses and teacher features."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from ponder.data.plain_files import read_plain
from ponder.data.scene import DataError

Array = NDArray[Any]

_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_LARGEST = 65535


def load_dict(path: Path) -> dict[str, Any]:
    """A dict saved with torch.save, of arrays, numbers and strings; nothing else in the file is executed.

    Raises:
        DataError: unreadable, or something else than such a dict.
    """
    data = read_plain(path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected a saved dict of arrays, got {type(data).__name__}")
    return {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in data.items()}


def columns(data: dict[str, Any], keys: tuple[str, ...], path: Path) -> tuple[Array, ...]:
    """Arrays [N, 3] of a scene, all of the same length, as stored.

    Raises:
        DataError: one is missing or has another shape, or the first is not finite.
    """
    found: list[Array] = []
    for key in keys:
        value = data.get(key)
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] != 3 or not len(value):
            shape = "nothing" if value is None else list(getattr(value, "shape", [type(value).__name__]))
            raise DataError(f"{path}: expected {key!r} of shape [N, 3] with N > 0, got {shape}")
        if found and len(value) != len(found[0]):
            raise DataError(f"{path}: expected {key!r} for {len(found[0])} points, got {len(value)}")
        found.append(value)
    if not np.isfinite(found[0]).all():
        raise DataError(f"{path}: expected finite {keys[0]!r}, got {int((~np.isfinite(found[0])).sum())} other values")
    return tuple(found)


def labels(data: dict[str, Any], key: str, length: int, path: Path) -> Array:
    """[N] int64 labels from an array of N numbers in any shape, all -1 if the scene has none.

    Raises:
        DataError: another length.
    """
    if key not in data:
        return np.full(length, -1, dtype=np.int64)
    values = np.asarray(data[key]).reshape(-1)
    if len(values) != length:
        raise DataError(f"{path}: expected {key!r} for {length} points, got {len(values)}")
    return values.astype(np.int64)


def read_image(path: Path, colour: bool = False) -> Array:
    """An image as it is stored, [H, W] of 8 or 16 bits; or as 8-bit RGB [H, W, 3].

    Raises:
        DataError: unreadable.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image if not colour or image.mode == "RGB" else image.convert("RGB"))
    except _IMAGE_ERRORS as error:
        raise DataError(f"{path}: expected a readable image, got {_first_line(error)}") from error
    if colour:
        return pixels
    if pixels.ndim != 2 or pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > _LARGEST:
        raise DataError(f"{path}: expected one channel of 8 or 16 bits, got {pixels.dtype} of {list(pixels.shape)}")
    return pixels if pixels.dtype.itemsize <= 2 else pixels.astype(np.uint16)


def resize_colour(pixels: Array, height: int, width: int) -> Array:
    """[height, width, 3] uint8 from [H, W, 3], bilinear between the four nearest pixels (no averaging over more)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    resized: Array = interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0].numpy()
    return np.ascontiguousarray(resized.transpose(1, 2, 0))


def resize_labels(pixels: Array, height: int, width: int) -> Array:
    """[height, width] from [H, W]: pixel (y, x) is the one at (floor(y H / height), floor(x W / width))."""
    if pixels.shape == (height, width):
        return pixels
    rows = np.arange(height) * pixels.shape[0] // height
    places = np.arange(width) * pixels.shape[1] // width
    return pixels.take(rows, axis=0).take(places, axis=1)


def read_numbers(path: Path, shape: tuple[int, ...]) -> Array:
    """Float64 numbers of a text file; infinite ones are allowed.

    Raises:
        DataError: unreadable, or another number of them.
    """
    try:
        values = np.array(path.read_text(encoding="utf-8").split(), dtype=float)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected numbers, got {_first_line(error)}") from error
    if values.size != np.prod(shape):
        raise DataError(f"{path}: expected {int(np.prod(shape))} numbers, got {values.size}")
    return values.reshape(shape)


def read_axis_alignment(path: Path) -> Array:
    """[4, 4] float64 from the line `axisAlignment = ...` of a ScanNet scene's text file.

    Raises:
        DataError: unreadable, or no such line of 16 numbers.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            name, _, values = line.partition("=")
            if name.strip() == "axisAlignment":
                return np.array(values.split(), dtype=float).reshape(4, 4)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected axisAlignment with 16 numbers, got {_first_line(error)}") from error
    raise DataError(f"{path}: expected a line with axisAlignment, got {len(lines)} lines without")


def read_teacher(stem: Path) -> Array:
    """Features [H, W, C] of one image, from STEM.npy, or from STEM.npz (its array `features`, or its only one).

    Raises:
        DataError: absent, unreadable or of another shape.
    """
    array_file, archive = stem.with_name(f"{stem.name}.npy"), stem.with_name(f"{stem.name}.npz")
    path = array_file if array_file.exists() else archive
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            features = loaded
        else:
            with loaded:
                names = loaded.files
                features = loaded["features" if "features" in names or len(names) != 1 else names[0]]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected an array of features, got {_first_line(error)}") from error
    if features.ndim != 3 or features.dtype.kind != "f":
        raise DataError(f"{path}: expected floating point features [H, W, C], got {features.dtype} {features.shape}")
    return features


def _first_line(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words.strip().splitlines()[0]
