"""Functions whose derivative by each argument is a node of its own, run only if that derivative is asked for.

A torch.autograd.Function computes the derivatives by all arguments that require one, even where
``torch.autograd.grad`` was asked for a single one: an SDF's gradient by the points would pay for the volume's too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Of the upstream gradient and the function's arguments.
Gradient = Callable[..., Tensor]


class _Branch(torch.autograd.Function):
    """Zeros of no memory in the shape of the result, whose derivative is that of the result by one argument."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, like: Tensor, gradient: Gradient, arguments: tuple[Tensor, ...]) -> Tensor:
        # In a tuple they give this node no edges; saved, they keep their own.
        ctx.save_for_backward(*arguments)
        ctx.gradient = gradient
        return like.new_zeros(()).expand(like.shape)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient(upstream, *ctx.saved_tensors), None, None, None


class _Join(torch.autograd.Function):
    """The value; its upstream gradient goes to every branch."""

    @staticmethod
    def forward(ctx: Any, value: tuple[Tensor], *branches: Tensor) -> Tensor:
        ctx.branches = len(branches)
        # Neither an argument of its own nor a view: autograd would forbid to change such a result in place.
        return torch.ops.aten._unsafe_view(value[0], value[0].shape)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[upstream] * ctx.branches


def branched(function: Callable[..., Tensor], gradients: Sequence[Gradient], *arguments: Tensor) -> Tensor:
    """``function(*arguments)``, differentiable as `gradients` say.

    Args:
        function: not differentiated itself.
        gradients: one per argument, called with the upstream gradient and the arguments; differentiable as far as
            higher orders are wanted.
        arguments: what the function is called with.
    """
    with torch.no_grad():
        value = function(*arguments)
    if not torch.is_grad_enabled():
        return value
    pairs = [(x, gradient) for x, gradient in zip(arguments, gradients, strict=True) if x.requires_grad]
    branches = [_Branch.apply(x, value, gradient, arguments) for x, gradient in pairs]
    return _Join.apply((value,), *branches) if branches else value
