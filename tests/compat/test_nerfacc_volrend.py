"""nerfacc's rendering functions: batched, packed and indexed samples against loops in float64."""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect

import pytest
import torch

from ponder_kernels.compat import _nerfacc_volrend, nerfacc
from ponder_kernels.composite import render_weights
from tests.compat import nerfacc_oracle as oracle
from tests.compat.nerfacc_oracle import COUNT_IDS, COUNTS, indices, packed, rand, with_zeros
from tests.tolerance import assert_close_to_reference

PI = "packed_info=None, ray_indices=None, n_rays=None"
SIGNATURES = {
    "RayIntervals": "(vals, packed_info=None, ray_indices=None, is_left=None, is_right=None)",
    "RaySamples": "(vals, packed_info=None, ray_indices=None, is_valid=None)",
    "accumulate_along_rays": "(weights, values=None, ray_indices=None, n_rays=None)",
    "accumulate_along_rays_": "(weights, values=None, ray_indices=None, outputs=None)",
    "exclusive_prod": "(inputs, packed_info=None, indices=None)",
    "exclusive_sum": "(inputs, packed_info=None, indices=None)",
    "importance_sampling": "(intervals, cdfs, n_intervals_per_ray, stratified=False)",
    "inclusive_prod": "(inputs, packed_info=None, indices=None)",
    "inclusive_sum": "(inputs, packed_info=None, indices=None)",
    "pack_info": "(ray_indices, n_rays=None)",
    "render_transmittance_from_alpha": f"(alphas, {PI}, prefix_trans=None)",
    "render_transmittance_from_density": f"(t_starts, t_ends, sigmas, {PI}, prefix_trans=None)",
    "render_visibility_from_alpha": f"(alphas, {PI}, early_stop_eps=0.0001, alpha_thre=0.0, prefix_trans=None)",
    "render_visibility_from_density": (
        f"(t_starts, t_ends, sigmas, {PI}, early_stop_eps=0.0001, alpha_thre=0.0, prefix_trans=None)"
    ),
    "render_weight_from_alpha": f"(alphas, {PI}, prefix_trans=None)",
    "render_weight_from_density": f"(t_starts, t_ends, sigmas, {PI}, prefix_trans=None)",
    "rendering": (
        "(t_starts, t_ends, ray_indices=None, n_rays=None, rgb_sigma_fn=None, rgb_alpha_fn=None, "
        "render_bkgd=None, expected_depths=True)"
    ),
    "searchsorted": "(sorted_sequence, values)",
}


def test_names_argument_order_and_defaults():
    assert nerfacc.__all__ == list(SIGNATURES)
    for name, want in SIGNATURES.items():
        signature = inspect.signature(getattr(nerfacc, name))
        plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        assert str(inspect.Signature(plain)) == want, name


@pytest.mark.parametrize(
    "module", ["nerfacc", "_nerfacc_scan", "_nerfacc_pdf", "_nerfacc_volrend", "_nerfacc_accumulate"]
)
def test_examples_in_the_documentation(module):
    found = importlib.import_module(f"ponder_kernels.compat.{module}")
    result = doctest.testmod(found, extraglobs={"torch": torch})
    assert result.attempted and not result.failed


def samples(counts, device, dtype):
    """Densities, interval starts and ends, opacities and prefix of flat samples; air and walls included."""
    n = sum(counts)
    sigmas = with_zeros(rand(n, high=0.6))
    starts = rand(n, high=4.0, seed=1)
    ends = starts + rand(n, low=0.1, seed=2)
    # Alphas of 0 and exactly 1, the latter first, last and side by side.
    alphas = with_zeros(rand(n, high=0.3), 1.0)
    alphas[2::5] = 0.0
    prefix = rand(n, low=0.2, seed=4)
    return [x.to(device, dtype) for x in (sigmas, starts, ends, alphas, prefix)]


def forms(counts, device):
    """Keyword arguments that say the same thing in each of the forms that fit."""
    ids = indices(counts).to(device)
    found = [{"packed_info": packed(counts).to(device)}, {"ray_indices": ids}]
    found.append({"ray_indices": ids, "n_rays": len(counts)})
    return found + [{}] * (len(set(counts)) == 1)


def check(function, reference, inputs, arguments, rows):
    """Every output and every gradient of `function(*inputs)` against the loops; several outputs come stacked."""

    def call(*inputs):
        shaped = inputs if arguments else [x.view(rows, -1) for x in inputs]
        return torch.stack([o.reshape(-1) for o in function(*shaped, **arguments)])

    out, grads = oracle.gradients(call, *inputs)
    want, want_grads = oracle.gradients(reference, *(x.double().cpu() for x in inputs))
    assert out.dtype == inputs[0].dtype
    assert_close_to_reference(out, want, 64, name=f"values {list(arguments)}")
    for k, (grad, want_grad) in enumerate(zip(grads, want_grads, strict=True)):
        assert_close_to_reference(grad, want_grad, 64, name=f"gradient {k} {list(arguments)}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
def test_from_alpha(counts, dtype, device):
    *_, alphas, prefix = samples(counts, device, dtype)
    chunks = packed(counts)

    def function(alphas, prefix, **arguments):
        weights, trans = nerfacc.render_weight_from_alpha(alphas, **arguments, prefix_trans=prefix)
        again = nerfacc.render_transmittance_from_alpha(alphas, **arguments, prefix_trans=prefix)
        bare = nerfacc.render_weight_from_alpha(alphas, **arguments)
        return weights, trans, again, *bare

    def reference(alphas, prefix):
        trans = oracle.transmittance_of_alpha(alphas, chunks)
        seen = trans * prefix
        return torch.stack((seen * alphas, seen, seen, trans * alphas, trans))

    for arguments in forms(counts, device):
        check(function, reference, (alphas, prefix), arguments, len(counts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("counts", COUNTS, ids=COUNT_IDS)
def test_from_density(counts, dtype, device):
    sigmas, starts, ends, _, prefix = samples(counts, device, dtype)
    chunks = packed(counts)

    def function(starts, ends, sigmas, prefix, **arguments):
        weights = nerfacc.render_weight_from_density(starts, ends, sigmas, **arguments, prefix_trans=prefix)
        trans = nerfacc.render_transmittance_from_density(starts, ends, sigmas, **arguments, prefix_trans=prefix)
        return *weights, *trans, nerfacc.render_weight_from_density(starts, ends, sigmas, **arguments)[0]

    def reference(starts, ends, sigmas, prefix):
        depth = sigmas * (ends - starts)
        alphas, trans = 1.0 - torch.exp(-depth), oracle.transmittance_of_density(depth, chunks)
        seen = trans * prefix
        return torch.stack((seen * alphas, seen, alphas, seen, alphas, trans * alphas))

    for arguments in forms(counts, device):
        check(function, reference, (starts, ends, sigmas, prefix), arguments, len(counts))


def test_on_the_kernels(monkeypatch, device):
    """A GPU takes the Triton kernels; where there is none, Triton's interpreter does."""
    on_triton = functools.partial(render_weights, backend="triton")
    monkeypatch.setattr(_nerfacc_volrend, "render_weights", on_triton)
    test_from_alpha((0, 3, 0, 17), torch.float32, device)
    test_from_alpha((5, 5), torch.float32, device)
    test_samples_of_no_ray(device, torch.float32)


def test_derivatives_to_second_order():
    sigmas, starts, ends, alphas, _ = samples((2, 0, 4), "cpu", torch.float64)
    for arguments in forms((2, 0, 4), "cpu"):
        for function, inputs in (
            (lambda a, kw=arguments: nerfacc.render_weight_from_alpha(a, **kw), (alphas,)),
            (lambda s, e, d, kw=arguments: nerfacc.render_weight_from_density(s, e, d, **kw), (starts, ends, sigmas)),
        ):
            leaves = [x.clone().requires_grad_() for x in inputs]
            assert torch.autograd.gradcheck(function, leaves)
            assert torch.autograd.gradgradcheck(function, leaves)


def test_density_and_alpha_agree(device):
    counts = (1, 0, 4, 9)
    sigmas, starts, ends, *_ = samples(counts, device, torch.float64)
    ids = indices(counts).to(device)
    weights, trans, alphas = nerfacc.render_weight_from_density(starts, ends, sigmas, ray_indices=ids)
    torch.testing.assert_close(nerfacc.render_weight_from_alpha(alphas, ray_indices=ids), (weights, trans))


def test_what_is_not_seen_passes_on(device):
    """Weights and the light behind the last sample add up to the light that came in."""
    alphas, prefix = rand(5, 16, high=0.4).to(device), rand(5, 1, seed=1).to(device)
    weights, trans = nerfacc.render_weight_from_alpha(alphas, prefix_trans=prefix)
    left = trans[:, -1:] * (1 - alphas[:, -1:])
    torch.testing.assert_close(weights.sum(1, keepdim=True) + left, prefix)


def test_hand_made_values(device):
    """The opacities 0.4, 0.8, 0.1 | 0.8, 0.1 | 0, 0.9 of three rays, multiplied out."""
    alphas = torch.tensor([0.4, 0.8, 0.1, 0.8, 0.1, 0.0, 0.9], dtype=torch.float64, device=device)
    ids = torch.tensor([0, 0, 0, 1, 1, 2, 2], device=device)
    weights, trans = nerfacc.render_weight_from_alpha(alphas, ray_indices=ids)
    want = torch.tensor([[0.4, 0.48, 0.012, 0.8, 0.02, 0.0, 0.9], [1.0, 0.6, 0.12, 1.0, 0.2, 1.0, 1.0]])
    assert_close_to_reference(torch.stack((weights, trans)), want.double(), 1, dtype=torch.float32)
    visible = nerfacc.render_visibility_from_alpha(alphas, ray_indices=ids, early_stop_eps=0.3, alpha_thre=0.2)
    assert visible.tolist() == [True, True, False, True, False, False, True]


def test_visibility(device):
    """Light 1 | 1, 0.7, 0.14, 0.028 at opacities 0.4 | 0.3, 0.8, 0.8, 0.5 of rays 0 and 2."""
    alphas = torch.tensor([0.4, 0.3, 0.8, 0.8, 0.5], device=device)
    ends = -torch.log1p(-alphas)
    for arguments in forms((1, 0, 4), device):
        for options, want in (
            ({"early_stop_eps": 0.03}, [True, True, True, True, False]),
            ({"early_stop_eps": 0.05, "alpha_thre": 0.35}, [True, False, True, True, False]),
            ({}, [True] * 5),
            ({"alpha_thre": 0.45}, [False, False, True, True, True]),
        ):
            of_alpha = nerfacc.render_visibility_from_alpha(alphas.requires_grad_(), **arguments, **options)
            zeros, ones = torch.zeros_like(ends), torch.ones_like(ends)
            of_density = nerfacc.render_visibility_from_density(zeros, ones, ends, **arguments, **options)
            assert of_alpha.dtype == of_density.dtype == torch.bool
            assert of_alpha.tolist() == of_density.tolist() == want
            assert not of_alpha.requires_grad


def test_visibility_thresholds_are_inclusive(device):
    alphas = torch.tensor([[0.5, 0.5, 0.25]], device=device)
    see = nerfacc.render_visibility_from_alpha
    assert see(alphas, early_stop_eps=0.25, alpha_thre=0.25).tolist() == [[True, True, True]]
    assert see(alphas, early_stop_eps=0.26).tolist() == [[True, True, False]]
    half = torch.full_like(alphas, 0.5)
    assert see(alphas, early_stop_eps=0.25, prefix_trans=half).tolist() == [[True, True, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_samples_of_no_ray(device, dtype):
    """Between chunks there is no light; the chunks themselves may lie in any order."""
    chunks = torch.tensor([[6, 3], [2, 0], [1, 3]], device=device)
    alphas = rand(10, high=0.5).to(device, dtype)
    weights, trans = nerfacc.render_weight_from_alpha(alphas, packed_info=chunks)
    want = oracle.transmittance_of_alpha(alphas.cpu(), chunks.cpu())
    torch.testing.assert_close((weights.cpu(), trans.cpu()), (want * alphas.cpu(), want))
    zeros = torch.zeros_like(alphas)
    trans, _ = nerfacc.render_transmittance_from_density(zeros, zeros, alphas, packed_info=chunks)
    assert trans.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]


def test_rays_in_another_order(device):
    """Ray ids need not ascend: a ray begins where the id changes."""
    ids = torch.tensor([5, 5, 0, 0, 0], device=device)
    alphas = rand(5).to(device)
    want = nerfacc.render_weight_from_alpha(alphas, packed_info=torch.tensor([[0, 2], [2, 3]], device=device))
    for n_rays in (None, 6):
        got = nerfacc.render_weight_from_alpha(alphas, ray_indices=ids, n_rays=n_rays)
        torch.testing.assert_close(got, want)


def test_shapes_at_the_edge(device):
    none, ids = torch.zeros(0, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    for arguments in ({"ray_indices": ids}, {"ray_indices": ids, "n_rays": 3}, {"packed_info": ids.view(0, 2)}):
        assert all(x.shape == (0,) for x in nerfacc.render_weight_from_alpha(none, **arguments))
        assert all(x.shape == (0,) for x in nerfacc.render_weight_from_density(none, none, none, **arguments))
    for shape in ((0, 4), (4, 0), (2, 3, 5), (6,)):
        x = rand(*shape).to(device)
        weights, trans = nerfacc.render_weight_from_alpha(x)
        assert weights.shape == trans.shape == shape
        want = nerfacc.exclusive_prod(1 - x)
        torch.testing.assert_close((weights, trans), (want * x, want))
        assert nerfacc.render_transmittance_from_density(x, x, x)[0].shape == shape


def test_half_precision(device):
    """Computed in float32, returned as it came."""
    alphas = torch.tensor([0.5, 0.25, 1.0, 0.5, 0.5], device=device)
    ids = torch.tensor([0, 0, 0, 1, 1], device=device)
    want = nerfacc.render_weight_from_alpha(alphas, ray_indices=ids)
    for dtype in (torch.float16, torch.bfloat16):
        got = nerfacc.render_weight_from_alpha(alphas.to(dtype), ray_indices=ids)
        assert all(x.dtype == dtype for x in got)
        torch.testing.assert_close([x.float() for x in got], list(want), rtol=0, atol=0)


def batched(alphas, sigmas, starts, ends):
    """Everything that is natural to trace and transform."""
    weights, trans = nerfacc.render_weight_from_alpha(alphas)
    dense, *_ = nerfacc.render_weight_from_density(starts, ends, sigmas)
    colours, opacities, depths, _ = nerfacc.rendering(
        starts, ends, rgb_sigma_fn=lambda s, e, i: (torch.stack((s, e, s * e), dim=-1), sigmas)
    )
    return torch.cat((weights, trans, dense, colours, opacities, depths), dim=1)


def test_compiles():
    torch._dynamo.reset()
    sigmas, starts, ends, alphas, _ = (x.view(3, 5) for x in samples((5, 5, 5), "cpu", torch.float64))
    inputs = (alphas, sigmas, starts, ends)
    compiled = torch.compile(batched, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(oracle.gradients(compiled, *inputs), oracle.gradients(batched, *inputs))
    see = torch.compile(nerfacc.render_visibility_from_alpha, fullgraph=True, backend="aot_eager")
    assert torch.equal(see(alphas, alpha_thre=0.1), nerfacc.render_visibility_from_alpha(alphas, alpha_thre=0.1))


def test_torch_func():
    sigmas, starts, ends, alphas, _ = (x.view(3, 5) for x in samples((5, 5, 5), "cpu", torch.float64))

    def loss(alphas, sigmas):
        return batched(alphas, sigmas, starts, ends).square().sum()

    leaves = [x.clone().requires_grad_() for x in (alphas, sigmas)]
    want = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(alphas, sigmas), want)
    many = torch.func.vmap(torch.func.grad(loss))(torch.stack((alphas, alphas)), torch.stack((sigmas, sigmas)))
    torch.testing.assert_close(many, torch.stack((want[0], want[0])))


A, IDS, CHUNKS = torch.zeros(3), torch.tensor([0, 0, 1]), torch.tensor([[0, 2], [2, 1]])
BOTH = "ray_indices: expected at most one of packed_info and ray_indices, got both"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((A, CHUNKS, IDS), ValueError, BOTH),
        (([0.0],), TypeError, "expected a torch.Tensor, got list"),
        ((IDS,), TypeError, "expected dtype float16"),
        ((torch.tensor(0.5),), ValueError, "expected at least one dimension"),
        ((A[None], None, IDS), ValueError, r"expected shape \[N\], got \[1, 3\]"),
        ((A, None, IDS[:2]), ValueError, r"ray_indices: expected shape \[N\] with N=3, got \[2\]"),
        ((A, None, IDS.float()), TypeError, "ray_indices: expected dtype int64"),
        ((A, None, IDS, 1), ValueError, "ray_indices: expected ray ids of at least 0 and below n_rays = 1"),
        ((A, None, IDS, 0), ValueError, "ray_indices: expected ray ids of at least 0 and below n_rays = 0"),
        ((A, None, torch.tensor([0, 1, 0]), 2), ValueError, "ray_indices: expected the samples of a ray side by side"),
        ((A, CHUNKS + 1), ValueError, "packed_info: expected chunks .* inside the 3 samples"),
        ((A, CHUNKS.to("meta")), ValueError, "packed_info: expected device cpu"),
    ],
)
def test_refuses(arguments, error, message):
    for name in ("transmittance", "weight", "visibility"):
        with pytest.raises(error, match=message):
            getattr(nerfacc, f"render_{name}_from_alpha")(*arguments)
        with pytest.raises(error, match=message):
            first, *others = arguments
            getattr(nerfacc, f"render_{name}_from_density")(first, first, first, *others)


def test_intervals_must_fit():
    with pytest.raises(ValueError, match=r"t_ends: expected shape \[3\] as sigmas, got \[2\]"):
        nerfacc.render_weight_from_density(A, A[:2], A)
    with pytest.raises(ValueError, match="t_starts: expected device cpu"):
        nerfacc.render_weight_from_density(A.to("meta"), A, A)
