"""Which points stay, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ponder.data.ponderv2.transforms.base import Array, Sample, bounds, require, take

_FNV_OFFSET = np.uint64(14695981039346656037)
_FNV_PRIME = np.uint64(1099511628211)
_DROPPED = ("coord", "color", "normal", "strength", "segment", "instance")
_CROPPED = (
    "coord",
    "origin_coord",
    "grid_coord",
    "color",
    "normal",
    "segment",
    "instance",
    "displacement",
    "strength",
)
_SHUFFLED = ("coord", "grid_coord", "displacement", "color", "normal", "segment", "instance")
_FRAGMENT = ("coord", "grid_coord", "normal", "color", "displacement", "strength")


def _with_labelled(sample: Sample, index: Array) -> Array:
    """`index` [K] with the points of few-label training (`sampled_index`) added, which are then renumbered."""
    if "sampled_index" not in sample:
        return index
    labelled = np.asarray(sample["sampled_index"])
    index = np.unique(np.append(index, labelled))
    sample["sampled_index"] = np.flatnonzero(np.isin(index, labelled))
    return index


@dataclass(frozen=True)
class RandomDropout:
    """With probability `dropout_application_ratio`, keep int(N * (1 - dropout_ratio)) random points."""

    dropout_ratio: float = 0.2
    dropout_application_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.dropout_ratio < 1:
            raise ValueError(f"dropout_ratio: expected a share from 0 to below 1, got {self.dropout_ratio}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        require(sample, ("coord",), "RandomDropout")
        if rng.random() < self.dropout_application_ratio:
            total = len(sample["coord"])
            index = rng.choice(total, int(total * (1 - self.dropout_ratio)), replace=False, shuffle=False)
            take(sample, _with_labelled(sample, index), _DROPPED)
        return sample


def fnv_hash(grid_coord: Array) -> Array:
    """[N] uint64 from non-negative integers [N, 3]: per axis a multiplication, then an exclusive or."""
    code = np.full(len(grid_coord), _FNV_OFFSET)
    for axis in range(grid_coord.shape[1]):
        code *= _FNV_PRIME
        code ^= grid_coord[:, axis].astype(np.uint64)
    return code


def ravel_hash(grid_coord: Array) -> Array:
    """[N] uint64 from non-negative integers [N, 3]: the place in a row-major array that holds all of them."""
    size = bounds(grid_coord)[1].astype(np.uint64) + np.uint64(1)
    code = grid_coord[:, 0].astype(np.uint64)
    for axis in range(1, grid_coord.shape[1]):
        code = code * size[axis] + grid_coord[:, axis].astype(np.uint64)
    return code


@dataclass(frozen=True)
class GridSample:
    """One point per voxel of `grid_size` (metres).

    Train mode keeps a random point of each voxel. Test mode returns a list of as many fragments as the fullest voxel
    has points; fragment i holds point i (modulo their number) of each voxel and its `index`, so that all points of the
    cloud occur. Only the arrays named in `keys` are subset. Voxels come in the order of their hash.

    With `return_inverse`, `inverse` [N] gives the voxel of every point; with `return_grid_coord`, `grid_coord` [K, 3]
    is the voxel, 0 or more; with `return_min_coord`, `min_coord` [1, 3] is the corner of voxel 0 in metres; with
    `return_displacement`, `displacement` [K, 3] runs from -0.5 to 0.5 within the voxel, or [K, 1] along the normal.
    """

    grid_size: float = 0.05
    hash_type: str = "fnv"
    mode: str = "train"
    keys: Sequence[str] = ("coord", "color", "normal", "segment")
    return_inverse: bool = False
    return_grid_coord: bool = False
    return_min_coord: bool = False
    return_displacement: bool = False
    project_displacement: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("train", "test"):
            raise ValueError(f"mode: expected 'train' or 'test', got {self.mode!r}")
        if self.hash_type not in ("fnv", "ravel"):
            raise ValueError(f"hash_type: expected 'fnv' or 'ravel', got {self.hash_type!r}")
        if not self.grid_size > 0:
            raise ValueError(f"grid_size: expected a positive length, got {self.grid_size}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | list[Sample]:
        require(sample, ("coord", *self.keys), "GridSample")
        # Division in float64, so that the voxel does not depend on how the coordinates are stored.
        scaled = sample["coord"].astype(np.float64) / self.grid_size
        voxel = np.floor(scaled).astype(np.int64)
        corner = bounds(voxel)[0]
        grid_coord = voxel - corner
        code = fnv_hash(grid_coord) if self.hash_type == "fnv" else ravel_hash(grid_coord)
        order, starts, counts = _groups(code)
        per_point: Sample = {}
        if self.return_grid_coord:
            per_point["grid_coord"] = grid_coord
        if self.return_displacement:
            within = scaled - voxel - 0.5
            if self.project_displacement:
                within = np.sum(within * sample["normal"], axis=1, keepdims=True)
            per_point["displacement"] = within
        if self.return_inverse:
            inverse = np.empty_like(order)
            inverse[order] = np.repeat(np.arange(len(counts)), counts)
            sample["inverse"] = inverse
        if self.return_min_coord:
            sample["min_coord"] = (corner * self.grid_size)[None]
        if self.mode == "train":
            return self._pick(sample, per_point, order, starts, counts, rng)
        return [self._fragment(sample, per_point, order[starts + part % counts]) for part in range(int(counts.max()))]

    def _pick(
        self, sample: Sample, per_point: Sample, order: Array, starts: Array, counts: Array, rng: np.random.Generator
    ) -> Sample:
        draws = rng.integers(0, counts.max(), size=len(counts))
        index = _with_labelled(sample, order[starts + draws % counts])
        take(sample, index, self.keys)
        return sample | {key: value[index] for key, value in per_point.items()}

    def _fragment(self, sample: Sample, per_point: Sample, index: Array) -> Sample:
        part = dict(sample)
        take(part, index, self.keys)
        return part | {key: value[index] for key, value in per_point.items()} | {"index": index}


def _groups(code: Array) -> tuple[Array, Array, Array]:
    """Points of equal code [N] side by side: their order [N], and start and size of each of the K groups [K].

    Groups come by code, points of a group in their own order.
    """
    order = np.argsort(code)
    ordered = code[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(first)
    # Quicksort leaves equal codes in an order of its own (and of the processor); this is faster than a stable sort.
    order = np.sort((np.cumsum(first) - 1) * len(code) + order) % len(code)
    return order, starts, np.diff(np.append(starts, len(code)))


@dataclass(frozen=True)
class SphereCrop:
    """Keep the points nearest to one of them: `point_max`, or with `sample_rate` that share of all.

    Modes: `random` and `center` (the middle of the list) choose the point; `all` returns a list of crops that together
    hold every point, each with its `index` and `weight` (squared distance to the crop's centre, m^2).
    """

    point_max: int = 80000
    sample_rate: float | None = None
    mode: str = "random"

    def __post_init__(self) -> None:
        if self.mode not in ("random", "center", "all"):
            raise ValueError(f"mode: expected 'random', 'center' or 'all', got {self.mode!r}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | list[Sample]:
        require(sample, ("coord",), "SphereCrop")
        coord = sample["coord"]
        limit = self.point_max if self.sample_rate is None else int(self.sample_rate * len(coord))
        if self.mode == "all":
            return _cover(sample, max(limit, 1), rng)
        if len(coord) > limit:
            center = coord[rng.integers(len(coord)) if self.mode == "random" else len(coord) // 2]
            distance = np.square(coord - center).sum(axis=1)
            take(sample, np.argpartition(distance, limit)[:limit], _CROPPED)
        return sample


def _cover(sample: Sample, limit: int, rng: np.random.Generator) -> list[Sample]:
    """Crops of `limit` points until each point was in one, next around the point that was least in the middle."""
    coord = sample["coord"]
    index = sample.get("index", np.arange(len(coord)))
    if len(coord) <= limit:
        return [sample | {"index": index, "weight": np.zeros(len(coord))}]
    crops = []
    seen = np.zeros(len(coord), dtype=bool)
    potential = rng.random(len(coord)) * 1e-3
    while not seen.all():
        distance = np.square(coord - coord[np.argmin(potential)]).sum(axis=1)
        near = np.argsort(distance, kind="stable")[:limit]
        crop = {key: sample[key][near] for key in _FRAGMENT if key in sample}
        crops.append(crop | {"index": index[near], "weight": distance[near]})
        potential[near] += np.square(1 - distance[near] / max(distance[near].max(), np.finfo(float).tiny))
        seen[near] = True
    return crops


@dataclass(frozen=True)
class ShufflePoint:
    """Put the points in random order."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        require(sample, ("coord",), "ShufflePoint")
        take(sample, rng.permutation(len(sample["coord"])), _SHUFFLED)
        return sample
