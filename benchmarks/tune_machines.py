"""Where launch parameters are tried: the GPU at hand, or for a dry run none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget

from benchmarks import tune_cases
from benchmarks.launches import Launch, launches_through, triton_chosen
from benchmarks.resources import TARGETS
from ponder_kernels import _tuning

DRY_FAMILY = "sm_90"


class Machine(NamedTuple):
    """Where candidates are tried.

    Attributes:
        family: whose rows are written.
        target: what is compiled for.
        name: for the table.
        device: of the workloads.
        clock: run, kernel -> cost of that kernel in one run, or of the whole run for a row that is no kernel's.
        tiny: small workloads, one candidate a row, of which one form is compiled.
    """

    family: str
    target: GPUTarget
    name: str
    device: str
    clock: Callable[[tune_cases.Run, str], float]
    tiny: bool


def gpu_milliseconds(run: tune_cases.Run, kernel: str) -> float:
    """Time on the GPU between events around the kernel's launches, or around the run."""
    spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def timed(do: Callable[[], Any]) -> None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        do()
        end.record()
        spans.append((start, end))

    def watch(launch: Launch, launched: Any, arguments: tuple[Any, ...]) -> None:
        if launched.__name__ == kernel:
            timed(lambda: launch(launched, *arguments))
        else:
            launch(launched, *arguments)

    if kernel == "render_rays":
        timed(run)
    else:
        with launches_through(watch):
            run()
    torch.cuda.synchronize()
    return sum(start.elapsed_time(end) for start, end in spans)


def counted_programs(run: tune_cases.Run, kernel: str) -> float:
    """Programs that would be launched for the kernel, or launches of the run; nothing is launched."""
    found: list[int] = []

    def watch(launch: Launch, launched: Any, arguments: tuple[Any, ...]) -> None:
        grid = arguments[0]
        if kernel == "render_rays":
            found.append(1)
        elif launched.__name__ == kernel:
            found.append(int(torch.tensor(grid).prod()))

    with triton_chosen(DRY_FAMILY), launches_through(watch):
        run()
    return float(sum(found))


def gpu() -> Machine:
    """The CUDA device at hand.

    Raises:
        RuntimeError: there is none, or its family has no rows in the table.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device; --dry-run goes through the sweep without one")
    device = torch.device("cuda", torch.cuda.current_device())
    family = _tuning.family_of(device)
    major, minor = torch.cuda.get_device_capability(device)
    if family == _tuning.DEFAULT:
        raise RuntimeError(
            f"sm_{major}{minor} is not in ponder_kernels._tuning.FAMILIES: add it there and in the table"
        )
    target = TARGETS[family] if family == _tuning.HIP else GPUTarget("cuda", 10 * major + minor, 32)
    return Machine(family, target, torch.cuda.get_device_name(device), "cuda", gpu_milliseconds, False)


def dry() -> Machine:
    """No GPU: a stand-in for one."""
    name = "no GPU, dry run: counted programs"
    return Machine(DRY_FAMILY, TARGETS[DRY_FAMILY], name, "cpu", counted_programs, True)
