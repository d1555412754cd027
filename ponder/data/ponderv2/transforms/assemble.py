"""From a transformed scene to the tensors that a batch is made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ponder.data.ponderv2.transforms.base import Array, Sample, require


@dataclass(frozen=True)
class Add:
    """Put constants into the sample, for example the name of its dataset as `condition`."""

    keys_dict: Mapping[str, Any] | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return sample | dict(self.keys_dict or {})


@dataclass(frozen=True)
class Copy:
    """Keep copies of entries under other names: `keys_dict` maps names to the names of the copies."""

    keys_dict: Mapping[str, str] | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        names = {"coord": "origin_coord", "segment": "origin_segment"} if self.keys_dict is None else self.keys_dict
        require(sample, names, "Copy")
        return sample | {new: copy.deepcopy(sample[old]) for old, new in names.items()}


@dataclass(frozen=True)
class ToTensor:
    """Arrays and numbers become tensors: integers int64, floats float32, booleans stay; a number gets shape [1]."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {key: to_tensor(value, key) for key, value in sample.items()}


def to_tensor(value: Any, name: str) -> Any:
    """The value as `ToTensor` turns it; strings and tensors stay, mappings and sequences are gone through.

    Raises:
        TypeError: something else, named by `name`.
    """
    if isinstance(value, torch.Tensor | str):
        return value
    if isinstance(value, int | np.integer):
        return torch.tensor([int(value)])
    if isinstance(value, float | np.floating):
        return torch.tensor([float(value)], dtype=torch.float32)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        kinds = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float32}
        dense = np.ascontiguousarray(value, dtype=kinds[value.dtype.kind]).reshape(value.shape)
        # No copy where none is needed: making a batch copies everything once more.
        return torch.from_numpy(dense if dense.flags.writeable else dense.copy())
    if isinstance(value, Mapping):
        return {key: to_tensor(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [to_tensor(item, name) for item in value]
    raise TypeError(f"{name}: expected numbers, arrays or strings, got {type(value).__name__}")


@dataclass(frozen=True)
class Collect:
    """The entries that go into the batch.

    Attributes:
        keys: taken as they are.
        offset_keys_dict: entry -> the entry whose length it holds ([1] int64), turned into offsets by the batch.
        stack_keys: taken with a leading axis of 1, so that concatenating the samples stacks them. An entry that is
            also in `keys` is stacked.
        groups: entry -> entries that are concatenated along their channels, as float32. In configurations an argument
            `feat_keys` stands for the group `feat`, and so on.
    """

    keys: Sequence[str]
    offset_keys_dict: Mapping[str, str] = field(default_factory=lambda: {"offset": "coord"})
    stack_keys: Sequence[str] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        members = [key for keys in self.groups.values() for key in keys]
        require(sample, (*self.keys, *self.stack_keys, *self.offset_keys_dict.values(), *members), "Collect")
        data = {key: sample[key] for key in self.keys}
        data |= {key: sample[key][None] for key in self.stack_keys}
        data |= {key: torch.tensor([sample[of].shape[0]]) for key, of in self.offset_keys_dict.items()}
        return data | {
            name: torch.cat([sample[key].float() for key in keys], dim=1) for name, keys in self.groups.items()
        }


@dataclass(frozen=True)
class InstanceParser:
    """Renumber instances from 0 and describe them.

    Instances of the classes `segment_ignore_index` become `instance_ignore_index`; the rest is renumbered 0..M-1.
    Adds `instance_centroid` [N, 3], the mean of the point's instance (the ignore index elsewhere), and `bbox` [M, 8]:
    centre, size, 0, and the class of the instance's first point less the number of ignored classes below it.
    """

    segment_ignore_index: Sequence[int] = (-1, 0, 1)
    instance_ignore_index: int = -1

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        require(sample, ("coord", "segment", "instance"), "InstanceParser")
        coord, segment = sample["coord"].astype(float), sample["segment"]
        kept = ~np.isin(segment, self.segment_ignore_index)
        names, number = np.unique(sample["instance"][kept], return_inverse=True)
        instance = np.full(segment.shape, self.instance_ignore_index, dtype=np.int64)
        instance[kept] = number
        centroid = np.full((len(coord), 3), float(self.instance_ignore_index))
        bbox = np.zeros((len(names), 8))
        if len(names):
            mean, low, high, first = _describe(coord[kept], number, len(names))
            centroid[kept] = mean[number]
            label = segment[kept][first]
            below = [index for index in self.segment_ignore_index if index >= 0]
            bbox[:, :3], bbox[:, 3:6] = (low + high) / 2, high - low
            bbox[:, 7] = label - np.greater.outer(label, below).sum(axis=1)
        return sample | {"instance": instance, "instance_centroid": centroid, "bbox": bbox}


def _describe(coord: Array, number: Array, count: int) -> tuple[Array, Array, Array, Array]:
    """Mean, lowest and highest corner [M, 3] and first point [M] of each instance, points [N, 3] numbered [N]."""
    order = np.argsort(number, kind="stable")
    points = coord[order]
    starts = np.searchsorted(number[order], np.arange(count))
    sizes = np.diff(np.append(starts, len(points)))
    mean = np.add.reduceat(points, starts) / sizes[:, None]
    return mean, np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts), order[starts]
