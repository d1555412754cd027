"""What was found on this machine."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from ponder.models.sparse_engine import SparseEngineError, installed_engines, load_engine
from ponder.render.backends import operator_backends
from ponder.train.device import choose_device


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _engine(device: torch.device) -> str:
    try:
        module = load_engine("auto", device.type).__name__
    except SparseEngineError as error:
        return f"none: {error}"
    return f"{module} (installed: {', '.join(installed_engines())})"


def report() -> list[tuple[str, str]]:
    """Pairs (what, finding), in the order they should be read."""
    device = choose_device("auto")
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    rows = [
        ("ponder", _version("ponder")),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("triton", _version("triton")),
        ("numpy", _version("numpy")),
        ("CUDA device", gpu),
        ("device chosen", str(device)),
        ("sparse engine", _engine(device)),
    ]
    rows += [(f"operator {name}", backend) for name, backend in operator_backends(device).items()]
    return rows
