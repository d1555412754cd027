"""What the machine can do at most: bytes copied and FLOPs of a matrix product, per second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.measure import synchronise

# Far beyond any cache; side of the matrices.
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
SIDE = {"cpu": 2048, "cuda": 8192}
REPEATS = {"cpu": 7, "cuda": 20}


def measure(device: torch.device) -> dict[str, float]:
    """Best of some runs of a copy (bytes read and written) and of a float32 product.

    On a GPU products use tf32 where torch is allowed to, as the renderers are.
    """
    kind = device.type
    return {
        "copy_bytes_per_second": 2 * COPY_BYTES[kind] / _copy_seconds(COPY_BYTES[kind], device),
        "matmul_flops_per_second": 2 * SIDE[kind] ** 3 / _product_seconds(SIDE[kind], device),
    }


def _copy_seconds(size: int, device: torch.device) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return _best(lambda: target.copy_(source), device)


def _product_seconds(side: int, device: torch.device) -> float:
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return _best(lambda: torch.mm(a, b, out=out), device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Shortest seconds."""
    work()
    taken = []
    for _ in range(REPEATS[device.type]):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - start)
    return min(taken)
