"""PonderV2's renderer as a baseline: its parts against hand-computed numbers, and the whole of it.

Agreement with PonderV2's own modules (outputs and losses bit for bit) was established outside the repository; these
tests keep the parts where they are.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.ponderv2 import RayBundle, configs, torch_trilinear
from benchmarks.baselines.ponderv2.field import FieldOutput, normalise
from benchmarks.baselines.ponderv2.rays import RaySamples
from tests.benchmarks.ponderv2_cases import (
    F64,
    RAYS,
    bundle,
    close,
    model,
    t,
    targets,
    total,
    volumes,
    without,
)

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
