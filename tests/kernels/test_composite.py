"""Compositing of batched rays: Triton against the float64 formulas, arguments, costs."""

import math

import pytest
import torch

from ponder_kernels.composite import RayWeights, composite, cost, render_weights
from ponder_kernels.composite import op as op_module
from ponder_kernels.composite.reference import composite_reference, render_weights_reference
from tests.kernels.composite_cases import alphas, check_composite, check_weights, composite_case, composite_truth
from tests.kernels.harness import compare, compare_second_order, rand
from tests.tolerance import assert_close_to_reference

# R, S: empty, one, odd, full blocks (16 rays, 32 samples) and one more, several blocks.
SHAPES = [(0, 5), (5, 0), (1, 1), (3, 2), (7, 13), (16, 32), (17, 33), (2, 97)]
SHAPE_IDS = ["R{}S{}".format(*s) for s in SHAPES]


@pytest.mark.parametrize("upstream", ["random", "expanded", "transposed"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_render_weights(shape, upstream, device):
    check_weights(alphas(*shape, device), upstream=upstream)


@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("early_stop", [0.0, 0.05, 0.7])
def test_render_weights_options(eps, early_stop, device):
    check_weights(alphas(17, 33, device), eps=eps, early_stop=early_stop)
    check_weights(alphas(3, 70, device, high=0.05), eps=eps, early_stop=early_stop)


def test_render_weights_of_strided_alpha(device):
    check_weights(alphas(20, 40, device)[::2, ::2])
    check_weights(alphas(13, 7, device).t())
    check_weights(alphas(1, 40, device).expand(5, 40))


@pytest.mark.parametrize("early_stop", [0.0, 0.2])
@pytest.mark.parametrize("which", [0, 1], ids=["weights", "transmittance"])
def test_one_output_used(which, early_stop, device):
    alpha = alphas(5, 40, device)
    compare(
        lambda alpha: render_weights(alpha, early_stop=early_stop, backend="triton")[which],
        lambda alpha: render_weights_reference(alpha, early_stop=early_stop)[which],
        {"alpha": alpha},
        {"out": 40, "alpha": 40},
    )


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


@pytest.mark.parametrize("limit", [1, 2])
def test_programs_share_a_ray_longer_than_the_grid(limit, monkeypatch, device):
    monkeypatch.setattr(op_module, "MAX_GRID_Y", limit)
    check_composite(composite_case(2, 5 * 64 + 3, 3, device, "C"))


@pytest.mark.parametrize(("eps", "early_stop"), [(0.0, 0.0), (1e-7, 0.0), (0.0, 0.3)])
def test_weights_reference_derivatives(eps, early_stop):
    alpha = rand(2, 5, seed=1, low=0.1, high=0.8).double()
    alpha[0, 1], alpha[1, 0], alpha[1, 2] = 1.0, 0.0, 1.0
    fn = lambda a: render_weights_reference(a, None, eps, early_stop)  # noqa: E731
    assert torch.autograd.gradcheck(fn, (alpha.requires_grad_(),))
    assert torch.autograd.gradgradcheck(fn, (alpha,))


@pytest.mark.parametrize("background", ["", "RC"])
def test_composite_reference_derivatives(background):
    inputs = tuple(v.double().requires_grad_() for v in composite_case(2, 3, 2, "cpu", background).values())
    assert torch.autograd.gradcheck(composite_reference, inputs)
    assert torch.autograd.gradgradcheck(composite_reference, inputs)


def test_reference_by_hand():
    weights, transmittance = render_weights_reference(torch.tensor([[0.5, 0.25, 1.0]], dtype=torch.float64), eps=0.0)
    want = torch.tensor([[1.0, 0.5, 0.375]], dtype=torch.float64)
    assert torch.equal(transmittance, want)
    assert torch.equal(weights, want * torch.tensor([0.5, 0.25, 1.0]))


@pytest.mark.parametrize("early_stop", [0.0, 0.2])
def test_second_order(early_stop, device):
    compare_second_order(
        lambda alpha: render_weights(alpha, early_stop=early_stop, backend="triton"),
        lambda alpha: render_weights_reference(alpha, early_stop=early_stop),
        {"alpha": alphas(3, 5, device)},
        {"alpha": 25, "upstream": 5},
    )
    inputs = composite_case(3, 4, 2, device, "C")
    terms = dict.fromkeys((*inputs, "upstream"), 24)
    compare_second_order(lambda **x: composite(**x, backend="triton"), composite_truth, inputs, terms)


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


W = torch.zeros(2, 3)
V = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: render_weights(None), TypeError, "alpha: expected a torch.Tensor, got NoneType"),
        (lambda: render_weights(W.int()), TypeError, "alpha: expected dtype float32, float64, got int32"),
        (lambda: render_weights(W.half()), TypeError, "alpha: expected dtype float32, float64, got float16"),
        (lambda: render_weights(W[0]), ValueError, r"alpha: expected shape \[R, S\], got \[3\]"),
        (lambda: render_weights(W, eps=-1e-9), ValueError, "eps: expected a finite number, not negative, got -1e-09"),
        (lambda: render_weights(W, eps=math.inf), ValueError, "eps: expected a finite number, not negative, got inf"),
        (lambda: render_weights(W, eps=math.nan), ValueError, "eps: expected a finite number, not negative, got nan"),
        (lambda: render_weights(W, early_stop=1.0), ValueError, r"early_stop: expected a number in \[0, 1\), got 1.0"),
        (lambda: render_weights(W, early_stop=-0.1), ValueError, r"early_stop: expected a number in \[0, 1\), got"),
        (lambda: render_weights(W, backend="x"), ValueError, "backend: expected one of auto, triton, torch"),
        (lambda: render_weights(W.double(), backend="triton"), ValueError, "backend: 'triton' takes float16"),
        (lambda: composite(W.bfloat16(), V), TypeError, "weights: expected dtype float32, float64"),
        (lambda: composite(W, V.int()), TypeError, "values: expected dtype .*, got int32"),
        (lambda: composite(W, W), ValueError, r"values: expected shape \[R, S, C\].*got \[2, 3\]"),
        (lambda: composite(W, V[:1]), ValueError, r"values: expected shape .* with R=2, S=3, got \[1, 3, 4\]"),
        (lambda: composite(W, V.to("meta")), ValueError, "values: expected device cpu as weights, got meta"),
        (lambda: composite(W, V, W[0]), ValueError, r"background: expected shape \[C\] with C=4, got \[3\]"),
        (lambda: composite(W, V, W), ValueError, r"background: expected shape \[R, C\] with R=2, C=4, got \[2, 3\]"),
        (lambda: composite(W, V, 1.0), TypeError, "background: expected a torch.Tensor, got float"),
        (lambda: composite(W, V, V[0, 0].int()), TypeError, "background: expected dtype .*, got int32"),
        (lambda: composite(W, V, V[0, 0].to("meta")), ValueError, "background: expected device cpu as weights"),
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


def test_cost_of_packed_rays_by_hand():
    # 2 rays of 4 and 1 samples: three offsets of 8 bytes more.
    assert cost.render_weights_cost(2, 2.5, offset_bytes=8) == (5 * 4 + 24, 5 * 8, 5 * 4)
    assert cost.render_weights_backward_cost(2, 2.5, offset_bytes=8)[:2] == (5 * 12 + 24, 5 * 4)
    assert cost.composite_cost(2, 2.5, 3, offset_bytes=4) == (5 * 4 + 15 * 4 + 12, 24, 30)
    assert cost.composite_backward_cost(2, 2.5, 3, offset_bytes=4)[:2] == (24 + 60 + 20 + 12, 20 + 60)
