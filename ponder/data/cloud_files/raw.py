"""What a user's point cloud file gives: positions, and whatever else it has, in one set of units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ponder.data.scene import DataError

# The scales that colours are stored in: a share, 8 bit and 16 bit.
_SCALES = (1.0, 255.0, 65535.0)


@dataclass(frozen=True)
class RawCloud:
    """N points in the axes of their file.

    Attributes:
        coord: [N, 3] float64 metres. Positions on a map exceed what float32 resolves, so they stay float64 until
            they are centred.
        colour: [N, 3] float32, 0..1; None where the file has none.
        normal: [N, 3] float32, unit length or 0 (unknown); None where the file has none.
        notes: what had to be assumed to read it, one sentence each.
    """

    coord: Tensor
    colour: Tensor | None = None
    normal: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.coord.shape[0]


def make_cloud(
    source: str,
    coord: NDArray,
    colour: NDArray | None = None,
    normal: NDArray | None = None,
    colour_scale: float | None = None,
) -> RawCloud:
    """Check what a reader found and bring it to the units of `RawCloud`.

    Args:
        source: the file, for messages.
        coord: [N, 3] numbers, N >= 1.
        colour: [N, 3] numbers; None if absent.
        normal: [N, 3] numbers of any length; None if absent.
        colour_scale: the value that means full intensity. None: 255 for uint8, else the smallest of 1 (fractions
            only), 255 and 65535 that no value exceeds.

    Raises:
        DataError: no point, a wrong shape or type, a number that is not finite, or a colour out of range.
    """
    coord = _checked(source, "position", coord, None)
    if len(coord) == 0:
        raise DataError(f"{source}: expected at least one point, got none")
    notes: list[str] = []
    if colour is not None:
        kind = np.asarray(colour).dtype
        colour = _checked(source, "colour", colour, len(coord))
        scale = colour_scale or (255.0 if kind == np.uint8 else _guess_scale(source, colour, kind, notes))
        colour = (colour / scale).astype(np.float32)
    if normal is not None:
        normal = _checked(source, "normal", normal, len(coord))
        # The square of a large number may overflow.
        normal = normal / np.maximum(np.abs(normal).max(1, keepdims=True), np.finfo(float).tiny)
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        normal = (normal / np.where(length > 0, length, 1.0)).astype(np.float32)
    return RawCloud(
        torch.from_numpy(coord),
        None if colour is None else torch.from_numpy(colour),
        None if normal is None else torch.from_numpy(normal),
        tuple(notes),
    )


def _checked(source: str, name: str, values: NDArray, count: int | None) -> NDArray[np.float64]:
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] != 3 or (count is not None and len(values) != count):
        wanted = "[N, 3]" if count is None else f"[{count}, 3]"
        raise DataError(f"{source}: expected a {name} array of shape {wanted}, got {list(values.shape)}")
    if values.dtype.kind not in "fiub":
        raise DataError(f"{source}: expected numbers for {name}, got {values.dtype}")
    values = np.ascontiguousarray(values, dtype=np.float64)
    bad = int((~np.isfinite(values)).any(1).sum())
    if bad:
        raise DataError(f"{source}: {bad} of {len(values)} points have a {name} that is not a finite number")
    return values


def _guess_scale(source: str, colour: NDArray[np.float64], kind: np.dtype, notes: list[str]) -> float:
    """The scale that a file which does not name one must mean."""
    low, high = float(colour.min()), float(colour.max())
    for scale in _SCALES[0 if kind.kind == "f" else 1 :]:
        if low >= 0 and high <= scale:
            notes.append(f"colours were read on a scale of 0..{scale:g}: the highest value is {high:g}")
            return scale
    raise DataError(f"{source}: expected colours of 0..1, 0..255 or 0..65535, got values from {low:g} to {high:g}")
