"""Checks of arguments that only ray sampling has; messages as in ponder_kernels._check."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels.ray_sampling.reference import BOUNDED, not_allowed


def like(first_name: str, first: Tensor, **others: Tensor) -> None:
    """Require the dtype and device of the first tensor."""
    for name, other in others.items():
        _check.floating(name, other, (first.dtype,))
    _check.same_device(first_name, first, **others)


def common_shape(name: str, shape: Sequence[int], known: Sequence[int], known_name: str) -> tuple[int, ...]:
    """What two lists of leading dims broadcast to."""
    out = [*known[: len(known) - len(shape)], *shape[: len(shape) - len(known)]]
    shared = min(len(shape), len(known))
    for size, other in zip(shape[len(shape) - shared :], known[len(known) - shared :], strict=True):
        if size != other and size != 1 and other != 1:
            raise ValueError(
                f"{name}: expected leading dims that broadcast with {list(known)} of {known_name}, got {list(shape)}"
            )
        out.append(other if size == 1 else size)
    return tuple(out)


def bin_count(count: object) -> None:
    """Require an int of at least 1."""
    if not isinstance(count, (int, torch.SymInt)) or isinstance(count, bool):
        raise TypeError(f"count: expected an int, got {type(count).__name__}")
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")


def range_for(near: Tensor, far: Tensor, spacing: str) -> None:
    """Require distances that the spacing can take, where their values can be read without waiting for a device."""
    readable = near.device.type == "cpu" and type(near) is Tensor and not torch.compiler.is_compiling()
    if spacing not in BOUNDED or not readable or torch._C._are_functorch_transforms_active():
        return
    wrong = not_allowed(near, far, spacing)
    if wrong.any():
        kind = "not negative" if spacing == "sqrt" else "above 0"
        raise ValueError(
            f"near: expected distances {kind} for spacing {spacing!r} (except where near = far), "
            f"got {torch.fmin(near, far)[wrong].min().item():g}"
        )


def number(name: str, value: object) -> None:
    """Require a number that is not NaN."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if math.isnan(value):
        raise ValueError(f"{name}: expected a number, got nan")
