"""The opacity kernels of the renderer against autograd through the plain formulas and against the torch engine."""

from typing import NamedTuple

import pytest
import torch

from ponder_kernels._constants import NEUS_ALPHA_EPS, TRANSMITTANCE_EPS
from ponder_kernels.render import ray_opacity
from ponder_kernels.render.chunk import (
    IDENTITY,
    Field,
    Frame,
    RayBar,
    Rays,
    Renderer,
    Settings,
    _composite_backward,
    _weights_bar,
)
from ponder_kernels.render.ray_opacity import (
    BLOCKS,
    RaySamples,
    RayUpstream,
    opacity_backward,
    opacity_forward,
)
from ponder_kernels.render.samples import sample_targets
from ponder_kernels.render.types import RayTargets
from ponder_kernels.sdf_field.chain import Layer
from tests.kernels.harness import assert_launches_are_listed, rand
from tests.tolerance import assert_close_to_reference, assert_no_worse_than_torch

BLOCK_R, BLOCK_S = BLOCKS["BLOCK_R"], BLOCKS["BLOCK_S"]
# One, odd, whole blocks and one more, in both directions.
SHAPES = [(1, 1), (BLOCK_R - 1, 13), (BLOCK_R, BLOCK_S), (BLOCK_R + 1, BLOCK_S + 1), (1, BLOCK_S + 1), (BLOCK_R + 1, 1)]
SHAPE_IDS = [f"{r}x{s}" for r, s in SHAPES]
SHARPNESS = {"neus": 12.0, "volsdf": 0.15}
# Condition number: numbers of the order of one pass a sigmoid of this sharpness, or an exponential of 1 / beta.
SCALE = {"neus": 4.0, "volsdf": 4.0}
MODELS = pytest.mark.parametrize("model", ["neus", "volsdf"])


class Result(NamedTuple):
    """Everything that the two host functions return."""

    weights: torch.Tensor
    transmittance: torch.Tensor
    losses: torch.Tensor
    sdf: torch.Tensor
    gradient: torch.Tensor
    sharpness: torch.Tensor


def settings_of(model, ratio=1.0, middles=True, floor=1e-6, truncation=0.1):
    return Settings(model, middles, ratio, floor, truncation, points=False, activations=(), carry=False)


def samples_of(rays, count, model, device="cpu", hit=True):
    """Samples around a surface; with `hit`, some rays miss."""
    edges = rand(rays, count + 1, seed=1, low=0.0).cumsum(-1) * (3.0 / (count + 1))
    depth = rand(rays, seed=2, low=0.2, high=1.2) * (rand(rays, seed=3) > -0.6)
    values = RaySamples(
        sdf=rand(rays, count, seed=4, low=-0.3, high=0.3),
        gradient=rand(rays, count, 3, seed=5, low=-1.5, high=1.5),
        directions=torch.nn.functional.normalize(rand(rays, 3, seed=6), dim=-1),
        edges=edges,
        hit=rand(rays, seed=7) > -0.5 if hit else None,
        ray_depth=depth,
        slope=rand(rays, seed=8, low=0.5, high=1.0),
        sharpness=torch.tensor(SHARPNESS[model]),
    )
    return RaySamples(*(None if v is None else v.to(device) for v in values))


def upstream_of(rays, count, device="cpu", full=True):
    """Random derivatives; without `full` only those that are always there."""
    bar = RayUpstream(rand(rays, count, seed=20), rand(3, seed=21))
    if full:
        shapes = ((rays, 3), (rays, count, 3), (rays, count), (rays, count, 3))
        bar = RayUpstream(bar.weights, bar.losses, *(rand(*s, seed=22 + k) for k, s in enumerate(shapes)))
    return RayUpstream(*(None if v is None else v.to(device) for v in bar))


def cast(values, dtype):
    """The tuple on the CPU, its floating tensors in `dtype`."""
    return type(values)(*(v if v is None or v.dtype == torch.bool else v.detach().cpu().to(dtype) for v in values))


def run(settings, samples, bar):
    """The kernels."""
    found = opacity_forward(settings, samples)
    back = opacity_backward(settings, samples, found.transmittance, bar)
    # Summed in float64, but of float32 terms.
    return Result(*found, *back._replace(sharpness=back.sharpness.float()))


def alpha_and_factor(settings, samples, cosine, delta):
    """alpha, and by what it multiplies the transmittance."""
    s, ratio = samples.sharpness, settings.cos_anneal_ratio
    if settings.model == "volsdf":
        tail = 0.5 * torch.exp(-samples.sdf.abs() / s)
        depth = delta * torch.where(samples.sdf >= 0, tail, 1 - tail) / s
        return -torch.expm1(-depth), torch.exp(-depth), 0.0
    slope = -((0.5 - 0.5 * cosine).relu() * (1 - ratio) + (-cosine).relu() * ratio)
    before = torch.sigmoid((samples.sdf - slope * delta / 2) * s)
    after = torch.sigmoid((samples.sdf + slope * delta / 2) * s)
    alpha = (before - after + NEUS_ALPHA_EPS) / (before + NEUS_ALPHA_EPS)
    return alpha, 1 - alpha + TRANSMITTANCE_EPS, TRANSMITTANCE_EPS


def plain(settings, samples, bar, dtype=torch.float64):
    """The formulas by torch operators and autograd in `dtype`."""
    samples, bar = cast(samples, dtype), cast(bar, dtype)
    leaves = [samples.sdf, samples.gradient, samples.sharpness]
    leaves = [v.clone().requires_grad_() for v in leaves]
    samples = samples._replace(sdf=leaves[0], gradient=leaves[1], sharpness=leaves[2])
    starts, ends = samples.edges[:, :-1], samples.edges[:, 1:]
    position = (starts + ends) / 2 if settings.middles else starts
    used = torch.ones(len(starts), 1, dtype=dtype) if samples.hit is None else samples.hit.cpu().unsqueeze(-1)
    cosine = (samples.gradient * samples.directions.unsqueeze(1)).sum(-1)
    alpha, factor, eps = alpha_and_factor(settings, samples, cosine, ends - starts)
    alpha, factor = torch.where(used > 0, alpha, 0.0), torch.where(used > 0, factor, 1.0 + eps)
    transmittance = torch.cat([torch.ones_like(factor[:, :1]), factor[:, :-1]], 1).cumprod(-1)
    weights = alpha * transmittance
    length = torch.linalg.vector_norm(samples.gradient, dim=-1)
    unit = samples.gradient / length.unsqueeze(-1).clamp_min(settings.normal_floor)
    targets = RayTargets(samples.ray_depth, samples.slope, settings.truncation)
    goal = sample_targets(targets, position, None if samples.hit is None else samples.hit.cpu())
    eikonal = (length - 1) ** 2 * used
    free_space = (settings.truncation - samples.sdf).relu() * goal.front
    band = (samples.sdf - goal.sdf).abs() * goal.band
    losses = torch.stack([eikonal.sum(-1), free_space.sum(-1), band.sum(-1)], -1)
    total = (weights * bar.weights).sum() + (losses * bar.losses).sum()
    if bar.normal is not None:
        total = total + (weights.detach().unsqueeze(-1) * unit * bar.normal.unsqueeze(1)).sum()
    for value, given in ((samples.gradient, bar.gradient_by), (samples.sdf, bar.sdf), (samples.gradient, bar.gradient)):
        total = total if given is None else total + (value * given).sum()
    total.backward()
    found = (weights, transmittance, losses, *(leaf.grad for leaf in leaves))
    return Result(*(v.detach() for v in found))


def terms_of(rays, count):
    """How many terms each result sums."""
    return Result(count, count, count, 2 * count, 2 * count, 4 * rays * count)


def check(settings, samples, bar, scale=None):
    got, want = run(settings, samples, bar), plain(settings, samples, bar)
    scale = SCALE[settings.model] if scale is None else scale
    for name, a, b, n in zip(Result._fields, got, want, terms_of(*samples.sdf.shape), strict=True):
        assert_close_to_reference(a, b, n, scale=scale, name=name)
    return got


@pytest.mark.parametrize("hit", [True, False], ids=["hit", "all"])
@pytest.mark.parametrize(("model", "ratio"), [("neus", 0.3), ("neus", 1.0), ("volsdf", 1.0)])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_autograd_of_the_plain_formulas(shape, model, ratio, hit, device):
    check(settings_of(model, ratio, middles=hit), samples_of(*shape, model, device, hit), upstream_of(*shape, device))


@MODELS
def test_only_what_is_always_there(model, device):
    shape = (BLOCK_R + 1, 7)
    check(settings_of(model, 0.3), samples_of(*shape, model, device), upstream_of(*shape, device, full=False))


@MODELS
def test_samples_at_the_starts_of_their_bins(model, device):
    shape = (5, 9)
    check(settings_of(model, middles=False), samples_of(*shape, model, device), upstream_of(*shape, device))


def test_gradients_on_both_sides_of_the_floor(device):
    """A floor among the lengths: below it the norm is a constant."""
    shape = (5, 9)
    samples = samples_of(*shape, "volsdf", device)
    length = samples.gradient.norm(dim=-1)
    assert (length < 1).any() and (length > 1).any()
    check(settings_of("volsdf", floor=1.0), samples, upstream_of(*shape, device))


@pytest.mark.parametrize("given", ["normal", "gradient_by", "sdf", "gradient"])
def test_each_optional_derivative_alone(given, device):
    shape, full = (3, 5), upstream_of(3, 5, device)
    bar = upstream_of(*shape, device, full=False)._replace(**{given: getattr(full, given)})
    check(settings_of("neus"), samples_of(*shape, "neus", device), bar)


@MODELS
def test_columns_of_wide_buffers(model, device):
    """Rows further apart than their three columns; what lies between must not be read as values."""
    shape = (BLOCK_R + 1, 13)
    bar = upstream_of(*shape, device)
    wide = torch.full((shape[0] * shape[1], 11), float("nan"), device=device)
    sums = torch.full((shape[0], 8), float("nan"), device=device)
    wide[:, 4:7], sums[:, 2:5] = bar.gradient_by.view(-1, 3), bar.normal
    strided = bar._replace(gradient_by=wide[:, 4:7].view(*shape, 3), normal=sums[:, 2:5])
    assert strided.gradient_by.data_ptr() == wide.data_ptr() + 16
    samples = samples_of(*shape, model, device)
    got = check(settings_of(model), samples, strided)
    for a, b in zip(got, run(settings_of(model), samples, bar), strict=True):
        assert torch.equal(a, b)


def test_other_layouts_are_copied(device):
    shape = (4, 6)
    samples, bar = samples_of(*shape, "neus", device), upstream_of(*shape, device)
    turned = [v.transpose(0, -1).contiguous().transpose(0, -1) if v.dim() > 1 else v for v in bar]
    spread = {k: v.expand(4, *v.shape[1:]) for k, v in (("sdf", samples.sdf[:1]), ("edges", samples.edges[:1]))}
    check(settings_of("neus"), samples._replace(**spread), RayUpstream(*turned))


@MODELS
def test_hit_as_numbers(model, device):
    samples, bar = samples_of(9, 5, model, device), upstream_of(9, 5, device)
    numbers = samples._replace(hit=samples.hit.float())
    for a, b in zip(run(settings_of(model), samples, bar), run(settings_of(model), numbers, bar), strict=True):
        assert torch.equal(a, b)


@MODELS
def test_missed_rays_are_transparent(model, device):
    samples, bar = samples_of(9, 5, model, device), upstream_of(9, 5, device)
    got = run(settings_of(model), samples, bar)
    missed = ~samples.hit
    assert missed.any() and not missed.all()
    assert (got.weights[missed] == 0).all() and (got.losses[missed] == 0).all()
    assert ((got.transmittance[missed] - 1).abs() < 10 * TRANSMITTANCE_EPS).all()
    assert torch.equal(got.sdf[missed], bar.sdf[missed])
    assert torch.equal(got.gradient[missed], bar.gradient_by[missed] + bar.gradient[missed])


@MODELS
def test_programs_that_cancel_leave_the_others_their_digits(model, device):
    """In the derivative by the sharpness: two programs pull a million times as hard, in opposite directions."""
    samples, bar = samples_of(BLOCK_R, 9, model, device, hit=False), upstream_of(BLOCK_R, 9, device, full=False)
    alone = run(settings_of(model), samples, bar).sharpness
    thrice = RaySamples(*(v if v is None or v.dim() == 0 else torch.cat([v] * 3) for v in samples))
    weights = torch.cat([bar.weights * 2**20, bar.weights, bar.weights * -(2**20)])
    torch.testing.assert_close(run(settings_of(model), thrice, bar._replace(weights=weights)).sharpness, alone)


@MODELS
@pytest.mark.parametrize("shape", [(0, 5), (0, 1)], ids=["0x5", "0x1"])
def test_no_rays(shape, model, device):
    samples, bar = samples_of(*shape, model, device), upstream_of(*shape, device)
    got = run(settings_of(model), samples, bar)
    assert [tuple(v.shape) for v in got] == [shape, shape, (0, 3), shape, (*shape, 3), ()]
    assert got.sharpness == 0


def engine(settings, samples, sums_bar, bar):
    """The torch engine in float64: its results, and the derivative by the weights that it composes."""
    samples, bar = cast(samples, torch.float64), cast(bar, torch.float64)
    rays = len(samples.sdf)
    layer = Layer(None, torch.zeros(1, 1), torch.zeros(1))
    renderer = Renderer(Field([], (layer,), (), samples.sharpness), settings, IDENTITY)
    zero = samples.edges.new_zeros(rays)
    origins = samples.directions * 0
    bundle = Rays(origins, samples.directions, samples.edges, zero, samples.ray_depth, samples.slope, samples.hit)
    starts, ends = samples.edges[:, :-1], samples.edges[:, 1:]
    position = (starts + ends) / 2 if settings.middles else starts
    frame = Frame(position, ends - starts, None, origins, origins)
    upstream = RayBar(sums_bar.double(), bar.losses, None, bar.sdf, bar.gradient)
    normals = renderer.normals(samples.gradient)
    weights_bar = _weights_bar(frame, normals.unit, [], None, upstream)
    sample = _composite_backward(renderer, bundle, frame, samples.sdf, samples.gradient, normals, weights_bar, upstream)
    model, weights = renderer.opacity(bundle, frame, samples.sdf, samples.gradient)
    losses = renderer.loss_sums(bundle, frame, samples.sdf, normals.length)
    return Result(weights, model.transmittance, losses, sample.sdf, sample.gradient, sample.sharpness), weights_bar


@pytest.mark.parametrize("hit", [True, False], ids=["hit", "all"])
@pytest.mark.parametrize(("model", "ratio"), [("neus", 0.3), ("volsdf", 1.0)])
def test_the_torch_engine(model, ratio, hit):
    """Same inputs and upstream through the torch engine, whose derivatives are in closed form."""
    shape = (BLOCK_R + 1, 17)
    settings, samples = settings_of(model, ratio), samples_of(*shape, model, hit=hit)
    bar, sums_bar = upstream_of(*shape), rand(shape[0], 5, seed=40)
    want, weights_bar = engine(settings, samples, sums_bar, bar._replace(gradient_by=None))
    bar = bar._replace(weights=weights_bar.float(), normal=sums_bar[:, 2:5], gradient_by=None)
    got = run(settings, samples, bar)
    got = got._replace(losses=got.losses.sum(0))
    for name, a, b, n in zip(Result._fields, got, want, terms_of(*shape), strict=True):
        assert_close_to_reference(a, b, n, scale=SCALE[model], name=name)


def hostile(model, sharpness, device):
    """Rays with gradients of length 0 and below the floor, opaque and far samples, bins of no length."""
    samples = samples_of(BLOCK_R, 9, model, device, hit=False)
    samples.gradient[0] = 0
    samples.gradient[1] *= 1e-12
    samples.sdf[2, 0], samples.sdf[2, 1:] = 0.0, -5.0
    samples.gradient[2] = -samples.directions[2] * 1e3
    samples.sdf[3] = 1e3
    samples.sdf[4] = -1e3
    samples.edges[5] = 0
    samples.sdf[6] = 0
    return samples._replace(sharpness=torch.tensor(sharpness, device=device))


@pytest.mark.parametrize(
    ("model", "sharpness"), [("neus", 1e6), ("neus", 1e-6), ("volsdf", 1e-4), ("volsdf", 1e6)], ids=str
)
def test_hostile_inputs(model, sharpness, device):
    """All finite, and as near to float64 as the same formulas in float32."""
    samples, bar = hostile(model, sharpness, device), upstream_of(BLOCK_R, 9, device)
    # An eikonal weight whose product with the inverse of the smallest length overflows.
    bar = bar._replace(losses=torch.tensor([20.0, 1.0, 1.0], device=device))
    got = run(settings_of(model, 0.3), samples, bar)
    want, single = (plain(settings_of(model, 0.3), samples, bar, dtype) for dtype in (torch.float64, torch.float32))
    for name, a, b, c in zip(Result._fields, got, single, want, strict=True):
        assert a.isfinite().all(), name
        assert_no_worse_than_torch(a, b, c, n_terms=9, magnitude=float(c.abs().max()), name=name)


@pytest.mark.parametrize(("model", "sharpness"), [("neus", 1e6), ("volsdf", 1e-4)], ids=str)
def test_samples_whose_scaled_distance_overflows(model, sharpness, device):
    samples, bar = samples_of(3, 5, model, device), upstream_of(3, 5, device)
    samples.sdf[:, 0], samples.sdf[:, 1] = 1e38, -1e38
    got = run(settings_of(model), samples._replace(sharpness=torch.tensor(sharpness, device=device)), bar)
    assert all(v.isfinite().all() for v in got)
    assert (got.weights[samples.hit, 0] <= NEUS_ALPHA_EPS).all() and (got.weights[samples.hit, 1] > 0.99).all()


def opaque(count, model, device):
    """One ray that an opaque first sample ends."""
    samples = samples_of(1, count, model, device, hit=False)
    samples.sdf[:], samples.gradient[:] = -1.0, -samples.directions.unsqueeze(1)
    samples.edges[:] = torch.arange(count + 1.0, device=device)
    return samples._replace(sharpness=torch.tensor(1e4 if model == "neus" else 1e-3, device=device))


@MODELS
def test_opaque_first_sample_hides_the_rest(model, device):
    samples, bar = opaque(BLOCK_S + 1, model, device), upstream_of(1, BLOCK_S + 1, device, full=False)
    bar = bar._replace(losses=torch.zeros(3, device=device))
    got = run(settings_of(model), samples, bar)
    assert got.weights[0, 0] == 1 and (got.weights[0, 1:] <= 2 * TRANSMITTANCE_EPS).all()
    assert got.transmittance[0, 0] == 1 and (got.transmittance[0, 1:] <= 2 * TRANSMITTANCE_EPS).all()
    left = torch.tensor(TRANSMITTANCE_EPS if model == "neus" else 0.0, dtype=torch.float64)
    assert_close_to_reference(got.transmittance[0, 1], left, 1)
    assert all(v.isfinite().all() for v in got)
    assert (got.sdf[0, 1:].abs() < 1e-2).all()


def test_launches_are_listed(monkeypatch, device):
    def both():
        for model in ("neus", "volsdf"):
            for hit in (True, False):
                samples = samples_of(3, 4, model, device, hit)
                for full in (True, False):
                    run(settings_of(model), samples, upstream_of(3, 4, device, full))

    assert_launches_are_listed(monkeypatch, ray_opacity, both, minimum=2)
