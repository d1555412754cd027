"""Shared test set-up: Triton interpreted where there is no GPU, guarded allocations, counted GPU skips."""

from __future__ import annotations

import os

# Before torch loads: waiting threads sleep instead of spinning, which matters where tests share their cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

# Before any kernel module is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# So that `from tests.tolerance import ...` works however pytest is started.
sys.path.insert(0, str(Path(__file__).parents[1]))

KERNEL_TESTS = Path(__file__).parent / "kernels"
GUARD = 1088  # elements on each side: more than any block of samples, and keeps the tensor's 16-byte alignment
SENTINEL = 12345.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many GPU tests did not run: a green CPU run is not a GPU run."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "gpu" in r.keywords]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} GPU tests did not run (no CUDA device)")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same numbers every time, whatever runs before and in whichever process."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture
def device() -> str:
    """Where operator tests run: the GPU if there is one, else the CPU (Triton interpreted)."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class GuardedAllocations:
    """Allocations between two walls of a sentinel, empty ones filled with NaN.

    A store that a kernel skips leaves NaN in its output; a store past the end changes a wall.
    """

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []

    def wrap(self, allocate: Callable[..., torch.Tensor], fill: float) -> Callable[..., torch.Tensor]:
        """Replace `allocate` for callers in `ponder_kernels`; everyone else gets the original."""

        def guarded(*args: Any, **kwargs: Any) -> torch.Tensor:
            plain = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith("ponder_kernels") or not plain.is_floating_point():
                return plain
            span = sum((n - 1) * s for n, s in zip(plain.shape, plain.stride(), strict=True)) + 1
            span = span if plain.numel() else 0
            buffer = torch.full((span + 2 * GUARD,), SENTINEL, dtype=plain.dtype, device=plain.device)
            self.buffers.append(buffer)
            return buffer.as_strided(plain.shape, plain.stride(), GUARD).fill_(fill)

        return guarded

    def check(self) -> None:
        """Fail if anything was written outside an allocation."""
        for buffer in self.buffers:
            wall = torch.tensor(SENTINEL, dtype=buffer.dtype)
            walls = torch.cat((buffer[:GUARD], buffer[-GUARD:])).cpu()
            assert torch.equal(walls, wall.expand_as(walls)), "a kernel wrote outside its output"


@pytest.fixture
def guarded_allocations(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedAllocations]:
    """Guard and poison what `ponder_kernels` allocates during a test."""
    guards = GuardedAllocations()
    for name, fill in (
        ("empty", float("nan")),
        ("empty_like", float("nan")),
        ("zeros", 0.0),
        ("zeros_like", 0.0),
    ):
        monkeypatch.setattr(torch, name, guards.wrap(getattr(torch, name), fill))
    for name, fill in (("new_empty", float("nan")), ("new_zeros", 0.0)):
        monkeypatch.setattr(torch.Tensor, name, guards.wrap(getattr(torch.Tensor, name), fill))
    yield guards
    guards.check()


@pytest.fixture(autouse=True)
def _guard_kernel_tests(request: pytest.FixtureRequest) -> None:
    """Every test under tests/kernels runs with guarded allocations, but those in which torch traces allocations."""
    guarded = request.node.get_closest_marker("unguarded") is None
    if guarded and KERNEL_TESTS in Path(request.path).parents:
        request.getfixturevalue("guarded_allocations")
