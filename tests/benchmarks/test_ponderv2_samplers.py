"""Colliders and samplers of the PonderV2 baseline against hand-computed numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.ponderv2 import RayBundle
from benchmarks.baselines.ponderv2.colliders import AABBBoxCollider, NearFarCollider
from benchmarks.baselines.ponderv2.compositing import weights_from_alpha, weights_from_density
from benchmarks.baselines.ponderv2.density import LaplaceDensity, unisurf_occupancy
from benchmarks.baselines.ponderv2.rays import RaySamples, merge
from benchmarks.baselines.ponderv2.samplers import (
    SPACINGS,
    ErrorBoundedSampler,
    FieldQueries,
    NeuSSampler,
    PDFSampler,
    UniSurfSampler,
    spaced_sampler,
)
from benchmarks.baselines.ponderv2.samplers.error_bounded import distance_bound, error_bound, error_growth
from benchmarks.baselines.ponderv2.samplers.neus import fixed_sharpness_alpha
from benchmarks.baselines.ponderv2.samplers.pdf import resample_edges
from benchmarks.baselines.ponderv2.samplers.unisurf import first_surface
from tests.benchmarks.ponderv2_cases import (
    F64,
    close,
    limited,
    t,
)


def test_box_collider() -> None:
    origins = torch.tensor([[0.0, 0.0, 0.0], [-2.0, 0.5, 0.0], [-2.0, 3.0, 0.0], [0.99, 0.0, 0.0]], dtype=F64)
    directions = torch.tensor([[0.6, 0.8, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=F64)
    rays = AABBBoxCollider([-1, -1, -1, 1, 1, 1], 0.1)(RayBundle(origins, directions))
    nears, fars = rays.limits()
    # Inside: near plane. Through the box. Past it. Leaving it before the near plane.
    close(nears, t(0.1, 1.0 / 1.000001, 0.0, 0.0).T)
    close(fars, t(1.0 / 0.800001, 3.0 / 1.000001, 0.0, 0.0).T)
    assert AABBBoxCollider([5, 5, 5, 6, 6, 6], 0.1)(rays) is rays
    nears, fars = NearFarCollider(0.2, 3.0)(RayBundle(origins, directions)).limits()
    assert (nears == 0.2).all() and (fars == 3.0).all() and nears.shape == (4, 1)
    with pytest.raises(ValueError, match="6 numbers"):
        AABBBoxCollider([0, 1], 0.1)
    with pytest.raises(ValueError, match="collider"):
        spaced_sampler("UniformSampler", 4)(RayBundle(origins, directions))


EDGES: dict[str, Callable[[float], float]] = {
    "UniformSampler": lambda e: 0.5 + e * 3.5,
    "LinearDisparitySampler": lambda e: 1 / (e / 4.0 + (1 - e) / 0.5),
    "SqrtSampler": lambda e: (e * 2.0 + (1 - e) * math.sqrt(0.5)) ** 2,
    "LogSampler": lambda e: math.exp(e * math.log(4.0) + (1 - e) * math.log(0.5)),
    # 0.5 -> 1/4, 4 -> 7/8; below 1/2 a value stands for twice itself, above for a disparity.
    "UniformLinDispPiecewiseSampler": lambda e: (
        2 * (0.25 + e * 0.625) if 0.25 + e * 0.625 < 0.5 else 1 / (2 - 2 * (0.25 + e * 0.625))
    ),
}


@pytest.mark.parametrize("name", SPACINGS)
def test_spaced_edges(name: str) -> None:
    rays = limited(0.5, 4.0, rays=50)
    sampler = spaced_sampler(name, 4).eval()
    expected = t(*(EDGES[name](k / 4) for k in range(5)))
    samples = sampler(rays)
    close(samples.edges, expected.expand(50, 5))
    close(samples.deltas[..., 0], expected.diff().expand(50, 4))
    close(samples.positions()[0], F.pad(expected[0, :4, None], (2, 0)))
    assert sampler(rays, 7).starts.shape == (50, 7, 1)
    torch.manual_seed(0)
    drawn = sampler.train()(rays)
    torch.manual_seed(0)
    u = torch.rand(50, 5, dtype=F64)
    lower, upper = t(0.0, 0.125, 0.375, 0.625, 0.875), t(0.125, 0.375, 0.625, 0.875, 1.0)
    spacing, _ = drawn.units()
    close(spacing, lower + (upper - lower) * u)
    torch.manual_seed(0)
    spacing, _ = spaced_sampler(name, 4, single_jitter=True)(rays).units()
    torch.manual_seed(0)
    close(spacing, lower + (upper - lower) * torch.rand(50, 1, dtype=F64))
    assert torch.equal(spaced_sampler(name, 4, train_stratified=False)(rays).edges, samples.edges)
    with pytest.raises(ValueError, match="num_samples"):
        spaced_sampler(name)(rays)


def test_resampled_edges() -> None:
    edges = t(0.0, 0.25, 0.5, 1.0)
    places = t(0.0, 0.125, 0.25, 0.625, 1.0)
    # Masses 1/4, 3/4, 0: the distribution is 0, 1/4, 1, 1. The last place lies where it has become flat.
    close(resample_edges(edges, t(1.0, 3.0, 0.0), places), t(0.0, 0.125, 0.25, 0.375, 1.0))
    # One interval has everything.
    close(resample_edges(edges, t(0.0, 2.0, 0.0), t(0.1, 0.5, 0.9)), t(0.275, 0.375, 0.475))
    # A place on a stretch that is exactly flat goes to the stretch's right end, on one flatter than 1e-5 to its left.
    close(resample_edges(edges, t(1.0, 0.0, 1.0), t(0.5)), t(0.5))
    start = 1.0 / (2.0 + 1e-6)
    close(resample_edges(edges, t(1.0, 1e-6, 1.0), t(start + 2e-7)), t(0.25 + 2e-7 * 0.25))
    # A total of 4e-6 is padded to 1e-5 evenly over the intervals: masses 0.6, 0.2, 0.2. Of nothing each takes a third.
    close(resample_edges(edges, t(4e-6, 0.0, 0.0), t(0.3, 0.7, 0.9)), t(0.125, 0.375, 0.75))
    close(resample_edges(edges, t(0.0, 0.0, 0.0), t(1 / 6, 1 / 2, 5 / 6)), t(0.125, 0.375, 0.75))


def test_pdf_sampler_places() -> None:
    samples = spaced_sampler("UniformSampler", 4).eval()(limited(0.0, 2.0, rays=3))
    weights = torch.ones(3, 4, 1, dtype=F64, requires_grad=True)
    even = torch.arange(6, dtype=F64) / 6
    drawn = PDFSampler().eval()(samples, weights, 5)
    close(drawn.edges, (2 * (even + 1 / 12)).expand(3, 6))
    assert not drawn.edges.requires_grad
    for single in (False, True):
        torch.manual_seed(0)
        drawn = PDFSampler(single_jitter=single)(samples, weights, 5)
        torch.manual_seed(0)
        close(drawn.edges, 2 * (even + torch.rand(3, 1 if single else 6, dtype=F64) / 6))


def test_merge() -> None:
    rays = limited(0.0, 2.0)
    first = spaced_sampler("UniformSampler", 2).eval()(rays)  # edges 0, .5, 1 in its units
    second = first.replaced(t(0.25, 0.75, 0.9))
    merged, order = merge(first, second)
    close(merged.edges, 2 * t(0.0, 0.25, 0.5, 0.75, 1.0))
    assert order.tolist() == [[0, 2, 1, 3]]
    with pytest.raises(ValueError, match="merged by distance"):
        merge(first, RaySamples(first.origins, first.directions, first.edges))


def plane_queries(distance: float) -> FieldQueries:
    """SDF of the plane z = distance, seen from the origin."""
    return FieldQueries(lambda p: distance - p[..., 2:], unisurf_occupancy, LaplaceDensity(0.02).to(F64))


def test_neus_sampler_gathers_at_the_surface() -> None:
    sampler = NeuSSampler("UniformSampler", 32, 16, 2, single_jitter=False)
    for training in (False, True):
        found = sampler.train(training)(limited(0.1, 2.1, rays=4), plane_queries(1.3))
        assert found.samples.starts.shape == (4, 48, 1) and found.new_points is not None
        assert (found.samples.deltas >= 0).all()
        near = (found.new_points[..., 2] - 1.3).abs() < 0.15
        assert near.float().mean() > 0.9
    assert NeuSSampler("UniformSampler", 8, 4, 0)(limited(0.1, 2.1), plane_queries(1.3)).new_points is None


def test_neus_sampler_steps() -> None:
    """Sharpness 64, then 128 on the merged samples; the last sample has no interval and weight 0."""
    queries, pdf, rays = plane_queries(1.3), PDFSampler().eval(), limited(0.1, 2.1)
    found = NeuSSampler("UniformSampler", 8, 10, 2).eval()(rays, queries)
    samples, points = spaced_sampler("UniformSampler", 8).eval()(rays), []
    for inv_s in (64.0, 128.0):
        sdf = queries.sdf(samples.positions())[..., 0]
        alpha = fixed_sharpness_alpha(sdf, samples.deltas[:, :-1, 0], inv_s)
        weights = F.pad(weights_from_alpha(alpha[..., None]), (0, 0, 0, 1))
        if not points:
            close(found.initial_weights, weights)
            close(found.initial_points, samples.positions())
        fresh = pdf(samples, weights, 5)
        points.append(fresh.positions())
        samples, _ = merge(samples, fresh)
    close(found.new_points, torch.cat(points, 1))
    close(found.samples.edges, samples.edges)


def test_error_bounded_sampler() -> None:
    # Sides 3, 4, 5 are a right triangle: the ball of the longer leg's end decides. 0.5, 0.6, 0.7: Heron's height.
    s = 0.9
    height = 2 * math.sqrt(s * (s - 0.5) * (s - 0.6) * (s - 0.7)) / 0.5
    assert distance_bound(t(4.0, 5.0), t(3.0, 1.0)).tolist() == [[4.0, 4.0]]
    assert distance_bound(t(5.0, 4.0), t(3.0, 1.0)).tolist() == [[4.0, 4.0]]
    close(distance_bound(t(0.6, 0.7), t(0.5, 1.0)), t(height, height))
    # A change of sign, and balls that do not meet.
    assert distance_bound(t(0.6, -0.7), t(0.5, 1.0)).tolist() == [[0.0, 0.0]]
    assert distance_bound(t(0.1, 0.1), t(0.5, 1.0)).tolist() == [[0.0, 0.0]]
    beta, sdf, deltas, distance = 0.5, t(0.6, 0.2), t(0.4, 0.3), t(0.2, 0.2)
    density = LaplaceDensity(0.3).to(F64)
    errors = [math.exp(-0.2 / beta) * d * d / (4 * beta * beta) for d in (0.4, 0.3)]
    optical = 0.4 * density(t(0.6), torch.tensor([beta], dtype=F64)).item()
    largest = max(math.exp(errors[0]) - 1, (math.exp(sum(errors)) - 1) * math.exp(-optical))
    close(
        error_bound(density, torch.tensor([[beta]], dtype=F64), sdf, distance, deltas),
        torch.tensor([largest], dtype=F64),
    )

    sampler = ErrorBoundedSampler("UniformSampler")
    safe = sampler._safe_beta(torch.full((1, 4), 0.5, dtype=F64))
    close(safe, torch.sqrt(torch.tensor([4 * 0.25 / (4 * math.log(1.1))], dtype=F64)))
    queries, rays, asked = plane_queries(1.3), limited(0.1, 2.1), []
    samples = spaced_sampler("UniformSampler", 128).eval()(rays)
    sdf, deltas = queries.sdf(samples.positions())[..., 0], samples.deltas[..., 0]
    args = (sdf, distance_bound(sdf, deltas), deltas)
    beta = sampler._tightened_beta(queries.density, queries.density.get_beta(), sampler._safe_beta(deltas), *args)
    # The smallest beta that keeps the error, up to what ten halvings leave open.
    assert error_bound(queries.density, beta[:, None], *args) <= 0.1
    assert error_bound(queries.density, 0.99 * beta[:, None], *args) > 0.1
    _, transmittance = weights_from_density(queries.density(sdf, beta[:, None])[..., None], samples.deltas)
    second = PDFSampler().eval()(samples, error_growth(args[1], deltas, beta[:, None])[..., None] * transmittance, 128)

    def spy(points: Tensor) -> Tensor:
        asked.append(points)
        return queries.sdf(points)

    found = sampler.eval()(rays, queries._replace(sdf=spy))
    close(asked[0], samples.positions())
    close(asked[1], second.positions())
    for training in (False, True):
        found = sampler.train(training)(limited(0.1, 2.1, rays=4), queries)
        assert found.samples.starts.shape == (4, 96, 1) and found.new_points is not None
        assert ((found.new_points[..., 2] - 1.3).abs() < 0.2).double().mean() > 0.9


def test_unisurf_sampler() -> None:
    starts = t(0.0, 1.0, 2.0, 3.0)
    sdf = torch.cat((t(0.5, 0.3, -0.1, 0.2), t(-0.5, 0.5, -0.5, -0.5), t(0.5, 0.4, 0.3, 0.2)))
    depth, found = first_surface(sdf, starts.expand(3, 4))
    assert found.tolist() == [[True], [False], [False]]
    close(depth[0], torch.tensor([(0.3 * 2.0 + 0.1 * 1.0) / 0.4], dtype=F64))
    sampler = UniSurfSampler("UniformSampler", 6, 32, 10, delta=0.05).eval()
    samples = sampler(limited(0.1, 2.1, rays=2), plane_queries(1.3)).samples
    close(samples.edges[0], samples.edges[0].sort().values)
    # Ten starts on [1.2, 1.3) and [1.3, 1.4), beside those drawn from the weights.
    within = (samples.starts[0, :, 0] >= 1.2 - 1e-9) & (samples.starts[0, :, 0] < 1.4)
    assert samples.starts.shape == (2, 16, 1) and within.sum() >= 10
