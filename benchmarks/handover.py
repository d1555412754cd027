"""How long the processors of this machine take to hand work to each other and to wait for it.

Operations of some microseconds that torch splits between two threads last mostly as long as a cache line needs from one
core to the other and back. On a virtual machine that changes while it runs: its processors are now on neighbouring
cores, now on cores that share no cache, and nothing tells which. Renderers of many small operations suffer from it more
than others, so their ratios differ by up to a third between the two.
"""

from __future__ import annotations

import time

import torch

# torch splits element-wise operations from 32,768 elements on; with so few all of it stays in the cores' own caches.
ELEMENTS = 40_000
OPERATIONS = 60
REPEATS = 3


def handover_seconds(device: torch.device) -> float:
    """Of a small operation that two threads share, the best of some short runs; 0 on a GPU, where nothing is split."""
    if device.type != "cpu":
        return 0.0
    source = torch.ones(ELEMENTS)
    target = torch.empty_like(source)
    return min(_once(source, target) for _ in range(REPEATS)) / OPERATIONS


def _once(source: torch.Tensor, target: torch.Tensor) -> float:
    start = time.perf_counter()
    for _ in range(OPERATIONS):
        torch.add(source, source, out=target)
    return time.perf_counter() - start
