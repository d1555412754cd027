"""What the transforms share: the sample they work on, and how point arrays and cameras change together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# One scene: arrays by name, as PonderV2 names them (see `ponder.data.ponderv2.batch`). A transform puts new arrays into
# the dict and never writes into the arrays that it found there, so that datasets may keep and share them.
Sample = dict[str, Any]


class Transform(Protocol):
    """Changes a sample and returns it; every random decision comes from `rng`."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


def require(sample: Sample, keys: Iterable[str], who: str) -> None:
    """Raises ValueError naming the first of `keys` that the sample lacks."""
    for key in keys:
        if key not in sample:
            raise ValueError(f"{who}: expected a sample with {key!r}, got {sorted(sample)}")


def take(sample: Sample, index: Array, keys: Iterable[str]) -> None:
    """Keep the rows `index` [K] (integers) of those of the arrays that the sample has."""
    for key in keys:
        if key in sample:
            sample[key] = sample[key].take(index, axis=0)


def follow(sample: Sample, keys: Iterable[str], motion: Array, who: str) -> None:
    """Make world-to-camera matrices go with their points: E becomes E S^-1 when points become S p.

    Args:
        sample: holds the matrices, each [V, 4, 4].
        keys: their names.
        motion: S, [4, 4] float64.
        who: the transform, for the error message.
    """
    require(sample, keys, who)
    inverse = np.linalg.inv(motion)
    for key in keys:
        sample[key] = (sample[key] @ inverse).astype(sample[key].dtype, copy=False)


def bounds(coord: Array) -> tuple[Array, Array]:
    """Lowest and highest value [C] of every column of [N, C]; column by column, which is many times faster."""
    columns = [coord[:, axis] for axis in range(coord.shape[1])]
    return np.stack([column.min() for column in columns]), np.stack([column.max() for column in columns])


def translation(offset: Array) -> Array:
    """[4, 4] float64 motion by `offset` [3]."""
    motion = np.eye(4)
    motion[:3, 3] = offset
    return motion


def linear(matrix: Array) -> Array:
    """[4, 4] float64 motion by a matrix [3, 3]."""
    motion = np.eye(4)
    motion[:3, :3] = matrix
    return motion


def store(values: Array, like: Array) -> Array:
    """Values in the dtype of `like`; integers are cut off, never wrapped around."""
    if np.issubdtype(like.dtype, np.integer):
        limits = np.iinfo(like.dtype)
        values = values.clip(limits.min, limits.max)
    return values.astype(like.dtype, copy=False)
