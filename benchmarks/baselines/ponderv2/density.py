"""From signed distance to opacity: the learned sharpness of NeuS and of VolSDF."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BETA_MIN = 1e-4
INV_S_MIN, INV_S_MAX = 1e-6, 1e6

# In numerator and denominator of the NeuS opacity: an interval far from the surface would give 0/0.
ALPHA_EPS = 1e-5


class LaplaceDensity(nn.Module):
    """Density of an SDF f, positive outside (VolSDF, Yariv et al. 2021, equations 2 and 3).

    ``sigma = (1/beta) (1/2 + 1/2 sign(f) expm1(-|f|/beta))`` with ``beta = |b| + 1e-4`` and b learned.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.beta_min = nn.Parameter(BETA_MIN * torch.ones(1), requires_grad=False)
        self.beta = nn.Parameter(initial * torch.ones(1))

    def forward(self, sdf: Tensor, beta: Tensor | None = None) -> Tensor:
        """Density at `sdf`, same shape; `beta` broadcasts and replaces the learned one."""
        if beta is None:
            beta = self.get_beta()
        return (1.0 / beta) * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() / beta))

    def get_beta(self) -> Tensor:
        """[1], above 0."""
        return self.beta.abs() + self.beta_min


class DeviationNetwork(nn.Module):
    """NeuS's single learned variance v; the inverse standard deviation is ``exp(10 v)``."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.variance = nn.Parameter(initial * torch.ones(1))

    def inverse_deviation(self) -> Tensor:
        """[1]."""
        return torch.exp(self.variance * 10.0).clip(INV_S_MIN, INV_S_MAX)


def neus_alpha(sdf: Tensor, cosine: Tensor, deltas: Tensor, inv_s: Tensor) -> Tensor:
    """Opacity of intervals by extrapolating the SDF half an interval each way (NeuS, equation 13).

    ``q = min(cosine, 0) delta / 2``, ``P = sigmoid(inv_s (f - q))``, ``N = sigmoid(inv_s (f + q))``,
    ``alpha = clip((P - N + 1e-5) / (P + 1e-5), 0, 1)``. NeuS's annealing of the cosine is at its end from the start:
    PonderV2 never changes it.

    Args:
        sdf: [R, S, 1].
        cosine: [R, S, 1], direction times SDF gradient.
        deltas: [R, S, 1].
        inv_s: [1].
    """
    change = -torch.relu(-cosine) * deltas * 0.5
    before = torch.sigmoid((sdf - change) * inv_s)
    after = torch.sigmoid((sdf + change) * inv_s)
    return ((before - after + ALPHA_EPS) / (before + ALPHA_EPS)).clip(0.0, 1.0)


def unisurf_occupancy(sdf: Tensor) -> Tensor:
    """``sigmoid(-10 f)``: an SDF read as an occupancy (UNISURF, Oechsle et al. 2021)."""
    return torch.sigmoid(-10.0 * sdf)
