"""Inputs of the compositing tests: batched and packed rays with exact zeros and ones, and comparisons with float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ponder_kernels import composite, render_weights
from ponder_kernels._constants import TRANSMITTANCE_EPS
from ponder_kernels.composite.reference import composite_reference, render_weights_reference
from tests.kernels.harness import compare, rand

# Packed rays: none; no samples; one; empty ones at both ends and between; a block of 4 rays and 128 samples and more.
LENGTHS = [(), (0, 0), (1,), (0, 3, 0, 0, 5, 1, 0), (128, 2, 0, 7), (5, 129, 1, 0, 40)]
LENGTH_IDS = ["-".join(map(str, lengths)) or "no rays" for lengths in LENGTHS]


def offsets_of(lengths: Sequence[int], device: str, dtype: torch.dtype = torch.int64) -> Tensor:
    """[R + 1] offsets of packed rays of the given lengths."""
    return torch.tensor([sum(lengths[:k]) for k in range(len(lengths) + 1)], dtype=dtype, device=device)


def alphas(rays: int, samples: int, device: str, high: float = 0.3) -> Tensor:
    """Alphas with exact zeros and ones among them, at block edges too."""
    alpha = rand(rays, samples, seed=1, low=0.0, high=high)
    if samples > 1:
        alpha[:, samples // 2] = 0.0
        alpha[: rays // 2, samples - 1] = 0.0
        alpha[: rays // 2, samples // 3] = 1.0
        alpha[1::4, 0] = 1.0
    if samples > 32:
        alpha[::3, 31] = 1.0
        alpha[1::3, 32] = 1.0
    return alpha.to(device)


def packed_alphas(n: int, device: str, high: float = 0.3) -> Tensor:
    """[n] alphas with exact zeros and ones among them."""
    alpha = rand(n, seed=2, low=0.0, high=high)
    alpha[3::17] = 0.0
    alpha[6::29] = 1.0
    return alpha.to(device)


def check_weights(
    alpha: Tensor,
    ray_offsets: Tensor | None = None,
    eps: float = TRANSMITTANCE_EPS,
    early_stop: float = 0.0,
    **options: Any,
) -> None:
    """Compare the kernels' weights, transmittance and gradient with the float64 formula."""
    offsets = None if ray_offsets is None else ray_offsets.cpu()
    samples = max(alpha.shape[-1], 1)
    compare(
        lambda alpha: render_weights(alpha, ray_offsets=ray_offsets, eps=eps, early_stop=early_stop, backend="triton"),
        lambda alpha: render_weights_reference(alpha, offsets, eps, early_stop),
        {"alpha": alpha},
        {"out": samples, "alpha": samples},
        **options,
    )


def composite_case(
    rays: int, samples: int, channels: int, device: str, background: str = "", lengths: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Weights, values and a background ("", "C" or "RC"); packed rays of the given `lengths` instead of [R, S]."""
    shape: tuple[int, ...] = (rays, samples) if lengths is None else (sum(lengths),)
    inputs = {
        "weights": rand(*shape, seed=1, low=0.0, high=1.0 / max(samples, 1)).to(device),
        "values": rand(*shape, channels, seed=2).to(device),
    }
    if background:
        pixels = (channels,) if background == "C" else (rays, channels)
        inputs["background"] = rand(*pixels, seed=3).to(device)
    return inputs


def packed_case(lengths: Sequence[int], channels: int, device: str, background: str = "") -> dict[str, Tensor]:
    """`composite_case` of packed rays."""
    return composite_case(len(lengths), max(lengths, default=0), channels, device, background, lengths)


def composite_truth(
    weights: Tensor, values: Tensor, background: Tensor | None = None, ray_offsets: Tensor | None = None
) -> Tensor:
    """The reference behind the public arguments: a background of one colour for all rays too."""
    rays = weights.shape[0] if ray_offsets is None else ray_offsets.shape[0] - 1
    if background is not None:
        background = background.to(weights.dtype).expand(rays, values.shape[-1])
    return composite_reference(weights, values, background, ray_offsets)


def check_composite(inputs: Mapping[str, Tensor], ray_offsets: Tensor | None = None, **options: Any) -> None:
    """Compare the kernels' composited values and every gradient with the float64 formula."""
    offsets = None if ray_offsets is None else ray_offsets.cpu()
    n, channels = inputs["weights"].numel(), inputs["values"].shape[-1]
    terms = {"out": inputs["weights"].shape[-1] + 1, "weights": 2 * channels, "values": 1, "background": n}
    compare(
        lambda **x: composite(**x, ray_offsets=ray_offsets, backend="triton"),
        lambda **x: composite_truth(**x, ray_offsets=offsets),
        inputs,
        terms,
        **options,
    )
