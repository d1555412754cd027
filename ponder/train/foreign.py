"""Checkpoints that torch.load(weights_only=True) refuses, read without importing or running anything they name.

PonderV2's own files are of this kind: PyTorch of its time saved the one-cycle scheduler with a method bound to it,
hence the scheduler and optimiser objects themselves, and a best score is a NumPy scalar.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# NumPy's codes of plain numbers -> struct's.
_NUMBERS = {
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "u8": "Q",
    "u4": "I",
    "u1": "B",
    "b1": "?",
}


class Placeholder:
    """Stands where a file holds an object of a class, or the result of a function, that is not called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore the arguments."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the object's content."""

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        """What stands for a function gives what stands for its result."""
        return Placeholder()

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an item."""

    def append(self, value: Any) -> None:
        """Ignore an item."""

    add = extend = append


def read_foreign(path: Path) -> Any:
    """What torch.save wrote: tensors, on the CPU, plain values and `Placeholder`s for all else.

    Raises:
        UnpicklingError, BadZipFile, or another of the many errors that damaged files lead to.
    """
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("not a file of torch.save")
        with archive.open(pickles[0]) as stream:
            return _Reader(stream, archive, pickles[0].removesuffix("data.pkl")).load()


class _Reader(pickle.Unpickler):
    """An unpickler that knows tensors, ordered dictionaries and NumPy's numbers, and nothing that acts."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self._archive, self._folder = archive, folder
        self._storages: dict[str, torch.Tensor] = {}
        # Made anew for each file, since a pickle could change their attributes.
        number_type: type[_NumberType] = type("NumberType", (_NumberType,), {})
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): torch.Size,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: storage.as_strided(
                size, stride, offset
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
            ("numpy", "dtype"): number_type,
            ("numpy.core.multiarray", "scalar"): _number_of(number_type),
            ("numpy._core.multiarray", "scalar"): _number_of(number_type),
        }

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function that the file names; no module is imported."""
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return self._known.get((module, name)) or type("Placeholder", (Placeholder,), {})

    def persistent_load(self, reference: Any) -> torch.Tensor:
        """All elements of a storage, as a flat tensor."""
        _, dtype, key, _, count = reference
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            filled = torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            self._storages[key] = filled
        return self._storages[key]


class _NumberType:
    """Stands for numpy.dtype: its code and byte order."""

    def __init__(self, code: str, *args: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"|": "="}.get(state[1], state[1])


def _number_of(number_type: type[_NumberType]) -> Callable[..., Any]:
    """The function that makes a Python number of a NumPy scalar's type and bytes."""

    def number(kind: Any, data: Any) -> Any:
        code = _NUMBERS.get(kind.code) if isinstance(kind, number_type) else None
        return Placeholder() if code is None else struct.unpack(kind.order + code, data)[0]

    return number
