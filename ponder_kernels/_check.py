"""Argument checks with one message format: the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(name: str, value: object) -> torch.Tensor:
    """Return `value` if it is a tensor, else raise TypeError."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value


def floating(name: str, value: object, dtypes: Sequence[torch.dtype] = FLOAT_DTYPES) -> torch.Tensor:
    """Require a tensor whose dtype is one of `dtypes`."""
    out = tensor(name, value)
    if out.dtype not in dtypes:
        expected = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name}: expected dtype {expected}, got {str(out.dtype).removeprefix('torch.')}")
    return out


def shape(name: str, value: torch.Tensor, dims: str, known: dict[str, int] | None = None) -> dict[str, int]:
    """Match a tensor's shape against named dims and return the sizes bound so far.

    Args:
        name: the argument's name, for the message.
        value: the tensor.
        dims: dims separated by spaces, e.g. ``"B N 3"``. A number must match exactly; a letter is bound on
            first use and must agree afterwards; a leading ``...`` accepts any number of leading dims.
        known: sizes bound by earlier calls; extended in place and returned.

    Raises:
        ValueError: wrong rank or size; the message shows the expected and the actual shape.
    """
    known = {} if known is None else known
    names = dims.split()
    actual = tuple(value.shape)
    open_front = bool(names) and names[0] == "..."
    if open_front:
        names = names[1:]
    rank_fits = len(actual) >= len(names) if open_front else len(actual) == len(names)
    sizes = actual[len(actual) - len(names) :] if rank_fits else ()
    fits = rank_fits and all(
        size == (int(dim) if dim.isdigit() else known.get(dim, size)) for dim, size in zip(names, sizes, strict=True)
    )
    if not fits:
        bound = ", ".join(f"{dim}={known[dim]}" for dim in names if dim in known)
        hint = f" with {bound}" if bound else ""
        raise ValueError(f"{name}: expected shape [{', '.join(dims.split())}]{hint}, got {list(actual)}")
    for dim, size in zip(names, sizes, strict=True):
        if not dim.isdigit():
            if dim in known and known[dim] != size:
                raise ValueError(f"{name}: expected {dim}={known[dim]}, got shape {list(actual)}")
            known[dim] = size
    return known


def same_device(first_name: str, first: torch.Tensor, **others: torch.Tensor) -> None:
    """Require every tensor to live on the device of the first."""
    for name, other in others.items():
        if other.device != first.device:
            raise ValueError(f"{name}: expected device {first.device} as {first_name}, got {other.device}")


def choice(name: str, value: object, options: Sequence[str]) -> str:
    """Require one of a few named options."""
    if value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(options)}, got {value!r}")
    return str(value)
