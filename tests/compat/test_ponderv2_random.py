"""Drawn configurations, cameras and volumes: equal to PonderV2 in float64, finite whatever comes in."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder.compat.ponderv2 import Parity, RayBundle, build_renderer
from tests.compat.ponderv2_cases import Config, Scenario, compare, rays_of, relative, run, targets_of, volumes_of

# As many as a few seconds are enough for.
EQUAL, HOSTILE = 24, 48

# Of 3,000 results two gradients by the sharpness, whose terms cancel, are off by more than 1e-9 (4e-9), and nothing
# else by more than 1e-10. Where a BLAS adds up few rows in another order, samplers multiply that rounding by up to 1e5,
# one step after the other. A wrong formula is off by far more.
TOLERANCE = 1e-5

# In float32: where a ray's weight, an SDF's slope or a loss is rounding alone, there is nothing to agree on. Of 14,924
# outputs and losses of 880 results 5 are beyond, and of 29,380 gradients 167, 118 of them by the sharpness.
OUTPUTS, GRADIENTS = 1e-5, 1e-4


def _decoder(draw: random.Random, in_dim: int, out_dim: int, blocks: list[int]) -> Config:
    return {
        "in_dim": in_dim,
        "out_dim": out_dim,
        "hidden_size": draw.choice([5, 8, 16, 24]),
        "n_blocks": draw.choice(blocks),
        "points_factor": draw.choice([0.0, 0.0, 1.0, 0.5]),
    }


def _field(draw: random.Random, channels: int, volumes: int) -> Config:
    shared, gradient = draw.random() < 0.5, draw.random() < 0.8
    features = channels * volumes if shared else channels // 2 * volumes
    geometry = draw.choice([0, 1, 5, 16])
    seen = features + geometry + (3 if gradient else 0)
    field = {
        "type": "SDFField",
        "sdf_decoder": _decoder(draw, features, 1 + geometry, [0, 1, 1, 2, 3, 5]),
        "beta_init": draw.choice([0.1, 0.3, 0.5]),
        "use_gradient": gradient,
        "share_volume": shared,
        "norm_pts": draw.random() < 0.5,
        "norm_padding": draw.choice([0.1, 0.0, 0.3]),
    }
    if draw.random() < 0.8:
        field["rgb_decoder"] = _decoder(draw, seen + 3, 3, [0, 0, 1, 3])
    if draw.random() < 0.7:
        field["semantic_decoder"] = _decoder(draw, seen, 512, [0, 0, 1, 2])
    return field


def _sampler(draw: random.Random, bounded: bool) -> Config:
    spacing = draw.choice(["UniformSampler"] * 4 + ["SqrtSampler", "UniformLinDispPiecewiseSampler"])
    common = {
        "initial_sampler": spacing,
        "train_stratified": draw.random() < 0.8,
        "single_jitter": draw.random() < 0.5,
    }
    if bounded:
        counts = {"num_samples": 8, "num_samples_eval": draw.choice([16, 32]), "num_samples_extra": 4}
        return {"type": "ErrorBoundedSampler"} | counts | common
    steps = draw.choice([1, 1, 2, 3, 4])
    counts = {
        "num_samples": draw.choice([5, 16, 33]),
        "num_samples_importance": steps * draw.choice([2, 8]),
        "num_upsample_steps": steps,
    }
    return {"type": "NeuSSampler"} | counts | common


def _losses(draw: random.Random, field: Config) -> Config:
    weights = {"eikonal_loss": 0.01, "free_space_loss": 1.0, "sdf_loss": 10.0, "depth_loss": 1.0}
    weights = {name: weight for name, weight in weights.items() if draw.random() < 0.8}
    weights |= {f"{name}_loss": 0.1 for name in ("rgb", "semantic") if f"{name}_decoder" in field}
    return {
        "sensor_depth_truncation": draw.choice([0.05, 0.01]),
        "temperature": draw.choice([0.01, 0.1]),
        "weights": weights or {"depth_loss": 1.0},
    }


def drawn(draw: random.Random) -> Scenario:
    """A small configuration with rays and volumes for it."""
    volumes, channels = draw.choice([1, 1, 1, 2, 3]), draw.choice([4, 8, 12, 16])
    field = _field(draw, channels, volumes)
    model = draw.choice(["NeuSModel", "NeuSModel", "VolSDFModel"])
    low, margin = (-0.5, 0.05) if field["norm_pts"] else (0.0, 0.0)
    collider: Config = {"type": "NearFarCollider", "near_plane": 0.05, "far_plane": draw.choice([1.0, 2.5])}
    if draw.random() < 0.75:
        bbox = [low - margin] * 3 + [low + 1 + margin] * 3
        collider = {"type": "AABBBoxCollider", "near_plane": 0.01, "bbox": bbox}
    config = {
        "type": model,
        "field": field,
        "collider": collider,
        "sampler": _sampler(draw, model == "VolSDFModel" and draw.random() < 0.6),
        "loss": _losses(draw, field),
    }
    rays, scale = draw.choice([3, 5, 9, 31]), draw.choice([1.0, 0.3, 3.0])
    return Scenario(config, channels, volumes, rays, (low, 1.0), scale)


@pytest.mark.parametrize("seed", range(EQUAL))
@pytest.mark.parametrize("training", [True, False])
def test_drawn_configurations_equal_ponderv2(seed: int, training: bool) -> None:
    theirs, ours = compare(drawn(random.Random(seed)), torch.float64, training)
    for got, want in zip(ours, theirs, strict=True):
        assert got.keys() == want.keys()
        for name in want:
            assert relative(got[name], want[name]) <= TOLERANCE, name


def test_drawn_configurations_in_float32() -> None:
    outputs, gradients = [], []
    for seed in range(EQUAL):
        theirs, ours = compare(drawn(random.Random(seed)), torch.float32, training=seed % 2 == 0)
        for part, errors in ((0, outputs), (1, outputs), (2, gradients)):
            errors += [relative(ours[part][name], want) for name, want in theirs[part].items()]
    assert sum(error <= OUTPUTS for error in outputs) >= 0.995 * len(outputs)
    assert sum(error <= GRADIENTS for error in gradients) >= 0.97 * len(gradients)


def _hostile_rays(draw: random.Random, origins: Tensor, directions: Tensor, low: float) -> tuple[Tensor, Tensor]:
    """Along an axis, from a corner of the box, in one of its faces, far away, or none at all."""
    kind = draw.choice(["as they are", "axis", "backwards", "corner", "face", "far", "none"])
    if kind in ("axis", "face"):
        directions = torch.tensor([0.0, 1.0, 0.0]).to(directions).expand_as(directions)
    if kind == "backwards":
        directions = torch.tensor([0.0, -0.0, -1.0]).to(directions).expand_as(directions)
    if kind == "corner":
        origins = torch.full_like(origins, low)
    if kind == "face":
        origins = origins.clone()
        origins[:, 0] = low
    if kind == "far":
        origins = torch.full_like(origins, 1e4)
    kept = 0 if kind == "none" else len(origins)
    return origins[:kept], directions[:kept]


def _hostile_model(draw: random.Random, config: Config, dtype: torch.dtype) -> Any:
    model = build_renderer(config, draw.choice([Parity(), Parity.corrected()])).to(dtype)
    kind = draw.choice(["as it is", "sharpness", "decoder"])
    with torch.no_grad():
        if kind == "sharpness":
            model.field.deviation_network.variance.fill_(draw.choice([5.0, 100.0, -100.0]))
            model.field.laplace_density.beta.fill_(draw.choice([0.0, 1e-9, -5.0, 1e6]))
        if kind == "decoder":
            factor = draw.choice([0.0, 1e-20, 100.0])
            for weight in model.field.sdf_decoder.parameters():
                weight.mul_(factor)
    return model


def _hostile_volume(draw: random.Random, volume: Tensor) -> Tensor:
    """Empty, flat, at the limits of float16 or far below them; or as it is."""
    volume = volume.detach()
    limit = torch.finfo(torch.float16).max
    found = draw.choice(
        [volume, volume * 0, volume * 1e-30, torch.ones_like(volume), volume * (limit / volume.abs().max())]
    )
    return found.requires_grad_()


@pytest.mark.parametrize("seed", range(HOSTILE))
def test_hostile_input_gives_finite_numbers(seed: int) -> None:
    draw = random.Random(seed)
    scenario, dtype = drawn(draw), draw.choice([torch.float32, torch.float64])
    model = _hostile_model(draw, scenario.config, dtype)
    rays = _hostile_rays(draw, *rays_of(scenario, dtype), scenario.cube[0])
    volumes = [_hostile_volume(draw, v) for v in volumes_of(scenario, dtype)]
    targets = {name: value[: len(rays[0])] for name, value in targets_of(scenario, dtype).items()}
    for training in (True, False):
        result = run(model.train(training), RayBundle(*rays), volumes, targets)
        # No error at all, as of no rays, is an infinite signal-to-noise ratio.
        assert result.losses.pop("psnr", torch.zeros(())) > -math.inf
        for part in result:
            assert [name for name, value in part.items() if not value.isfinite().all()] == []
