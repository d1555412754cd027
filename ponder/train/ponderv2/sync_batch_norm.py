"""Batch normalisation over the batches of all ranks, on any device (that of torch runs on GPUs only)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) with the moments of all ranks.

    One collective forward (counts, means and squared deviations of each rank) and one backward (sums of the gradient
    and of its product with the output), both of 2 C numbers or so.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        values = _wide(x)
        count = values.numel() // values.shape[1]
        mean, deviation = _local_moments(values, dims, count)
        total, mean, deviation = _merge(count, mean, deviation)
        scale = torch.rsqrt(deviation / total + eps)
        normal = (values - mean.to(values).view(shape)) * scale.to(values).view(shape)
        ctx.save_for_backward(normal, scale, total)
        ctx.mark_non_differentiable(mean, deviation, total)
        return normal.to(x.dtype), mean, deviation, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        normal, scale, total = ctx.saved_tensors
        upstream = gradients[0]
        dims = [d for d in range(upstream.ndim) if d != 1]
        shape = [1, -1] + [1] * (upstream.ndim - 2)
        g = _wide(upstream)
        sums = torch.cat([g.sum(dims), (g * normal).sum(dims)]).double()
        dist.all_reduce(sums)
        mean_g, mean_gn = (sums / total).to(g).view(2, -1)
        result = (g - mean_g.view(shape) - normal * mean_gn.view(shape)) * scale.to(g).view(shape)
        return result.to(upstream.dtype), None  # eps


def _wide(x: Tensor) -> Tensor:
    """Half-precision values as float32, others as they are."""
    return x if x.dtype == torch.float64 else x.float()


def _local_moments(values: Tensor, dims: list[int], count: int) -> tuple[Tensor, Tensor]:
    """Mean and summed squared deviation per channel of this rank, float64 [C]; zeros for an empty batch."""
    if count == 0:
        empty = values.new_zeros(values.shape[1], dtype=torch.float64)
        return empty, empty
    mean = values.mean(dims)
    shape = [1, -1] + [1] * (values.ndim - 2)
    return mean.double(), (values - mean.view(shape)).square().sum(dims).double()


def _merge(count: int, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of the union of all ranks' batches.

    Returns:
        number of values per channel (), mean [C], summed squared deviation [C].

    Reference:
        Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    own = torch.cat([mean, deviation, mean.new_tensor([float(count)])])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    table = torch.stack(parts)
    counts, channels = table[:, -1:], mean.numel()
    means, deviations = table[:, :channels], table[:, channels:-1]
    total = counts.sum()
    merged = (counts * means).sum(0) / total
    spread = deviations.sum(0) + (counts * (means - merged).square()).sum(0)
    return total, merged, spread


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose training moments are those of all ranks' batches together.

    Input [N, C] or [N, C, ...] of any floating dtype; ranks may have different N. Moments are summed in float32 (in
    float64 for float64) and merged in float64. In evaluation it is ordinary batch norm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"input: expected [N, C, ...], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise.

        Args:
            input: [N, C, ...].

        Returns:
            of the same shape and dtype.
        """
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        normal, mean, deviation, total = _Normalise.apply(input, self.eps)
        self._update(mean, deviation, total)
        if not self.affine:
            return normal
        shape = [1, -1] + [1] * (input.ndim - 2)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, deviation: Tensor, total: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        # The running variance is the unbiased one, as in torch.
        variance = deviation / (total - 1).clamp_min(1)
        self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


def convert(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside a module by one over all ranks, with the same parameters, buffers and names.

    Returns:
        the module, changed in place (or its replacement, where it is a batch norm itself).
    """
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        return _converted(module)
    for name, child in module.named_children():
        setattr(module, name, convert(child))
    return module


def _converted(norm: _BatchNorm) -> SyncBatchNorm:
    result = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    result.weight, result.bias = norm.weight, norm.bias
    result.running_mean, result.running_var = norm.running_mean, norm.running_var
    result.num_batches_tracked = norm.num_batches_tracked
    result.train(norm.training)
    return result
