"""From distances to weights along rays, forwards and backwards in closed form: NeuS and VolSDF.

All tensors are [R, S]; `x_bar` is the derivative of the loss with respect to x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._constants import NEUS_ALPHA_EPS, TRANSMITTANCE_EPS


class OpacityBar(NamedTuple):
    """Derivatives by sdf and cosine [R, S] and by the sharpness [], which is float64."""

    sdf: Tensor
    cosine: Tensor
    sharpness: Tensor


def _shifted(factors: Tensor) -> Tensor:
    """Exclusive product along the ray."""
    return torch.cat([torch.ones_like(factors[:, :1]), factors[:, :-1].cumprod(-1)], -1)


def _behind(product: Tensor) -> Tensor:
    """Sum over later samples, taken from the far end: a total minus a prefix would cancel."""
    return torch.nn.functional.pad(product[:, 1:].flip(-1).cumsum(-1).flip(-1), (0, 1))


def _total(terms: Tensor) -> Tensor:
    """Sum of all, float64: the parts of a derivative by the sharpness nearly cancel, within a ray and between rays."""
    return terms.sum(dtype=torch.float64)


class Neus:
    """alpha = (P - N + eps) / (P + eps) with P, N the sigmoids half a step before and after the sample.

    P - N = P (1 - N) (1 - exp(2 half inv_s)) keeps its digits where the plain difference of two sigmoids near each
    other (free space, short intervals) loses them in float32, and beside eps = 1e-5 that would be seen. With
    F = 1 / (P + eps) and q = N F, the derivatives by inv_s sdf and inv_s half are -q (P - N + eps (1 - P) F) and
    -q (1 - N + P (1 - P) F), again without a difference of nearly equal numbers.

    Args:
        sdf, cosine, delta: [R, S]; cosine is direction . gradient.
        inv_s: [] sharpness.
        ratio: 1 takes the true slope, 0 the softened one of early training.

    Reference: NeuS, arXiv 2106.10689, eq. 13.
    """

    def __init__(self, sdf: Tensor, cosine: Tensor, delta: Tensor, inv_s: Tensor, ratio: float) -> None:
        self.sdf, self.cosine, self.delta, self.inv_s, self.ratio = sdf, cosine, delta, inv_s, ratio
        slope = cosine.clamp_max(0)
        if ratio < 1:
            slope = slope * ratio - (0.5 - 0.5 * cosine).clamp_min(0) * (1 - ratio)
        self.half = slope * delta / 2
        self.alpha = self._alpha((sdf - self.half) * inv_s, (sdf + self.half) * inv_s)

    def _alpha(self, before: Tensor, after: Tensor) -> Tensor:
        """Opacities from the arguments of P and N."""
        self.before, self.after = torch.sigmoid(before), torch.sigmoid(after)
        self.not_before, self.not_after = torch.sigmoid(before.neg_()), torch.sigmoid(after.neg_())
        # Of an interval that goes backwards, which no sampler makes, the exponential might overflow.
        steps = torch.expm1((self.half * self.inv_s).mul_(2).clamp_max_(0)).mul_(self.before).mul_(self.not_after)
        self.drop = torch.where(self.half > 0, self.before - self.after, steps.neg_())
        return (self.drop + NEUS_ALPHA_EPS) / (self.before + NEUS_ALPHA_EPS)

    def _by_samples(self, alpha_bar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives by sdf and half, and by inv_s, summed."""
        over = (self.before + NEUS_ALPHA_EPS).reciprocal_()
        passed = alpha_bar * self.after * over
        flat = self.not_before * over
        sdf, half = -passed * (self.drop + NEUS_ALPHA_EPS * flat), -passed * (self.not_after + self.before * flat)
        return self.inv_s * sdf, self.inv_s * half, _total(sdf * self.sdf + half * self.half)

    def mask(self, hit: Tensor) -> None:
        """Make rays outside `hit` [R] transparent."""
        self.alpha = self.alpha * hit.unsqueeze(-1)

    def weights(self) -> Tensor:
        """w_i = alpha_i prod_{j<i} (1 - alpha_j + eps)."""
        self.transmittance = _shifted(1 - self.alpha + TRANSMITTANCE_EPS)
        return self.alpha * self.transmittance

    def backward(self, weights_bar: Tensor, hit: Tensor | None) -> OpacityBar:
        """Derivatives, given those by the weights."""
        behind = _behind(self.transmittance * (weights_bar * self.alpha))
        alpha_bar = self.transmittance * weights_bar - behind / (1 - self.alpha + TRANSMITTANCE_EPS)
        if hit is not None:
            alpha_bar = alpha_bar * hit.unsqueeze(-1)
        sdf, half, sharpness = self._by_samples(alpha_bar)
        turn = (self.cosine < 0).to(self.cosine.dtype) * self.ratio
        if self.ratio < 1:
            turn = turn + (self.cosine < 1).to(turn.dtype) * (0.5 * (1 - self.ratio))
        return OpacityBar(sdf, half * self.delta / 2 * turn, sharpness)


class PlainNeus(Neus):
    """The same with P - N subtracted and the chain rule term by term: PonderV2's operations and their roundings."""

    def _alpha(self, before: Tensor, after: Tensor) -> Tensor:
        self.before, self.after = torch.sigmoid(before), torch.sigmoid(after)
        self.below = self.before + NEUS_ALPHA_EPS
        return (self.before - self.after + NEUS_ALPHA_EPS) / self.below

    def _by_samples(self, alpha_bar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        drop = alpha_bar / self.below
        before = (drop - alpha_bar * (self.alpha / self.below)) * (1 - self.before) * self.before
        after = -drop * (1 - self.after) * self.after
        sharpness = _total(before * (self.sdf - self.half)) + _total(after * (self.sdf + self.half))
        before, after = before * self.inv_s, after * self.inv_s
        return before + after, after - before, sharpness


class Volsdf:
    """alpha = 1 - exp(-delta sigma) with the Laplace density sigma of the distance; T = exp(-sum of delta sigma).

    Args:
        sdf, cosine, delta: [R, S]; cosine is not used.
        beta: [] width, positive.
        ratio: not used.

    Reference: VolSDF, arXiv 2106.12052, eq. 2, 3 and 9.
    """

    def __init__(self, sdf: Tensor, cosine: Tensor, delta: Tensor, beta: Tensor, ratio: float) -> None:
        self.sdf, self.delta, self.beta = sdf, delta, beta
        # exp(-|s| / beta) / 2 is 0 in any precision beyond 800 beta; the bound keeps 0 * infinity out.
        self.distance = (sdf.abs() / beta).clamp_max(800)
        self.half = 0.5 * torch.exp(-self.distance)
        self.density = torch.where(sdf >= 0, self.half, 1 - self.half) / beta
        self.depth = delta * self.density

    def mask(self, hit: Tensor) -> None:
        """Make rays outside `hit` [R] transparent."""
        self.depth = self.depth * hit.unsqueeze(-1)

    def weights(self) -> Tensor:
        """w_i = (1 - exp(-x_i)) exp(-sum_{j<i} x_j)."""
        before = torch.nn.functional.pad(self.depth[:, :-1].cumsum(-1), (1, 0))
        self.transmittance, self.alpha = torch.exp(-before), self._alpha()
        return self.alpha * self.transmittance

    def _alpha(self) -> Tensor:
        return -torch.expm1(-self.depth)

    def backward(self, weights_bar: Tensor, hit: Tensor | None) -> OpacityBar:
        """Derivatives, given those by the weights."""
        passed = torch.exp(-self.depth) * self.transmittance
        depth_bar = weights_bar * passed - _behind(self.transmittance * (weights_bar * self.alpha))
        if hit is not None:
            depth_bar = depth_bar * hit.unsqueeze(-1)
        return self._by_density(depth_bar * self.delta)

    def _by_density(self, density_bar: Tensor) -> OpacityBar:
        """Derivatives, given those by the density."""
        scaled = density_bar / (self.beta * self.beta)
        inside = self.half - self.half * self.distance - 1
        by_beta = torch.where(self.sdf >= 0, self.half * (self.distance - 1), inside)
        return OpacityBar(-scaled * self.half, torch.zeros_like(self.sdf), _total(scaled * by_beta))


class PlainVolsdf(Volsdf):
    """The same with both exponentials subtracted from 1 as they are: PonderV2's operations and their roundings."""

    def __init__(self, sdf: Tensor, cosine: Tensor, delta: Tensor, beta: Tensor, ratio: float) -> None:
        self.sdf, self.delta, self.beta = sdf, delta, beta
        self.sign = sdf.sign()
        self.drop = torch.expm1(-sdf.abs() / beta)
        self.share = 0.5 + 0.5 * self.sign * self.drop
        self.depth = delta * ((1 / beta) * self.share)

    def _alpha(self) -> Tensor:
        return 1 - torch.exp(-self.depth)

    def _by_density(self, density_bar: Tensor) -> OpacityBar:
        by_drop = density_bar * (1 / self.beta) * (0.5 * self.sign) * (self.drop + 1) / self.beta
        by_beta = by_drop * self.sdf.abs() / self.beta - density_bar * self.share / self.beta**2
        return OpacityBar(-by_drop * self.sign, torch.zeros_like(self.sdf), _total(by_beta))


Opacity = Neus | Volsdf
_MODELS: dict[str, type[Opacity]] = {
    "neus": Neus,
    "neus-plain": PlainNeus,
    "volsdf": Volsdf,
    "volsdf-plain": PlainVolsdf,
}
MODELS = tuple(_MODELS)


def opacity(model: str, sdf: Tensor, cosine: Tensor, delta: Tensor, sharpness: Tensor, ratio: float) -> Opacity:
    """The opacity model by name."""
    return _MODELS[model](sdf, cosine, delta, sharpness, ratio)
