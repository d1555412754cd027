"""Derivatives of trilinear sampling: the first two orders by kernels, further ones by the torch formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ponder_kernels._register import recomputed_gradients, where_wanted
from ponder_kernels.volume_sample.reference import double_backward_reference

OPTIONS = 3  # padding, align_corners, smoothstep
Gradients = tuple[Tensor | None, ...]


def link_orders(sample: Any, backward: Any, double_backward: Any) -> None:
    """Make each registered operator the gradient of the one before it.

    A backward that is recorded (create_graph=True) launches the same kernel as a plain one, and its own gradient is
    `double_backward`. The gradient of that is `double_backward_reference` differentiated by torch, at the memory that
    needs.
    """

    def keep_sample(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        volume, points, *ctx.options = inputs
        ctx.save_for_backward(volume, points)
        ctx.set_materialize_grads(False)

    def first(ctx: Any, grad_out: Tensor | None) -> Gradients:
        wanted = list(ctx.needs_input_grad[:2])
        if grad_out is None:
            return (None,) * (2 + OPTIONS)
        found = backward(grad_out, *ctx.saved_tensors, *ctx.options, wanted)
        return *where_wanted(found, wanted), *(None,) * OPTIONS

    def keep_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, padding, align_corners, smoothstep, ctx.made = inputs
        ctx.save_for_backward(*tensors)
        ctx.options = (padding, align_corners, smoothstep)
        ctx.set_materialize_grads(False)

    def second(ctx: Any, *cotangents: Tensor | None) -> Gradients:
        wanted = list(ctx.needs_input_grad[:3])
        # A gradient that was not made is a placeholder, and so is its cotangent.
        given = [c if made else None for c, made in zip(cotangents, ctx.made, strict=True)]
        if all(c is None for c in given):
            return (None,) * (3 + OPTIONS + 1)
        found = double_backward(*given, *ctx.saved_tensors, *ctx.options, wanted)
        return *where_wanted(found, wanted), *(None,) * (OPTIONS + 1)

    def third(ctx: Any, *upstream: Tensor | None) -> Gradients:
        wanted = list(ctx.needs_input_grad[:5])
        given = [u if made else None for u, made in zip(upstream, ctx.made, strict=True)]
        found: Gradients = (None,) * 5
        if any(u is not None for u in given):
            formula = lambda *x: double_backward_reference(*x, *ctx.options)  # noqa: E731
            with torch.enable_grad():
                found = recomputed_gradients(formula, ctx.saved_tensors, wanted, given)
        if not torch.is_grad_enabled():
            found = tuple(None if f is None else f.detach() for f in found)
        return *found, *(None,) * (OPTIONS + 1)

    sample.register_autograd(first, setup_context=keep_sample)
    backward.register_autograd(second, setup_context=keep_backward)
    double_backward.register_autograd(third, setup_context=keep_backward)
