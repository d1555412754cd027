"""What PyTorch expects of an operator: torch.library, torch.compile, torch.func, autocast, no needless recompiling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from ponder_kernels import _launch
from tests.kernels.harness import as_tuple, rand

Inputs = Mapping[str, Tensor]


def leaves_of(inputs: Inputs) -> dict[str, Tensor]:
    """Fresh leaves of the same values; floating-point ones require a gradient."""
    return {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in inputs.items()}


def gradients(function: Callable[..., Any], inputs: Inputs) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:
    """Outputs, and gradients of a fixed random combination of them to every floating-point input."""
    leaves = leaves_of(inputs)
    outputs = as_tuple(function(**leaves))
    loss = sum((o * rand(*o.shape, seed=7 + k).to(o)).sum() for k, o in enumerate(outputs) if o.requires_grad)
    wanted = [v for v in leaves.values() if v.requires_grad]
    return outputs, list(torch.autograd.grad(loss, wanted, allow_unused=True))


def assert_opcheck(operator: Any, *arguments: Any) -> None:
    """torch.library.opcheck with and without gradients: schema, autograd registration, fakes, AOT dispatch."""
    plain = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    torch.library.opcheck(operator, plain)
    tracked = [
        a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in (a.detach().clone() if isinstance(a, Tensor) else a for a in arguments)
    ]
    torch.library.opcheck(operator, tracked)


def assert_compiles(function: Callable[..., Any], cases: Iterable[Inputs]) -> None:
    """torch.compile(fullgraph=True, dynamic=True) equals eager, gradients included, in one graph for all sizes.

    Sizes 0 and 1 are constants to dynamo: give it cases of 2 and more.
    """
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for inputs in cases:
        torch.testing.assert_close(gradients(compiled, inputs), gradients(function, inputs))
    # Constants folded on the way may show up as graphs without any call.
    graphs = [g for g in counter.graphs if any(n.op == "call_function" for n in g.graph.nodes)]
    assert len(graphs) == 1, f"{len(graphs)} graphs"
    torch._dynamo.reset()


def assert_transforms(function: Callable[..., Any], inputs: Inputs, name: str) -> None:
    """torch.func.grad, vmap and jvp agree with autograd under backend="auto"; explicit Triton says that it cannot.

    Args:
        function: called with the inputs and ``backend``.
        inputs: tensors for one call; `name` is the differentiable one that is varied.
    """
    values = dict(inputs)
    x = values.pop(name)

    def scalar(x: Tensor, backend: str = "auto") -> Tensor:
        return as_tuple(function(**{**values, name: x}, backend=backend))[0].square().sum()

    leaf = x.detach().clone().requires_grad_()
    (want,) = torch.autograd.grad(scalar(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(scalar)(x), want)
    both = torch.stack((x, 0.5 * x))
    torch.testing.assert_close(torch.func.vmap(scalar)(both), torch.stack([scalar(b) for b in both]))
    tangent = rand(*x.shape, seed=5).to(x)
    _, forward = torch.func.jvp(scalar, (x,), (tangent,))
    torch.testing.assert_close(forward, (want * tangent).sum())
    refusal = "backend: 'triton' kernels cannot run"
    with pytest.raises(RuntimeError, match=refusal):
        torch.func.grad(scalar)(x, "triton")
    with pytest.raises(RuntimeError, match=refusal):
        torch.func.vmap(scalar, in_dims=(0, None))(both, "triton")
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
        scalar(torch.autograd.forward_ad.make_dual(x, tangent), "triton")


def assert_autocast(function: Callable[..., Any], inputs: Inputs, halved: set[str]) -> None:
    """Under autocast, half-precision ray quantities are widened to float32 instead of being refused.

    Args:
        function: called with the inputs; computes in float32.
        inputs: float32 tensors.
        halved: names of those that autocast would hand over in bfloat16.
    """
    device = next(iter(inputs.values())).device.type
    low = {k: v.bfloat16() if k in halved else v for k, v in inputs.items()}
    want = as_tuple(function(**{k: v.float() if k in halved else v for k, v in low.items()}))
    with torch.autocast(device, dtype=torch.bfloat16):
        got = as_tuple(function(**low))
        assert torch.is_autocast_enabled(device)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert all(g.dtype == torch.float32 for g in got if g.is_floating_point())


def compile_keys(monkeypatch: pytest.MonkeyPatch, op_module: Any, runs: Iterable[Callable[[], Any]]) -> dict[str, int]:
    """How many compiled forms each kernel needs for a series of calls: the keys of Triton's own cache on sm_90."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    backend = make_backend(GPUTarget("cuda", 90, 32))
    keys: dict[str, set[str]] = {}

    def record(kernel: Any, grid: tuple[int, ...], plan: _launch.Plan, *args: object) -> None:
        compiled = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
        bind = create_function_from_signature(compiled.signature, compiled.params, backend)
        _, specialisation, _ = bind(*args, **plan.constexprs)
        keys.setdefault(kernel.__name__, set()).add(f"{specialisation} {plan.num_warps}")
        _launch.launch(kernel, grid, plan, *args)

    with monkeypatch.context() as patch:
        patch.setattr(op_module, "launch", record)
        for run in runs:
            run()
    return {name: len(found) for name, found in keys.items()}
