"""From signed distance to density, opacity and weights, as the samplers and the learned sharpness need them.

The final rendering has its own forms of these inside `render_rays`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ponder_kernels._constants import BETA_MIN, NEUS_ALPHA_EPS, SLOPE_EPS, TRANSMITTANCE_EPS

# Steepest descent of the SDF that NeuS's sampler believes.
STEEPEST = -1e3


class LaplaceDensity(nn.Module):
    """``sigma = (1/2 + 1/2 sign(f) expm1(-|f|/beta)) / beta`` of an SDF f, with a learned ``beta = |b| + 1e-4``.

    Reference:
        Yariv et al., VolSDF, arXiv 2106.12052, equations 2 and 3.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        # PonderV2 keeps the floor among the parameters, so it is part of its checkpoints.
        self.beta_min = nn.Parameter(BETA_MIN * torch.ones(1), requires_grad=False)
        self.beta = nn.Parameter(initial * torch.ones(1))

    def forward(self, sdf: Tensor, beta: Tensor) -> Tensor:
        """Density at `sdf`, same shape; `beta` broadcasts."""
        return (1.0 / beta) * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() / beta))

    def get_beta(self) -> Tensor:
        """[1], positive."""
        return self.beta.abs() + self.beta_min


def sampler_alpha(sdf: Tensor, deltas: Tensor, inv_s: float) -> Tensor:
    """Opacities of the S - 1 intervals between samples, from finite differences of their SDF; not clipped.

    The slope of an interval is the smaller of its own and its left neighbour's, cut to [-1000, 0], so that a surface
    seen at a grazing angle keeps its weight.

    Args:
        sdf: [R, S].
        deltas: [R, S - 1] distances between neighbours.
        inv_s: sharpness.
    """
    # In place where possible: the samples of all rays are here at once.
    slope = (sdf[:, 1:] - sdf[:, :-1]).div_(deltas + SLOPE_EPS)
    previous = nn.functional.pad(slope[:, :-1], (1, 0))
    change = torch.minimum(previous, slope).clip_(STEEPEST, 0.0).mul_(deltas).mul_(0.5)
    del slope, previous
    middle = (sdf[:, :-1] + sdf[:, 1:]).mul_(0.5)
    before = (middle - change).mul_(inv_s).sigmoid_()
    after = middle.add_(change).mul_(inv_s).sigmoid_()
    return (before - after).add_(NEUS_ALPHA_EPS).div_(before.add_(NEUS_ALPHA_EPS))


def neus_weights(alpha: Tensor) -> Tensor:
    """``w_i = alpha_i prod_{j<i} (1 - alpha_j + 1e-7)``, [R, S]."""
    factors = (1.0 - alpha[:, :-1]).add_(TRANSMITTANCE_EPS)
    return nn.functional.pad(factors, (1, 0), value=1.0).cumprod_(1).mul_(alpha)


def sum_before(terms: Tensor) -> Tensor:
    """Sum over the earlier samples of the ray, [R, S]."""
    return nn.functional.pad(terms[:, :-1].cumsum(1), (1, 0))
