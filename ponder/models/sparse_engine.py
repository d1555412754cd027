"""The one place that chooses the sparse-convolution library.

spconv runs on CPU tensors (its `spconv` wheel) and on CUDA (its `spconv-cuXXX` wheels); spconv-triton has the same
classes on any GPU that Triton supports. Importing either takes seconds, so it happens when a model is built.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from types import ModuleType

import torch

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
    _let_cpu_backward_run()
    return spconv


def _let_cpu_backward_run() -> None:
    """spconv's backward asks torch for the current CUDA stream even on CPU tensors, which fails without CUDA.

    The stream number is unused on that path, so 0 answers; with a CUDA build of torch nothing is replaced.
    """
    if torch.backends.cuda.is_built() and torch.cuda.is_available():
        return
    ops = importlib.import_module("spconv.pytorch.ops")
    ops.get_current_stream = _no_stream  # type: ignore[attr-defined]


def _not_the_renaming_notice(record: logging.LogRecord) -> bool:
    return "is_fx_tracing" not in record.getMessage()


def _no_stream() -> int:
    return 0
