"""Check every operator on this machine against float64: ``python -m ponder_kernels.selftest``.

Each operator runs on the chosen device and backend in float32, and once more on the CPU by its torch formula in float64
on the very same numbers. Values, gradients and second derivatives are compared by relative error in the Euclidean norm.
The exit code is 0 if all agree, 1 if one does not, 2 if the check cannot run as asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._backend import BACKENDS, choose_backend
from ponder_kernels._selftest_cases import Case, cases

# Rounding of some hundred float32 operations in a row; a wrong formula is off by orders of magnitude.
SAFETY = 64.0


class Errors(NamedTuple):
    """Largest relative error of the values, first and second derivatives; None where there are none to compare."""

    value: float
    gradient: float | None
    second: float | None


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: Case
    backend: str
    errors: Errors
    limit: float

    @property
    def agrees(self) -> bool:
        """Whether every error is within the limit (NaN is not)."""
        return all(e <= self.limit for e in self.errors if e is not None)


def _run(case: Case, tensors: Mapping[str, Tensor], backend: str) -> list[list[Tensor]]:
    """Values, first derivatives, second derivatives of one operator, on the CPU in float64."""
    leaves = {k: v.detach().requires_grad_(k in case.differentiable) for k, v in tensors.items()}
    outputs = case.outputs(leaves, backend)
    stages: list[list[Tensor]] = [list(outputs), [], []]
    wanted = [leaves[k] for k in case.differentiable]
    tracked = [o for o in outputs if o.requires_grad]
    if wanted and tracked:
        first = torch.autograd.grad(
            tracked, wanted, [_probe(o) for o in tracked], create_graph=case.second_order, allow_unused=True
        )
        stages[1] = [torch.zeros_like(w) if g is None else g for g, w in zip(first, wanted, strict=True)]
        again = [g for g in stages[1] if g.requires_grad] if case.second_order else []
        if again:
            second = torch.autograd.grad(again, wanted, [_probe(g) for g in again], allow_unused=True)
            stages[2] = [torch.zeros_like(w) if g is None else g for g, w in zip(second, wanted, strict=True)]
    return [[t.detach().double().cpu() for t in stage] for stage in stages]


def _probe(like: Tensor) -> Tensor:
    """A fixed upstream gradient without symmetry."""
    steps = torch.arange(like.numel(), dtype=torch.float64)
    return torch.cos(1.0 + 1.7 * steps).view(like.shape).to(like.device, like.dtype)


def _error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float | None:
    if not want:
        return None
    errors = [float((g - w).norm() / w.norm().clamp_min(1e-12)) for g, w in zip(got, want, strict=True)]
    return max(errors, key=lambda e: float("inf") if e != e else e)


def check(case: Case, device: str, backend: str) -> Row:
    """Run one case on the device and in float64 on the CPU, and compare."""
    truth = _run(case, {k: v.double() for k, v in case.tensors.items()}, "torch")
    there = {k: v.to(device) for k, v in case.tensors.items()}
    used = choose_backend(backend, *there.values())
    found = _run(case, there, backend)
    value, gradient, second = (_error(g, w) for g, w in zip(found, truth, strict=True))
    coarsest = max(torch.finfo(v.dtype).eps for v in case.tensors.values())
    limit = case.condition * SAFETY * torch.finfo(torch.float32).eps
    if coarsest > torch.finfo(torch.float32).eps:
        # The gradient of a half-precision tensor is rounded to half precision.
        limit += coarsest
    return Row(case, used, Errors(0.0 if value is None else value, gradient, second), limit)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.1e}"

    header = ("operator", "options", "backend", "value", "gradient", "second", "limit", "")
    body = [
        (
            r.case.operator,
            r.case.options,
            r.backend,
            *map(number, r.errors),
            number(r.limit),
            "ok" if r.agrees else "WRONG",
        )
        for r in rows
    ]
    widths = [max(len(line[k]) for line in (header, *body)) for k in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in (header, *body)
    )


def _describe(device: str) -> str:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    try:
        import triton

        compiler = f"triton {triton.__version__}"
    except ImportError:
        compiler = "no triton"
    return f"{name}, torch {torch.__version__}, {compiler}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ponder_kernels.selftest", description=__doc__)
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--backend", default="auto", choices=BACKENDS)
    options = parser.parse_args(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        print(_describe(device))
        rows = [check(case, device, options.backend) for case in cases()]
    except (RuntimeError, ValueError, AssertionError) as error:
        print(f"selftest: cannot run on {device} with backend {options.backend}: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    wrong = sum(not r.agrees for r in rows)
    print(f"{len(rows) - wrong} of {len(rows)} checks agree with float64")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
