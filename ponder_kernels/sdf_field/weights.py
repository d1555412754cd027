"""The SDF decoder with its affine chains collapsed, and its closed-form value and slope."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._constants import SOFTPLUS_BETA, SOFTPLUS_FLOOR, SOFTPLUS_THRESHOLD


class SdfWeights(NamedTuple):
    """sdf(f) = out_hidden . softplus(hidden_weight f + hidden_bias) + out_linear . f + out_bias.

    This is PonderV2's decoder with one hidden layer: every linear layer that no activation separates is multiplied
    out. K hidden units, C features.

    Attributes:
        hidden_weight: [K, C].
        hidden_bias: [K].
        out_hidden: [K].
        out_linear: [C].
        out_bias: [].
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    out_hidden: Tensor
    out_linear: Tensor
    out_bias: Tensor


class SdfDecode(NamedTuple):
    """Intermediate values at M features: hidden h and its slope s [M, K], sdf [M], feature gradient [M, C]."""

    hidden: Tensor
    slope: Tensor
    sdf: Tensor
    feature_gradient: Tensor


def check_weights(weights: SdfWeights) -> dict[str, int]:
    """Check shapes; returns the sizes of K and C."""
    sizes: dict[str, int] = {}
    for name, dims in zip(SdfWeights._fields, ("K C", "K", "K", "C", ""), strict=True):
        value = _check.floating(f"weights.{name}", getattr(weights, name))
        _check.shape(f"weights.{name}", value, dims, sizes)
    return sizes


def softplus(x: Tensor) -> Tensor:
    """torch's Softplus(beta=100, threshold=20), as PonderV2's SDF decoder uses."""
    floored = x.clamp_min(SOFTPLUS_FLOOR / SOFTPLUS_BETA)
    return torch.nn.functional.softplus(floored, beta=SOFTPLUS_BETA, threshold=SOFTPLUS_THRESHOLD)


def softplus_slope(x: Tensor) -> Tensor:
    """Derivative of `softplus`; exactly 1 above the threshold, as torch differentiates it."""
    scaled = (x * SOFTPLUS_BETA).clamp_min(SOFTPLUS_FLOOR)
    return torch.where(scaled > SOFTPLUS_THRESHOLD, torch.ones_like(x), torch.sigmoid(scaled))


def decode_sdf(features: Tensor, weights: SdfWeights) -> Tensor:
    """The value alone: [M, C] -> [M]."""
    hidden = softplus(torch.addmm(weights.hidden_bias, features, weights.hidden_weight.T))
    return hidden @ weights.out_hidden + features @ weights.out_linear + weights.out_bias


def decode_sdf_and_gradient(features: Tensor, weights: SdfWeights) -> SdfDecode:
    """Value and d sdf / d feature in closed form: A^T (w1 * s) + b."""
    x = torch.addmm(weights.hidden_bias, features, weights.hidden_weight.T)
    hidden, slope = softplus(x), softplus_slope(x)
    sdf = hidden @ weights.out_hidden + features @ weights.out_linear + weights.out_bias
    gradient = torch.addmm(weights.out_linear, slope * weights.out_hidden, weights.hidden_weight)
    return SdfDecode(hidden, slope, sdf, gradient)
