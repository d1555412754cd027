"""Deformations of the points alone: cameras do not follow them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import grid_sample

from ponder.data.ponderv2.transforms.base import Array, Sample, bounds


@dataclass(frozen=True)
class RandomJitter:
    """Add Gaussian noise of deviation `sigma`, cut off at `clip`, to every coordinate (metres)."""

    sigma: float = 0.01
    clip: float = 0.05

    def __post_init__(self) -> None:
        if self.clip <= 0:
            raise ValueError(f"clip: expected a positive length, got {self.clip}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        coord = sample["coord"]
        noise = rng.standard_normal(coord.shape, dtype=np.float32)
        sample["coord"] = coord + (noise * np.float32(self.sigma)).clip(-self.clip, self.clip)
        return sample


@dataclass(frozen=True)
class ElasticDistortion:
    """With probability 0.95, move points by smooth noise, once for each (granularity, magnitude) in metres."""

    distortion_params: Sequence[Sequence[float]] | None = ((0.2, 0.4), (0.8, 1.6))
    p: float = 0.95

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        params = ((0.2, 0.4), (0.8, 1.6)) if self.distortion_params is None else self.distortion_params
        if rng.random() < self.p:
            for granularity, magnitude in params:
                sample["coord"] = _distort(sample["coord"], granularity, magnitude, rng)
        return sample


def _distort(coord: Array, granularity: float, magnitude: float, rng: np.random.Generator) -> Array:
    """Points [N, 3] moved by blurred Gaussian noise on a grid whose second node is their lowest corner."""
    low, high = bounds(coord)
    nodes = ((high - low) // granularity).astype(int) + 3
    noise = rng.standard_normal((*nodes, 3), dtype=np.float32)
    for axis in (0, 1, 2) * 2:
        noise = ndimage.uniform_filter1d(noise, 3, axis=axis, mode="constant")
    # -1 and 1 are the first and the last node.
    place = (((coord - low) / granularity + 1) * (2 / (nodes - 1)) - 1).astype(np.float64)
    moved = coord + _interpolate(noise, place) * magnitude
    return moved.astype(coord.dtype, copy=False)


def _interpolate(grid: Array, place: Array) -> Array:
    """Trilinear values [N, 3] of a grid [X, Y, Z, 3] at places [N, 3] from -1 to 1, in float64."""
    volume = torch.from_numpy(grid.astype(np.float64)).permute(3, 0, 1, 2)[None]
    zyx = torch.from_numpy(np.ascontiguousarray(place[:, ::-1]))[None, None, None]
    values: Array = grid_sample(volume, zyx, align_corners=True)[0, :, 0, 0].T.numpy()
    return values
