"""The lean drop-in for PonderV2's renderer against the renderer itself: every output, loss and gradient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from torch import Tensor

from benchmarks.baselines import ponderv2 as baseline
from benchmarks.baselines.ponderv2 import configs
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


@pytest.mark.unguarded
def test_a_compiled_step_gives_the_same() -> None:
    """In several graphs: the sampler looks at its numbers."""
    scenario = SCENARIOS["indoor-geometry-only"]
    _, ours = models(scenario.config, torch.float32)
    arguments = (RayBundle(*rays_of(scenario, torch.float32)), volumes_of(scenario, torch.float32))
    targets = targets_of(scenario, torch.float32)
    expected = run(ours, *arguments, targets)
    torch._dynamo.reset()
    ours.forward = torch.compile(ours.forward, backend="aot_eager")
    for label, got, want, _ in pairs(run(ours, *arguments, targets), expected):
        assert relative(got, want) <= 1e-6, label
    torch._dynamo.reset()


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
