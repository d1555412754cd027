"""Files of torch.save that hold arrays and plain values, read without running code."""

from __future__ import annotations

import codecs
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ponder.data.scene import DataError

_KINDS = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "U1")
# What torch.load raises for files that are damaged or something else.
_DAMAGE = (
    RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error, ValueError, TypeError,
    AttributeError, LookupError, ArithmeticError, AssertionError,
)  # fmt: skip


def _harmless() -> list[Any]:
    """What a pickle of NumPy's arrays and numbers calls, by the names that NumPy 1 and 2 give it."""
    calls = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    rebuild = [(call, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, call in calls.items()]
    return [*rebuild, np.ndarray, np.dtype, codecs.encode, *(type(np.dtype(kind)) for kind in _KINDS)]


def read_plain(path: Path) -> Any:
    """What torch.save wrote: tensors, NumPy's arrays and numbers, plain values and containers of them.

    Raises:
        DataError: missing, damaged, or with anything else in it.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or "truncated or not a file of plain arrays"
        raise DataError(f"{path}: expected a file saved by torch.save, got: {reason}") from error
