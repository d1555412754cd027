"""Compositing of packed rays: Triton against float64, against batched rays and against a loop over rays."""

import pytest
import torch

from ponder_kernels.composite import composite, render_weights
from ponder_kernels.composite import op as op_module
from ponder_kernels.composite.reference import composite_reference, render_weights_reference
from tests.kernels.composite_cases import (
    LENGTH_IDS,
    LENGTHS,
    alphas,
    check_composite,
    check_weights,
    composite_case,
    composite_truth,
    offsets_of,
    packed_alphas,
    packed_case,
)
from tests.kernels.harness import compare_second_order, rand
from tests.tolerance import assert_close_to_reference

BY_LENGTHS = pytest.mark.parametrize("lengths", LENGTHS, ids=LENGTH_IDS)
RAGGED = (0, 3, 0, 0, 5, 1, 0)


@pytest.mark.parametrize(("eps", "early_stop"), [(1e-7, 0.0), (0.0, 0.2)])
@BY_LENGTHS
def test_render_weights(lengths, eps, early_stop, device):
    check_weights(packed_alphas(sum(lengths), device), offsets_of(lengths, device), eps, early_stop)


@pytest.mark.parametrize("background", ["", "C", "RC"], ids=["none", "per-channel", "per-ray"])
@BY_LENGTHS
def test_composite(lengths, background, device):
    check_composite(packed_case(lengths, 3, device, background), offsets_of(lengths, device))


@pytest.mark.parametrize("channels", [0, 1, 33, 70])
def test_composite_channels(channels, device):
    check_composite(packed_case((20, 0, 3), channels, device, "C"), offsets_of((20, 0, 3), device))


@pytest.mark.parametrize("upstream", ["expanded", "transposed"])
def test_layouts(upstream, device):
    """Strided samples, transposed values and backgrounds, offsets of int32 with gaps between them."""
    offsets = torch.stack((offsets_of(RAGGED, device, torch.int32),) * 2, dim=1)[:, 0]
    check_weights(packed_alphas(18, device)[::2], offsets, upstream=upstream)
    inputs = packed_case(RAGGED, 4, device, "RC")
    inputs["weights"] = rand(18, seed=4).to(device)[::2]
    inputs["values"] = rand(4, 18, seed=5).to(device).t()[::2]
    inputs["background"] = rand(4, len(RAGGED), seed=6).to(device).t()
    check_composite(inputs, offsets, upstream=upstream)
    inputs["values"] = rand(1, 4, seed=5).to(device).expand(9, 4)
    check_composite(inputs, offsets, upstream=upstream)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_values(dtype, device):
    inputs = packed_case(RAGGED, 5, device, "C")
    inputs["values"] = inputs["values"].to(dtype)
    check_composite(inputs, offsets_of(RAGGED, device))


@pytest.mark.parametrize("wanted", ["weights", "values", "background"])
def test_only_the_wanted_gradient(wanted, device):
    check_composite(packed_case(RAGGED, 5, device, "C"), offsets_of(RAGGED, device), wanted={wanted})


def both_layouts(backend, device, early_stop):
    """Values and gradients of 5 rays of 40 samples, batched and packed, flattened to the same shapes."""
    offsets = offsets_of([40] * 5, device)
    results = []
    for packed in (False, True):
        alpha = alphas(5, 40, device, high=0.1)
        values, background = rand(5, 40, 3, seed=3).to(device), rand(5, 3, seed=4).to(device)
        if packed:
            alpha, values = alpha.flatten(), values.flatten(0, 1)
        leaves = [x.clone().requires_grad_() for x in (alpha, values, background)]
        options = {"ray_offsets": offsets if packed else None, "backend": backend}
        weights, transmittance = render_weights(leaves[0], early_stop=early_stop, **options)
        out = composite(weights, *leaves[1:], **options)
        seen = (transmittance.flatten() * rand(200, seed=5).to(device)).sum() + (out * rand(5, 3, seed=6).to(out)).sum()
        found = [weights, transmittance, out, *torch.autograd.grad(seen, leaves)]
        results.append([x.detach().reshape(-1) for x in found])
    return results


@pytest.mark.parametrize("early_stop", [0.0, 0.2])
def test_packed_equals_batched(early_stop, device):
    batched, packed = both_layouts("triton", device, early_stop)
    for got, want in zip(packed, batched, strict=True):
        assert_close_to_reference(got, want.double().cpu(), 40)
    for got, want in zip(*both_layouts("torch", device, early_stop), strict=True):
        assert_close_to_reference(got, want.double().cpu(), 40)


@pytest.mark.parametrize("early_stop", [0.0, 0.3])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_packed_equals_a_loop_over_rays(backend, early_stop, device):
    lengths = (0, 3, 0, 0, 15, 1, 40, 0)
    offsets, alpha = offsets_of(lengths, device), packed_alphas(sum(lengths), device).requires_grad_()
    values, background = rand(sum(lengths), 3, seed=3).to(device), rand(len(lengths), 3, seed=4).to(device)
    weights = render_weights(alpha, ray_offsets=offsets, early_stop=early_stop, backend=backend).weights
    out = composite(weights, values, background, ray_offsets=offsets, backend=backend)
    out.square().sum().backward()
    truth = alpha.detach().cpu().double().requires_grad_()
    rays = []
    for r, (ray_alpha, ray_values) in enumerate(zip(truth.split(lengths), values.split(lengths), strict=True)):
        w, _ = render_weights_reference(ray_alpha[None], early_stop=early_stop)
        rays.append(composite_reference(w, ray_values[None].cpu().double(), background[r : r + 1].cpu().double()))
    want = torch.cat(rays)
    want.square().sum().backward()
    assert_close_to_reference(out, want, 40)
    assert_close_to_reference(alpha.grad, truth.grad, 40)


def test_no_samples_show_the_background(device):
    background = rand(4, 3, seed=1).to(device)
    empty, offsets = torch.zeros(0, device=device), offsets_of([0] * 4, device)
    out = composite(empty, torch.zeros(0, 3, device=device), background, ray_offsets=offsets, backend="triton")
    assert torch.equal(out, background)


def test_rays_do_not_mix(device):
    """Packed rays in another order give the same numbers in that order."""
    lengths = (3, 0, 40, 1, 7, 12)
    order = (4, 2, 5, 0, 1, 3)
    rays = packed_alphas(sum(lengths), device).split(lengths)
    shuffled = [rays[k] for k in order]
    plain = render_weights(torch.cat(rays), ray_offsets=offsets_of(lengths, device), backend="triton")
    mixed_offsets = offsets_of([len(r) for r in shuffled], device)
    mixed = render_weights(torch.cat(shuffled), ray_offsets=mixed_offsets, backend="triton")
    for a, b in zip(plain, mixed, strict=True):
        assert torch.equal(torch.cat([a.split(lengths)[k] for k in order]), b)


@pytest.mark.parametrize("early_stop", [0.0, 0.3])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_nan_stays_in_its_ray(backend, early_stop, device):
    alpha = torch.full((9,), 0.1, device=device)
    alpha[4] = float("nan")
    leaf = alpha.requires_grad_()
    options = {"ray_offsets": offsets_of((3, 4, 2), device), "backend": backend}
    weights, transmittance = render_weights(leaf, early_stop=early_stop, **options)
    pixels = composite(weights, torch.ones(9, 2, device=device), torch.ones(2, device=device), **options)
    pixels.sum().backward()
    hurt = torch.tensor([False, True, False], device=device)
    assert torch.equal(pixels.isnan().any(1), hurt)
    assert transmittance.isnan().nonzero().flatten().tolist() == [5, 6]
    assert leaf.grad[:3].isfinite().all() and leaf.grad[7:].isfinite().all() and leaf.grad[3:7].isnan().any()


@pytest.mark.parametrize(("eps", "early_stop"), [(0.0, 0.0), (1e-7, 0.0), (0.0, 0.3)])
def test_reference_derivatives(eps, early_stop):
    alpha = rand(9, seed=1, low=0.1, high=0.8).double()
    alpha[1], alpha[4], alpha[5], alpha[6] = 1.0, 0.0, 1.0, 1.0
    offsets = offsets_of(RAGGED, "cpu")
    fn = lambda a: render_weights_reference(a, offsets, eps, early_stop)  # noqa: E731
    assert torch.autograd.gradcheck(fn, (alpha.requires_grad_(),))
    assert torch.autograd.gradgradcheck(fn, (alpha,))


@pytest.mark.parametrize("background", ["", "RC"])
def test_composite_reference_derivatives(background):
    offsets = offsets_of(RAGGED, "cpu")
    inputs = tuple(v.double().requires_grad_() for v in packed_case(RAGGED, 2, "cpu", background).values())
    fn = lambda w, v, b=None: composite_reference(w, v, b, offsets)  # noqa: E731
    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


def test_second_order(device):
    offsets = offsets_of(RAGGED, device)
    compare_second_order(
        lambda alpha: render_weights(alpha, ray_offsets=offsets, eps=0.0, backend="triton"),
        lambda alpha: render_weights_reference(alpha, offsets.cpu(), 0.0),
        {"alpha": packed_alphas(9, device)},
        {"alpha": 25, "upstream": 5},
    )
    inputs = packed_case(RAGGED, 2, device, "C")
    compare_second_order(
        lambda **x: composite(**x, ray_offsets=offsets, backend="triton"),
        lambda **x: composite_truth(**x, ray_offsets=offsets.cpu()),
        inputs,
        dict.fromkeys((*inputs, "upstream"), 24),
    )


@pytest.mark.gpu
def test_many_rays_on_a_gpu():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 300, (10_243,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).cuda()
    n = int(offsets[-1])
    check_weights(packed_alphas(n, "cuda", high=0.05), offsets)
    check_composite(composite_case(10_243, 300, 3, "cuda", "C", (n,)), offsets)


# Negative, past the end, falling, 2^62: what a caller's mistake may hold. Clamped, they still cover all 7 samples.
BAD_OFFSETS = [[-5, 3, 100, 4, 7], [0, 2**62, -(2**62), 0, 2**62], [0, 9, 9, 9, 9]]


@pytest.mark.parametrize("values", BAD_OFFSETS, ids=["short", "huge", "too many"])
def test_wrong_offsets_stay_inside(values, device):
    """The values are checked on the CPU only: on a GPU wrong ones give numbers nobody can use, and no stray access.

    The kernels are called without the checks. NaN around the inputs would show in the results if it were read, and the
    walls around the outputs if they were written to.
    """
    offsets = torch.tensor(values, device=device)
    around = torch.full((200, 3), float("nan"), device=device)
    around[100:107] = 0.5
    alpha, samples = around[100:107, 0].contiguous(), around[100:107]
    weights, transmittance = op_module._render_weights(around[:, 1].contiguous()[100:107], offsets, 0.0, 0.1)
    assert weights.isfinite().all() and transmittance.isfinite().all()
    given = (alpha, offsets, weights, transmittance)
    grad, _ = op_module._render_weights_backward(alpha, alpha, *given, 0.0, 0.1, [True, False])
    background = torch.zeros(4, 3, device=device)
    out = op_module._composite(alpha, samples, background, offsets)
    assert grad.isfinite().all() and out.isfinite().all()
    grads = op_module._composite_backward(out, alpha, samples, background, offsets, [True, True, True, False])
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("values", BAD_OFFSETS, ids=["short", "huge", "too many"])
def test_reference_finds_existing_rays_for_wrong_offsets(values):
    """What the torch backend computes on a GPU, where it cannot see the values either."""
    offsets = torch.tensor(values)
    assert render_weights_reference(torch.full((7,), 0.5), offsets, early_stop=0.3)[0].shape == (7,)
    assert composite_reference(torch.ones(7), torch.ones(7, 2), None, offsets).shape == (4, 2)


N = torch.zeros(6)
NC = torch.zeros(6, 4)
OFFSETS = torch.tensor([0, 2, 6])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: render_weights(N, ray_offsets=[0, 6]), TypeError, "ray_offsets: expected a torch.Tensor, got list"),
        (lambda: render_weights(N, ray_offsets=N), TypeError, "ray_offsets: expected dtype int32, int64, got float32"),
        (lambda: render_weights(N, ray_offsets=OFFSETS.short()), TypeError, "ray_offsets: expected dtype int32, int64"),
        (lambda: render_weights(N[None], ray_offsets=OFFSETS), ValueError, r"alpha: expected shape \[N\], got \[1, 6"),
        (lambda: render_weights(N), ValueError, r"alpha: expected shape \[R, S\], got \[6\]"),
        (
            lambda: render_weights(N, ray_offsets=OFFSETS[None]),
            ValueError,
            r"ray_offsets: expected shape \[R \+ 1\], got \[1, 3\]",
        ),
        (lambda: render_weights(N, ray_offsets=OFFSETS[:0]), ValueError, r"ray_offsets: expected shape \[R \+ 1\]"),
        (
            lambda: render_weights(N, ray_offsets=OFFSETS[:1]),
            ValueError,
            "ray_offsets: expected at least one ray for 6",
        ),
        (
            lambda: render_weights(N, ray_offsets=OFFSETS.to("meta")),
            ValueError,
            "ray_offsets: expected device cpu as alpha, got meta",
        ),
        (
            lambda: render_weights(N, ray_offsets=torch.tensor([1, 6])),
            ValueError,
            "ray_offsets: expected values from 0 to 6, got from 1 to 6",
        ),
        (
            lambda: composite(N, NC, ray_offsets=torch.tensor([0, 5])),
            ValueError,
            "ray_offsets: expected values from 0 to 6, got from 0 to 5",
        ),
        (
            lambda: composite(N, NC, ray_offsets=torch.tensor([0, 4, 2, 6]), backend="triton"),
            ValueError,
            "ray_offsets: expected values that never fall, got 4 and then 2",
        ),
        (lambda: composite(N, NC[:5], ray_offsets=OFFSETS), ValueError, r"values: expected shape .* N=6, got \[5, 4\]"),
        (
            lambda: composite(N, NC, NC[:3], ray_offsets=OFFSETS),
            ValueError,
            r"background: expected shape \[R, C\] with R=2, C=4, got \[3, 4\]",
        ),
        (
            lambda: composite(N, NC, ray_offsets=OFFSETS.to("meta")),
            ValueError,
            "ray_offsets: expected device cpu as weights, got meta",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
