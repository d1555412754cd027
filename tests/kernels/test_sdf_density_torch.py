"""NeuS alpha, Laplace density, density to alpha as PyTorch operators: registration, compilation, bad arguments."""

import pytest
import torch

from ponder_kernels.sdf_density import alpha_from_density, laplace_density, neus_alpha
from ponder_kernels.sdf_density import op as op_module
from tests.kernels.citizenship import assert_autocast, assert_compiles, assert_opcheck, assert_transforms, compile_keys
from tests.kernels.harness import rand
from tests.kernels.test_sdf_density import density_case, laplace_case, neus_case

OPERATORS = [(neus_alpha, neus_case), (laplace_density, laplace_case), (alpha_from_density, density_case)]
BY_OPERATOR = pytest.mark.parametrize(("operator", "case"), OPERATORS, ids=[f.__name__ for f, _ in OPERATORS])


@pytest.mark.unguarded
@BY_OPERATOR
def test_registered_operators(operator, case, device):
    inputs = case((3, 5), device).values()
    options = (0.3,) if operator is neus_alpha else ()
    assert_opcheck(getattr(op_module, f"_{operator.__name__}"), *inputs, *options)
    wanted = [k % 2 == 0 for k in range(len(inputs))]
    upstream = rand(3, 5, seed=9).to(device)
    backward = getattr(op_module, f"_{operator.__name__}_backward")
    torch.library.opcheck(backward, (upstream, *inputs, *options, wanted))


@pytest.mark.unguarded
@BY_OPERATOR
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiles(operator, case, backend, device):
    cases = [case(shape, device) for shape in ((3, 5), (4, 7), (8, 2))]
    assert_compiles(lambda **x: operator(**x, backend=backend), cases)


@pytest.mark.unguarded
@BY_OPERATOR
def test_transforms_and_autocast(operator, case, device):
    inputs = case((3, 5), device)
    first = next(iter(inputs))
    assert_transforms(operator, inputs, first)
    assert_autocast(lambda **x: operator(**x, backend="triton"), inputs, {first})


@BY_OPERATOR
def test_sizes_do_not_recompile(operator, case, device, monkeypatch):
    def run(shape):
        leaves = {k: v.requires_grad_() for k, v in case(shape, device).items()}
        return lambda: operator(**leaves, backend="triton").sum().backward()

    counts = compile_keys(monkeypatch, op_module, [run(s) for s in ((1, 1), (1, 16), (3, 5), (16, 16), (33, 47))])
    assert len(counts) == 2 and set(counts.values()) == {1}, counts


X = torch.zeros(2, 3)
ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: neus_alpha([1.0], X, X, ONE), TypeError, "sdf: expected a torch.Tensor, got list"),
        (
            lambda: neus_alpha(X.int(), X, X, ONE),
            TypeError,
            "sdf: expected dtype float32, float64, got int32",
        ),
        (lambda: neus_alpha(X, X.double(), X, ONE), TypeError, "cosine: expected dtype float32, got float64"),
        (
            lambda: neus_alpha(X, X, X[:1], ONE),
            ValueError,
            r"delta: expected shape \[2, 3\] as sdf, got \[1, 3\]",
        ),
        (lambda: neus_alpha(X, X, X, 20.0), TypeError, "inv_s: expected a torch.Tensor, got float"),
        (
            lambda: neus_alpha(X, X, X, X),
            ValueError,
            r"inv_s: expected a tensor of one element, got shape \[2, 3\]",
        ),
        (
            lambda: neus_alpha(X, X, X, ONE.to("meta")),
            ValueError,
            "inv_s: expected device cpu as sdf, got meta",
        ),
        (
            lambda: neus_alpha(X, X.to("meta"), X, ONE),
            ValueError,
            "cosine: expected device cpu as sdf, got meta",
        ),
        (
            lambda: neus_alpha(X, X, X, ONE, cos_anneal_ratio=1.5),
            ValueError,
            r"cos_anneal_ratio: expected a number in \[0, 1\], got 1.5",
        ),
        (lambda: neus_alpha(X, X, X, ONE, backend="jax"), ValueError, "backend: expected one of"),
        (lambda: laplace_density(X, torch.ones(2)), ValueError, "beta: expected a tensor of one element"),
        (lambda: laplace_density(X, ONE.double()), TypeError, "beta: expected dtype float32, got float64"),
        (lambda: laplace_density(X.half(), ONE.half()), TypeError, "sdf: expected dtype float32, float64"),
        (
            lambda: alpha_from_density(X, X[0]),
            ValueError,
            r"delta: expected shape \[2, 3\] as density, got \[3\]",
        ),
        (
            lambda: alpha_from_density(X.long(), X),
            TypeError,
            "density: expected dtype float32, float64, got int64",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
