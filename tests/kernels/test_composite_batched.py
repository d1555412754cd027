"""Weights of batched rays on a CPU: the numbers of the formula, at the memory of what comes in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ponder_kernels.composite import batched, render_weights
from ponder_kernels.composite.batched import batched_weights
from ponder_kernels.composite.reference import render_weights_reference
from tests.kernels.harness import rand

RAYS = {
    "mixed": rand(9, 40, seed=0, low=0.0, high=1.0) ** 4,
    "opaque": torch.ones(3, 60),
    "clear": torch.zeros(2, 7),
    "steps": torch.tensor([[0.0, 1.0, 0.5, 1.0, 0.0, 1.0, 1.0]]),
    "one sample": torch.tensor([[0.3], [1.0]]),
    "no sample": torch.zeros(4, 0),
    "no ray": torch.zeros(0, 5),
}


def results(sample: object, alpha: Tensor, eps: float, early_stop: float, given: tuple[bool, bool]) -> list[Tensor]:
    """Values and first derivative."""
    alpha = alpha.clone().requires_grad_()
    out = sample(alpha, eps, early_stop)
    grads = [rand(*alpha.shape, seed=k).to(alpha) if want else None for k, want in enumerate(given)]
    used = [(o, g) for o, g in zip(out, grads, strict=True) if g is not None]
    return [*out, *torch.autograd.grad([o for o, _ in used], alpha, [g for _, g in used])]


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("early_stop", [0.0, 1e-3])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("rays", RAYS)
def test_equals_the_formula(rays: str, eps: float, early_stop: float, given: tuple[bool, bool]) -> None:
    alpha = RAYS[rays].double()
    want = results(lambda a, e, s: render_weights_reference(a, None, e, s), alpha, eps, early_stop, given)
    got = results(batched_weights, alpha, eps, early_stop, given)
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15, msg=lambda text, n=number: f"{n}: {text}")


def test_what_lies_behind_the_end_takes_no_part() -> None:
    alpha = torch.tensor([[0.5, 1.0, torch.nan, 0.5], [0.1, 0.2, 0.3, 0.4]], requires_grad=True)
    out = render_weights(alpha, early_stop=1e-3)
    upstream = torch.tensor([[1.0, 1.0, torch.nan, torch.nan], [1.0, 1.0, 1.0, 1.0]])
    torch.autograd.backward(out, (upstream, upstream))
    assert not out.weights[0, 2:].any() and not out.transmittance[0, 2:].any()
    assert alpha.grad is not None and bool(alpha.grad.isfinite().all()) and not alpha.grad[0, 2:].any()


def test_a_cpu_keeps_only_alpha() -> None:
    alpha = rand(20, 30, seed=1, low=0.0, high=1.0).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        render_weights(alpha).weights.mul_(2)
    assert {x.data_ptr() for x in kept} == {alpha.data_ptr()}


def test_the_formula_is_taken_where_a_division_would_lose_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    by_division = batched._by_division
    monkeypatch.setattr(batched, "_by_division", lambda *x: taken.append(True) or by_division(*x))
    # 45 opaque samples leave 1e-315, which has lost digits; rays that end before have none of them.
    for alpha, eps, early_stop, divided in (
        (RAYS["opaque"], 0.0, 0.0, False),
        (RAYS["opaque"], 1e-7, 0.0, True),
        (RAYS["opaque"][:, :45].double(), 1e-7, 0.0, False),
        (RAYS["mixed"].double(), 1e-7, 0.0, True),
        (torch.tensor([[0.9, 0.99, 1.0, 1.0]]), 0.0, 1e-2, True),
    ):
        results(batched_weights, alpha, eps, early_stop, (True, True))
        assert bool(taken) == divided
        taken.clear()
