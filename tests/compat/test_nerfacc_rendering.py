"""nerfacc's weighted sums and `rendering`: batched and flat rays against loops in float64."""

from __future__ import annotations

import functools

import pytest
import torch

from ponder_kernels.compat import _nerfacc_accumulate, _nerfacc_volrend, nerfacc
from ponder_kernels.composite import composite, render_weights
from tests.compat import nerfacc_oracle as oracle
from tests.compat.nerfacc_oracle import COUNT_IDS, COUNTS, indices, packed, rand
from tests.tolerance import assert_close_to_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("channels", [None, 1, 5])
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
def test_accumulate(counts, channels, dtype, device):
    rays, n, even = len(counts), sum(counts), len(set(counts)) == 1
    weights = rand(n).to(device, dtype)
    values = None if channels is None else rand(n, channels, seed=1).to(device, dtype)
    ids = indices(counts).to(device)

    def flat(weights, values=None):
        return nerfacc.accumulate_along_rays(weights, values, ids, rays)

    def rows(weights, values=None):
        values = None if values is None else values.view(rays, -1, channels)
        return nerfacc.accumulate_along_rays(weights.view(rays, -1), values)

    def reference(weights, values=None):
        values = torch.ones_like(weights)[:, None] if values is None else values
        return oracle.accumulate(weights, values, packed(counts))

    inputs = (weights,) if values is None else (weights, values)
    want, want_grads = oracle.gradients(reference, *(x.double().cpu() for x in inputs))
    for form in (flat, rows) if even else (flat,):
        out, grads = oracle.gradients(form, *inputs)
        assert out.dtype == dtype
        assert_close_to_reference(out, want, 64)
        for grad, want_grad in zip(grads, want_grads, strict=True):
            assert_close_to_reference(grad, want_grad, 64, name=form.__name__)


def test_accumulate_in_any_order(device):
    """Samples of a ray need not lie side by side here."""
    weights, values = rand(9).to(device), rand(9, 2, seed=1).to(device)
    ids = torch.tensor([2, 0, 2, 1, 1, 0, 2, 4, 0], device=device)
    order = ids.argsort()
    want = nerfacc.accumulate_along_rays(weights[order], values[order], ids[order], 5)
    torch.testing.assert_close(nerfacc.accumulate_along_rays(weights, values, ids, 5), want)
    assert (want[3] == 0).all()


def test_accumulate_other_dtypes_and_dims(device):
    weights, values = rand(2, 3, 4).float().to(device), rand(2, 3, 4, 5, seed=1).float().to(device)
    want = (weights[..., None] * values).sum(-2)
    torch.testing.assert_close(nerfacc.accumulate_along_rays(weights, values), want)
    torch.testing.assert_close(nerfacc.accumulate_along_rays(weights, values.double()), want.double())
    assert nerfacc.accumulate_along_rays(weights, values.bfloat16()).dtype == torch.float32
    one = nerfacc.accumulate_along_rays(weights[0, 0], values[0, 0])
    torch.testing.assert_close(one, want[0, 0])
    whole = nerfacc.accumulate_along_rays(torch.tensor([[1, 2]]), torch.tensor([[[3], [4]]]))
    assert whole.tolist() == [[11]]
    assert nerfacc.accumulate_along_rays(weights[:0], values[:0]).shape == (0, 3, 5)


def test_accumulate_in_place(device):
    weights, values = rand(6).to(device), rand(6, 2, seed=1).to(device)
    ids = torch.tensor([0, 3, 3, 1, 0, 1], device=device)
    before = rand(4, 2, seed=2).to(device)
    outputs = before.clone()
    assert nerfacc.accumulate_along_rays_(weights, values, ids, outputs) is None
    torch.testing.assert_close(outputs, before + nerfacc.accumulate_along_rays(weights, values, ids, 4))
    outputs = before[:, :1].clone()
    nerfacc.accumulate_along_rays_(weights, None, ids.int(), outputs)
    torch.testing.assert_close(outputs, before[:, :1] + nerfacc.accumulate_along_rays(weights, None, ids, 4))
    outputs = before[:3].clone()
    nerfacc.accumulate_along_rays_(weights.view(3, 2), values.view(3, 2, 2), outputs=outputs)
    torch.testing.assert_close(
        outputs, before[:3] + nerfacc.accumulate_along_rays(weights.view(3, 2), values.view(3, 2, 2))
    )


def field(densities):
    """Colours that depend on the position, and given densities or opacities."""

    def query(t_starts, t_ends, ray_indices):
        return torch.stack((t_starts, t_ends, t_starts * t_ends), dim=-1), densities

    return query


def scene(counts, device):
    starts = rand(sum(counts), high=3.0)
    ends = starts + rand(sum(counts), low=0.1, seed=1)
    return [x.to(device) for x in (starts, ends, rand(sum(counts), high=0.9, seed=2))]


def rendered(starts, ends, alphas, chunks, background, expected):
    """Colours, opacities and depths by the loops, side by side."""
    weights = oracle.transmittance_of_alpha(alphas, chunks) * alphas
    rgbs, _ = field(alphas)(starts, ends, None)
    opacities = oracle.accumulate(weights, torch.ones_like(alphas)[:, None], chunks)
    depths = oracle.accumulate(weights, ((starts + ends) / 2)[:, None], chunks)
    depths = depths / opacities.clamp_min(torch.finfo(torch.float64).eps) if expected else depths
    colours = oracle.accumulate(weights, rgbs, chunks)
    colours = colours if background is None else colours + background * (1 - opacities)
    return torch.cat((colours, opacities, depths), dim=1)


@pytest.mark.parametrize("expected", [True, False], ids=["expected", "accumulated"])
@pytest.mark.parametrize("background", [False, True], ids=["black", "background"])
@pytest.mark.parametrize("density", [False, True], ids=["alpha", "density"])
@pytest.mark.parametrize("counts", COUNTS[:4], ids=COUNT_IDS[:4])
def test_rendering(counts, density, background, expected, device):
    starts, ends, values = scene(counts, device)
    behind = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64) if background else None
    chunks, rays = packed(counts), len(counts)

    def call(starts, ends, values, flat=True):
        shaped = (x if flat else x.view(rays, -1) for x in (starts, ends, values))
        starts, ends, values = shaped
        return torch.cat(
            nerfacc.rendering(
                starts,
                ends,
                indices(counts).to(device) if flat else None,
                rays if flat else None,
                rgb_sigma_fn=field(values) if density else None,
                rgb_alpha_fn=None if density else field(values),
                render_bkgd=None if behind is None else behind.to(device),
                expected_depths=expected,
            )[:3],
            dim=1,
        )

    def reference(starts, ends, values):
        alphas = 1 - torch.exp(-values * (ends - starts)) if density else values
        return rendered(starts, ends, alphas, chunks, behind, expected)

    inputs = (starts, ends, values)
    want, want_grads = oracle.gradients(reference, *(x.cpu() for x in inputs))
    for flat in (True, False) if len(set(counts)) == 1 else (True,):
        out, grads = oracle.gradients(lambda *x, flat=flat: call(*x, flat=flat), *inputs)
        assert_close_to_reference(out, want, 64, name="pixels")
        for grad, want_grad in zip(grads, want_grads, strict=True):
            # The division by an opacity of 0 + eps magnifies nothing here: every ray with samples is well covered.
            assert_close_to_reference(grad, want_grad, 64, name="gradient")


def test_on_the_kernels(monkeypatch, device):
    """A GPU takes the Triton kernels; where there is none, Triton's interpreter does."""
    monkeypatch.setattr(_nerfacc_volrend, "render_weights", functools.partial(render_weights, backend="triton"))
    monkeypatch.setattr(_nerfacc_accumulate, "composite", functools.partial(composite, backend="triton"))
    behind = torch.tensor([0.2, 0.5, 0.9], device=device)
    for counts in ((0, 3, 0, 17), (5, 5)):
        starts, ends, values = (x.float() for x in scene(counts, device))
        ids, rays = indices(counts).to(device), len(counts)

        def call(starts, ends, values, ids=ids, rays=rays):
            pixels = nerfacc.rendering(starts, ends, ids, rays, rgb_alpha_fn=field(values), render_bkgd=behind)
            return torch.cat(pixels[:3], dim=1)

        def reference(starts, ends, values, counts=counts):
            return rendered(starts, ends, values, packed(counts), behind.double().cpu(), True)

        out, grads = oracle.gradients(call, starts, ends, values)
        want, want_grads = oracle.gradients(reference, *(x.double().cpu() for x in (starts, ends, values)))
        assert_close_to_reference(out, want, 17)
        for grad, want_grad in zip(grads, want_grads, strict=True):
            assert_close_to_reference(grad, want_grad, 17)


def test_rendering_extras_and_precedence(device):
    """A density field goes before an opacity field; what was made on the way comes back."""
    starts, ends, values = (x.view(1, 5) for x in scene((5,), device))
    *_, extras = nerfacc.rendering(starts, ends, rgb_alpha_fn=field(values))
    assert sorted(extras) == ["alphas", "rgbs", "trans", "weights"] and extras["alphas"] is values
    assert torch.equal(extras["weights"], nerfacc.render_weight_from_alpha(values)[0])
    *_, extras = nerfacc.rendering(starts, ends, rgb_sigma_fn=field(values), rgb_alpha_fn=lambda *_: None)
    assert sorted(extras) == ["alphas", "rgbs", "sigmas", "trans", "weights"] and extras["sigmas"] is values
    assert torch.equal(extras["weights"], nerfacc.render_weight_from_density(starts, ends, values)[0])


def test_rendering_of_nothing(device):
    """Rays without samples show the background at depth 0, and give gradients that are finite."""
    none = torch.zeros(0, device=device, requires_grad=True)
    ids = torch.zeros(0, dtype=torch.int64, device=device)
    white = torch.ones(3, device=device)
    colours, opacities, depths, _ = nerfacc.rendering(none, none, ids, 2, rgb_sigma_fn=field(none), render_bkgd=white)
    assert colours.tolist() == [[1.0] * 3] * 2 and opacities.tolist() == depths.tolist() == [[0.0]] * 2
    (colours.sum() + depths.sum()).backward()
    air = torch.zeros(3, device=device, requires_grad=True)
    ids = torch.tensor([1, 1, 3], device=device)
    *pixels, _ = nerfacc.rendering(air.detach(), air.detach() + 1, ids, 4, rgb_sigma_fn=field(air))
    sum(x.sum() for x in pixels).backward()
    assert torch.isfinite(air.grad).all() and (air.grad > 0).all()


def test_rendering_rays_in_another_order(device):
    """Each pixel goes to its ray's row, whatever the order of the rays in the flat samples."""
    starts, ends, values = scene((2, 3), device)
    swapped = torch.tensor([2, 3, 4, 0, 1], device=device)
    want = nerfacc.rendering(starts, ends, indices((2, 3)).to(device), 2, rgb_alpha_fn=field(values))
    ids = torch.tensor([3, 3, 3, 1, 1], device=device)
    starts, ends, values = starts[swapped], ends[swapped], values[swapped]
    got = nerfacc.rendering(starts, ends, ids, 5, rgb_alpha_fn=field(values))
    for a, b in zip(got[:3], want[:3], strict=True):
        torch.testing.assert_close(a[[1, 3]], b)
        assert (a[[0, 2, 4]] == 0).all()


def test_rendering_half_precision_field(device):
    """Networks under autocast answer in half precision."""
    starts, ends, values = (x.float() for x in scene((4, 4), device))
    rgbs, _ = field(values)(starts, ends, None)
    ids = indices((4, 4)).to(device)
    colours, *_ = nerfacc.rendering(starts, ends, ids, 2, rgb_sigma_fn=lambda *_: (rgbs.bfloat16(), values.bfloat16()))
    want, *_ = nerfacc.rendering(
        starts, ends, ids, 2, rgb_sigma_fn=lambda *_: (rgbs.bfloat16().float(), values.bfloat16().float())
    )
    assert colours.dtype == torch.float32
    assert_close_to_reference(colours, want.double(), 4)


W, V, IDS = torch.zeros(3), torch.zeros(3, 2), torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0],), TypeError, "weights: expected a torch.Tensor"),
        ((torch.tensor(1.0),), ValueError, "weights: expected at least one dimension"),
        ((W, W), ValueError, r"values: expected shape \[3, D\], got \[3\]"),
        ((W, V[:2]), ValueError, r"values: expected shape \[3, D\], got \[2, 2\]"),
        ((W, V.to("meta")), ValueError, "values: expected device cpu"),
        ((W, None, IDS[:2], 2), ValueError, r"weights: expected shape \[N\] with N=2, got \[3\]"),
        ((W, None, IDS.float(), 2), TypeError, "ray_indices: expected dtype int64"),
        ((W, None, IDS), ValueError, "n_rays: expected the number of rays with ray_indices, got None"),
        ((W, None, IDS, 1), ValueError, "ray_indices: expected ray ids of at least 0 and below n_rays = 1, got 0 to 1"),
        ((W[None], None, IDS, 2), ValueError, "weights: expected shape"),
    ],
)
def test_accumulate_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        nerfacc.accumulate_along_rays(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((W,), TypeError, "outputs: expected a torch.Tensor, got NoneType"),
        ((W, V, IDS, torch.zeros(2, 1)), ValueError, r"outputs: expected shape \[2, 2\], got \[2, 1\]"),
        ((W, V, None, torch.zeros(3, 2)), ValueError, r"outputs: expected shape \[2\], got \[3, 2\]"),
        ((W, None, IDS, torch.zeros(1, 1)), ValueError, "ray_indices: expected ray ids of at least 0 and below"),
    ],
)
def test_accumulate_in_place_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        nerfacc.accumulate_along_rays_(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "rgb_sigma_fn: expected at least one of rgb_sigma_fn and rgb_alpha_fn, got neither"),
        ({"rgb_alpha_fn": field(W), "ray_indices": IDS}, "n_rays: expected the number of rays"),
        ({"rgb_alpha_fn": lambda *_: (V, W)}, r"rgb_alpha_fn: expected colours of shape \[3, 3\], got \[3, 2\]"),
        ({"rgb_sigma_fn": field(W[:2])}, r"rgb_sigma_fn: expected a second result of shape \[3\], got \[2\]"),
        ({"rgb_alpha_fn": field(W), "t_ends": W[:2]}, r"t_ends: expected shape \[3\] as t_starts, got \[2\]"),
        (
            {"rgb_alpha_fn": field(W), "ray_indices": torch.tensor([0, 1, 0]), "n_rays": 2},
            "ray_indices: expected the samples of a ray side by side, got 3 runs of 2 rays",
        ),
    ],
)
def test_rendering_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        nerfacc.rendering(W, **{"t_ends": W, **arguments})
