"""VolSDF's ray sampler: add samples until the error of the opacity is bounded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.baselines.ponderv2.compositing import exclusive_sum, weights_from_density
from benchmarks.baselines.ponderv2.density import LaplaceDensity
from benchmarks.baselines.ponderv2.rays import RayBundle, merge
from benchmarks.baselines.ponderv2.samplers.pdf import PDFSampler
from benchmarks.baselines.ponderv2.samplers.queries import FieldQueries, SampledRays
from benchmarks.baselines.ponderv2.samplers.spaced import spaced_sampler

# The bound grows exponentially with the error's integral; beyond this it only says "too much".
LARGEST_GROWTH = 1e6


class ErrorBoundedSampler(nn.Module):
    """Algorithm 1 of VolSDF (Yariv et al. 2021).

    Per ray, find the smallest beta between the learned one and a safe one (Lemma 2) whose opacity error is bounded by
    `eps` on the samples so far (Theorem 1). While any ray's beta is above the learned one, draw more samples where the
    error is; in the end draw the final ones from the weights and mix in evenly spaced ones.

    Random numbers in training: the `num_samples_eval` initial edges, each resampling in turn, then the extra samples.

    Args:
        initial_sampler: name of a spaced sampler.
        num_samples: drawn from the final weights.
        num_samples_eval: initial samples, and samples added per iteration.
        num_samples_extra: evenly spaced samples merged in at the end.
        eps: error bound.
        beta_iters: bisection steps.
        max_total_iters: iterations of the algorithm.
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
        self.num_samples = num_samples
        self.num_samples_eval = num_samples_eval
        self.num_samples_extra = num_samples_extra
        self.eps = eps
        self.beta_iters = beta_iters
        self.max_total_iters = max_total_iters
        self.initial_sampler = spaced_sampler(initial_sampler, None, train_stratified, single_jitter)
        self.pdf_sampler = PDFSampler(train_stratified, single_jitter)

    def forward(self, rays: RayBundle, field: FieldQueries) -> SampledRays:
        """num_samples + num_samples_extra samples per ray."""
        learned = field.density.get_beta().detach()
        samples = fresh = self.initial_sampler(rays, self.num_samples_eval)
        beta = self._safe_beta(samples.deltas[..., 0])
        sdf = order = initial_points = initial_weights = new_points = None
        for iteration in range(1, self.max_total_iters + 1):
            with torch.no_grad():
                fresh_sdf = field.sdf(fresh.positions())[..., 0]
            sdf = fresh_sdf if sdf is None or order is None else torch.cat((sdf, fresh_sdf), -1).gather(1, order)
            deltas = samples.deltas[..., 0]
            distance = distance_bound(sdf, deltas)
            beta = self._tightened_beta(field.density, learned, beta, sdf, distance, deltas)
            density = field.density(sdf, beta[:, None])
            weights, transmittance = weights_from_density(density[..., None], samples.deltas)
            if iteration == 1:
                initial_points, initial_weights = fresh.positions(), weights
            if iteration == self.max_total_iters or not bool(beta.max() > learned):
                samples = self.pdf_sampler(samples, weights, self.num_samples)
                new_points = samples.positions()
                break
            growth = error_growth(distance, deltas, beta[:, None])
            fresh = self.pdf_sampler(samples, growth[..., None] * transmittance, self.num_samples_eval)
            samples, order = merge(samples, fresh)
        if self.num_samples_extra > 0:
            samples, _ = merge(samples, self.initial_sampler(rays, self.num_samples_extra))
        return SampledRays(samples, initial_points, initial_weights, new_points)

    def _safe_beta(self, deltas: Tensor) -> Tensor:
        """A beta [R] for which the error is bounded whatever the SDF (Lemma 2), from lengths [R, S]."""
        factor = 1.0 / (4.0 * torch.log(deltas.new_tensor(self.eps + 1.0)))
        return torch.sqrt(factor * (deltas**2.0).sum(-1))

    def _tightened_beta(
        self, density: LaplaceDensity, learned: Tensor, beta: Tensor, sdf: Tensor, distance: Tensor, deltas: Tensor
    ) -> Tensor:
        """The learned beta [1] where it will do, else the upper end after bisecting towards `beta`; [R]."""
        enough = error_bound(density, learned, sdf, distance, deltas) <= self.eps
        upper = torch.where(enough, learned, beta)
        lower = learned.expand_as(upper)
        for _ in range(self.beta_iters):
            middle = (lower + upper) / 2.0
            error = error_bound(density, middle[:, None], sdf, distance, deltas)
            upper = torch.where(error <= self.eps, middle, upper)
            lower = torch.where(error > self.eps, middle, lower)
        return upper


def distance_bound(sdf: Tensor, deltas: Tensor) -> Tensor:
    """d*: how near the surface can come to an interval, from the SDF at both its ends (Theorem 1).

    The surface keeps out of two balls around the ends. If the SDF changes sign the bound is 0; if one ball holds the
    other's centre far enough, it is the smaller radius; else the height of the triangle with sides delta, |f0|, |f1|.
    The last interval, which has no right end, takes its neighbour's bound.

    Args:
        sdf, deltas: [R, S].

    Returns:
        [R, S].
    """
    a, b, c = deltas[:, :-1], sdf[:, :-1].abs(), sdf[:, 1:].abs()
    left_only = a**2 + b**2 <= c**2
    right_only = a**2 + c**2 <= b**2
    s = (a + b + c) / 2.0
    height = 2.0 * torch.sqrt(s * (s - a) * (s - b) * (s - c)) / a
    bound = torch.where(b + c - a > 0, height, 0.0)
    bound = torch.where(right_only, c, torch.where(left_only, b, bound))
    bound = bound * (sdf[:, 1:].sign() * sdf[:, :-1].sign() == 1)
    return torch.cat((bound, bound[:, -1:]), -1)


def error_growth(distance: Tensor, deltas: Tensor, beta: Tensor) -> Tensor:
    """``min(exp(E), 1e6) - 1``, E the running sum of ``exp(-d*/beta) delta^2 / (4 beta^2)``; [R, S]."""
    error = torch.exp(-distance / beta) * (deltas**2.0) / (4 * beta**2)
    return torch.clamp(torch.exp(torch.cumsum(error, -1)), max=LARGEST_GROWTH) - 1.0


def error_bound(density: LaplaceDensity, beta: Tensor, sdf: Tensor, distance: Tensor, deltas: Tensor) -> Tensor:
    """Largest opacity error on each ray under `beta`, [R] (VolSDF, Theorem 1)."""
    transmittance = torch.exp(-exclusive_sum(deltas * density(sdf, beta)))
    return (error_growth(distance, deltas, beta) * transmittance).amax(-1)
