"""Every kernel form that is launched compiles for real GPUs without spilling registers; no GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["ponder_kernels.volume_sample", "ponder_kernels.sdf_density", "ponder_kernels.composite"]
ARCHITECTURES = "80,90"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


# Sizes that change from call to call: a new value must not compile again.
SIZES = {"N", "n", "R", "S", "D", "H", "W"}


def probe(*packages: str) -> tuple[dict[str, dict[str, list[str]]], list[dict]]:
    """Entry kernels by package with their unspecialised arguments; one result per form, compiled for real."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).with_name("compile_probe.py")), ARCHITECTURES, *packages]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *rest = (json.loads(line) for line in done.stdout.splitlines())
    return first["kernels"], rest


@pytest.mark.parametrize("package", PACKAGES)
def test_every_kernel_compiles_without_spills(package):
    kernels, results = probe(package)
    assert kernels[package], "no entry kernels found"
    assert {r["kernel"] for r in results} == set(kernels[package]), "specialisations() misses a kernel"
    assert {r["architecture"] for r in results} == {int(a) for a in ARCHITECTURES.split(",")}
    failed = [f"{r['label']} sm_{r['architecture']}: {r['error']}" for r in results if "error" in r]
    assert not failed, "\n".join(failed)
    assert all(r["registers"] > 0 for r in results)
    spilled = [r for r in results if r["stack"] or r["local"]]
    assert not spilled, "\n".join(f"{r['label']} sm_{r['architecture']}: stack {r['stack']}" for r in spilled)
    for name, unspecialised in kernels[package].items():
        arguments = next(set(r["arguments"]) for r in results if r["kernel"] == name)
        assert arguments & SIZES and arguments & SIZES == set(unspecialised), name
