"""SDF to opacity and density in plain torch: the definitions, and their CPU backend.

Signed distances are positive in free space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels._constants import NEUS_ALPHA_EPS


def neus_alpha_reference(sdf: Tensor, cosine: Tensor, delta: Tensor, inv_s: Tensor, cos_anneal_ratio: float) -> Tensor:
    """Opacity of an interval from the SDF at its sample, extrapolated half an interval both ways.

    With slope ``m = -((1 - r) relu(0.5 - 0.5 cosine) + r relu(-cosine))``, never positive::

        P = sigmoid(inv_s (sdf - m delta / 2)),  N = sigmoid(inv_s (sdf + m delta / 2))
        alpha = clip((P - N + eps) / (P + eps), 0, 1)

    P - N is taken as P (1 - N) (1 - exp(inv_s m delta)): of nearly equal sigmoids, as in free space, the difference
    would keep few digits. An interval of negative length, for which the exponential might overflow, takes the
    difference.

    Args:
        sdf, cosine, delta: [...], one shape.
        inv_s: one element; 1 / inv_s is the width of the surface's logistic density.
        cos_anneal_ratio: r in [0, 1].

    Returns:
        alpha [...] in [0, 1].
    """
    slope = -(torch.relu(0.5 - 0.5 * cosine) * (1 - cos_anneal_ratio) + torch.relu(-cosine) * cos_anneal_ratio)
    half_step = slope * delta * 0.5
    scale = inv_s.reshape(())
    previous = torch.sigmoid((sdf - half_step) * scale)
    ahead = (sdf + half_step) * scale
    backwards = half_step > 0
    decay = torch.expm1(torch.where(backwards, 0.0, 2 * half_step * scale))
    drop = torch.where(backwards, previous - torch.sigmoid(ahead), -previous * torch.sigmoid(-ahead) * decay)
    return ((drop + NEUS_ALPHA_EPS) / (previous + NEUS_ALPHA_EPS)).clip(0.0, 1.0)


def laplace_density_reference(sdf: Tensor, beta: Tensor) -> Tensor:
    """Laplace CDF of the distance over its scale, ``(0.5 + 0.5 sign(s) expm1(-|s| / beta)) / beta``.

    1 / beta deep inside (s < 0), 0 far outside. Written per side, ``0.5 exp(-s / beta)`` outside and
    ``0.5 - 0.5 expm1(s / beta)`` inside: the same function, which keeps its small values outside in float32
    and its derivative -1 / (2 beta^2) at s = 0, where autograd of sign and abs gives 0.

    Args:
        sdf: [...].
        beta: one element, positive.

    Returns:
        density [...] in [0, 1 / beta].
    """
    scale = beta.reshape(())
    # Clamped so that the branch not taken cannot overflow and send NaN through `where`.
    outside = 0.5 * torch.exp(-sdf.clamp(min=0) / scale)
    inside = 0.5 - 0.5 * torch.expm1(sdf.clamp(max=0) / scale)
    return torch.where(sdf >= 0, outside, inside) / scale


def alpha_from_density_reference(density: Tensor, delta: Tensor) -> Tensor:
    """Opacity of an interval of constant density, ``1 - exp(-delta density)``, by expm1.

    Args:
        density, delta: [...], one shape.

    Returns:
        alpha [...].
    """
    return -torch.expm1(-delta * density)
