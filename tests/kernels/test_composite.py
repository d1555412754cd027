"""Compositing: Triton against the float64 references, exact at alpha 0 and 1, known identities."""

import pytest
import torch

from ponder_kernels._constants import TRANSMITTANCE_EPS
from ponder_kernels.composite import RayWeights, composite, cost, render_weights
from ponder_kernels.composite import op as op_module
from ponder_kernels.composite.reference import composite_reference, render_weights_reference
from tests.kernels.harness import assert_launches_are_listed, assert_refuses_second_order, compare, rand
from tests.tolerance import assert_close_to_reference

# R, S: empty, one, odd, full blocks (16 rays, 32 samples) and one more, several blocks.
SHAPES = [(0, 5), (5, 0), (1, 1), (3, 2), (7, 13), (16, 32), (17, 33), (2, 97)]
SHAPE_IDS = ["R{}S{}".format(*s) for s in SHAPES]


def alphas(rays, samples, device, high=0.3):
    """Alphas with exact zeros and ones among them, at block edges too."""
    alpha = rand(rays, samples, seed=1, low=0.0, high=high)
    if samples > 1:
        alpha[:, samples // 2] = 0.0
        alpha[: rays // 2, samples - 1] = 0.0
        alpha[: rays // 2, samples // 3] = 1.0
        alpha[1::4, 0] = 1.0
    if samples > 32:
        alpha[::3, 31] = 1.0
        alpha[1::3, 32] = 1.0
    return alpha.to(device)


def check_weights(alpha, **options):
    op = lambda alpha: render_weights(alpha, backend="triton")  # noqa: E731
    samples = alpha.shape[1]
    compare(op, render_weights_reference, {"alpha": alpha}, {"out": samples, "alpha": samples}, **options)


def composite_case(rays, samples, channels, device, background=""):
    inputs = {
        "weights": rand(rays, samples, seed=1, low=0.0, high=1.0 / max(samples, 1)).to(device),
        "values": rand(rays, samples, channels, seed=2).to(device),
    }
    if background:
        shape = (channels,) if background == "C" else (rays, channels)
        inputs["background"] = rand(*shape, seed=3).to(device)
    return inputs


def truth(weights, values, background=None):
    return composite_reference(weights, values, background)


def check_composite(inputs, **options):
    rays, samples, channels = inputs["values"].shape
    terms = {"out": samples + 1, "weights": 2 * channels, "values": 1, "background": samples * rays}
    compare(lambda **x: composite(**x, backend="triton"), truth, inputs, terms, **options)


@pytest.mark.parametrize("upstream", ["random", "expanded", "transposed"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_render_weights(shape, upstream, device):
    check_weights(alphas(*shape, device), upstream=upstream)


def test_render_weights_of_strided_alpha(device):
    check_weights(alphas(20, 40, device)[::2, ::2])
    check_weights(alphas(13, 7, device).t())
    check_weights(alphas(1, 40, device).expand(5, 40))


@pytest.mark.parametrize("which", [0, 1], ids=["weights", "transmittance"])
def test_one_output_used(which, device):
    alpha = alphas(5, 40, device)
    compare(
        lambda alpha: render_weights(alpha, backend="triton")[which],
        lambda alpha: render_weights_reference(alpha)[which],
        {"alpha": alpha},
        {"out": 40, "alpha": 40},
    )


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_gradient_row_by_row_at_opaque_samples(backend, device):
    """A gradient that comes through an opaque factor is 1e7 times smaller than its neighbours, or larger."""
    alpha = torch.full((6, 8), 0.5)
    alpha[0, 0] = 1.0
    alpha[1, 3] = 1.0
    alpha[2, 3:5] = 1.0
    alpha[3, :] = 1.0
    alpha[4, :] = 0.0
    alpha[5, 7] = 1.0
    leaf = alpha.clone().to(device).requires_grad_()
    double = alpha.double().requires_grad_()
    upstream = rand(6, 8, seed=4)
    render_weights(leaf, backend=backend).weights.backward(upstream.to(device))
    render_weights_reference(double)[0].backward(upstream.double())
    assert leaf.grad.isfinite().all()
    for ray in range(6):
        for sample in range(8):
            # One element at a time, so that a small gradient is not hidden behind a large one.
            got, want = leaf.grad[ray, sample].item(), double.grad[ray, sample].item()
            assert got == pytest.approx(want, rel=1e-5, abs=1e-37), (ray, sample)


def test_weights_and_what_is_left_sum_to_one(device):
    alpha = alphas(9, 40, device)
    weights, transmittance = render_weights(alpha, backend="triton")
    left = transmittance[:, -1] * (1 - alpha[:, -1] + TRANSMITTANCE_EPS)
    total = weights.sum(1) + left
    # Each factor's eps adds at most eps to the total.
    assert (total - 1).abs().max() < 40 * TRANSMITTANCE_EPS + 1e-6


def test_opaque_first_sample_hides_the_rest(device):
    alpha = torch.full((3, 70), 0.5, device=device)
    alpha[:, 0] = 1.0
    weights, transmittance = render_weights(alpha, backend="triton")
    assert (weights[:, 0] == 1).all() and (weights[:, 1:] < 2 * TRANSMITTANCE_EPS).all()
    assert (transmittance[:, 1:] < 2 * TRANSMITTANCE_EPS).all()


def test_transparent_ray_lets_everything_through(device):
    weights, transmittance = render_weights(torch.zeros(2, 40, device=device), backend="triton")
    assert (weights == 0).all() and (transmittance - 1).abs().max() < 41 * 1.2 * TRANSMITTANCE_EPS  # float32 step


def test_long_ray_underflows_quietly(device):
    alpha = torch.ones(2, 100, device=device, requires_grad=True)
    out = render_weights(alpha, backend="triton")
    out.weights.sum().backward()
    assert out.transmittance[:, -1].eq(0).all() and alpha.grad.isfinite().all()


def test_rays_do_not_mix(device):
    alpha = alphas(19, 40, device)
    permuted = torch.randperm(19, generator=torch.Generator().manual_seed(0)).to(device)
    every = render_weights(alpha, backend="triton")
    shuffled = render_weights(alpha[permuted], backend="triton")
    assert all(torch.equal(a[permuted], b) for a, b in zip(every, shuffled, strict=True))


def test_result_has_names(device):
    out = render_weights(torch.zeros(1, 2, device=device))
    assert isinstance(out, RayWeights) and torch.equal(out.transmittance, out[1])


@pytest.mark.parametrize("background", ["", "C", "RC"], ids=["none", "per-channel", "per-ray"])
@pytest.mark.parametrize(
    "shape",
    [(0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1), (3, 65, 3), (5, 64, 1), (3, 17, 33), (2, 18, 70)],
    ids=lambda s: "R{}S{}C{}".format(*s),
)
def test_composite(shape, background, device):
    check_composite(composite_case(*shape, device, background))


@pytest.mark.parametrize("upstream", ["expanded", "transposed"])
def test_composite_layouts(upstream, device):
    inputs = composite_case(6, 10, 4, device, "RC")
    inputs["weights"] = inputs["weights"].reshape(10, 6).t()
    inputs["values"] = rand(4, 6, 20, seed=5).to(device).permute(1, 2, 0)[:, ::2]
    inputs["background"] = rand(4, 6, seed=6).to(device).t()
    check_composite(inputs, upstream=upstream)
    inputs["values"] = rand(1, 10, 4, seed=5).to(device).expand(6, 10, 4)
    check_composite(inputs, upstream=upstream)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_composite_of_half_values(dtype, device):
    inputs = composite_case(3, 17, 5, device, "C")
    inputs["values"] = inputs["values"].to(dtype)
    inputs["background"] = inputs["background"].to(dtype)
    check_composite(inputs)


@pytest.mark.parametrize("wanted", ["weights", "values", "background"])
def test_only_the_wanted_gradient(wanted, device):
    check_composite(composite_case(3, 17, 5, device, "C"), wanted={wanted})


def test_constant_values_over_the_same_background(device):
    weights = render_weights(alphas(5, 40, device), backend="triton").weights
    colour = torch.tensor([0.2, 0.5, 0.9], device=device)
    out = composite(weights, colour.expand(5, 40, 3), colour, backend="triton")
    assert (out - colour).abs().max() < 1e-5


def test_no_samples_show_the_background(device):
    empty = torch.zeros(4, 0, device=device)
    background = rand(4, 3, seed=1).to(device)
    assert torch.equal(composite(empty, torch.zeros(4, 0, 3, device=device), background, backend="triton"), background)


def test_reference_derivatives():
    alpha = rand(2, 5, seed=1, low=0.1, high=0.8).double().requires_grad_()
    assert torch.autograd.gradcheck(render_weights_reference, (alpha,))
    assert torch.autograd.gradgradcheck(render_weights_reference, (alpha,))
    inputs = tuple(v.double().requires_grad_() for v in composite_case(2, 3, 2, "cpu", "RC").values())
    assert torch.autograd.gradcheck(composite_reference, inputs)
    assert torch.autograd.gradgradcheck(composite_reference, inputs)


def test_reference_by_hand():
    weights, transmittance = render_weights_reference(torch.tensor([[0.5, 0.25, 1.0]], dtype=torch.float64))
    want = torch.tensor([[1.0, 0.5, 0.375]], dtype=torch.float64)
    torch.testing.assert_close(transmittance, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights, want * torch.tensor([0.5, 0.25, 1.0]), rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [3, 131])
def test_many_rays_on_a_gpu(channels):
    check_weights(alphas(10_243, 132, "cuda"))
    check_composite(composite_case(2_049, 132, channels, "cuda", "C"))


def test_float64_takes_the_reference(device):
    alpha = alphas(3, 5, device).double()
    out = render_weights(alpha)
    assert_close_to_reference(out.weights, render_weights_reference(alpha)[0].cpu(), 1)
    assert composite(out.weights, torch.ones(3, 5, 2, device=device)).dtype == torch.float64


def test_second_order_is_refused(device):
    op = lambda alpha: render_weights(alpha, backend="triton")  # noqa: E731
    assert_refuses_second_order(op, {"alpha": alphas(2, 5, device)}, "render_weights")
    op = lambda **x: composite(**x, backend="triton")  # noqa: E731
    assert_refuses_second_order(op, composite_case(2, 3, 2, device), "composite")


def test_launches_are_listed(monkeypatch, device):
    def run():
        alpha = alphas(2, 5, device).requires_grad_()
        for use in (lambda w, t: w, lambda w, t: t, lambda w, t: w + t):
            use(*render_weights(alpha, backend="triton")).sum().backward()
        for channels, background, dtype in (
            (1, "", torch.float32),
            (3, "RC", torch.float32),
            (64, "", torch.bfloat16),
        ):
            inputs = composite_case(2, 5, channels, device, background)
            inputs["values"] = inputs["values"].to(dtype)
            leaves = {k: v.requires_grad_() for k, v in inputs.items()}
            composite(**leaves, backend="triton").sum().backward()

    assert_launches_are_listed(monkeypatch, op_module, run, 4)


W = torch.zeros(2, 3)
V = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: render_weights(None), TypeError, "alpha: expected a torch.Tensor, got NoneType"),
        (lambda: render_weights(W.int()), TypeError, "alpha: expected dtype float32, float64, got int32"),
        (lambda: render_weights(W.half()), TypeError, "alpha: expected dtype float32, float64, got float16"),
        (lambda: render_weights(W[0]), ValueError, r"alpha: expected shape \[R, S\], got \[3\]"),
        (lambda: render_weights(W, backend="x"), ValueError, "backend: expected one of auto, triton, torch"),
        (lambda: render_weights(W.double(), backend="triton"), ValueError, "backend: 'triton' takes float16"),
        (lambda: composite(W.bfloat16(), V), TypeError, "weights: expected dtype float32, float64"),
        (lambda: composite(W, V.int()), TypeError, "values: expected dtype .*, got int32"),
        (lambda: composite(W, W), ValueError, r"values: expected shape \[R, S, C\].*got \[2, 3\]"),
        (
            lambda: composite(W, V[:1]),
            ValueError,
            r"values: expected shape \[R, S, C\] with R=2, S=3, got \[1, 3, 4\]",
        ),
        (lambda: composite(W, V.to("meta")), ValueError, "values: expected device cpu as weights, got meta"),
        (lambda: composite(W, V, W[0]), ValueError, r"background: expected shape \[C\] with C=4, got \[3\]"),
        (
            lambda: composite(W, V, W),
            ValueError,
            r"background: expected shape \[R, C\] with R=2, C=4, got \[2, 3\]",
        ),
        (lambda: composite(W, V, V[0, 0].int()), TypeError, "background: expected dtype .*, got int32"),
        (
            lambda: composite(W, V, V[0, 0].to("meta")),
            ValueError,
            "background: expected device cpu as weights",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_cost_by_hand():
    # 2 rays of 3 samples, 5 channels of 2 bytes.
    assert cost.render_weights_cost(2, 3) == (6 * 4, 6 * 8, 6 * 4)
    assert cost.render_weights_backward_cost(2, 3)[:2] == (6 * 12, 6 * 4)
    assert cost.render_weights_backward_cost(2, 3, transmittance_gradient=True)[:2] == (6 * 16, 6 * 4)
    assert cost.composite_cost(2, 3, 5, 2) == (6 * 4 + 30 * 2, 40, 60)
    assert cost.composite_cost(2, 3, 5, 2, background=True) == (6 * 4 + 30 * 2 + 40, 40, 60 + 6 + 2 + 20)
    assert cost.composite_backward_cost(2, 3, 5, 2) == (40 + 60 + 24, 24 + 60, 60 + 30)
    assert cost.composite_backward_cost(2, 3, 5, 2, to_values=False)[:2] == (40 + 60, 24)
    assert cost.composite_backward_cost(2, 3, 5, 2, to_weights=False, background=True)[:2] == (40 + 24, 60)
