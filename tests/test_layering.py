"""Import directions of the architecture, and what importing the packages costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ponder_kernels

ROOT = Path(__file__).parents[1]
KERNEL_DEPENDENCIES = {"torch", "triton", "numpy", "ponder_kernels"}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth of the code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files_of(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


@pytest.mark.parametrize("path", files_of("ponder_kernels"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_know_only_torch_triton_and_numpy(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imported_modules(path)}
    foreign = roots - KERNEL_DEPENDENCIES - set(sys.stdlib_module_names)
    assert not foreign


@pytest.mark.parametrize("path", files_of("ponder"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_renderer_calls_the_kernels(path: Path) -> None:
    uses_kernels = any(name.partition(".")[0] == "ponder_kernels" for name in imported_modules(path))
    assert not uses_kernels or path.relative_to(ROOT).parts[:2] == ("ponder", "render")


# Each layer may import the layers named here (and itself); the command line sits on top of all, these below.
BASE = {"registry"}
ALLOWED = {
    "geometry": set(),
    "data": {"geometry"},
    "render": {"geometry"},
    "models": {"data", "render", "geometry"},
    "tasks": {"data", "models", "render", "geometry", "train"},
    "train": {"data", "models", "render", "geometry", "tasks"},
    "compat": {"render", "models", "data", "train", "geometry"},
    "recipes": {"data", "models", "render", "train"},
}


@pytest.mark.parametrize("layer", ALLOWED)
def test_layers(layer: str) -> None:
    for path in files_of(f"ponder/{layer}"):
        inside = {name.split(".")[1] for name in imported_modules(path) if name.startswith("ponder.")}
        assert inside <= ALLOWED[layer] | {layer} | BASE, f"{path.name} imports {inside - ALLOWED[layer] - {layer}}"


def test_triton_stays_optional() -> None:
    """Only files of kernels, which are loaded when the backend is chosen, import triton at their top level."""
    for path in files_of("ponder_kernels"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in top if isinstance(n, ast.ImportFrom)}
        if any(name.partition(".")[0] == "triton" for name in names):
            assert path.stem.endswith("kernels"), path


PROBE = """
import sys, torch
calls = []
torch.cuda.init = torch._C._cuda_init = torch.cuda._lazy_init = lambda *a, **k: calls.append("init")
torch.cuda.is_available = torch.cuda.device_count = lambda *a, **k: calls.append("query") or 0
import {package}
for name in getattr({package}, "__all__", ()):
    getattr({package}, name)
assert not calls, calls
assert "spconv" not in sys.modules and "triton" not in sys.modules
"""


@pytest.mark.parametrize("package", ["ponder_kernels", "ponder"])
def test_import_touches_no_gpu(package: str) -> None:
    subprocess.run([sys.executable, "-c", PROBE.format(package=package)], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["ponder_kernels", "ponder"])
def test_import_is_quick(package: str) -> None:
    """Under 3 s on any machine: torch, which takes that long by itself, comes with the first use."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {package}"], check=True, cwd=ROOT)
        times.append(time.perf_counter() - began)
    assert min(times) < 3.0


IMPORT_ORDERS = [
    "import ponder_kernels.volume_sample.op",
    "from ponder_kernels.sdf_field import sdf_field",
    "from ponder_kernels import composite; import ponder_kernels.composite.reference",
    "import ponder_kernels; ponder_kernels.render_rays; import ponder_kernels.render.op",
]


@pytest.mark.parametrize("statement", IMPORT_ORDERS)
def test_operators_keep_their_names(statement: str) -> None:
    """A folder of the same name never hides an operator, whatever was imported first."""
    check = "import ponder_kernels as k; assert all(callable(getattr(k, name)) for name in k.__all__)"
    subprocess.run([sys.executable, "-c", f"{statement}; {check}"], check=True, cwd=ROOT)


def test_unknown_names_are_reported() -> None:
    with pytest.raises(AttributeError, match="no attribute 'volume_smaple'"):
        _ = ponder_kernels.volume_smaple
