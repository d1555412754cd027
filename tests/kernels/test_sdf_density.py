"""NeuS alpha, Laplace density, density to alpha: Triton against the float64 references, known values."""

import pytest
import torch

from ponder_kernels._constants import NEUS_ALPHA_EPS
from ponder_kernels.sdf_density import alpha_from_density, cost, laplace_density, neus_alpha
from ponder_kernels.sdf_density import op as op_module
from ponder_kernels.sdf_density.reference import (
    alpha_from_density_reference,
    laplace_density_reference,
    neus_alpha_reference,
)
from tests.kernels.harness import assert_launches_are_listed, compare, compare_second_order, rand
from tests.tolerance import assert_close_to_reference

# Empty, one, odd, a full block of 1024 samples and one more.
SHAPES = [(0, 5), (5, 0), (1, 1), (7, 13), (8, 128), (25, 41), (2, 3, 4)]
SHAPE_IDS = ["x".join(map(str, s)) for s in SHAPES]
INV_S = 20.0


def neus_case(shape, device, inv_s=INV_S, scalar_shape=()):
    return {
        "sdf": rand(*shape, seed=1, low=-0.3, high=0.3).to(device),
        "cosine": rand(*shape, seed=2, low=-1.5, high=1.5).to(device),
        "delta": rand(*shape, seed=3, low=0.0, high=0.2).to(device),
        "inv_s": torch.full(scalar_shape, inv_s, device=device),
    }


def laplace_case(shape, device, beta=0.1, scalar_shape=()):
    return {
        "sdf": rand(*shape, seed=1, low=-0.5, high=0.5).to(device),
        "beta": torch.full(scalar_shape, beta, device=device),
    }


def density_case(shape, device):
    return {
        "density": rand(*shape, seed=1, low=0.0, high=40.0).to(device),
        "delta": rand(*shape, seed=2, low=0.0, high=0.1).to(device),
    }


def check_neus(inputs, ratio=1.0, **options):
    n = inputs["sdf"].numel()
    compare(
        lambda **x: neus_alpha(**x, cos_anneal_ratio=ratio, backend="triton"),
        lambda **x: neus_alpha_reference(**x, cos_anneal_ratio=ratio),
        inputs,
        {"out": 2, "sdf": 4, "cosine": 4, "delta": 4, "inv_s": 4 * n},
        scale=4.0,
        **options,
    )


def check_laplace(inputs, **options):
    n = inputs["sdf"].numel()
    terms = {"out": 2, "sdf": 2, "beta": 2 * n}
    op = lambda **x: laplace_density(**x, backend="triton")  # noqa: E731
    compare(op, laplace_density_reference, inputs, terms, **options)


def check_alpha(inputs, **options):
    op = lambda **x: alpha_from_density(**x, backend="triton")  # noqa: E731
    compare(op, alpha_from_density_reference, inputs, {"out": 1, "density": 1, "delta": 1}, **options)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_neus_alpha(shape, ratio, device):
    check_neus(neus_case(shape, device), ratio)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_laplace_density(shape, device):
    check_laplace(laplace_case(shape, device))


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_alpha_from_density(shape, device):
    check_alpha(density_case(shape, device))


@pytest.mark.parametrize("upstream", ["expanded", "transposed"])
def test_layouts(upstream, device):
    """Transposed and expanded inputs, one-element scalars of rank 1 and 2, awkward upstream gradients."""
    neus = neus_case((9, 7), device, scalar_shape=(1,))
    neus["cosine"] = neus["cosine"].reshape(7, 9).t()
    neus["delta"] = neus["delta"][:, :1].expand(9, 7)
    check_neus(neus, upstream=upstream)
    laplace = laplace_case((9, 14), device, scalar_shape=(1, 1))
    laplace["sdf"] = laplace["sdf"][:, ::2]
    check_laplace(laplace, upstream=upstream)
    density = density_case((9, 7), device)
    density["density"] = density["density"].reshape(7, 9).t()
    check_alpha(density, upstream=upstream)


@pytest.mark.parametrize("wanted", ["sdf", "cosine", "delta", "inv_s"])
def test_only_the_wanted_neus_gradient(wanted, device):
    check_neus(neus_case((3, 5), device), wanted={wanted})


def test_only_the_wanted_density_gradients(device):
    for wanted in ("sdf", "beta"):
        check_laplace(laplace_case((3, 5), device), wanted={wanted})
    for wanted in ("density", "delta"):
        check_alpha(density_case((3, 5), device), wanted={wanted})


@pytest.mark.parametrize("inv_s", [1e-6, 1.0, 500.0, 1e6])
def test_neus_alpha_over_the_range_of_inv_s(inv_s, device):
    inputs = neus_case((4, 9), device, inv_s=inv_s)
    # Distances around the surface at this sharpness, and far away on both sides.
    inputs["sdf"] = inputs["sdf"] * min(20.0, 20.0 / inv_s) / 0.3
    inputs["sdf"][0] = torch.linspace(-1e3, 1e3, 9)
    check_neus({**inputs, "delta": inputs["delta"] / max(inv_s, 1.0)})


@pytest.mark.parametrize("beta", [1e-4, 0.01, 1.0])
def test_laplace_density_over_the_range_of_beta(beta, device):
    inputs = laplace_case((4, 9), device, beta=beta)
    inputs["sdf"] = inputs["sdf"] * 20 * beta
    inputs["sdf"][0] = torch.tensor([-1e3, -1.0, -1e-6, -0.0, 0.0, 1e-6, 1.0, 1e3, 1e30])
    check_laplace(inputs, scale=8.0)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_small_optical_depth_keeps_its_digits(backend, device):
    """1 - exp(-x) in float32 would lose every digit of these."""
    density = torch.tensor([[1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.3, 0.49, 0.51]], device=device)
    got = alpha_from_density(density, torch.ones_like(density), backend=backend).double().cpu()
    want = -torch.expm1(-density.double().cpu())
    assert ((got - want).abs() / want).max() < 5e-7


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_density_is_high_inside_and_low_in_free_space(backend, device):
    beta = 0.25
    sdf = torch.tensor([-50.0, -0.25, 0.0, 0.25, 50.0], device=device, requires_grad=True)
    density = laplace_density(sdf, torch.tensor(beta, device=device), backend=backend)
    e = 2.718281828459045**-1
    want = torch.tensor([1.0, 1 - 0.5 * e, 0.5, 0.5 * e, 0.0], dtype=torch.float64) / beta
    assert_close_to_reference(density, want, 1)
    density.sum().backward()
    slope = -torch.tensor([0.0, 0.5 * e, 0.5, 0.5 * e, 0.0], dtype=torch.float64) / beta**2
    assert_close_to_reference(sdf.grad, slope, 1)


def test_laplace_reference_is_the_published_formula():
    sdf, beta = rand(500, seed=5).double(), torch.tensor(0.2, dtype=torch.float64)
    want = (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() / beta)) / beta
    torch.testing.assert_close(laplace_density_reference(sdf, beta), want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_neus_alpha_by_hand(backend, device):
    """A ray that meets the surface head on at the sample: P = sigmoid(k d/2), N = sigmoid(-k d/2)."""
    inputs = [torch.tensor([v], device=device) for v in (0.0, -1.0, 0.2, 10.0)]
    got = neus_alpha(*inputs, backend=backend)
    p = 1 / (1 + 2.718281828459045**-1)
    want = (p - (1 - p) + NEUS_ALPHA_EPS) / (p + NEUS_ALPHA_EPS)
    assert_close_to_reference(got, torch.tensor([want], dtype=torch.float64), 1)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_neus_alpha_far_from_the_surface(backend, device):
    """Free space is transparent, the inside opaque; a ray that leaves the surface adds almost nothing."""
    sdf = torch.tensor([5.0, -5.0, 0.0], device=device, requires_grad=True)
    cosine = torch.tensor([-1.0, -1.0, 1.0], device=device)
    alpha = neus_alpha(sdf, cosine, torch.full_like(cosine, 0.1), torch.tensor([100.0], device=device), backend=backend)
    alpha.sum().backward()
    assert alpha[0] < 2e-5 and alpha[1] > 0.999 and alpha[2] < 5e-5
    assert sdf.grad.isfinite().all()


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_nan_stays_visible(backend, device):
    nan, one = torch.full((2,), float("nan"), device=device), torch.ones(2, device=device)
    scalar = one[:1]
    for k in range(3):
        samples = [nan if j == k else one for j in range(3)]
        assert neus_alpha(*samples, scalar, cos_anneal_ratio=0.5, backend=backend).isnan().all()
    assert neus_alpha(one, -one, one, nan[:1], backend=backend).isnan().all()
    assert laplace_density(nan, scalar, backend=backend).isnan().all()
    assert alpha_from_density(nan, one, backend=backend).isnan().all()
    assert alpha_from_density(one, nan, backend=backend).isnan().all()


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_neus_reference_derivatives(ratio):
    inputs = tuple(v.double().requires_grad_() for v in neus_case((2, 3), "cpu", inv_s=5.0).values())
    fn = lambda *x: neus_alpha_reference(*x, ratio)  # noqa: E731
    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


def test_density_reference_derivatives():
    for fn, case in (
        (laplace_density_reference, laplace_case((2, 3), "cpu", beta=0.3)),
        (alpha_from_density_reference, density_case((2, 3), "cpu")),
    ):
        inputs = tuple(v.double().requires_grad_() for v in case.values())
        assert torch.autograd.gradcheck(fn, inputs)
        assert torch.autograd.gradgradcheck(fn, inputs)


def test_rays_do_not_mix(device):
    inputs = neus_case((6, 9), device)
    every = neus_alpha(**inputs, backend="triton")
    row = neus_alpha(**{k: v[2:3] if v.dim() else v for k, v in inputs.items()}, backend="triton")
    assert torch.equal(every[2:3], row)


def test_scalar_gradient_is_deterministic(device):
    def gradient():
        inputs = neus_case((30, 70), device)
        leaf = inputs.pop("inv_s").requires_grad_()
        neus_alpha(**inputs, inv_s=leaf, backend="triton").sum().backward()
        return leaf.grad

    assert torch.equal(gradient(), gradient())


@pytest.mark.gpu
def test_many_samples_on_a_gpu():
    check_neus(neus_case((10_240, 132), "cuda"))
    check_laplace(laplace_case((10_240, 132), "cuda"))
    check_alpha(density_case((10_240, 132), "cuda"))


def test_float64_takes_the_reference(device):
    inputs = {k: v.double() for k, v in neus_case((2, 3), device).items()}
    assert neus_alpha(**inputs).dtype == torch.float64


def test_second_order(device):
    operators = (
        (neus_alpha, lambda **x: neus_alpha_reference(**x, cos_anneal_ratio=1.0), neus_case((3, 5), device)),
        (laplace_density, laplace_density_reference, laplace_case((3, 5), device)),
        (alpha_from_density, alpha_from_density_reference, density_case((3, 5), device)),
    )
    for operator, truth, inputs in operators:
        terms = dict.fromkeys((*inputs, "upstream"), 15)
        compare_second_order(lambda f=operator, **x: f(**x, backend="triton"), truth, inputs, terms, scale=INV_S)


def test_launches_are_listed(monkeypatch, device):
    def run():
        for op, case in (
            (neus_alpha, neus_case((2, 3), device)),
            (laplace_density, laplace_case((2, 3), device)),
            (alpha_from_density, density_case((2, 3), device)),
        ):
            leaves = {k: v.requires_grad_() for k, v in case.items()}
            op(**leaves, backend="triton").sum().backward()

    assert_launches_are_listed(monkeypatch, op_module, run, 6)


def test_cost_by_hand():
    # One sample: float32 inputs and outputs, 4 bytes each.
    assert cost.neus_alpha_cost(1)[:2] == (3 * 4, 4)
    assert cost.neus_alpha_backward_cost(1)[:2] == (4 * 4, 3 * 4)
    assert cost.laplace_density_cost(1)[:2] == (4, 4)
    assert cost.laplace_density_backward_cost(1)[:2] == (2 * 4, 4)
    assert cost.alpha_from_density_cost(1)[:2] == (2 * 4, 4)
    assert cost.alpha_from_density_backward_cost(1)[:2] == (3 * 4, 2 * 4)
    # abs, negate, divide, exp, halve, complement, divide.
    assert cost.laplace_density_cost(10).flops == 70
