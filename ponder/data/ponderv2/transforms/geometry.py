"""Rigid motions, scalings and flips of points; cameras named in `keys` ([V, 4, 4] world to camera) go with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ponder.data.ponderv2.transforms.base import Array, Sample, bounds, follow, linear, require, translation

_AXES = "xyz"


@dataclass(frozen=True)
class CenterShift:
    """Put the middle of the points' x and y ranges, and with `apply_z` their lowest z, at 0."""

    apply_z: bool = True
    keys: Sequence[str] = ()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        require(sample, ("coord",), "CenterShift")
        coord = sample["coord"]
        low, high = bounds(coord)
        shift = (low + high) / 2
        shift[2] = low[2] if self.apply_z else 0
        sample["coord"] = coord - shift
        follow(sample, self.keys, translation(-shift), "CenterShift")
        return sample


@dataclass(frozen=True)
class RandomShift:
    """Move the points by a Gaussian offset with standard deviations `shift` (metres)."""

    shift: Sequence[float] = (0.2, 0.2, 0.2)
    keys: Sequence[str] = ()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        shift = rng.normal(scale=self.shift, size=3)
        sample["coord"] = (sample["coord"] + shift).astype(sample["coord"].dtype, copy=False)
        follow(sample, self.keys, translation(shift), "RandomShift")
        return sample


def _rotation(axis: str, angle: float) -> Array:
    """[3, 3] right-handed rotation by `angle` radians about a coordinate axis."""
    cosine, sine = math.cos(angle), math.sin(angle)
    first, second = ((_AXES.index(axis) + step) % 3 for step in (1, 2))
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def _turned(vectors: Array, matrix: Array, axis: str) -> Array:
    """Vectors [N, 3] rotated, in float64; only two columns change, and a matrix product would start threads."""
    first, second = ((_AXES.index(axis) + step) % 3 for step in (1, 2))
    vectors = vectors.astype(np.float64)
    turned = vectors.copy()
    for row in (first, second):
        turned[:, row] = vectors[:, first] * matrix[row, first] + vectors[:, second] * matrix[row, second]
    return turned


def _rotate(
    sample: Sample, axis: str, angle: float, center: Sequence[float] | None, keys: Sequence[str], who: str
) -> Sample:
    """Rotate points, normals and cameras about `center`, or about the middle of the points' box."""
    require(sample, ("coord",), who)
    coord = sample["coord"]
    if center is None:
        low, high = bounds(coord)
        pivot = ((low + high) / 2).astype(np.float64)
    else:
        pivot = np.asarray(center, dtype=np.float64)
    matrix = _rotation(axis, angle)
    sample["coord"] = _turned(coord - pivot.astype(coord.dtype), matrix, axis) + pivot
    if "normal" in sample:
        sample["normal"] = _turned(sample["normal"], matrix, axis)
    follow(sample, keys, translation(pivot) @ linear(matrix) @ translation(-pivot), who)
    return sample


def _check_axis(axis: str) -> None:
    if axis not in ("x", "y", "z"):
        raise ValueError(f"axis: expected 'x', 'y' or 'z', got {axis!r}")


@dataclass(frozen=True)
class RandomRotate:
    """With probability `p`, rotate about an axis by an angle drawn evenly from `angle` (times pi)."""

    angle: Sequence[float] | None = None
    center: Sequence[float] | None = None
    axis: str = "z"
    always_apply: bool = False
    p: float = 0.5
    keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_axis(self.axis)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if not self.always_apply and rng.random() > self.p:
            return sample
        low, high = (-1.0, 1.0) if self.angle is None else self.angle
        angle = rng.uniform(low, high) * math.pi
        return _rotate(sample, self.axis, angle, self.center, self.keys, "RandomRotate")


@dataclass(frozen=True)
class RandomRotateTargetAngle:
    """With probability `p`, rotate about an axis by one of the angles (times pi)."""

    angle: Sequence[float] = (1 / 2, 1, 3 / 2)
    center: Sequence[float] | None = None
    axis: str = "z"
    always_apply: bool = False
    p: float = 0.75
    keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_axis(self.axis)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if not self.always_apply and rng.random() > self.p:
            return sample
        angle = float(rng.choice(np.asarray(self.angle, dtype=float))) * math.pi
        return _rotate(sample, self.axis, angle, self.center, self.keys, "RandomRotateTargetAngle")


@dataclass(frozen=True)
class RandomScale:
    """Multiply coordinates by a factor drawn evenly from `scale`; depth images follow through `depth_scale`."""

    scale: Sequence[float] | None = None
    anisotropic: bool = False
    keys: Sequence[str] = ()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if self.anisotropic and "depth_scale" in sample:
            raise ValueError("RandomScale: a sample with 'depth_scale' needs anisotropic=False, got True")
        low, high = (0.95, 1.05) if self.scale is None else self.scale
        factor = rng.uniform(low, high, 3 if self.anisotropic else 1)
        sample["coord"] = (sample["coord"] * factor).astype(sample["coord"].dtype, copy=False)
        if "depth_scale" in sample:
            sample["depth_scale"] = sample["depth_scale"] * factor
        follow(sample, self.keys, linear(np.diag(np.broadcast_to(factor, 3))), "RandomScale")
        return sample


@dataclass(frozen=True)
class RandomFlip:
    """Negate x, and independently y, each with probability `p`."""

    p: float = 0.5
    keys: Sequence[str] = ()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        signs = np.where(rng.random(2) < self.p, -1.0, 1.0)
        signs = np.append(signs, 1.0)
        for key in ("coord", "normal"):
            if key in sample:
                sample[key] = sample[key] * signs.astype(sample[key].dtype)
        follow(sample, self.keys, linear(np.diag(signs)), "RandomFlip")
        return sample
