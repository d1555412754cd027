"""Compositing along rays in plain torch: the definitions, and their CPU backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels._constants import TRANSMITTANCE_EPS


def render_weights_reference(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and transmittance of each sample, front to back.

    ``T_i = prod_{j<i} (1 - alpha_j + eps)``, ``w_i = alpha_i T_i``. With eps no factor is 0 for alpha in [0,
    1], so that the product's derivative, which divides by the factors, is finite.

    Args:
        alpha: [R, S].

    Returns:
        weights [R, S], transmittance [R, S].
    """
    factors = 1.0 - alpha + TRANSMITTANCE_EPS
    ones = torch.ones_like(alpha[:, :1])
    transmittance = torch.cat((ones, factors[:, :-1]), dim=1).cumprod(dim=1)
    return alpha * transmittance, transmittance


def composite_reference(weights: Tensor, values: Tensor, background: Tensor | None) -> Tensor:
    """``out_r = sum_i w_ri v_ri + background_r (1 - sum_i w_ri)``.

    Args:
        weights: [R, S].
        values: [R, S, C], converted to the dtype of `weights`.
        background: None, or [R, C] in the dtype of `weights`.

    Returns:
        [R, C], dtype of `weights`.
    """
    out = (weights[..., None] * values.to(weights.dtype)).sum(dim=1)
    if background is not None:
        out = out + background * (1.0 - weights.sum(dim=1, keepdim=True))
    return out
