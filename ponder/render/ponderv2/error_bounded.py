"""VolSDF's ray sampler: add samples until the error of the opacity is bounded."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ponder.render.ponderv2.opacity import LaplaceDensity, sum_before
from ponder.render.ponderv2.rays import RayBundle, merge
from ponder.render.ponderv2.samplers import FieldQueries, Jitter, PDFSampler, SampledRays, SpacedSampler

# The bound grows exponentially with the error's integral; beyond this it only says "too much".
LARGEST_GROWTH = 1e6


class _March(NamedTuple):
    """Samples of an iteration, [R, S] each: SDF, interval lengths, how near the surface can come to an interval."""

    sdf: Tensor
    deltas: Tensor
    distance: Tensor

    def growth(self, beta: Tensor) -> Tensor:
        """``min(exp(E), 1e6) - 1``, E the running sum of ``exp(-d*/beta) delta^2 / (4 beta^2)``."""
        error = torch.exp(-self.distance / beta) * self.deltas**2 / (4 * beta**2)
        return torch.exp(torch.cumsum(error, -1)).clamp_(max=LARGEST_GROWTH) - 1.0

    def optical(self, density: LaplaceDensity, beta: Tensor) -> Tensor:
        """Density times length."""
        return self.deltas * density(self.sdf, beta)

    def error(self, density: LaplaceDensity, beta: Tensor) -> Tensor:
        """Largest opacity error on each ray, [R] (Theorem 1)."""
        return (self.growth(beta) * torch.exp(-sum_before(self.optical(density, beta)))).amax(-1)


class ErrorBoundedSampler(nn.Module):
    """Algorithm 1 of VolSDF.

    Per ray, the smallest beta between the learned one and a safe one (Lemma 2) is sought whose opacity error is at most
    `eps`. While some ray's beta is above the learned one, more samples are drawn where the error is; in the end the
    final ones are drawn from the weights and evenly spaced ones mixed in. Random numbers of training: the
    `num_samples_eval` initial edges, every resampling in turn, then the extra samples.

    Args:
        initial_sampler: name of a spaced sampler.
        num_samples: drawn from the final weights.
        num_samples_eval: initial samples, and samples added per iteration.
        num_samples_extra: evenly spaced samples merged in at the end.
        eps: error bound.
        beta_iters: bisection steps.
        max_total_iters: iterations of the algorithm, at least 1.
        train_stratified, single_jitter: jitter of training, one number per ray.

    Reference:
        Yariv et al., VolSDF, arXiv 2106.12052, section 3.4.
    """

    def __init__(
        self,
        initial_sampler: str,
        num_samples: int = 64,
        num_samples_eval: int = 128,
        num_samples_extra: int = 32,
        eps: float = 0.1,
        beta_iters: int = 10,
        max_total_iters: int = 5,
        train_stratified: bool = True,
        single_jitter: bool = True,
    ) -> None:
        super().__init__()
        if max_total_iters < 1:
            raise ValueError(f"max_total_iters: expected at least 1, got {max_total_iters}")
        jitter = Jitter(train_stratified, single_jitter)
        self.num_samples, self.num_samples_eval, self.num_samples_extra = (
            num_samples, num_samples_eval, num_samples_extra,
        )  # fmt: skip
        self.eps, self.beta_iters, self.max_total_iters = eps, beta_iters, max_total_iters
        self.initial_sampler, self.pdf_sampler = SpacedSampler(initial_sampler, jitter), PDFSampler(jitter)

    @torch.no_grad()
    def forward(self, rays: RayBundle, field: FieldQueries) -> SampledRays:
        """num_samples + num_samples_extra samples per ray."""
        learned = field.density.get_beta()
        samples = self.initial_sampler(rays, self.num_samples_eval)
        points = first_points = samples.points()
        beta = self._safe_beta(samples.deltas)
        sdf, order, first_weights = None, None, None
        for remaining in reversed(range(self.max_total_iters)):
            found = field.sdf(points).to(samples.edges.dtype)
            sdf = found if sdf is None or order is None else torch.cat((sdf, found), -1).gather(1, order)
            march = _March(sdf, samples.deltas, distance_bound(sdf, samples.deltas))
            beta = self._tightened(march, field.density, learned, beta)
            optical = march.optical(field.density, beta[:, None])
            transmittance = torch.exp(-sum_before(optical))
            weights = (1.0 - torch.exp(-optical)) * transmittance
            first_weights = weights if first_weights is None else first_weights
            if not remaining or not bool((beta > learned).any()):
                break
            fresh = self.pdf_sampler(samples, march.growth(beta[:, None]) * transmittance, self.num_samples_eval)
            points = fresh.points()
            samples, order = merge(samples, fresh)
        samples = self.pdf_sampler(samples, weights, self.num_samples)
        new_points = samples.points()
        if self.num_samples_extra > 0:
            samples, _ = merge(samples, self.initial_sampler(rays, self.num_samples_extra))
        return SampledRays(samples, first_points, first_weights, new_points)

    def _safe_beta(self, deltas: Tensor) -> Tensor:
        """A beta [R] that bounds the error whatever the SDF (Lemma 2)."""
        return torch.sqrt(1.0 / (4.0 * math.log(self.eps + 1.0)) * (deltas**2).sum(-1))

    def _tightened(self, march: _March, density: LaplaceDensity, learned: Tensor, beta: Tensor) -> Tensor:
        """The learned beta [1] on rays where it will do, else the upper end after bisecting towards `beta`; [R]."""
        upper = torch.where(march.error(density, learned) <= self.eps, learned, beta)
        lower = learned.expand_as(upper)
        for _ in range(self.beta_iters):
            middle = (lower + upper) / 2.0
            error = march.error(density, middle[:, None])
            upper = torch.where(error <= self.eps, middle, upper)
            lower = torch.where(error > self.eps, middle, lower)
        return upper


def distance_bound(sdf: Tensor, deltas: Tensor) -> Tensor:
    """How near the surface can come to an interval, from the SDF at both its ends (Theorem 1); [R, S].

    The surface keeps out of two balls around the ends: 0 if the SDF changes sign, the smaller radius if one ball
    reaches far enough around the other's centre, else the height of the triangle with sides delta, |f0|, |f1|. The last
    interval, which has no right end, takes its neighbour's bound.
    """
    a, b, c = deltas[:, :-1], sdf[:, :-1].abs(), sdf[:, 1:].abs()
    half = (a + b + c) / 2.0
    height = 2.0 * torch.sqrt(half * (half - a) * (half - b) * (half - c)) / a
    bound = torch.where(b + c - a > 0, height, 0.0)
    bound = torch.where(a**2 + b**2 <= c**2, b, bound)
    bound = torch.where(a**2 + c**2 <= b**2, c, bound)
    bound = bound * (sdf[:, 1:].sign() * sdf[:, :-1].sign() == 1)
    return torch.cat((bound, bound[:, -1:]), -1)
