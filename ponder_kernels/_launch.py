"""Host-side helpers of every operator: launch plans, compile signatures, costs.

Nothing here imports Triton, so the package works where Triton is not installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ponder_kernels._backend import triton_interpreted


class Cost(NamedTuple):
    """Least traffic and arithmetic of one call: every input read once, every output written once."""

    bytes_read: int
    bytes_written: int
    flops: int


@dataclass(frozen=True)
class Plan:
    """The compile-time half of a launch: constexpr arguments by name, and warps per program."""

    constexprs: Mapping[str, int | bool] = field(default_factory=dict)
    num_warps: int = 4


@dataclass(frozen=True)
class Specialisation:
    """One compiled form of a kernel, as the compile test builds it.

    Attributes:
        kernel: the @triton.jit function.
        signature: argument name -> "*fp32", "i32", "constexpr"...; constexprs included.
        constexprs: values of the constexpr arguments, those that Triton makes constant (stride 1) included.
        num_warps: warps per program.
        aligned: arguments that are multiples of 16: pointers (bytes) and integers.
        backend: "cuda" or "hip" where the form is launched on one kind of GPU only, else None.
    """

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, int | bool]
    num_warps: int
    aligned: Sequence[str]
    backend: str | None = None

    @property
    def label(self) -> str:
        """Kernel name, pointer types and constexprs on one line."""
        pointers = ",".join(t for t in self.signature.values() if t.startswith("*"))
        values = ",".join(f"{k}={int(v)}" for k, v in self.constexprs.items())
        return f"{self.kernel.__name__}[{pointers}][{values}]"


TRITON_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}


def cdiv(a: int, b: int) -> int:
    """Smallest integer not below a / b."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """Smallest power of two not below n (1 for n <= 1)."""
    return 1 << max(n - 1, 0).bit_length()


def specialise(
    kernel: Any,
    plan: Plan,
    pointers: Mapping[str, torch.dtype] | None = None,
    floats: Sequence[str] = (),
    ones: Sequence[str] = (),
    aligned: Sequence[str] = (),
    backend: str | None = None,
) -> Specialisation:
    """Describe one compiled form of `kernel` launched with `plan`.

    Arguments named ``*_ptr`` are pointers (float32 unless `pointers` says otherwise); those in `floats` are
    float scalars; those in `ones` are integers equal to 1, which Triton turns into constants; the rest are
    int32, those in `aligned` multiples of 16. Pointers are taken to be aligned to 16 bytes.
    """
    pointers = pointers or {}
    constexprs = {**plan.constexprs, **dict.fromkeys(ones, 1)}
    signature = {}
    for name in kernel.arg_names:
        if name in constexprs:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + TRITON_TYPES[pointers.get(name, torch.float32)]
        else:
            signature[name] = "fp32" if name in floats else "i32"
    ordered = {name: constexprs[name] for name in kernel.arg_names if name in constexprs}
    pointer_names = [name for name, kind in signature.items() if kind.startswith("*")]
    return Specialisation(kernel, signature, ordered, plan.num_warps, (*pointer_names, *aligned), backend)


def launch(kernel: Any, grid: tuple[int, ...], plan: Plan, *args: object) -> None:
    """Run `kernel` on `grid` with the device of its first tensor current; an empty grid runs nothing."""
    if 0 in grid:
        return
    device = next(a.device for a in args if isinstance(a, torch.Tensor))
    if device.type != "cuda" and not triton_interpreted():
        raise RuntimeError(f"{kernel.__name__}: expected CUDA tensors, got {device.type} tensors")
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on_device:
        kernel[grid](*args, **plan.constexprs, num_warps=plan.num_warps)
