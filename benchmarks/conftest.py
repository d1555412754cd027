"""Command line and fixtures of the benchmarks: `pytest benchmarks --benchmark-json=FILE`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# So that `from benchmarks... import ...` works however pytest is started.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cases import RENDER_CASES, SIZES
from benchmarks.keep_memory import keep_memory
from benchmarks.stolen import Patience
from benchmarks.suite import MORE_SECONDS, OPERATOR_SITTINGS, PATIENCE_SECONDS, Suite


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the suite."""
    group = parser.getgroup("suite", "Ponder's benchmarks")
    group.addoption("--bench-size", choices=SIZES, help="size of every case (default: full on a GPU, small on a CPU)")
    group.addoption("--bench-rounds", type=int, metavar="N", help="rounds of every competitor in a sitting")
    group.addoption(
        "--bench-patience", type=float, metavar="SECONDS", default=PATIENCE_SECONDS,
        help="time for rounds that are run again since the host of a virtual machine took time away",
    )  # fmt: skip
    group.addoption(
        "--bench-seconds", type=float, metavar="SECONDS", default=MORE_SECONDS,
        help="time from the beginning in which cases are timed again and again",
    )  # fmt: skip
    group.addoption("--bench-competitors", type=_names, metavar="NAME,NAME", help="time only these renderers")
    group.addoption("--bench-lines", type=Path, metavar="FILE", help="add every result to FILE as soon as it exists")


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(","))


def pytest_configure(config: pytest.Config) -> None:
    """Refuse options that mean nothing."""
    from benchmarks.competitors import COMPETITORS

    unknown = set(config.getoption("--bench-competitors") or ()) - set(COMPETITORS)
    if unknown:
        raise pytest.UsageError(
            f"--bench-competitors: unknown {', '.join(sorted(unknown))}; known: {', '.join(COMPETITORS)}"
        )
    rounds = config.getoption("--bench-rounds")
    if rounds is not None and rounds < 1:
        raise pytest.UsageError(f"--bench-rounds: expected at least 1, got {rounds}")
    keep_memory()


# Behind which turn what has no sittings comes.
TURNS = {"bench_saved": 0, "bench_memory": 4}


def _turn(item: pytest.Item) -> tuple[int, float]:
    """Turn and place in it, 0 to 1: a turn has a sitting of every renderer case, operators in between."""
    name, params = getattr(item, "originalname", ""), item.callspec.params if hasattr(item, "callspec") else {}
    if "sitting" not in params:
        return TURNS.get(name, 0), 1.0
    if name == "bench_operator":
        turn, part = divmod(params["sitting"], OPERATOR_SITTINGS)
        return turn, (part + 1) / OPERATOR_SITTINGS
    return params["sitting"], list(RENDER_CASES).index(params["name"]) / len(RENDER_CASES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sittings spread over the run, the most telling first; skip benchmarks of a GPU where there is none."""
    items.sort(key=_turn)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Suite:
    """What the command line asks for."""
    chosen = (pytestconfig.getoption(f"--bench-{name}") for name in ("size", "rounds", "competitors", "lines"))
    patience, seconds = (pytestconfig.getoption(f"--bench-{name}") for name in ("patience", "seconds"))
    return Suite(*chosen, patience=Patience(patience), seconds=seconds)


@pytest.fixture(autouse=True)
def _equal_precision() -> Iterator[None]:
    """Products of all competitors on a GPU may use tf32, as ours do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)
