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


WEIGHT, MASK, FACTOR = "wrong weight", "dropped mask", "lost chain factor"
SAMPLE, DENSITY, COMPOSITE = (f"ponder_kernels/{n}/kernels.py" for n in ("volume_sample", "sdf_density", "composite"))
FIELD, OPACITY = "ponder_kernels/sdf_field/kernels.py", "ponder_kernels/render/kernels.py"
GATHER = "ponder_kernels/sdf_field/gather_kernels.py"
RAYS, SPACING = (f"ponder_kernels/ray_sampling/{n}.py" for n in ("kernels", "spacing_kernels"))


def _with(tests: str, operator: str, *faults: tuple[str, str, str, str]) -> list[Fault]:
    """Faults (kind, path, right, wrong) of one operator that the same tests must notice."""
    return [Fault(operator, *fault, tuple(tests.split("|"))) for fault in faults]


def _density(operator: str, *faults: tuple[str, str, str]) -> list[Fault]:
    tests = f"tests/kernels/test_sdf_density.py|-k|{operator}"
    return _with(tests, operator, *((kind, DENSITY, right, wrong) for kind, right, wrong in faults))


FAULTS = (
    *_with(
        "tests/kernels/test_volume_sample.py|-k|test_options",
        "volume_sample",
        (WEIGHT, SAMPLE, "acc += (X[3 + dx] * wyz)[:, None] * value", "acc += (X[4 - dx] * wyz)[:, None] * value"),
        (
            MASK,
            SAMPLE,
            "tl.store(out_ptr + row[:, None] * C + c[None, :], acc, mask=live[:, None] & channels)",
            "tl.store(out_ptr + row[:, None] * C + c[None, :], acc, mask=channels)",
        ),
        (FACTOR, SAMPLE, "sum_y += (wx * syz)[:, None] * gv", "sum_y += (wx * wyz)[:, None] * gv"),
    ),
    *_with(
        "tests/kernels/test_volume_sample_orders.py",
        "volume_sample",
        ("lost chain factor of the curvature", SAMPLE, "curve = slope * slope * (6.0", "curve = slope * (6.0"),
    ),
    *_density(
        "neus_alpha",
        (WEIGHT, "(p + _EPS)\n    alpha = tl", "(p + 2 * _EPS)\n    alpha = tl"),
        (MASK, "inv_s * across * slope * 0.5, mask=live)", "inv_s * across * slope * 0.5)"),
        (FACTOR, "across * delta * 0.5 * turn", "across * delta * 0.5"),
    ),
    *_density(
        "laplace_density",
        (WEIGHT, "half, 1.0 - half) / beta", "half, 1.0 - half * half) / beta"),
        (MASK, "tl.sum(tl.where(live, to_beta, 0.0), axis=0)", "tl.sum(to_beta + tl.where(live, 0.0, 1.0), axis=0)"),
        (FACTOR, "g = g / (beta * beta)", "g = g / beta"),
    ),
    *_density(
        "alpha_from_density",
        (WEIGHT, "1.0 + small * (1.0 / 3.0)", "1.0 + small * (1.0 / 4.0)"),
        (MASK, "-_expm1(-delta * density), mask=live)", "-_expm1(-delta * density))"),
        (FACTOR, "tl.store(grad_delta_ptr + i, scaled * density", "tl.store(grad_delta_ptr + i, scaled"),
    ),
    *_with(
        "tests/kernels/test_composite.py::test_render_weights",
        "render_weights",
        (WEIGHT, COMPOSITE, "weight = alpha * product", "weight = previous * product"),
        (MASK, COMPOSITE, "+ here, grad_alpha, mask=owned)", "+ here, grad_alpha)"),
        (FACTOR, COMPOSITE, "offset += following * alpha_next", "offset += following"),
    ),
    *_with(
        "tests/kernels/test_composite.py::test_composite",
        "composite",
        (WEIGHT, COMPOSITE, "acc += background * (1.0 - tl.sum(opacity, axis=0))", "acc += background"),
        (MASK, COMPOSITE, "mask = live[:, None] & (c < C)[None, :]", "mask = live[:, None] & (c >= 0)[None, :]"),
        (FACTOR, COMPOSITE, "v -= tl.load(behind, mask=c < C, other=0.0).to(tl.float32)[None, :]", "v -= 0.0"),
    ),
    *_with(
        "tests/kernels/test_ray_sampling_kernels.py|-k|rays_of_every_number or boxes_broadcast",
        "intersect_aabb",
        ("wrong plane", RAYS, "into = (tl.where(ahead, lower, upper)", "into = (tl.where(ahead, upper, lower)"),
        (MASK, RAYS, "tl.where(hit, far, 0.0), mask=live)", "tl.where(hit, far, 0.0))"),
        (FACTOR, RAYS, "tl.where(to_near == 0.0, 0.0, to_entry * into)", "tl.where(to_near == 0.0, 0.0, to_entry)"),
    ),
    *_with(
        "tests/kernels/test_ray_sampling_kernels.py|-k|test_spacings or strata_of_every_number",
        "stratified_edges",
        (WEIGHT, SPACING, "stop - v * length", "stop - u * length"),
        (MASK, RAYS, "tl.store(out_ptr + i, t, mask=live)", "tl.store(out_ptr + i, t)"),
        (FACTOR, RAYS, "slope(v, t, near, SPACING)", "v"),
    ),
    *_with(
        "tests/kernels/test_ray_sampling.py|tests/kernels/test_ray_sampling_kernels.py|-k|resampling",
        "resample_edges",
        (WEIGHT, RAYS, "pad * (chosen + 1) - below", "pad * chosen - below"),
        (MASK, RAYS, "tl.where(target == target, position, target), mask=live)", "position)"),
        ("lost running sum", RAYS, "cdf = total + tl.cumsum(weight, axis=1)", "cdf = tl.cumsum(weight, axis=1)"),
    ),
    *_with(
        "tests/kernels/test_sdf_field_kernels.py|-k|outdoor-True",
        "sdf_field",
        (WEIGHT, GATHER, "return row, wx * wy * wz, ", "return row, wx * wy * wy, "),
        (MASK, FIELD, "wanted = mine & (column < FIRST)[None, :]", "wanted = mine"),
        (FACTOR, FIELD, "(u_bar * vs[LAYERS - 1 - layer] * (1.0 - slope),)", "(u_bar * vs[LAYERS - 1 - layer],)"),
        ("lost skip connection", FIELD, "z_bar += _dot(y_bar, ", "z_bar = _dot(y_bar, "),
    ),
    *_with(
        "tests/kernels/test_ray_opacity.py",
        "render_rays",
        (WEIGHT, OPACITY, "tl.store(weights_ptr + here, alpha * transmittance", "tl.store(weights_ptr + here, alpha"),
        (MASK, OPACITY, "return tl.where(hit, alpha, 0.0), ", "return alpha, "),
        (
            FACTOR,
            OPACITY,
            "by_cosine = inv_s * across * delta * 0.5 * turn",
            "by_cosine = inv_s * across * delta * 0.5",
        ),
    ),
    *_with(
        "tests/kernels/test_ray_sampling.py|tests/kernels/test_ray_sampling_kernels.py|-k|merge or merging",
        "merge_edges",
        ("wrong order", RAYS, "((i < S) & _not_after(a, b))", "(i < S)"),
        (MASK, RAYS, "tl.where(from_first, a, b), mask=live)", "tl.where(from_first, a, b))"),
        (FACTOR, RAYS, "along % S + before", "before"),
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
