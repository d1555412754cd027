"""Removing lens distortion from images, rounded as OpenCV's `undistort` rounds, which PonderV2's script uses.

Radial-tangential model of OpenCV's calibration documentation. Source positions are rounded to 1/32 pixel, 8-bit
values are interpolated in integers and 16-bit values in float32; outside of the source lies 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Fractions of a pixel that positions are rounded to.
_STEPS = 32


class Lens(NamedTuple):
    """A pinhole camera with distortion, in pixels; pixel centres have integer coordinates."""

    height: int
    width: int
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float
    k2: float
    p1: float
    p2: float
    k3: float

    def matrix(self) -> NDArray[np.float64]:
        """[3, 3] intrinsics."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])


def distort(lens: Lens, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Where directions (x, y, 1) meet the image behind the lens, in normalised coordinates."""
    x2, y2 = x * x, y * y
    r2, xy = x2 + y2, 2 * x * y
    radial = 1 + ((lens.k3 * r2 + lens.k2) * r2 + lens.k1) * r2
    return (
        x * radial + lens.p1 * xy + lens.p2 * (r2 + 2 * x2),
        y * radial + lens.p1 * (r2 + 2 * y2) + lens.p2 * xy,
    )


class UndistortMap:
    """For every pixel of the undistorted image, where in the distorted one it comes from.

    Args:
        lens: the camera; the undistorted image has its size and pinhole part.
    """

    def __init__(self, lens: Lens) -> None:
        self._shape = lens.height, lens.width
        x = (np.arange(lens.width) - lens.cx) / lens.fx
        y = (np.arange(lens.height) - lens.cy) / lens.fy
        u, v = distort(lens, x[None], y[:, None])
        # One pixel outside of the image all is 0, as it is farther out.
        columns = np.rint(np.clip(lens.fx * u + lens.cx, -2, lens.width) * _STEPS).astype(np.int32)
        rows = np.rint(np.clip(lens.fy * v + lens.cy, -2, lens.height) * _STEPS).astype(np.int32)
        # Position among the pixels with two of zeros around the image on each side.
        self._corner = (rows // _STEPS + 2) * (lens.width + 4) + columns // _STEPS + 2
        self._right, self._down = columns % _STEPS, rows % _STEPS

    def apply(self, image: NDArray) -> NDArray:
        """Undistort an image.

        Args:
            image: [H, W] or [H, W, C], uint8 or uint16.

        Returns:
            the same shape and type.

        Raises:
            ValueError: another size or type.
        """
        if image.shape[:2] != self._shape or image.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"image: expected uint8 or uint16 of {self._shape[0]} x {self._shape[1]} pixels, "
                f"got {image.dtype} {list(image.shape)}"
            )
        width = self._shape[1]
        padded = np.pad(image, [(2, 2), (2, 2)] + [(0, 0)] * (image.ndim - 2))
        flat = padded.reshape(-1, *image.shape[2:])
        right, down = [array.reshape(array.shape + (1,) * (image.ndim - 2)) for array in (self._right, self._down)]
        left, up = _STEPS - right, _STEPS - down
        corners = ((0, up * left), (1, up * right), (width + 4, down * left), (width + 5, down * right))
        if image.dtype == np.uint8:
            whole = sum(flat[self._corner + offset].astype(np.int32) * weight for offset, weight in corners)
            return ((whole + _STEPS**2 // 2) // _STEPS**2).astype(np.uint8)
        total = np.zeros(image.shape, dtype=np.float32)
        for offset, weight in corners:
            total += flat[self._corner + offset].astype(np.float32) * (weight / _STEPS**2).astype(np.float32)
        return np.clip(np.rint(total), 0, 65535).astype(np.uint16)
