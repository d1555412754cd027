"""Inputs, options and tolerances that the tests of trilinear sampling share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ponder_kernels.volume_sample import volume_sample
from ponder_kernels.volume_sample.layout import PADDINGS, Options
from ponder_kernels.volume_sample.reference import volume_sample_reference
from tests.kernels.harness import compare, compare_second_order, rand

MODES = [Options(p, a, s) for p in PADDINGS for a in (True, False) for s in (False, True)]
PLAIN = [m for m in MODES if not m.smoothstep]


def mode_id(mode: Options) -> str:
    return f"{mode.padding}-{'corners' if mode.align_corners else 'faces'}{'-smooth' if mode.smoothstep else ''}"


def triton_sample(mode: Options = MODES[0]) -> Callable[..., Tensor]:
    """The operator on its kernels."""
    return lambda volume, points: volume_sample(volume, points, **mode._asdict(), backend="triton")


def truth(mode: Options = MODES[0]) -> Callable[..., Tensor]:
    """The torch formula."""
    return lambda volume, points: volume_sample_reference(volume, points, **mode._asdict())


def case(shape: tuple[int, ...], device: str, reach: float = 1.3, seed: int = 0) -> dict[str, Tensor]:
    """A volume and points in [-reach, reach); `shape` is (B, C, D, H, W, N)."""
    b, c, d, h, w, n = shape
    volume = rand(b, c, d, h, w, seed=seed).to(device)
    return {"volume": volume, "points": rand(b, n, 3, seed=seed + 1, low=-reach, high=reach).to(device)}


def terms(shape: tuple[int, ...]) -> dict[str, int]:
    """How many terms the output and each first or second derivative sums."""
    _, c, d, h, w, n = shape
    return {"out": 8, "volume": 1 + 8 * n // (d * h * w), "points": 8 * c, "upstream": 8}


def scale_of(shape: tuple[int, ...], mode: Options) -> float:
    """Condition number: a position is a coordinate times the size, and its rounding error grows with the size."""
    return float(max(shape[2:5])) * (6.0 if mode.smoothstep else 1.0)


def check(inputs: dict[str, Tensor], shape: tuple[int, ...], mode: Options = MODES[0], **options: object) -> None:
    """Values and first derivatives against float64."""
    compare(triton_sample(mode), truth(mode), inputs, terms(shape), scale=scale_of(shape, mode), **options)


def check_second(inputs: dict[str, Tensor], shape: tuple[int, ...], mode: Options = MODES[0]) -> None:
    """Second derivatives against float64."""
    scale = scale_of(shape, mode)
    compare_second_order(triton_sample(mode), truth(mode), inputs, terms(shape), scale=scale)


def channels_last(volume: Tensor) -> Tensor:
    return volume.contiguous(memory_format=torch.channels_last_3d)


def relaid(volume: Tensor, layout: str) -> Tensor:
    """The same values (of the first batch entry, if "expanded") in another memory layout."""
    if layout == "channels-last":
        return channels_last(volume)
    if layout == "transposed":
        return volume.permute(4, 3, 0, 2, 1).contiguous().permute(2, 4, 3, 1, 0)
    if layout == "strided":
        wide = volume.new_full([2 * n for n in volume.shape], 777.0)
        wide[::2, ::2, 1::2, ::2, 1::2] = volume
        return wide[::2, ::2, 1::2, ::2, 1::2]
    if layout == "expanded":
        return volume[:1].expand(volume.shape)
    if layout == "expanded-last":
        return channels_last(volume[:1]).expand(volume.shape)
    return volume


LAYOUTS = ("channels-last", "transposed", "strided", "expanded", "expanded-last")
