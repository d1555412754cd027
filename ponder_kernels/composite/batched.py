"""Weights of rays with equally many samples on a CPU: cumulative products, at the memory of what comes in.

The numbers are those of `reference`, which autograd differentiates at the memory of some twenty tensors of that size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ponder_kernels._register import EagerOperator, link_gradient, recomputed_gradients
from ponder_kernels.composite.reference import render_weights_reference


def _formula(alpha: Tensor, eps: float, early_stop: float) -> tuple[Tensor, Tensor]:
    return render_weights_reference(alpha, None, eps, early_stop)


@EagerOperator
def batched_weights(alpha: Tensor, eps: float, early_stop: float) -> tuple[Tensor, Tensor]:
    """`reference.render_weights_reference` of alpha [R, S] on the CPU."""
    transmittance = torch.ones_like(alpha, memory_format=torch.contiguous_format)
    torch.cumprod(1.0 - alpha[:, :-1] + eps, 1, out=transmittance[:, 1:])
    weights = alpha * transmittance
    if early_stop > 0.0:
        ended = (transmittance < early_stop).cumsum(1) > 0
        weights.masked_fill_(ended, 0)
        transmittance.masked_fill_(ended, 0)
    return weights, transmittance


def _backward(
    grad_weights: Tensor | None,
    grad_transmittance: Tensor | None,
    alpha: Tensor,
    eps: float,
    early_stop: float,
    wanted: Sequence[bool],
) -> tuple[Tensor]:
    upstream = (grad_weights, grad_transmittance)
    factors = 1.0 - alpha + eps
    if early_stop > 0.0:
        # What lies behind the end of a ray takes no part, NaN included.
        ended = batched_weights(alpha, eps, early_stop)[1] == 0
        alpha, factors = alpha.masked_fill(ended, 0), factors.masked_fill_(ended, 1)
        grad_weights, grad_transmittance = upstream = (
            None if grad_weights is None else grad_weights.masked_fill(ended, 0),
            None if grad_transmittance is None else grad_transmittance.masked_fill(ended, 0),
        )
    if _division_is_safe(factors):
        return (_by_division(grad_weights, grad_transmittance, alpha, factors).to(alpha.dtype),)
    with torch.enable_grad():
        leaf = alpha.detach().requires_grad_()
    (found,) = recomputed_gradients(lambda x: _formula(x, eps, early_stop), (leaf,), (True,), upstream)
    assert found is not None
    return (found.detach(),)


def _division_is_safe(factors: Tensor) -> bool:
    """Whether a product that contains a factor keeps its digits, so that a division takes the factor out again.

    Float32 is computed in float64: what is lost there is far below float32's smallest number.
    """
    if factors.numel() == 0:
        return True
    if factors.dtype == torch.float32:
        return bool(factors.amin() > 0)
    return bool(factors.prod(1).amin() > torch.finfo(factors.dtype).tiny)


def _by_division(
    grad_weights: Tensor | None, grad_transmittance: Tensor | None, alpha: Tensor, factors: Tensor
) -> Tensor:
    """With L the loss: ``dL/dalpha_j = gw_j T_j - sum_{i>j} (gT_i + gw_i alpha_i) T_i / factor_j``, float64."""
    factors = factors.double()
    transmittance = torch.ones_like(factors)
    torch.cumprod(factors[:, :-1], 1, out=transmittance[:, 1:])
    own = None if grad_weights is None else grad_weights * transmittance
    terms = transmittance if grad_transmittance is None else transmittance.mul_(grad_transmittance)
    if own is not None:
        terms = own * alpha if grad_transmittance is None else terms.addcmul_(own, alpha)
    later = torch.zeros_like(terms)
    # From the end, so that what is small is not lost beside what lies in front of it.
    later[:, :-1] = terms[:, 1:].flip(1).cumsum(1).flip(1)
    later.div_(factors).neg_()
    return later if own is None else later.add_(own)


link_gradient(batched_weights, _backward, _formula, tensors=1)
