"""Samples along rays: evenly spaced, drawn from weights, and NeuS's and UNISURF's ways of combining the two.

Sampling is done without gradients, in the dtype of the rays' limits but for the SDF. Random numbers come from torch's
global generator, in PonderV2's order, shapes and dtype, so that one seed gives PonderV2's samples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ponder.render.ponderv2.opacity import LaplaceDensity, neus_weights, sampler_alpha
from ponder.render.ponderv2.rays import RayBundle, RaySamples, TensorMap, merge, merge_distances

# A ray's total weight is filled up to this, evenly, so that an empty ray is sampled evenly.
WEIGHT_FLOOR = 1e-5

# A smaller step of the distribution counts as flat: the new edge takes the old edge on its left.
FLAT_STEP = 1e-5

# UNISURF reads an SDF f as the occupancy sigmoid(-10 f).
OCCUPANCY_SHARPNESS = 10.0


class FieldQueries(NamedTuple):
    """What samplers may ask of a field: sdf maps points [R, S, 3] on the rays to [R, S]."""

    sdf: TensorMap
    density: LaplaceDensity


class SampledRays(NamedTuple):
    """Final samples and how they came about: first points [R, S0, 3] with weights [R, S0], later points [R, S1, 3]."""

    samples: RaySamples
    initial_points: Tensor | None = None
    initial_weights: Tensor | None = None
    new_points: Tensor | None = None


def _same(x: Tensor) -> Tensor:
    return x


def _piecewise(x: Tensor) -> Tensor:
    return torch.where(x < 1, x / 2, 1 - 1 / (2 * x))


def _piecewise_inverse(x: Tensor) -> Tensor:
    return torch.where(x < 0.5, 2 * x, 1 / (2 - 2 * x))


# Samples are even in f(distance): f and its inverse.
SPACINGS: dict[str, tuple[TensorMap, TensorMap]] = {
    "UniformSampler": (_same, _same),
    "LinearDisparitySampler": (torch.reciprocal, torch.reciprocal),
    "SqrtSampler": (torch.sqrt, torch.square),
    "LogSampler": (torch.log, torch.exp),
    "UniformLinDispPiecewiseSampler": (_piecewise, _piecewise_inverse),
}


class Jitter(NamedTuple):
    """Whether training jitters, and whether with one number per ray instead of one per edge."""

    stratified: bool
    single: bool

    def draw(self, rays: RayBundle, count: int) -> Tensor:
        """[R, count] or [R, 1] uniform numbers of the dtype of the rays."""
        like = rays.origins
        return torch.rand((len(like), 1 if self.single else count), dtype=like.dtype, device=like.device)


class SpacedSampler(nn.Module):
    """Even samples; in training each edge is drawn between the middles to its neighbours.

    Args:
        name: one of SPACINGS. With 1/x and log a near of 0, as on a missed ray, gives NaN.
        jitter: of training.
    """

    def __init__(self, name: str, jitter: Jitter) -> None:
        super().__init__()
        if name not in SPACINGS:
            raise ValueError(f"initial_sampler: expected one of {', '.join(SPACINGS)}, got {name!r}")
        self.spacing, self.inverse = SPACINGS[name]
        self.jitter = jitter

    def forward(self, rays: RayBundle, count: int) -> RaySamples:
        """`count` samples between the limits of the rays."""
        nears, fars = rays.limits()
        f_near, f_far = self.spacing(nears), self.spacing(fars)

        def to_distance(units: Tensor) -> Tensor:
            return self.inverse((1 - units).mul_(f_near).add_(units * f_far))

        units = torch.linspace(0.0, 1.0, count + 1, dtype=nears.dtype, device=nears.device)
        if self.jitter.stratified and self.training:
            middle = (units[1:] + units[:-1]) / 2.0
            lower, upper = torch.cat((units[:1], middle)), torch.cat((middle, units[-1:]))
            units = ((upper - lower) * self.jitter.draw(rays, count + 1)).add_(lower)
        else:
            units = units.expand(len(nears), -1)
        return RaySamples(rays, to_distance(units), units, to_distance)


class PDFSampler(nn.Module):
    """Edges drawn from the weights of other intervals (NeRF, Mildenhall et al. 2020, section 5.2)."""

    def __init__(self, jitter: Jitter) -> None:
        super().__init__()
        self.jitter = jitter

    def forward(self, samples: RaySamples, weights: Tensor, count: int) -> RaySamples:
        """`count` new intervals, for weights [R, S] of the old ones."""
        places = count + 1
        even = torch.linspace(0.0, 1.0 - 1.0 / places, places, dtype=weights.dtype, device=weights.device)
        if self.jitter.stratified and self.training:
            even = even + self.jitter.draw(samples.rays, places) / places
        else:
            even = (even + 1.0 / (2 * places)).expand(len(weights), -1)
        return samples.moved(invert_distribution(samples.known_units()[0], weights, even.contiguous()))


def invert_distribution(edges: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """Where the piecewise linear distribution of weights [R, S] over edges [R, S + 1] reaches `places` [R, K]: [R, K].

    PonderV2's rules: weights are filled up to a sum of 1e-5, and steps below 1e-5 are flat.
    """
    total = weights.sum(-1, keepdim=True)
    filling = torch.relu(WEIGHT_FLOOR - total)
    cdf = torch.cumsum((weights + filling / weights.shape[-1]) / (total + filling), -1).clamp_(max=1.0)
    cdf = nn.functional.pad(cdf, (1, 0))
    right = torch.searchsorted(cdf, places, right=True)
    last = edges.shape[-1] - 1
    left = (right - 1).clamp_(0, last)
    right.clamp_(0, last)
    below = cdf.gather(-1, left)
    step = cdf.gather(-1, right) - below
    fraction = ((places - below) / torch.where(step < FLAT_STEP, 1.0, step)).clip_(0, 1)
    start = edges.gather(-1, left)
    return start + fraction * (edges.gather(-1, right) - start)


class NeuSSampler(nn.Module):
    """Even samples, then more where a surface of fixed sharpness would be seen.

    Step k weighs the samples so far with sharpness ``base_variance * 2^k`` and draws an equal part of the importance
    samples. Random numbers of training: [R, num_samples + 1], then [R, new + 1] per step.

    Reference:
        Wang et al., NeuS, arXiv 2106.10689, section 3.2 (hierarchical sampling).
    """

    def __init__(
        self,
        initial_sampler: str,
        num_samples: int,
        num_samples_importance: int,
        num_upsample_steps: int,
        base_variance: float = 64.0,
        train_stratified: bool = True,
        single_jitter: bool = True,
    ) -> None:
        super().__init__()
        jitter = Jitter(train_stratified, single_jitter)
        self.num_samples, self.num_upsample_steps = num_samples, num_upsample_steps
        self.num_samples_importance, self.base_variance = num_samples_importance, base_variance
        self.initial_sampler, self.pdf_sampler = SpacedSampler(initial_sampler, jitter), PDFSampler(jitter)

    @torch.no_grad()
    def forward(self, rays: RayBundle, field: FieldQueries) -> SampledRays:
        """num_samples + num_samples_importance samples per ray."""
        samples = fresh = self.initial_sampler(rays, self.num_samples)
        points = [fresh.points()]
        sdf, order, first_weights = None, None, None
        for step in range(self.num_upsample_steps):
            # Starts survive a merge, so only the SDF at the new points is asked for.
            found = field.sdf(points[-1]).to(samples.edges.dtype)
            sdf = found if sdf is None or order is None else torch.cat((sdf, found), -1).gather(1, order)
            alpha = sampler_alpha(sdf, samples.deltas[:, :-1], self.base_variance * 2**step)
            weights = nn.functional.pad(neus_weights(alpha), (0, 1))
            first_weights = weights if step == 0 else first_weights
            fresh = self.pdf_sampler(samples, weights, self.num_samples_importance // self.num_upsample_steps)
            points.append(fresh.points())
            samples, order = merge(samples, fresh)
        if not self.num_upsample_steps:
            return SampledRays(samples)
        new = points[1] if len(points) == 2 else torch.cat(points[1:], 1)
        return SampledRays(samples, points[0], first_weights, new)


class UniSurfSampler(nn.Module):
    """Importance samples on the whole ray, even ones around the first surface (`delta` times its length each way).

    PonderV2 has this sampler, but none of its configurations can name it; here one can.

    Reference:
        Oechsle et al., UNISURF, arXiv 2104.10078, section 3.3.
    """

    def __init__(
        self,
        initial_sampler: str,
        num_samples_importance: int,
        num_marching_steps: int,
        num_samples_interval: int,
        delta: float,
        train_stratified: bool = True,
        single_jitter: bool = True,
    ) -> None:
        super().__init__()
        jitter = Jitter(train_stratified, single_jitter)
        self.num_samples_importance, self.num_marching_steps = num_samples_importance, num_marching_steps
        self.num_samples_interval, self.delta = num_samples_interval, delta
        self.initial_sampler, self.pdf_sampler = SpacedSampler(initial_sampler, jitter), PDFSampler(jitter)

    @torch.no_grad()
    def forward(self, rays: RayBundle, field: FieldQueries) -> SampledRays:
        """num_samples_interval + num_samples_importance samples per ray; `new_points` are all of them."""
        march = self.initial_sampler(rays, self.num_marching_steps)
        points = march.points()
        sdf = field.sdf(points).to(march.edges.dtype)
        weights = neus_weights(torch.sigmoid(-OCCUPANCY_SHARPNESS * sdf))
        drawn = self.pdf_sampler(march, weights, self.num_samples_importance)
        around = self.initial_sampler(self._narrowed(rays, sdf, march.starts), self.num_samples_interval)
        samples = merge_distances(around, drawn)
        return SampledRays(samples, points, weights, samples.points())

    def _narrowed(self, rays: RayBundle, sdf: Tensor, starts: Tensor) -> RayBundle:
        """Limits around the first change of sign where that goes from outside to inside, by linear interpolation."""
        nears, fars = rays.limits()
        crosses = sdf[:, :-1] * sdf[:, 1:] < 0
        first = crosses.int().argmax(-1, keepdim=True)
        f0, f1, t0, t1 = (x.gather(1, first + k) for x in (sdf, starts) for k in (0, 1))
        found = crosses.any(-1, keepdim=True) & (f0 > 0)
        depth = (f0 * t1 - f1 * t0) / torch.where(found, f0 - f1, 1.0)
        reach = (fars - nears) * self.delta
        return replace(
            rays,
            nears=torch.where(found, torch.maximum(depth - reach, nears), nears),
            fars=torch.where(found, torch.minimum(depth + reach, fars), fars),
        )
