"""PonderV2's renderer as a baseline: its parts against hand-computed numbers, and the whole of it.

Agreement with PonderV2's own modules (outputs and losses bit for bit) was established outside the repository; these
tests keep the parts where they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.ponderv2 import RayBundle, SurfaceModel, build_renderer, configs, torch_trilinear
from benchmarks.baselines.ponderv2.colliders import AABBBoxCollider, NearFarCollider
from benchmarks.baselines.ponderv2.compositing import expected_depth, weights_from_alpha, weights_from_density
from benchmarks.baselines.ponderv2.density import LaplaceDensity, neus_alpha, unisurf_occupancy
from benchmarks.baselines.ponderv2.field import FieldOutput, normalise
from benchmarks.baselines.ponderv2.losses import LossConfig, compute_losses, semantic_loss
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

F64 = torch.float64
RAYS = 6


def t(*values: float) -> Tensor:
    """One row, float64."""
    return torch.tensor([values], dtype=F64)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=atol)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def bundle(dtype: torch.dtype = F64, miss: bool = True) -> RayBundle:
    """Rays from inside the indoor cube; the last one starts outside and looks away."""
    g = torch.Generator().manual_seed(0)
    origins = torch.rand(RAYS, 3, generator=g, dtype=F64) * 0.8 - 0.4
    directions = F.normalize(torch.randn(RAYS, 3, generator=g, dtype=F64), dim=-1)
    if miss:
        origins[-1], directions[-1] = torch.tensor([2.0, 2.0, 2.0]), F.normalize(torch.ones(3, dtype=F64), dim=0)
    return RayBundle(origins.to(dtype), directions.to(dtype))


def volumes(channels: int, dtype: torch.dtype = F64, count: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(channels, 4, 5, 6, generator=g, dtype=F64).to(dtype).requires_grad_() for _ in range(count)]


def targets(dtype: torch.dtype = F64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(2)
    semantic = F.normalize(torch.randn(RAYS, 512, generator=g, dtype=F64), dim=-1)
    semantic[1] = 0.0
    depth = torch.linspace(0.1, 0.4, RAYS, dtype=F64)[:, None]
    depth[-1] = -0.001
    rgb = torch.rand(RAYS, 3, generator=g, dtype=F64)
    return {"depth": depth.to(dtype), "rgb": rgb.to(dtype), "semantic": semantic.to(dtype)}


def without(cfg: dict[str, Any], *outputs: str) -> dict[str, Any]:
    cfg = copy.deepcopy(cfg)
    for name in outputs:
        del cfg["field"][f"{name}_decoder"], cfg["loss"]["weights"][f"{name}_loss"]
    return cfg


def model(cfg: dict[str, Any], dtype: torch.dtype = F64, **kwargs: Any) -> SurfaceModel:
    torch.manual_seed(3)
    return build_renderer(cfg, **kwargs).to(dtype)


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum((v for k, v in losses.items() if "loss" in k), torch.zeros(())).sum()


CASES = {
    "indoor": (configs.indoor(), 128, 132, 96, 36),
    "indoor without rgb": (without(configs.indoor(), "rgb"), 128, 132, 96, 36),
    "indoor without both": (without(configs.indoor(), "rgb", "semantic"), 128, 132, 96, 36),
    "outdoor": (configs.outdoor(rgb=True, semantic=True), 32, 96, 72, 24),
    "volsdf": (configs.volsdf(configs.indoor()), 128, 96, 128, 64),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name: str, dtype: torch.dtype, training: bool) -> None:
    """Keys and shapes of the output; everything finite, also the gradients and also on a ray that misses the box."""
    cfg, channels, samples, first, new = CASES[name]
    renderer = model(cfg, dtype).train(training)
    grids = volumes(channels, dtype)
    out = renderer(bundle(dtype), grids)
    shapes = {
        "rgb": (3,), "semantic": (512,), "depth": (1,), "normal": (3,),
        "weights": (samples, 1), "sdf": (samples, 1), "gradients": (samples, 3), "z_vals": (samples, 1),
        "sampled_points": (samples, 3), "init_sampled_points": (first, 3), "init_weights": (first, 1),
        "new_sampled_points": (new, 3),
    }  # fmt: skip
    shapes = {k: v for k, v in shapes.items() if f"{k}_decoder" in cfg["field"] or k not in ("rgb", "semantic")}
    assert {k: tuple(v.shape) for k, v in out.items()} == {k: (RAYS, *v) for k, v in shapes.items()}
    assert all(v.dtype == dtype and torch.isfinite(v).all() for v in out.values())
    losses = renderer.get_loss(out, targets(dtype))
    assert set(losses) == set(cfg["loss"]["weights"]) | ({"psnr"} if "rgb" in shapes else set())
    total(losses).backward()
    assert grids[0].grad is not None and torch.isfinite(grids[0].grad).all() and grids[0].grad.any()
    assert all(torch.isfinite(p.grad).all() for p in renderer.parameters() if p.grad is not None)
    if not training and "rgb" in shapes:
        assert out["rgb"].min() >= 0 and out["rgb"].max() <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["indoor", "volsdf"])
def test_gpu_agrees_with_the_cpu(name: str) -> None:
    cfg, channels, *_ = CASES[name]
    losses, grads = [], []
    for device in ("cpu", "cuda"):
        renderer = model(cfg).eval().to(device)
        grid = volumes(channels)[0].detach().to(device).requires_grad_()
        rays = RayBundle(bundle().origins.to(device), bundle().directions.to(device))
        goal = {k: v.to(device) for k, v in targets().items()}
        losses.append(total(renderer.get_loss(renderer(rays, [grid]), goal)))
        (grad,) = torch.autograd.grad(losses[-1], grid)
        grads.append(grad.cpu())
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-8)


def test_colour_is_clamped_in_evaluation_only() -> None:
    rays = bundle()
    samples = RaySamples(rays.origins, rays.directions, torch.linspace(0, 1, 3, dtype=F64).expand(RAYS, 3))
    ones = torch.ones(RAYS, 2, 3, dtype=F64)
    out = FieldOutput(ones[..., :1], ones, ones, 2 * ones, None)
    renderer = model(configs.indoor())
    for training, expected in ((True, 4.0), (False, 1.0)):
        assert (renderer.train(training)._images(samples, out, ones[..., :1])["rgb"] == expected).all()


def test_missed_ray_is_black_and_at_distance_zero() -> None:
    out = model(configs.indoor()).eval()(bundle(), volumes(128))
    assert (out["z_vals"][-1] == 0).all() and out["depth"][-1] == 0
    close(out["sampled_points"][-1], bundle().origins[-1].expand(132, 3))


def test_parameters_are_those_of_ponderv2() -> None:
    renderer = model(configs.indoor(), torch.float32)
    linear = {
        "sdf_decoder": {
            "lin0": (128, 128), "lin1": (65, 128), "fc_c.0": (128, 64), "fc_c.1": (128, 64), "fc_p": (128, 3),
        },
        "rgb_decoder": {"lin0": (3, 128), "fc_p": (128, 3), "fc_c.0": (128, 134)},
        "semantic_decoder": {"lin0": (512, 128), "fc_p": (128, 3), "fc_c.0": (128, 131)},
    }  # fmt: skip
    expected: dict[str, tuple[int, ...]] = {}
    for decoder, layers in linear.items():
        for layer, shape in layers.items():
            expected[f"field.{decoder}.{layer}.weight"] = shape
            expected[f"field.{decoder}.{layer}.bias"] = shape[:1]
    for scalar in ("laplace_density.beta_min", "laplace_density.beta", "deviation_network.variance"):
        expected[f"field.{scalar}"] = (1,)
    # The order too: it is the order of an optimiser's state.
    assert [(k, tuple(v.shape)) for k, v in renderer.state_dict().items()] == list(expected.items())
    assert sum(v.numel() for v in renderer.state_dict().values()) == 143_687
    assert [k for k, p in renderer.named_parameters() if not p.requires_grad] == ["field.laplace_density.beta_min"]


def test_which_parameters_have_gradients() -> None:
    for cfg, idle in (
        (configs.indoor(), "field.laplace_density.beta"),
        (configs.volsdf(configs.indoor()), "field.deviation_network.variance"),
    ):
        renderer = model(cfg)
        total(renderer.get_loss(renderer(bundle(), volumes(128)), targets())).backward()
        grads = {k: p.grad for k, p in renderer.named_parameters() if p.requires_grad}
        assert [k for k, g in grads.items() if g is None] == [idle]
        # The points reach the indoor decoders with factor 0: zeros, not nothing.
        assert not any(g.any() for k, g in grads.items() if g is not None and "fc_p" in k)


def test_evaluation_is_deterministic_and_training_follows_the_seed() -> None:
    renderer = model(configs.indoor(), torch.float32)
    rays, grids = bundle(torch.float32), volumes(128, torch.float32)
    for training in (False, True):
        renderer.train(training)
        torch.manual_seed(4)
        a = renderer(rays, grids)
        state = torch.get_rng_state()
        if not training:
            torch.manual_seed(5)
        else:
            torch.manual_seed(4)
            torch.rand(RAYS, 97), torch.rand(RAYS, 37)  # the initial edges, then the resampled ones
            assert torch.equal(state, torch.get_rng_state())
            torch.manual_seed(4)
        b = renderer(rays, grids)
        assert all(torch.equal(a[k], b[k]) for k in a)
    torch.manual_seed(5)
    assert not torch.equal(renderer(rays, grids)["z_vals"], a["z_vals"])


def test_sdf_gradient_and_its_derivative_match_finite_differences() -> None:
    """Gradient in the coordinates the volume is read at; derivative of the eikonal loss, which is of second order."""
    renderer = model(configs.indoor())
    field, grids = renderer.field, volumes(128)
    edges = torch.linspace(0.013, 0.31, 4, dtype=F64).expand(RAYS - 1, 4)
    rays = bundle(miss=False)
    samples = RaySamples(rays.origins[:-1], rays.directions[:-1], edges)
    out = field(samples, grids)
    q, step = normalise(samples.positions(), 0.1), 1e-6
    for axis in range(3):
        shift = torch.zeros(3, dtype=F64)
        shift[axis] = step
        ahead, behind = (field.get_sdf(q + sign * shift, grids)[0][..., 0] for sign in (1, -1))
        close(out.gradients[..., axis], (ahead - behind) / (2 * step), atol=1e-6)

    def eikonal() -> Tensor:
        return (field(samples, grids).gradients.norm(dim=-1) - 1).square().mean()

    direction = torch.randn_like(grids[0])
    (grad,) = torch.autograd.grad(eikonal(), grids[0])
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            moved = grids[0] + sign * step * direction
            gradients = field(samples, [moved]).gradients
            values.append((gradients.norm(dim=-1) - 1).square().mean())
    close((grad * direction).sum(), (values[0] - values[1]) / (2 * step), atol=1e-7)


def test_torch_trilinear_is_differentiable_twice() -> None:
    volume = torch.randn(1, 2, 2, 3, 3, dtype=F64, requires_grad=True)
    points = (torch.rand(1, 3, 3, dtype=F64) * 2.4 - 1.2).requires_grad_()
    assert torch.autograd.gradcheck(torch_trilinear, (volume, points))
    assert torch.autograd.gradgradcheck(torch_trilinear, (volume, points))
    corner = torch_trilinear(volume, t(-1.0, 1.0, -1.0)[None])
    close(corner[0, 0], volume[0, :, 0, 2, 0])


def test_samplers_see_raw_positions_and_the_field_normalised_ones() -> None:
    """PonderV2's quirk: only the final evaluation normalises the points."""
    seen: list[Tensor] = []

    def spy(volume: Tensor, points: Tensor) -> Tensor:
        seen.append(points.detach().clone())
        return torch_trilinear(volume, points)

    out = model(configs.indoor(), trilinear=spy).eval()(bundle(), volumes(128))
    assert [p.shape for p in seen] == [(1, RAYS * 96, 3), (1, RAYS * 132, 3)]
    close(seen[0], out["init_sampled_points"].reshape(1, -1, 3) * 2 - 1)
    close(seen[1], normalise(out["sampled_points"], 0.1).reshape(1, -1, 3) * 2 - 1)


def test_several_volumes_keep_their_halves_together() -> None:
    field = model(configs.indoor()).field
    grids = volumes(64, count=2)
    features = field.features(torch.rand(2, 3, 3, dtype=F64), grids)
    single = [field.features(torch.zeros(1, 1, 3, dtype=F64), [g])[0, 0] for g in grids]
    both = field.features(torch.zeros(1, 1, 3, dtype=F64), grids)[0, 0]
    assert features.shape == (2, 3, 128)
    close(both, torch.cat((single[0][:32], single[1][:32], single[0][32:], single[1][32:])))
    with pytest.raises(TypeError, match="list of volumes"):
        field.features(torch.zeros(1, 1, 3), grids[0])  # type: ignore[arg-type]


def test_decoders_and_what_they_read() -> None:
    """One hidden layer under the SDF, none under the others, each fed as the indoor configuration says."""

    def affine(x: Tensor, layer: str) -> Tensor:
        return F.linear(x, p[f"{layer}.weight"], p[f"{layer}.bias"])

    renderer, grids = model(configs.indoor()), volumes(128)
    field, p = renderer.field, renderer.field.state_dict()
    rays = bundle(miss=False)
    samples = RaySamples(rays.origins, rays.directions, torch.linspace(0, 0.3, 4, dtype=F64).expand(RAYS, 4))
    out = field(samples, grids)
    features = field.features(normalise(samples.positions(), 0.1), grids)
    first, second = features[..., :64], features[..., 64:]
    hidden = affine(affine(first, "sdf_decoder.fc_c.0"), "sdf_decoder.lin0")
    hidden = torch.log1p(torch.exp(100 * hidden)) / 100
    sdf = affine(hidden + affine(first, "sdf_decoder.fc_c.1"), "sdf_decoder.lin1")
    # Beyond an argument of 20 torch's softplus is the identity.
    close(out.sdf, sdf[..., :1], atol=1e-9)
    inputs = torch.cat((out.gradients, second, sdf[..., 1:], rays.directions[:, None].expand(RAYS, 3, 3)), -1)
    rgb = torch.sigmoid(affine(affine(inputs, "rgb_decoder.fc_c.0"), "rgb_decoder.lin0"))
    semantic = affine(affine(inputs[..., :-3], "semantic_decoder.fc_c.0"), "semantic_decoder.lin0")
    assert out.rgb is not None and out.semantic is not None
    close(out.rgb, rgb, atol=1e-9)
    close(out.semantic, semantic, atol=1e-9)
    close(out.normals, out.gradients / out.gradients.norm(dim=-1, keepdim=True))


def test_points_reach_the_decoders_of_the_outdoor_configuration() -> None:
    renderer, grids = model(configs.outdoor(rgb=True)), volumes(32)
    points = torch.rand(2, 3, 3, dtype=F64)
    for decoder, width in ((renderer.field.sdf_decoder, 32), (renderer.field.rgb_decoder, 54)):
        assert decoder is not None
        features = torch.rand(2, 3, width, dtype=F64)
        assert not torch.equal(decoder(points, features), decoder(points + 0.1, features))
    assert renderer.field.get_sdf(points, grids)[2].shape == (2, 3, 32)


def test_normalise() -> None:
    close(normalise(t(0.0, 0.55, -0.55, 0.6, -0.6), 0.1), t(0.5, 0.55 / 1.101 + 0.5, 0.5 - 0.55 / 1.101, 0.999, 0.0))


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


def limited(near: float, far: float, rays: int = 1) -> RayBundle:
    """Rays along z from the origin."""
    direction = torch.tensor([[0.0, 0.0, 1.0]], dtype=F64).expand(rays, 3)
    ones = torch.ones(rays, 1, dtype=F64)
    return RayBundle(torch.zeros(rays, 3, dtype=F64), direction, near * ones, far * ones)


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


def test_weights_and_depth() -> None:
    alpha = t(0.5, 1.0, 0.25)[..., None]
    close(weights_from_alpha(alpha)[..., 0], t(0.5, 0.5 + 1e-7, 0.25 * (0.5 + 1e-7) * 1e-7))
    weights, transmittance = weights_from_density(t(1.0, 2.0, 3.0)[..., None], t(0.5, 0.25, 1.0)[..., None])
    close(transmittance[..., 0], t(1.0, math.exp(-0.5), math.exp(-1.0)))
    close(weights[..., 0], t(1 - math.exp(-0.5), math.exp(-0.5) - math.exp(-1.0), math.exp(-1.0) - math.exp(-4.0)))
    starts = torch.cat((t(1.0, 2.0, 4.0), t(3.0, 5.0, 6.0)))[..., None]
    w = torch.cat((t(0.2, 0.0, 0.2), t(0.0, 0.0, 0.0)))[..., None]
    # An empty ray's 0 is lifted to the smallest start of the whole call.
    close(expected_depth(starts, w), t(1.0 / (0.4 + 1e-10), 1.0).T)


def test_alpha_by_hand() -> None:
    f, cosine, delta, inv_s = 0.05, -0.8, 0.1, 20.0
    before, after = sigmoid(inv_s * (f + 0.04)), sigmoid(inv_s * (f - 0.04))
    args = (t(f)[..., None], t(cosine)[..., None], t(delta)[..., None], torch.tensor([inv_s], dtype=F64))
    close(neus_alpha(*args), t((before - after + 1e-5) / (before + 1e-5))[..., None])
    # Looking away from the surface only the epsilon is left.
    away = neus_alpha(args[0], -args[1], *args[2:])
    close(away, t(1e-5 / (sigmoid(inv_s * f) + 1e-5))[..., None])

    sdf, deltas = t(0.3, 0.1, -0.2, -0.1), t(0.2, 0.3, 0.1)
    slopes = [-0.2 / 0.20001, -0.3 / 0.30001, 0.1 / 0.10001]
    used = [min(0.0, slopes[0]), min(slopes[0], slopes[1]), min(slopes[1], slopes[2])]
    expected = []
    for middle, slope, d in zip([0.2, -0.05, -0.15], used, [0.2, 0.3, 0.1], strict=True):
        before, after = (sigmoid(64 * (middle - sign * slope * d / 2)) for sign in (1, -1))
        expected.append((before - after + 1e-5) / (before + 1e-5))
    close(fixed_sharpness_alpha(sdf, deltas, 64.0), t(*expected))

    laplace = LaplaceDensity(0.3).to(F64)
    beta = laplace.get_beta().item()
    assert beta == pytest.approx(0.3001, abs=1e-7)
    inside, outside = (1 - 0.5 * math.exp(-0.2 / beta)) / beta, 0.5 * math.exp(-0.2 / beta) / beta
    close(laplace(t(-0.2, 0.0, 0.2)), t(inside, 0.5 / beta, outside))


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


def test_losses_by_hand() -> None:
    weights = {n: 2.0 for n in ("depth_loss", "rgb_loss", "free_space_loss", "sdf_loss", "eikonal_loss")}
    config = LossConfig(0.1, weights | {"sparse_points_sdf_loss": 3.0, "semantic_loss": 0.0})
    preds = {
        "depth": t(1.2, 0.4).T,
        "rgb": torch.cat((t(0.1, 0.2, 0.3), t(0.4, 0.5, 0.6))),
        "sdf": torch.cat((t(0.05, 0.5, -0.03, -0.7), t(1.0, 1.0, 1.0, 1.0)))[..., None],
        "z_vals": torch.cat((t(0.5, 0.8, 1.05, 1.5), t(0.0, 1.0, 2.0, 3.0)))[..., None],
        "gradients": torch.cat((t(3.0, 4.0, 0.0), t(0.0, 0.0, 0.5)))[:, None],
        "sparse_points_sdf": t(0.5, -1.5).T,
    }
    goal = {"depth": t(1.0, -0.001).T, "rgb": torch.zeros(2, 3, dtype=F64)}
    losses = {k: float(v) for k, v in compute_losses(preds, goal, config, training=True).items()}
    mse = (0.01 + 0.04 + 0.09 + 0.16 + 0.25 + 0.36) / 6
    expected = {
        "depth_loss": 2 * 0.2,
        "rgb_loss": 2 * 2.1 / 6,
        "psnr": -10 * math.log10(mse),
        # Starts 0.5 and 0.8 lie before 1 - 0.1; 1.05 within; 1.5 behind. The second ray has no depth.
        "free_space_loss": 2 * (0.05 + 0.0) / 2,
        "sdf_loss": 2 * abs(1.05 - 0.03 - 1.0),
        "eikonal_loss": 2 * (16.0 + 0.25) / 2,
        "sparse_points_sdf_loss": 3.0,
    }
    assert losses == pytest.approx(expected, rel=1e-12)


def test_semantic_loss_contrasts_every_ray_with_every_other() -> None:
    g = torch.Generator().manual_seed(0)
    pred, goal = torch.randn(5, 3, generator=g, dtype=F64), torch.randn(5, 3, generator=g, dtype=F64)
    goal[2], goal[4] = 0.0, goal[0]
    valid = torch.tensor([True, True, True, False, True])

    def by_loop(rows: range) -> float:
        terms = []
        for i in rows:
            p = pred[i] / pred[i].norm()
            logits = [float(p @ goal[j]) / 0.1 for j in rows]
            if valid[i] and goal[i].any():
                terms.append(math.log(sum(map(math.exp, logits))) - logits[i - rows.start])
        return sum(terms) / len(terms) if terms else 0.0

    assert float(semantic_loss(pred, goal, valid, 0.1, 5, True)) == pytest.approx(by_loop(range(5)), rel=1e-12)
    chunks = [by_loop(range(0, 2)), by_loop(range(2, 4)), by_loop(range(4, 5))]
    assert float(semantic_loss(pred, goal, valid, 0.1, 2, False)) == pytest.approx(sum(chunks) / 3, rel=1e-12)
    assert semantic_loss(pred, torch.zeros_like(goal), valid, 0.1, 5, True).tolist() == [0.0]


def test_sparse_points_loss_needs_points() -> None:
    cfg = configs.indoor()
    cfg["loss"]["weights"]["sparse_points_sdf_loss"] = 1.0
    renderer, grids = model(cfg), volumes(128)
    assert renderer(bundle(), grids, points=torch.rand(7, 3, dtype=F64))["sparse_points_sdf"].shape == (7, 1)
    with pytest.raises(ValueError, match="no points"):
        renderer(bundle(), grids)


def test_ponderv2_spelling_of_a_configuration_is_accepted() -> None:
    cfg = configs.indoor()
    cfg["field"]["sdf_decoder"]["pos_enc"] = False
    cfg["collider"]["bbox"] = tuple(cfg["collider"]["bbox"])
    before = copy.deepcopy(cfg)
    build_renderer(cfg)
    assert cfg == before


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("type", "NeRF", "renderer type is 'NeRF'; known: NeuSModel, VolSDFModel"),
        ("type", None, "renderer has no type"),
        ("field", None, r"renderer lacks \['field'\]"),
        ("extra", 1, r"renderer has unknown keys \['extra'\]"),
        ("type", "VolSDFModel", None),
        ("sampler.type", "ErrorBoundedSampler", "NeuSModel cannot use ErrorBoundedSampler"),
        ("sampler.type", "UniformSampler", "sampler type is 'UniformSampler'"),
        ("sampler.initial_sampler", "Even", "initial_sampler is 'Even'; known: UniformSampler"),
        ("sampler.num_samples", None, r"sampler lacks \['num_samples'\]"),
        ("collider.type", "Sphere", "collider type is 'Sphere'"),
        ("field.padding_mode", "border", "padding_mode must be 'zeros', got 'border'"),
        ("field.volume_type", "triplane", "volume_type must be 'default'"),
        ("field.sdf_decoder", None, r"field lacks \['sdf_decoder'\]"),
        ("field.sdf_decoder.in_dim", None, r"field.sdf_decoder lacks \['in_dim'\]"),
        ("field.rgb_decoder.width", 3, r"field.rgb_decoder has unknown keys \['width'\]"),
        ("field.rgb_decoder", None, "rgb_loss is on but the field has no rgb_decoder"),
        ("loss.temperature", None, "semantic_loss needs a temperature"),
        ("loss.weights.chamfer_loss", 1.0, r"unknown losses \['chamfer_loss'\]"),
        ("loss.sensor_depth_truncation", None, "loss lacks"),
    ],
)
def test_configuration_errors(path: str, value: Any, message: str | None) -> None:
    cfg = configs.indoor()
    *parents, key = path.split(".")
    part = cfg
    for name in parents:
        part = part[name]
    if value is None:
        del part[key]
    else:
        part[key] = value
    if message is None:
        build_renderer(cfg)
        return
    with pytest.raises(ValueError, match=message):
        build_renderer(cfg)
