"""Every kernel form that is launched compiles for real GPUs without spilling registers; no GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ponder_kernels._tuning import WARPS, parameters
from ponder_kernels.sdf_field.cost import field_backward_matrix_flops, matrix_flops
from ponder_kernels.sdf_field.fused import INDOOR

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "ponder_kernels.volume_sample",
    "ponder_kernels.volume_sample.scatter",
    "ponder_kernels.sdf_density",
    "ponder_kernels.composite",
    "ponder_kernels.ray_sampling",
    "ponder_kernels.sdf_field",
    "ponder_kernels.render",
]
# The table of results has two more, which take as long again.
TARGETS = {"sm_80", "sm_90", "gfx942"}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

# Sizes that change from call to call: a new value must not compile again.
SIZES = {"N", "n", "R", "S", "K", "D", "H", "W"}


def probe(package: str) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """Entry kernels with their unspecialised arguments; one result per form and target, compiled for real."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.resources",
        "--json",
        "--packages",
        package,
        "--targets",
        *sorted(TARGETS),
    ]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *rest = (json.loads(line) for line in done.stdout.splitlines())
    return first["kernels"][package], rest


@pytest.mark.parametrize("package", PACKAGES)
def test_every_kernel_compiles_without_spills(package: str) -> None:
    kernels, results = probe(package)
    assert kernels, "no entry kernels found"
    assert {r["kernel"] for r in results} == set(kernels), "specialisations() misses a kernel"
    assert {r["target"] for r in results} == TARGETS
    failed = [f"{r['label']} {r['target']}: {r['error']}" for r in results if "error" in r]
    assert not failed, "\n".join(failed)
    assert all(r["registers"] > 0 for r in results)
    spilled = [f"{r['label']} {r['target']}: {r['spill']} bytes" for r in results if r["spill"]]
    assert not spilled, "\n".join(spilled)
    for r in results:
        # A decoder with a hidden layer has matrix products; they must not run on the ordinary cores.
        if "PRECISION=" in r["label"] and "LAYERS=0" not in r["label"] and r["target"].startswith("sm_"):
            assert r["matrix"] > 0, f"{r['label']} {r['target']}: no tensor core instructions"
        if "HIDDEN=128," in r["label"] and "PRECISION=0" in r["label"] and r["target"] in ("sm_80", "sm_90"):
            # One m16n8k8 product of a warp is 2048 FLOPs: what the cost formulas say is what the machine code does.
            tile = parameters(r["kernel"], "tf32")
            issued = r["matrix"] * 2048 * tile[WARPS] // tile["BLOCK_M"]
            gradient = "GRADIENT=0" not in r["label"]
            forward = r["kernel"] == "sdf_field_forward_kernel"
            counted = matrix_flops(INDOOR, gradient=gradient) if forward else field_backward_matrix_flops(INDOOR)
            assert issued == counted, r["label"]
    for name, unspecialised in kernels.items():
        arguments = next(set(r["arguments"]) for r in results if r["kernel"] == name)
        assert arguments & SIZES and arguments & SIZES == set(unspecialised) & SIZES, name
    listed = (ROOT / "benchmarks" / "results" / "resources.md").read_text(encoding="utf-8")
    missing = {r["label"] for r in results if f"`{r['label']}`" not in listed}
    assert not missing, f"run python -m benchmarks.resources: {missing} not in the table"
