"""From opacity along a ray to one value per ray."""

from __future__ import annotations

import torch
from torch import Tensor

# Inside every factor of the transmittance product, so that an opaque sample leaves a trace.
TRANSMITTANCE_EPS = 1e-7

# Keeps the expected depth of a ray without any weight at 0.
DEPTH_EPS = 1e-10


def weights_from_alpha(alpha: Tensor) -> Tensor:
    """``w_i = alpha_i prod_{j<i} (1 - alpha_j + 1e-7)`` (NeuS, Wang et al. 2021, equation 11).

    Args:
        alpha: [R, S, 1].

    Returns:
        [R, S, 1].
    """
    factors = torch.cat((torch.ones_like(alpha[:, :1]), 1.0 - alpha[:, :-1] + TRANSMITTANCE_EPS), 1)
    return alpha * torch.cumprod(factors, 1)


def weights_from_density(density: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """``w_i = (1 - exp(-delta_i sigma_i)) T_i`` with ``T_i = exp(-sum_{j<i} delta_j sigma_j)`` (Max 1995).

    Args:
        density, deltas: [R, S, 1].

    Returns:
        weights and transmittance, [R, S, 1] each.
    """
    optical = deltas * density
    transmittance = torch.exp(-exclusive_sum(optical))
    return (1.0 - torch.exp(-optical)) * transmittance, transmittance


def exclusive_sum(terms: Tensor) -> Tensor:
    """Sum over the earlier samples of the ray; terms [R, S] or [R, S, 1]."""
    return torch.cat((torch.zeros_like(terms[:, :1]), torch.cumsum(terms[:, :-1], 1)), 1)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over samples of weights [R, S, 1] times values [R, S, C], [R, C]. Rays end in black: nothing is added."""
    return torch.sum(weights * values, dim=-2)


def expected_depth(starts: Tensor, weights: Tensor) -> Tensor:
    """``sum w t / (sum w + 1e-10)``, [R, 1], kept inside the extremes of `starts`.

    The extremes are taken over all rays and samples of the call, as in PonderV2, so a ray's depth can depend on its
    neighbours, and one NaN distance makes every depth NaN.
    """
    depth = weighted_sum(starts, weights) / (torch.sum(weights, dim=-2) + DEPTH_EPS)
    return torch.clip(depth, starts.min(), starts.max())
