"""The batch that PonderV2's models take, and how samples become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from ponder.data.ponderv2.skips import DROPPED, Skips
from ponder.data.ponderv2.transforms import Sample


class Batch(TypedDict, total=False):
    """B scenes of one dataset with N points in all and V views each; which entries there are is `Collect`'s choice.

    `grid_coord` counts voxels from 0 in every scene. `offset` is the number of points up to and including each scene.
    Labels are -1 where there are none. Depth is z-depth in the sensor's units, 0 = missing; times `depth_scale` it has
    the unit of `coord` (metres, before random scaling). Cameras have +x right, +y down, +z forward, pixels count from
    the first one's centre, and `extrinsic` maps the batch's world to the camera.
    """

    coord: Tensor  # [N, 3] float32
    grid_coord: Tensor  # [N, 3] int64
    feat: Tensor  # [N, C] float32: color -1..1, then normal
    offset: Tensor  # [B] int64
    segment: Tensor  # [N] int64
    condition: list[str]  # B names of the dataset
    rgb: Tensor  # [B, V, H, W, 3] float32, 0..1
    depth: Tensor  # [B, V, H, W] float32
    depth_scale: Tensor  # [B] float32
    intrinsic: Tensor  # [B, V, 4, 4] or [B, V, 3, 3] float32, pixels
    extrinsic: Tensor  # [B, V, 4, 4] float32
    semantic: Tensor  # [B, V, H, W] int64
    teacher: Tensor  # [B, V, H', W', C'] float32
    instance: Tensor  # [N] int64, counted from 0 in every scene
    instance_centroid: Tensor  # [N, 3] float32, metres
    bbox: Tensor  # [M, 8] float32: centre, size, 0, class of the M instances of all scenes
    origin_coord: Tensor  # [N', 3] float32: before voxelisation
    origin_segment: Tensor  # [N'] int64
    origin_instance: Tensor  # [N'] int64
    origin_offset: Tensor  # [B] int64


def collate(
    samples: Sequence[Sample],
    mix_prob: float = 0.0,
    max_point: int | None = None,
    rng: np.random.Generator | None = None,
    skips: Skips | None = None,
) -> dict[str, Any]:
    """One batch: tensors joined along their first axis, numbers as a tensor, everything else listed.

    Entries with "offset" in their name are summed up, scene by scene.

    Args:
        samples: at least one, with the same keys.
        mix_prob: probability that each two neighbours become one scene (Mix3D): every second offset goes.
        max_point: samples that would make more points than this are left out, but never all of them. None or less
            than 1 = no limit.
        rng: needed with `mix_prob` > 0.
        skips: counts samples left out.

    Raises:
        ValueError: no samples, other keys or shapes, or no `rng`.
        TypeError: an entry that is neither tensor, number, string nor list: `ToTensor` is missing.
    """
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    kept = samples if max_point is None or max_point < 1 else _within(samples, max_point)
    if skips is not None and len(kept) < len(samples):
        skips.add(DROPPED, len(samples) - len(kept))
    keys = kept[0].keys()
    for sample in kept:
        if sample.keys() != keys:
            different = ", ".join(sorted(sample.keys() ^ keys))
            raise ValueError(f"samples: expected the same entries in all, got {different} in some only")
    batch = {key: _join(key, [sample[key] for sample in kept]) for key in keys}
    for key in keys:
        if "offset" in key:
            batch[key] = batch[key].cumsum(dim=0)
    return mix(batch, mix_prob, rng)


def mix(batch: dict[str, Any], mix_prob: float, rng: np.random.Generator | None) -> dict[str, Any]:
    """The batch, with probability `mix_prob` with neighbouring scenes merged: offsets 2, 4, ... and the last remain.

    Raises:
        ValueError: `mix_prob` not within 0..1, or above 0 without `rng`.
    """
    if not 0 <= mix_prob <= 1:
        raise ValueError(f"mix_prob: expected 0 to 1, got {mix_prob}")
    if mix_prob == 0 or "offset" not in batch:
        return batch
    if rng is None:
        raise ValueError("rng: expected a generator with mix_prob > 0, got None")
    if rng.random() >= mix_prob:
        return batch
    offset = batch["offset"]
    return batch | {"offset": torch.cat([offset[1:-1:2], offset[-1:]])}


def _within(samples: Sequence[Sample], max_point: int) -> Sequence[Sample]:
    """Samples in order as far as they fit; the smallest if none does."""
    kept, total = [], 0
    for sample in samples:
        count = len(sample["coord"])
        if total + count <= max_point:
            kept.append(sample)
            total += count
    return kept or [min(samples, key=lambda sample: len(sample["coord"]))]


def _join(key: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        shapes = {tuple(value.shape[1:]) for value in values}
        if len(shapes) > 1:
            found = ", ".join(str(list(value.shape)) for value in values)
            raise ValueError(f"{key}: expected the same shape after the first axis in all samples, got {found}")
        return torch.cat(values)
    if isinstance(first, bool | int | float):
        return torch.tensor(values)
    if isinstance(first, str | list | tuple | Mapping) or first is None:
        return values
    raise TypeError(f"{key}: expected tensors, numbers, strings or lists, got {type(first).__name__}")
