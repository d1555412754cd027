"""Both sides of every parity switch, and what the drop-in says about wrong input."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines import ponderv2 as baseline
from benchmarks.baselines.ponderv2 import configs
from benchmarks.baselines.ponderv2.field import normalise
from ponder.compat.ponderv2 import Parity, RayBundle, build_renderer
from ponder.render.ponderv2.semantic import Classes, contrast
from tests.compat.ponderv2_cases import (
    INDOOR,
    OUTDOOR,
    SCENARIOS,
    Scenario,
    changed,
    models,
    rays_of,
    targets_of,
    volumes_of,
)

F64 = torch.float64


def built(config: dict[str, Any], dtype: torch.dtype = F64, **switches: bool) -> Any:
    torch.manual_seed(3)
    return build_renderer(config, Parity(**switches)).to(dtype)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_parity_is_the_default_and_correction_flips_all_of_it() -> None:
    assert all(getattr(Parity(), field.name) is True for field in fields(Parity))
    assert all(getattr(Parity.corrected(), field.name) is False for field in fields(Parity))
    assert build_renderer(OUTDOOR).parity == Parity()


def test_raw_sampler_points() -> None:
    """On: samplers look at the points as they lie on the rays; off: where the final evaluation looks."""
    scenario = SCENARIOS["indoor"]
    theirs, raw = models(scenario.config, F64)
    normalised = built(scenario.config, raw_sampler_points=False)
    volumes = volumes_of(scenario, F64)
    points = torch.rand(3, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) - 0.5
    for model, asked in ((raw, points), (normalised, normalise(points, 0.1))):
        field = model.field
        found = field.sdf(points, field.prepare(volumes, F64), field.weights(1))
        close(found, theirs.field.get_sdf(asked, volumes)[0][..., 0])
    # A surface at x = 0 of the cube: corrected samples gather there.
    volume = torch.zeros(128, 2, 2, 2, dtype=F64)
    volume[0, :, :, 0], volume[0, :, :, 1] = -1.0, 1.0
    bundle = RayBundle(torch.tensor([[0.5, 0.1, -0.2]], dtype=F64), torch.tensor([[-1.0, 0.0, 0.0]], dtype=F64))
    near = []
    for model in (raw, normalised):
        decoder = model.field.sdf_decoder
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.zero_()
            # sdf = lin1(fc_c.1 f)[0]: channel 0 is the distance, in units of q times 2.
            decoder.fc_c[1].weight[0, 0] = decoder.lin1.weight[0, 0] = 1.0
        out = model.eval()(bundle, [volume])
        near.append(float((out["new_sampled_points"][..., 0].abs() < 0.05).double().mean()))
    assert near[0] < 0.3 and near[1] > 0.8


def test_unsigned_direction_offset() -> None:
    origins = torch.tensor([[0.1, 0.2, 0.0], [0.1, 0.2, 0.0]], dtype=F64)
    directions = torch.tensor([[-0.6, 0.8, 0.0], [-1e-6, 0.6, 0.8]], dtype=F64)
    on, off = (built(INDOOR, unsigned_direction_offset=switch).collider for switch in (True, False))
    theirs, _ = models(INDOOR, F64)
    bundle = RayBundle(origins, directions)
    want = theirs.collider(baseline.RayBundle(origins, directions))
    limited = on(bundle)
    assert torch.equal(limited.nears, want.nears) and torch.equal(limited.fars, want.fars)
    exact = off(bundle)
    close(exact.fars[:, 0], torch.tensor([0.35 / 0.8, 0.35 / 0.6], dtype=F64))
    close(exact.nears[:, 0], torch.full((2,), 0.01, dtype=F64))
    # The offset moves the far plane by one part in a million.
    assert 1e-7 < (limited.fars[0] - exact.fars[0]).abs() < 1e-5
    missed = off(RayBundle(origins + 5, -directions.abs() * torch.tensor([1.0, -1.0, -1.0], dtype=F64)))
    assert not missed.nears.any() and not missed.fars.any()


def test_shared_depth_range() -> None:
    """An empty ray has depth 0, which is lifted to the nearest sample of any ray (on) or of itself (off)."""
    config = changed(configs.volsdf(OUTDOOR), field__beta_init=0.01)
    nears = torch.tensor([[0.2], [0.6]], dtype=F64)
    origins, directions = torch.full((2, 3), 0.4, dtype=F64), torch.tensor([[1.0, 0.0, 0.0]] * 2, dtype=F64)
    for switch, expected in ((True, [0.2, 0.2]), (False, [0.2, 0.6])):
        model = built(config, shared_depth_range=switch).eval()
        with torch.no_grad():
            model.field.sdf_decoder.lin5.bias[0] = 1e3
        out = model(RayBundle(origins, directions, nears, nears + 0.1), [torch.zeros(32, 2, 2, 2, dtype=F64)])
        assert not out["weights"].any()
        close(out["depth"][:, 0], torch.tensor(expected, dtype=F64))


def test_black_pixels_without_depth() -> None:
    preds = {"rgb": torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.3, 0.2]], dtype=F64)}
    goal = {"rgb": torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.1, 0.1]], dtype=F64)}
    goal["depth"] = torch.tensor([[-0.001], [0.4]], dtype=F64)
    config = changed(OUTDOOR, loss__weights={"rgb_loss": 1.0})
    for switch, loss, squared in ((True, 1.8 / 6, 0.8 / 6), (False, 0.3 / 3, 0.05 / 3)):
        found = built(config, black_pixels_without_depth=switch).get_loss(preds, goal)
        assert float(found["rgb_loss"]) == pytest.approx(loss, rel=1e-12)
        assert float(found["psnr"]) == pytest.approx(-10 * math.log10(squared), rel=1e-12)


def test_same_class_negatives() -> None:
    g = torch.Generator().manual_seed(0)
    pred, table = torch.randn(6, 4, generator=g, dtype=F64), torch.randn(3, 4, generator=g, dtype=F64)
    ids = torch.tensor([0, 0, 1, 2, 1, 0])
    every = torch.ones(6, dtype=torch.bool)
    for switch in (True, False):
        terms = []
        for i in range(6):
            logits = [float(F.normalize(pred[i], dim=0) @ table[k]) / 0.1 for k in ids.tolist()]
            negatives = [logits[j] for j in range(6) if j == i or switch or ids[j] != ids[i]]
            terms.append(math.log(sum(map(math.exp, negatives))) - logits[i])
        found = contrast(pred, Classes(ids, table), every, 0.1, same_class_negatives=switch)
        assert float(found) == pytest.approx(sum(terms) / 6, rel=1e-12)
    scenario = SCENARIOS["outdoor"]
    losses = []
    for switch in (True, False):
        model = built(scenario.config, same_class_negatives=switch).eval()
        preds = model(RayBundle(*rays_of(scenario, F64)), volumes_of(scenario, F64))
        goal = targets_of(scenario, F64)
        goal["semantic"][:] = goal["semantic"][0]
        losses.append(model.get_loss(preds, goal)["semantic_loss"].item())
    # All rays of one class: nothing to push away from.
    assert losses[0] > 0.1 and abs(losses[1]) < 1e-12


def test_points_on_faces_fall_where_grid_sample_puts_them() -> None:
    """A ray enters the volume at 1e-17 before its face, which counts as inside once rounded like grid_sample."""
    theirs, ours = models(OUTDOOR, F64)
    grid = [torch.randn(32, 3, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(0))]
    origins = torch.tensor([[-1e-17, 0.3, 0.3]] * 2, dtype=F64)
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=F64)
    limits = (torch.zeros(2, 1, dtype=F64), torch.full((2, 1), 0.5, dtype=F64))
    want = theirs.eval()(baseline.RayBundle(origins, directions, *limits), grid)
    got = ours.eval()(RayBundle(origins, directions, *limits), grid)
    torch.testing.assert_close(got["gradients"], want["gradients"], rtol=1e-10, atol=1e-12)


def test_swallowed_keys_are_named() -> None:
    config = copy.deepcopy(INDOOR)
    config["field"]["sdf_decoder"]["pos_enc"] = False
    config["field"]["rgb_decoder"]["hiden_size"] = 64
    before = copy.deepcopy(config)
    with pytest.warns(UserWarning) as caught:
        build_renderer(config)
    messages = [str(w.message) for w in caught]
    assert any("field.sdf_decoder: no decoder reads pos_enc" in m for m in messages)
    assert any("field.rgb_decoder: no decoder reads hiden_size" in m for m in messages)
    assert config == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_renderer(INDOOR)
    scenario = SCENARIOS["outdoor"]
    with pytest.warns(UserWarning, match="no use of scene_id"):
        built(scenario.config, torch.float32)(
            RayBundle(*rays_of(scenario, torch.float32)), volumes_of(scenario, torch.float32), scene_id=3
        )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("type", "NeRF", "renderer: type is 'NeRF'; known: NeuSModel, VolSDFModel"),
        ("type", None, "renderer: lacks a type"),
        ("field", None, "renderer: lacks field"),
        ("extra", 1, "renderer: unknown key 'extra'"),
        ("sampler__type", "ErrorBoundedSampler", "NeuSModel takes NeuSSampler or UniSurfSampler"),
        ("sampler__type", "UniformSampler", "sampler: type is 'UniformSampler'"),
        ("sampler__initial_sampler", "Even", "initial_sampler: expected one of UniformSampler"),
        ("sampler__num_samples", None, "sampler: lacks num_samples"),
        ("collider__type", "Sphere", "collider: type is 'Sphere'"),
        ("collider__bbox", [0.0, 1.0], "bbox: expected 6 numbers"),
        ("collider__unsigned_offset", False, "collider: unknown key 'unsigned_offset'"),
        ("field__padding_mode", "border", "field.padding_mode: expected 'zeros', got 'border'"),
        ("field__volume_type", "triplane", "field.volume_type: expected 'default'"),
        ("field__sdf_decoder", None, "field: lacks sdf_decoder"),
        ("field__sdf_decoder__in_dim", None, "field.sdf_decoder: lacks in_dim"),
        ("field__rgb_decoder__in_dim", 131, r"field.rgb_decoder.in_dim: expected 134 \(gradient 3, features 64"),
        ("field__rgb_decoder", None, "rgb_loss is on but the field has no rgb_decoder"),
        ("loss__temperature", None, "semantic_loss needs a temperature"),
        ("loss__weights__chamfer_loss", 1.0, r"unknown losses \['chamfer_loss'\]"),
        ("loss__sensor_depth_truncation", None, "loss: lacks sensor_depth_truncation"),
    ],
)
def test_configuration_errors(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_renderer(changed(INDOOR, **{path: value}))


def test_parts_must_be_dictionaries() -> None:
    for path in ("field", "field__rgb_decoder", "loss"):
        with pytest.raises(TypeError, match=r"expected a dictionary, got list"):
            build_renderer(changed(INDOOR, **{path: [1]}))


@pytest.mark.parametrize("name", ["indoor", "indoor-volsdf"])
def test_plain_rounding(name: str) -> None:
    """On: samples are drawn in the dtype of the rays; off: in float64, from the same random numbers."""
    config, found = SCENARIOS[name].config, {}
    rays, volumes = rays_of(SCENARIOS[name], torch.float32), volumes_of(SCENARIOS[name], torch.float32)
    for plain in (True, False):
        model = built(config, torch.float32, plain_rounding=plain).train()
        drawn: list[torch.dtype] = []
        model.sampler.register_forward_hook(lambda *a, drawn=drawn: drawn.append(a[2].samples.edges.dtype))
        torch.manual_seed(0)
        found[plain] = model(RayBundle(*rays), volumes)
        assert drawn == [torch.float32 if plain else torch.float64]
        assert model.opacity == ("volsdf" if name.endswith("volsdf") else "neus") + "-plain" * plain
    plain, exact = found[True], found[False]
    assert all(value.dtype == torch.float32 and value.shape == plain[key].shape for key, value in exact.items())
    torch.testing.assert_close(exact["init_sampled_points"], plain["init_sampled_points"], rtol=0, atol=1e-6)
    assert not torch.equal(exact["z_vals"], plain["z_vals"])
    torch.testing.assert_close(exact["depth"], plain["depth"], rtol=1e-3, atol=1e-4)


def test_bad_rays() -> None:
    ones = torch.ones(4, 3)
    for arguments, error, message in (
        ((ones[:, :2], ones), ValueError, r"RayBundle.origins: expected shape \[R, 3\], got \[4, 2\]"),
        ((ones, ones[:2]), ValueError, r"RayBundle.directions: expected shape \[R, 3\], got \[2, 3\]"),
        ((ones, ones, ones), ValueError, r"RayBundle.nears: expected shape \[R, 1\]"),
        ((ones.half(), ones.half()), TypeError, "RayBundle.origins: expected a float32 or float64 tensor"),
        ((ones, ones.double()), TypeError, "RayBundle.directions: expected the dtype of origins"),
        ((ones.double(), ones.double(), ones[:, :1]), TypeError, "RayBundle.nears: expected the dtype of origins"),
        ((ones, None), TypeError, "RayBundle.directions: expected a float32 or float64 tensor, got NoneType"),
    ):
        with pytest.raises(error, match=message):
            RayBundle(*arguments)
    with pytest.raises(ValueError, match="nears and fars are unknown"):
        RayBundle(ones, ones).limits()


@pytest.mark.parametrize(
    ("volumes", "error", "message"),
    [
        (torch.zeros(128, 2, 2, 2), TypeError, "volume_feature: expected a list of tensors"),
        ([], ValueError, "volume_feature: expected at least one volume"),
        ([torch.zeros(128, 2, 2, 2, dtype=torch.long)], TypeError, "volume_feature: expected floating"),
        ([torch.zeros(1, 128, 2, 2, 2)], ValueError, "volume_feature: expected shapes"),
        ([torch.zeros(64, 2, 2, 2)], ValueError, "reads half of the channels, 64 together, got 64 channels each"),
    ],
)
def test_bad_volumes(volumes: Any, error: type[Exception], message: str) -> None:
    bundle = RayBundle(*rays_of(Scenario(INDOOR), torch.float32))
    with pytest.raises(error, match=message):
        built(INDOOR, torch.float32)(bundle, volumes)


def test_bad_targets() -> None:
    scenario = SCENARIOS["outdoor"]
    model = built(scenario.config, torch.float32)
    preds = model(RayBundle(*rays_of(scenario, torch.float32)), volumes_of(scenario, torch.float32))
    goal = targets_of(scenario, torch.float32)
    for change, message in (
        ({"depth": None}, "targets: lacks 'depth'"),
        ({"rgb": None}, "targets: lacks 'rgb'"),
        ({"semantic": None}, "targets: lacks 'semantic'"),
        ({"depth": goal["depth"][:, 0]}, r"targets\['depth'\]: expected shape \[5, 1\], got \[5\]"),
        ({"semantic": goal["semantic"][:, :9]}, r"targets\['semantic'\]: expected shape \[5, 512\]"),
    ):
        wrong = {k: v for k, v in (goal | change).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            model.get_loss(preds, wrong)
    with pytest.raises(ValueError, match="preds_dict: lacks 'gradients'"):
        model.get_loss({k: v for k, v in preds.items() if k != "gradients"}, goal)
    with pytest.raises(ValueError, match=r"preds_dict\['rgb'\]: expected R=5 rays, got 2"):
        model.get_loss(preds | {"rgb": preds["rgb"][:2]}, goal)
    with pytest.raises(TypeError, match="ray_bundle: expected a RayBundle"):
        model(rays_of(scenario, torch.float32), volumes_of(scenario, torch.float32))
