"""Runs an operator and its float64 reference side by side and compares every output and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder_kernels import _launch
from tests.tolerance import assert_close_to_reference


def rand(*shape: int, seed: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Uniform float32 numbers in [low, high) from their own generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) * (high - low) + low


def upstream_like(output: Tensor, kind: str, seed: int) -> Tensor:
    """A random upstream gradient: "random" (contiguous), "expanded" along the first dim, or "transposed"."""
    if kind == "expanded":
        return rand(*output.shape[1:], seed=seed).to(output.device, output.dtype).expand(output.shape)
    if kind == "transposed" and output.dim() >= 2:
        shape = (*output.shape[:-2], output.shape[-1], output.shape[-2])
        return rand(*shape, seed=seed).to(output.device, output.dtype).transpose(-1, -2)
    return rand(*output.shape, seed=seed).to(output.device, output.dtype)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """One tensor or a (named) tuple of tensors, as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def compare(
    op: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    terms: Mapping[str, int],
    *,
    scale: float = 1.0,
    scales: Mapping[str, float] | None = None,
    upstream: str = "random",
    wanted: set[str] | None = None,
    seed: int = 99,
) -> None:
    """Compare `op` with `reference` run in float64 on the very same numbers.

    Args:
        op, reference: called with the inputs by name.
        inputs: all of them differentiable.
        terms: "out" and each input's name -> number of terms summed in the output and in that gradient.
        scale, scales: condition number for all, and per name.
        upstream: see `upstream_like`.
        wanted: names of the inputs that need a gradient; all by default.
    """
    wanted = set(inputs) if wanted is None else wanted
    leaves = {k: v.detach().requires_grad_(k in wanted) for k, v in inputs.items()}
    truths = {k: v.detach().cpu().double().requires_grad_(k in wanted) for k, v in inputs.items()}
    outputs, expected = as_tuple(op(**leaves)), as_tuple(reference(**truths))
    assert len(outputs) == len(expected)
    scales = scales or {}
    for k, (out, want) in enumerate(zip(outputs, expected, strict=True)):
        assert_close_to_reference(
            out, want, terms["out"], scale=scales.get("out", scale), name=f"output {k}", dtype=torch.float32
        )
    grads = [upstream_like(out, upstream, seed + k) for k, out in enumerate(outputs)]
    torch.autograd.backward(outputs, grads)
    torch.autograd.backward(expected, [g.detach().cpu().double() for g in grads])
    for name, leaf in leaves.items():
        if name not in wanted:
            assert leaf.grad is None
            continue
        got, want = leaf.grad, truths[name].grad
        assert got is not None and got.dtype == leaf.dtype, f"gradient of {name}: missing or of another dtype"
        label = f"gradient of {name}"
        assert_close_to_reference(got, want, terms[name], scale=scales.get(name, scale), name=label)


def compare_second_order(
    op: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    terms: Mapping[str, int],
    *,
    scale: float = 1.0,
    seed: int = 199,
) -> None:
    """Compare derivatives of first derivatives, to every input and to the upstream gradients, with float64.

    Args:
        op, reference, inputs, scale: as in `compare`.
        terms: each input's name and "upstream" -> number of terms summed in that second derivative.
    """
    results = []
    for function, dtype in ((op, None), (reference, torch.float64)):
        leaves = {k: v.detach().to("cpu" if dtype else v.device, dtype or v.dtype) for k, v in inputs.items()}
        leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
        outputs = as_tuple(function(**leaves))
        upstream = [rand(*o.shape, seed=seed + k).to(o).requires_grad_() for k, o in enumerate(outputs)]
        first = torch.autograd.grad(outputs, list(leaves.values()), upstream, create_graph=True)
        directions = [rand(*g.shape, seed=seed + 50 + k).to(g.device, g.dtype) for k, g in enumerate(first)]
        sources = [*leaves.values(), *upstream]
        results.append(torch.autograd.grad(first, sources, directions, allow_unused=True))
    names = [*inputs, *(f"upstream {k}" for k in range(len(results[0]) - len(inputs)))]
    for name, got, want in zip(names, *results, strict=True):
        label = f"second derivative by {name}"
        if got is None or want is None:
            present = want if got is None else got
            assert present is None or not present.any(), f"{label}: missing on one side"
            continue
        n_terms = terms[name] if name in inputs else terms["upstream"]
        assert_close_to_reference(got, want, n_terms, scale=scale, name=label)


def assert_launches_are_listed(
    monkeypatch: pytest.MonkeyPatch, op_module: Any, run: Callable[[], Any], minimum: int
) -> None:
    """Every launch that `run` makes is in `op_module.specialisations()`: kernel, flags, warps and types."""
    listed = [(s.kernel.__name__, dict(s.constexprs), s.num_warps, s.signature) for s in op_module.specialisations()]
    seen = []

    def record(kernel: Any, grid: tuple[int, ...], plan: _launch.Plan, *args: object) -> None:
        runtime = [n for n in kernel.arg_names if n not in plan.constexprs]
        assert len(runtime) == len(args), f"{kernel.__name__}: {len(args)} arguments for {runtime}"
        named = dict(zip(runtime, args, strict=True))
        seen.append(kernel.__name__)
        assert any(
            kernel.__name__ == name
            and plan.num_warps == warps
            and all(constexprs.get(k) == v for k, v in plan.constexprs.items())
            and all(_fits(named[k], t, constexprs.get(k)) for k, t in signature.items() if k in named)
            for name, constexprs, warps, signature in listed
        ), f"{kernel.__name__} with {plan} is launched but not listed in specialisations()"
        _launch.launch(kernel, grid, plan, *args)

    monkeypatch.setattr(op_module, "launch", record)
    run()
    assert len(set(seen)) >= minimum, f"only {sorted(set(seen))} were launched"


def _fits(value: object, kind: str, constant: object) -> bool:
    if kind == "constexpr":
        return value == constant
    if isinstance(value, Tensor):
        return kind == "*" + _launch.TRITON_TYPES[value.dtype]
    return kind == ("fp32" if isinstance(value, float) else "i32")
