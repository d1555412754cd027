"""Opacities, compositing, losses and configurations of the PonderV2 baseline against hand-computed numbers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from benchmarks.baselines.ponderv2 import build_renderer, configs
from benchmarks.baselines.ponderv2.compositing import expected_depth, weights_from_alpha, weights_from_density
from benchmarks.baselines.ponderv2.density import LaplaceDensity, neus_alpha
from benchmarks.baselines.ponderv2.losses import LossConfig, compute_losses, semantic_loss
from benchmarks.baselines.ponderv2.samplers.neus import fixed_sharpness_alpha
from tests.benchmarks.ponderv2_cases import (
    F64,
    bundle,
    close,
    model,
    sigmoid,
    t,
    volumes,
)


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
