"""Batch norm of volumes that are stored channels last on a CPU, with exact moments.

torch 2.13 adds up the values of a channel one after the other there, in float32: for a volume of half a million voxels,
most of them empty, its variance is wrong by some tenths of a per cent. Here sums are taken block by block and the
blocks' sums in float64, which is as exact as torch is for volumes stored channels first, and faster than changing the
layout. Gradients are summed in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Rows whose float32 sums are exact enough, and that stay in a core's cache.
BLOCK = 4096


class VolumeBatchNorm(nn.BatchNorm3d):
    """`nn.BatchNorm3d` of [B, C, D, H, W], exact in either layout."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, D, H, W], normalised; stored as the input is."""
        if not (self.training and _is_summed_naively(input)):
            return super().forward(input)
        self._check_input_dim(input)
        normal, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps)
        self._update(mean, variance, input.numel() // input.shape[1])
        return normal

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), factor)
        # The running variance is the unbiased one, as in torch.
        self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var), factor)


def _is_summed_naively(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() != 5 or not x.numel():
        return False
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)


def _rows(x: Tensor) -> Tensor:
    """[B, C, D, H, W] as rows [B D H W, C]; free for a volume stored channels last."""
    return x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(rows.split(BLOCK) for rows in tensors), strict=True)


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, float64 [C], of rows [N, C]."""
    sums = torch.stack([block.sum(0) for (block,) in _blocks(rows)])
    mean = sums.double().sum(0) / len(rows)
    shift = mean.to(rows.dtype)
    squares = torch.stack([(block - shift).square_().sum(0) for (block,) in _blocks(rows)])
    # The shift is the mean but for its rounding.
    variance = squares.double().sum(0) / len(rows) - (mean - shift.double()).square()
    return mean, variance.clamp_min(0)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, and the two moments, in float64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = moments(_rows(x))
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps))
        ctx.mark_non_differentiable(mean, variance)
        out = F.batch_norm(x, mean.to(x.dtype), variance.to(x.dtype), weight, bias, False, 0.0, eps)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, scale = ctx.saved_tensors
        rows, upstream = _rows(x), _rows(grad)
        shift, count = mean.to(x.dtype), len(rows)
        sums = [(g.sum(0), ((block - shift).mul_(g)).sum(0)) for block, g in _blocks(rows, upstream)]
        bias_bar, along = (torch.stack(parts).double().sum(0) for parts in zip(*sums, strict=True))
        weight_bar = along * scale
        gain = scale if weight is None else scale * weight.double()
        # x_bar = gain (g - bias_bar / N - (x - mean) scale weight_bar / N), with x enough by itself.
        slope, level = gain * scale * weight_bar / -count, gain * bias_bar / -count
        factors = [value.to(x.dtype) for value in (gain, slope, level)]
        out = torch.empty_like(x)
        for block, g, result in _blocks(rows, upstream, _rows(out)):
            torch.addcmul(factors[2], block - shift, factors[1], out=result)
            result.addcmul_(g, factors[0])
        if weight is None:
            return out, None, None, None
        return out, weight_bar.to(x.dtype), bias_bar.to(x.dtype), None
