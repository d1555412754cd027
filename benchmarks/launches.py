"""Every Triton launch of the library passes one function; here it can be watched, or kept from happening."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.resources import PACKAGES
from ponder_kernels import _backend, _launch, _tuning

Launch = Callable[..., None]


def _holders(name: str, value: Any) -> Iterator[Any]:
    """Loaded modules of the library that know a function under its own name."""
    for package in PACKAGES:
        importlib.import_module(f"{package}.op")
    for module in [m for key, m in sys.modules.items() if key.partition(".")[0] == "ponder_kernels"]:
        if getattr(module, name, None) is value:
            yield module


@contextmanager
def _replaced(name: str, old: Any, new: Any) -> Iterator[None]:
    modules = list(_holders(name, old))
    for module in modules:
        setattr(module, name, new)
    try:
        yield
    finally:
        for module in modules:
            setattr(module, name, old)


@contextmanager
def launches_through(watch: Callable[[Launch, Any, tuple[Any, ...]], None]) -> Iterator[None]:
    """Within the block a launch only calls `watch(launch, kernel, arguments)`; `launch(kernel, *arguments)` does it."""
    launch = _launch.launch

    def watched(kernel: Any, *arguments: Any) -> None:
        watch(launch, kernel, arguments)

    with _replaced("launch", launch, watched):
        yield


@contextmanager
def triton_chosen(family: str = _tuning.DEFAULT) -> Iterator[None]:
    """Within the block every operator takes its Triton kernels, on whatever device: for launches that do not happen.

    `family`: of GPUs, whose launch parameters they take.
    """

    def choose(backend: str, *tensors: Any) -> str:
        return "torch" if backend == "torch" else "triton"

    def chosen(device: Any) -> str:
        return family

    with (
        _replaced("choose_backend", _backend.choose_backend, choose),
        _replaced("family_of", _tuning.family_of, chosen),
    ):
        yield
