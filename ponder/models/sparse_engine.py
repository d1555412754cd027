"""The one place that chooses the sparse-convolution library.

spconv runs on CPU tensors (its `spconv` wheel) and on CUDA (its `spconv-cuXXX` wheels); spconv-triton has the same
classes on any GPU that Triton supports. Importing either takes seconds, so it happens when a model is built.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from ponder.data.threads import one_thread

ENGINES = ("auto", "spconv", "spconv-triton")
_MODULES = {"spconv": "spconv.pytorch", "spconv-triton": "spconv_triton.pytorch"}


class SparseEngineError(RuntimeError):
    """No sparse-convolution library can serve the request."""


def installed_engines() -> list[str]:
    """Names of the engines that can be imported here, in order of preference."""
    return [name for name, module in _MODULES.items() if importlib.util.find_spec(module.partition(".")[0])]


def load_engine(engine: str = "auto", device: str = "cpu") -> ModuleType:
    """Import the sparse-convolution library.

    Args:
        engine: "auto" (spconv, else spconv-triton), "spconv" or "spconv-triton".
        device: type of device the model will run on, "cpu" or "cuda".

    Returns:
        The module with SubMConv3d, SparseConv3d, SparseInverseConv3d and SparseConvTensor.

    Raises:
        ValueError: unknown engine.
        SparseEngineError: the engine is not installed, or cannot run on the device.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    present = installed_engines()
    if engine == "auto":
        usable = [name for name in present if device != "cpu" or name == "spconv"]
        if device == "cuda" and "spconv" in usable and not _spconv_has_cuda():
            usable.remove("spconv")
        if not usable:
            raise SparseEngineError(_missing(device))
        engine = usable[0]
    if engine not in present:
        raise SparseEngineError(f"engine {engine!r} is not installed; {_missing(device)}")
    if engine == "spconv-triton" and device == "cpu":
        raise SparseEngineError(
            "engine 'spconv-triton' runs on GPUs only; install the extra [cpu] for spconv's CPU wheel"
        )
    if engine == "spconv":
        return _load_spconv()
    return importlib.import_module(_MODULES[engine])


def _missing(device: str) -> str:
    extra = "cpu" if device == "cpu" else "cuda"
    return f'no sparse-convolution library for {device} is installed: pip install "ponder[{extra}]"'


def _spconv_has_cuda() -> bool:
    """Whether the installed spconv was compiled with CUDA (the wheel named plain `spconv` is CPU only)."""
    _load_spconv()
    cpp_config = importlib.import_module("spconv.cppconstants")
    return not cpp_config.CPU_ONLY_BUILD


def _load_spconv() -> ModuleType:
    # spconv calls a torch.fx function that announces, on every start, that it will be renamed.
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_not_the_renaming_notice)
    spconv = importlib.import_module("spconv.pytorch")
    _repair_cpu_path()
    return spconv


def _repair_cpu_path() -> None:
    """Mend three faults of spconv 2.3 on CPU tensors; CUDA tensors take the original path.

    Its backward asks torch for the current CUDA stream, which fails without CUDA: the number is unused there, so 0
    answers. Its gather and scatter race when OpenMP gives them more than one thread, and then return wrong sums: they
    run on one. Under autocast the products between them would be of half precision, which they cannot take.
    """
    ops = importlib.import_module("spconv.pytorch.ops")
    if getattr(ops.indice_conv, "__wrapped__", None) is not None:
        return
    if not torch.cuda.is_available():
        ops.get_current_stream = _no_stream  # type: ignore[attr-defined]
    ops.indice_conv = _repaired(ops.indice_conv)  # type: ignore[attr-defined]
    ops.indice_conv_backward = _repaired(ops.indice_conv_backward)  # type: ignore[attr-defined]


def _repaired(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(features: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if features.is_cuda:
            return function(features, *arguments, **options)
        with one_thread(), torch.autocast("cpu", enabled=False):
            return function(features, *arguments, **options)

    return call


def _not_the_renaming_notice(record: logging.LogRecord) -> bool:
    return "is_fx_tracing" not in record.getMessage()


def _no_stream() -> int:
    return 0
