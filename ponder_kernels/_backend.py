"""One visible function decides which implementation an operator runs."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch.autograd import forward_ad

BACKENDS = ("auto", "triton", "torch")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def triton_installed() -> bool:
    """Whether the triton package can be imported (it is not imported here)."""
    return importlib.util.find_spec("triton") is not None


def triton_interpreted() -> bool:
    """Whether Triton kernels run on CPU tensors through Triton's interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _transformed(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether torch.func transforms or forward-mode derivatives are at work, which see no further than a kernel."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def eager_on_cpu(*tensors: torch.Tensor) -> bool:
    """Whether an operator may take opaque steps on the CPU: neither torch.compile nor a transform is to see through."""
    return (
        all(t.device.type == "cpu" for t in tensors) and not torch.compiler.is_compiling() and not _transformed(tensors)
    )


def choose_backend(backend: str, *tensors: torch.Tensor) -> str:
    """Decide between the Triton kernels and the plain-torch reference.

    ``auto`` takes Triton for CUDA tensors of at most 32 bits and the reference for everything else: CPU, float64, and
    torch.func transforms (grad, vmap, jvp...) and forward-mode derivatives, which need differentiable torch operations
    all the way down. The environment never changes its answer. An explicit backend that cannot run raises.

    Args:
        backend: "auto", "triton" or "torch".
        tensors: the operator's floating-point inputs.

    Returns:
        "triton" or "torch".

    Raises:
        ValueError: unknown backend, or "triton" with tensors its kernels cannot take.
        RuntimeError: "triton" where Triton is not installed, or inside a torch.func transform.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    on_gpu = all(t.device.type == "cuda" for t in tensors)
    fits = all(t.dtype in TRITON_DTYPES for t in tensors)
    transformed = _transformed(tensors)
    if backend == "auto":
        return "triton" if on_gpu and fits and not transformed and triton_installed() else "torch"
    if backend == "torch":
        return "torch"
    if not triton_installed():
        raise RuntimeError("backend: 'triton' was asked for, but the triton package is not installed")
    if transformed:
        raise RuntimeError(
            "backend: 'triton' kernels cannot run inside torch.func transforms or forward-mode derivatives; "
            "expected 'auto' or 'torch' there"
        )
    if not fits:
        got = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))
        raise ValueError(f"backend: 'triton' takes float16, bfloat16 and float32 tensors, got {got}")
    if not on_gpu and not triton_interpreted():
        devices = ", ".join(sorted({t.device.type for t in tensors}))
        raise ValueError(
            f"backend: 'triton' takes CUDA tensors (or TRITON_INTERPRET=1 set before import), got {devices} tensors"
        )
    return "triton"
