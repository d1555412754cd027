"""The lean drop-in for PonderV2's renderer against the renderer itself: every output, loss and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.agreement import results_of
from benchmarks.baselines import ponderv2 as baseline
from benchmarks.baselines.ponderv2 import configs
from benchmarks.cases import RENDER_CASES
from benchmarks.competitors import COMPETITORS
from benchmarks.contenders import render_contender
from benchmarks.inputs import make_inputs
from ponder.compat.ponderv2 import Parity, RayBundle
from tests.compat.ponderv2_cases import (
    INDOOR,
    OUTDOOR,
    SCENARIOS,
    UNIT,
    Result,
    Scenario,
    changed,
    compare,
    models,
    rays_of,
    relative,
    run,
    targets_of,
    volumes_of,
)

F64_OUTPUTS, F64_GRADIENTS = 1e-10, 1e-9
F32_OUTPUTS, F32_GRADIENTS = 1e-5, 1e-4

IN_EVALUATION = ("indoor", "indoor-volsdf", "outdoor", "indoor-raw-points", "indoor-two-shared-volumes")


def pairs(ours: Result, theirs: Result) -> Iterator[tuple[str, Tensor, Tensor, bool]]:
    """Name, value of ours and of theirs, and whether it is a gradient; names must agree, in order."""
    for part in Result._fields:
        got, want = getattr(ours, part), getattr(theirs, part)
        assert list(got) == list(want)
        for name in want:
            assert got[name].shape == want[name].shape and got[name].dtype == want[name].dtype, name
            yield f"{part} {name}", got[name], want[name], part == "grads"


def assert_equal_in_float64(ours: Result, theirs: Result) -> None:
    for name, got, want, is_gradient in pairs(ours, theirs):
        error = relative(got, want)
        assert error <= (F64_GRADIENTS if is_gradient else F64_OUTPUTS), f"{name}: {error:.1e}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_training_equals_ponderv2(name: str) -> None:
    theirs, ours = compare(SCENARIOS[name], torch.float64, training=True)
    assert_equal_in_float64(ours, theirs)
    assert ours.grads["volume 0"].any()


@pytest.mark.parametrize("name", IN_EVALUATION)
def test_evaluation_equals_ponderv2(name: str) -> None:
    theirs, ours = compare(SCENARIOS[name], torch.float64, training=False)
    assert_equal_in_float64(ours, theirs)
    assert ours.preds["rgb"].min() >= 0 and ours.preds["rgb"].max() <= 1


def _in_float64(scenario: Scenario, training: bool, monkeypatch: pytest.MonkeyPatch) -> Result:
    """PonderV2 with the random draws of float32."""
    rays, targets = rays_of(scenario, torch.float64), targets_of(scenario, torch.float64)
    volumes = volumes_of(scenario, torch.float64)
    model, _ = models(scenario.config, torch.float64)
    draw = torch.rand
    monkeypatch.setattr(torch, "rand", lambda size, dtype, device: draw(size, device=device).to(dtype))
    return run(model.train(training), baseline.RayBundle(*rays), volumes, targets)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["indoor", "outdoor", "indoor-volsdf"])
def test_float32_is_as_near_to_float64_as_ponderv2_is(
    name: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the SDF is flat PonderV2's opacity is a difference of nearly equal sigmoids, of which float32 keeps two or
    three digits; there the yardstick is what its own code loses.
    """
    theirs, ours = compare(SCENARIOS[name], torch.float32, training)
    truth = _in_float64(SCENARIOS[name], training, monkeypatch)
    for label, got, want, true, is_gradient in _with_truth(ours, theirs, truth):
        tolerance = F32_GRADIENTS if is_gradient else F32_OUTPUTS
        error, other = relative(got, true), relative(want, true)
        assert error <= max(tolerance, 3 * other), f"{label}: {error:.1e}, PonderV2 {other:.1e}"


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_float32_without_plain_rounding_is_nearer_to_float64(
    name: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PonderV2's own loss is the yardstick where one sample in thousands moves beyond a face of a voxel, and for
    numbers of single samples: where they crowd, float32 keeps a few digits of their distances to each other.
    """
    scenario = replace(SCENARIOS[name], rays=80)
    theirs, ours = compare(scenario, torch.float32, training, Parity(plain_rounding=False))
    truth = _in_float64(scenario, training, monkeypatch)
    for label, got, want, true, is_gradient in _with_truth(ours, theirs, truth):
        tolerance = F32_GRADIENTS if is_gradient else F32_OUTPUTS
        error, other = relative(got, true), relative(want, true)
        if not label.startswith("losses "):
            # Nine in ten are nearer; of the others the difference of two roundings decides.
            tolerance = max(tolerance, 2 * other)
        assert error <= tolerance, f"{label}: {error:.1e}, PonderV2 {other:.1e}"


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "indoor-flat"])
def test_float32_equals_ponderv2_at_its_samples(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler multiplies the last digits of the SDF by thousands; here it asks PonderV2's own operations for it.

    Left out are SDFs of 1e-6, whose opacities are rounding, and the derivative by the sharpness, whose terms cancel: to
    6e-3, which is nothing to go by. The yardstick of other gradients is PonderV2's own loss too.
    """
    scenario = SCENARIOS[name]
    origins, directions = rays_of(scenario, torch.float32)
    volumes, targets = volumes_of(scenario, torch.float32), targets_of(scenario, torch.float32)
    theirs, ours = models(scenario.config, torch.float32)
    expected = run(theirs.train(training), baseline.RayBundle(origins, directions), volumes, targets)
    plain = torch.no_grad()(lambda points, *_: theirs.field.get_sdf(points, volumes)[0][..., 0])
    monkeypatch.setattr(ours.field, "sdf", plain)
    found = run(ours.train(training), RayBundle(origins, directions), volumes, targets)
    truth = _in_float64(scenario, training, monkeypatch)
    for label, got, want, true, is_gradient in _with_truth(found, expected, truth):
        if label.endswith("variance"):
            continue
        tolerance = max(F32_GRADIENTS, 2 * relative(want, true)) if is_gradient else F32_OUTPUTS
        assert relative(got, want) <= tolerance, f"{label}: {relative(got, want):.1e}"


@pytest.mark.parametrize("name", ["outdoor", "outdoor-semantics", "camera"])
def test_float32_follows_ponderv2_in_float32(name: str) -> None:
    """Where no sample hangs on a last digit, as in the benchmarks' volumes: the same samples, and then its numbers."""
    case = RENDER_CASES[name]
    inputs = make_inputs(case, case.sizes["small"], "cpu")
    built = (COMPETITORS[name].build(case) for name in ("eager", "ponder"))
    expected, got = (results_of(render_contender(renderer, case, inputs)) for renderer in built)
    limits = {"output z_vals": 1e-7, "output weights": 2 * F32_OUTPUTS}
    for label, want in expected.items():
        limit = limits.get(label, F32_GRADIENTS if label.startswith("gradient ") else F32_OUTPUTS)
        error = relative(got[label], want)
        assert error <= limit, f"{label}: {error:.1e}"


def _with_truth(ours: Result, theirs: Result, truth: Result) -> Iterator[tuple[str, Tensor, Tensor, Tensor, bool]]:
    true = [value for part in truth for value in part.values()]
    for (name, got, want, is_gradient), value in zip(pairs(ours, theirs), true, strict=True):
        yield name, got, want, value, is_gradient


SAMPLERS = {
    name: {"sampler__initial_sampler": name, "sampler__num_samples": 12, "sampler__num_samples_importance": 9}
    for name in ("LinearDisparitySampler", "SqrtSampler", "LogSampler", "UniformLinDispPiecewiseSampler")
}
SAMPLERS["three steps, one jitter"] = {
    "sampler__num_samples": 12,
    "sampler__num_samples_importance": 9,
    "sampler__num_upsample_steps": 3,
    "sampler__single_jitter": True,
}
SAMPLERS["no steps, no jitter"] = {
    "sampler__num_samples": 12,
    "sampler__num_upsample_steps": 0,
    "sampler__train_stratified": False,
}
SAMPLERS["UniSurfSampler"] = {
    "sampler": {
        "type": "UniSurfSampler",
        "initial_sampler": "UniformSampler",
        "num_samples_importance": 9,
        "num_marching_steps": 16,
        "num_samples_interval": 6,
        "delta": 0.05,
    }
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str) -> None:
    config = changed(OUTDOOR, **SAMPLERS[name])
    config["collider"] = {"type": "NearFarCollider", "near_plane": 0.05, "far_plane": 1.3}
    for training in (True, False):
        theirs, ours = compare(Scenario(config, channels=32, cube=UNIT), torch.float64, training)
        assert_equal_in_float64(ours, theirs)
        # Limits of another dtype than the rays'.
        _, ours = compare(Scenario(config, channels=32, cube=UNIT), torch.float32, training, Parity.corrected())
        assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in ours.preds.values())


def test_volsdf_with_the_sampler_of_neus() -> None:
    theirs, ours = compare(Scenario(changed(OUTDOOR, type="VolSDFModel"), 32, cube=UNIT), torch.float64, True)
    assert_equal_in_float64(ours, theirs)


def test_error_bounded_sampler_at_a_sharp_density() -> None:
    """A small beta makes the sampler go through all of its iterations."""
    config = changed(configs.volsdf(OUTDOOR), field__beta_init=0.004, sampler__num_samples_eval=24)
    theirs, ours = compare(Scenario(config, 32, cube=UNIT), torch.float64, True)
    assert_equal_in_float64(ours, theirs)


def test_limits_of_the_caller_are_kept() -> None:
    scenario = Scenario(OUTDOOR, 32, cube=UNIT)
    theirs, ours = models(scenario.config, torch.float64)
    origins, directions = rays_of(scenario, torch.float64)
    nears = torch.full((scenario.rays, 1), 0.1, dtype=torch.float64)
    rest = (volumes_of(scenario, torch.float64), targets_of(scenario, torch.float64))
    expected = run(theirs, baseline.RayBundle(origins, directions, nears, nears + 0.7), *rest)
    assert_equal_in_float64(run(ours, RayBundle(origins, directions, nears, nears + 0.7), *rest), expected)


def test_sparse_points() -> None:
    scenario = Scenario(changed(INDOOR, loss__weights__sparse_points_sdf_loss=2.0))
    points = torch.rand(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs, ours = models(scenario.config, torch.float64)
    rays, volumes = rays_of(scenario, torch.float64), volumes_of(scenario, torch.float64)
    found = []
    for model, bundle in ((theirs, baseline.RayBundle(*rays)), (ours, RayBundle(*rays))):
        preds = model.eval()(bundle, volumes, points=points)
        term = model.get_loss(preds, targets_of(scenario, torch.float64))["sparse_points_sdf_loss"]
        found.append((preds["sparse_points_sdf"], term, *torch.autograd.grad(term, volumes)))
    for got, want in zip(found[1], found[0], strict=True):
        assert got.shape == want.shape and relative(got, want) < 1e-12
    with pytest.raises(ValueError, match="points: sparse_points_sdf_loss is on but none were given"):
        ours(RayBundle(*rays), volumes)


@pytest.mark.parametrize("name", ["indoor", "outdoor", "indoor-volsdf"])
def test_state_dicts_go_both_ways(name: str) -> None:
    theirs, ours = models(SCENARIOS[name].config, torch.float32)
    before = theirs.state_dict()
    assert list(ours.state_dict()) == list(before)
    # One seed gives both the same parameters.
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in before.items())
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
    torch.manual_seed(9)
    changed_state = {key: torch.randn_like(value) for key, value in before.items()}
    ours.load_state_dict(changed_state, strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(theirs.state_dict()[key], value) for key, value in changed_state.items())


def test_unused_layers_get_zeros_not_nothing() -> None:
    """PonderV2's layer of the points has weight 0 indoors and still decays in its optimiser."""
    scenario = SCENARIOS["indoor"]
    _, ours = models(scenario.config, torch.float64)
    rest = (volumes_of(scenario, torch.float64), targets_of(scenario, torch.float64))
    run(ours, RayBundle(*rays_of(scenario, torch.float64)), *rest)
    missing = [name for name, p in ours.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == ["field.laplace_density.beta"]
    assert not ours.field.rgb_decoder.fc_p.weight.grad.any()


def test_no_gradients_are_needed() -> None:
    scenario = SCENARIOS["outdoor"]
    _, ours = models(scenario.config, torch.float32)
    rays, volumes = rays_of(scenario, torch.float32), volumes_of(scenario, torch.float32)
    with torch.no_grad():
        quiet = ours.eval()(RayBundle(*rays), volumes)
    loud = ours(RayBundle(*rays), volumes)
    assert all(torch.equal(quiet[key], loud[key]) and not quiet[key].requires_grad for key in loud)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["indoor", "outdoor", "indoor-volsdf"])
def test_autocast_leaves_the_result_alone(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the products of the decoders' weights nor the semantic contrast are rounded to bfloat16."""
    scenario = SCENARIOS[name]
    _, ours = models(scenario.config, torch.float32)
    bundle, targets = RayBundle(*rays_of(scenario, torch.float32)), targets_of(scenario, torch.float32)
    volumes = volumes_of(scenario, torch.float32)
    expected = run(ours.train(training), bundle, volumes, targets)
    low = torch.autocast("cpu", dtype=torch.bfloat16)
    for method in ("forward", "get_loss"):
        monkeypatch.setattr(ours, method, low(getattr(ours, method)))
    for label, got, want, _ in pairs(run(ours, bundle, volumes, targets), expected):
        assert relative(got, want) <= 1e-6, f"{label}: {relative(got, want):.1e}"


def test_half_precision_volumes_and_no_rays() -> None:
    scenario = SCENARIOS["outdoor"]
    _, ours = models(scenario.config, torch.float32)
    volumes = [v.detach().half().requires_grad_() for v in volumes_of(scenario, torch.float32)]
    origins, directions = rays_of(scenario, torch.float32)
    out = ours(RayBundle(origins, directions), volumes)
    assert all(value.dtype == torch.float32 for value in out.values())
    ours.get_loss(out, targets_of(scenario, torch.float32))["depth_loss"].backward()
    assert volumes[0].grad is not None and volumes[0].grad.dtype == torch.float16
    assert ours(RayBundle(origins[:0], directions[:0]), volumes)["semantic"].shape == (0, 512)
