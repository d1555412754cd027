"""Points of several scenes one behind the other, [N, 3], as a batch of equally many for each."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check


class Batched(NamedTuple):
    """points [B, L, 3], where L is the largest number of a scene; `at` [N], where each point is in [B * L]."""

    points: Tensor
    at: Tensor


def batch_points(points: Tensor, scene_offsets: object, batch: int) -> Batched:
    """Give every scene a row of its own; what fills the shorter ones lies at the origin.

    Reads the offsets, so that a GPU is waited for.

    Args:
        points: [N, 3].
        scene_offsets: [B + 1] int32 or int64, scene b owns the points ``scene_offsets[b] : scene_offsets[b + 1]``.
        batch: B.

    Raises:
        TypeError, ValueError: offsets of another type, or that do not share out the points.
    """
    if scene_offsets is None:
        raise ValueError("scene_offsets: expected [B + 1] offsets for points of shape [N, 3], got None")
    offsets = _check.tensor("scene_offsets", scene_offsets)
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"scene_offsets: expected dtype int32, int64, got {str(offsets.dtype).removeprefix('torch.')}")
    if tuple(offsets.shape) != (batch + 1,):
        raise ValueError(f"scene_offsets: expected shape [B + 1] with B={batch}, got {list(offsets.shape)}")
    _check.same_device("points", points, scene_offsets=offsets)
    bounds, total = offsets.tolist(), points.shape[0]
    counts = [stop - start for start, stop in itertools.pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != total or min(counts, default=0) < 0:
        raise ValueError(f"scene_offsets: expected values that rise from 0 to N={total}, got {bounds}")
    longest = max(counts, default=0)
    number = torch.arange(total, device=points.device)
    sizes = torch.tensor(counts, device=points.device)
    scene = torch.repeat_interleave(torch.arange(batch, device=points.device), sizes, output_size=total)
    at = number - offsets.long()[scene] + scene * longest
    batched = points.new_zeros(batch * longest, 3).index_copy(0, at, points)
    return Batched(batched.view(batch, longest, 3), at)
