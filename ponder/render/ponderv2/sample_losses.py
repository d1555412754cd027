"""Losses on the samples of rays: autograd keeps only what the renderer has put out anyway."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _masks(starts: Tensor, depth: Tensor, truncation: float) -> tuple[Tensor, Tensor]:
    """Samples [R, S] in front of the band around the measured depth [R, 1], and in it; none without a depth."""
    valid = depth > 0.0
    front = valid & (starts < depth - truncation)
    back = valid & (starts > depth + truncation)
    return front, valid & ~front & ~back


def _count(mask: Tensor) -> Tensor:
    # Unlike a sum of booleans it makes no integers of them first.
    return mask.count_nonzero().clamp(min=1.0)


class _SurfaceLosses(torch.autograd.Function):
    """Free-space and SDF loss from sdf and starts [R, S], depth [R, 1]; the masks are built again in backward."""

    @staticmethod
    def forward(ctx: Any, sdf: Tensor, starts: Tensor, depth: Tensor, truncation: float) -> tuple[Tensor, Tensor]:
        front, band = _masks(starts, depth, truncation)
        ctx.save_for_backward(sdf, starts, depth)
        ctx.truncation = truncation
        free_space = (torch.relu(truncation - sdf) * front).sum() / _count(front)
        return free_space, ((starts + sdf - depth).abs_() * band).sum() / _count(band)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, free_space_bar: Tensor, sdf_bar: Tensor) -> tuple[Tensor | None, ...]:
        sdf, starts, depth = ctx.saved_tensors
        front, band = _masks(starts, depth, ctx.truncation)
        out = (starts + sdf - depth).sign_().mul_(band).mul_(sdf_bar / _count(band))
        push = front & (ctx.truncation - sdf > 0)
        return out.sub_(push * (free_space_bar / _count(front))), None, None, None


class _Eikonal(torch.autograd.Function):
    """Mean of (|g| - 1)^2 over gradients [R, S, 3]."""

    @staticmethod
    def forward(ctx: Any, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        length = gradients.norm(2, dim=-1)
        return (length - 1).square_().sum() / max(length.numel(), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> Tensor:
        (gradients,) = ctx.saved_tensors
        length = gradients.norm(2, dim=-1)
        # A gradient of zero has no direction to grow in; the floor only keeps the division finite.
        slope = (length - 1) / length.clamp_min(torch.finfo(length.dtype).tiny)
        return gradients * (slope * (2 * bar / max(length.numel(), 1)))[..., None]


def surface_losses(sdf: Tensor, starts: Tensor, depth: Tensor, truncation: float) -> tuple[Tensor, Tensor]:
    """Free space in front of the measured surface, signed distance around it.

    With truncation t: where ``start < depth - t`` the loss is ``relu(t - sdf)``; where ``|start - depth| <= t`` it is
    ``|start + sdf - depth|``; behind, nothing is known. Each is a mean over its own samples, 0 without any.

    Args:
        sdf, starts: [R, S].
        depth: [R, 1] along the ray; not above 0 where it is missing.
        truncation: in the unit of the rays.
    """
    free_space, near = _SurfaceLosses.apply(sdf, starts, depth, truncation)
    return free_space, near


def eikonal_loss(gradients: Tensor) -> Tensor:
    """Mean squared deviation of the length of [R, S, 3] from 1."""
    loss: Tensor = _Eikonal.apply(gradients)
    return loss
