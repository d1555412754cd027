"""Deliberate kernel faults, each of which must turn a test red: ``python -m tests.kernels.mutations [NAME ...]``.

Every fault is made in a copy of the project; the tests named with it must fail there, and pass without it. Names select
operators; without any, all faults are tried (some minutes on two cores).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Fault(NamedTuple):
    """One line of a kernel, its faulty form, and the tests that must notice.

    Attributes:
        operator: whose kernel it is.
        kind: what is broken.
        path: the kernel's file, relative to the project.
        right: text that occurs there exactly once.
        wrong: what replaces it.
        tests: pytest arguments.
    """

    operator: str
    kind: str
    path: str
    right: str
    wrong: str
    tests: tuple[str, ...]


SDF_DENSITY = "ponder_kernels/sdf_density/kernels.py"


def _sdf_density(operator: str, kind: str, right: str, wrong: str) -> Fault:
    tests = ("tests/kernels/test_sdf_density.py", "-k", operator)
    return Fault(operator, kind, SDF_DENSITY, right, wrong, tests)


COMPOSITE = "ponder_kernels/composite/kernels.py"


def _composite(operator: str, kind: str, right: str, wrong: str) -> Fault:
    tests = (f"tests/kernels/test_composite.py::test_{operator}",)
    return Fault(operator, kind, COMPOSITE, right, wrong, tests)


FAULTS = (
    _composite("render_weights", "wrong weight", "weight = alpha * product", "weight = previous * product"),
    _composite(
        "render_weights",
        "dropped mask",
        "tl.store(grad_alpha_ptr + here, grad_alpha, mask=owned)",
        "tl.store(grad_alpha_ptr + here, grad_alpha)",
    ),
    _composite("render_weights", "lost chain factor", "offset += following * alpha_next", "offset += following"),
    _composite(
        "composite",
        "wrong weight",
        "acc += background * (1.0 - tl.sum(opacity, axis=0))",
        "acc += background",
    ),
    _composite(
        "composite",
        "dropped mask",
        "mask = live[:, None] & (c < C)[None, :]",
        "mask = live[:, None] & (c >= 0)[None, :]",
    ),
    _composite(
        "composite",
        "lost chain factor",
        "v -= tl.load(behind, mask=c < C, other=0.0).to(tl.float32)[None, :]",
        "v -= 0.0",
    ),
    _sdf_density(
        "neus_alpha", "wrong weight", "(p + _EPS)\n    alpha = tl.where", "(p + 2 * _EPS)\n    alpha = tl.where"
    ),
    _sdf_density(
        "neus_alpha",
        "dropped mask",
        "tl.store(grad_delta_ptr + i, inv_s * across * slope * 0.5, mask=live)",
        "tl.store(grad_delta_ptr + i, inv_s * across * slope * 0.5)",
    ),
    _sdf_density(
        "neus_alpha", "lost chain factor", "inv_s * across * delta * 0.5 * turn", "inv_s * across * delta * 0.5"
    ),
    _sdf_density("laplace_density", "wrong weight", "half, 1.0 - half) / beta", "half, 1.0 - half * half) / beta"),
    _sdf_density(
        "laplace_density",
        "dropped mask",
        "tl.sum(tl.where(live, to_beta, 0.0), axis=0)",
        "tl.sum(to_beta + tl.where(live, 0.0, 1.0), axis=0)",
    ),
    _sdf_density("laplace_density", "lost chain factor", "g = g / (beta * beta)", "g = g / beta"),
    _sdf_density("alpha_from_density", "wrong weight", "1.0 + small * (1.0 / 3.0)", "1.0 + small * (1.0 / 4.0)"),
    _sdf_density(
        "alpha_from_density",
        "dropped mask",
        "tl.store(out_ptr + i, -_expm1(-delta * density), mask=live)",
        "tl.store(out_ptr + i, -_expm1(-delta * density))",
    ),
    _sdf_density(
        "alpha_from_density",
        "lost chain factor",
        "tl.store(grad_delta_ptr + i, scaled * density, mask=live)",
        "tl.store(grad_delta_ptr + i, scaled, mask=live)",
    ),
)


def copy_project(folder: Path) -> None:
    """Copy what the tests need; not the history, environments or results."""
    unneeded = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", "runs")
    shutil.copytree(ROOT, folder, ignore=unneeded)


def run_tests(folder: Path, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass; a process that dies of the fault's stray writes counts as red, a usage error does not."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode > 1:
        raise RuntimeError(
            f"pytest {' '.join(tests)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}"
        )
    return done.returncode == 0


def survives(fault: Fault) -> bool:
    """Whether the tests stay green with the fault."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "copy"
        copy_project(folder)
        path = folder / fault.path
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
        return run_tests(folder, fault.tests)


def main(arguments: list[str]) -> int:
    """Try the faults; 1 if one survives or the tests fail without any."""
    operators = sorted({f.operator for f in FAULTS})
    parser = argparse.ArgumentParser(prog="tests.kernels.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"operators: {', '.join(operators)}")
    chosen = parser.parse_args(arguments).names or operators
    if unknown := set(chosen) - set(operators):
        parser.error(f"unknown operators {', '.join(sorted(unknown))}; expected some of {', '.join(operators)}")
    faults = [f for f in FAULTS if f.operator in chosen]
    for tests in dict.fromkeys(f.tests for f in faults):
        if not run_tests(ROOT, tests):
            print(f"red without any fault: pytest {' '.join(tests)}")
            return 1
    survivors = 0
    for fault in faults:
        alive = survives(fault)
        survivors += alive
        print(f"{'SURVIVES' if alive else 'red':9} {fault.operator}: {fault.kind}", flush=True)
    print(f"{len(faults) - survivors} of {len(faults)} faults turned a test red")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
