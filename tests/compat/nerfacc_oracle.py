"""nerfacc's definitions as Python loops over the samples of one ray after another: slow, float64, hard to get wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

# Samples per ray: as in nerfacc's own tests; empty rays at both ends and side by side; a power of two and its
# neighbours; one ray of many.
COUNTS = [(1, 0, 4), (0, 0, 3, 1, 0, 16, 17, 15, 0), (64,), (5, 5, 5), (1,), (0, 2), (2, 0, 0)]
COUNT_IDS = ["-".join(map(str, c)) for c in COUNTS]


def rand(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    """Uniform float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def packed(counts: tuple[int, ...]) -> Tensor:
    """Chunks (start, count) of rays one by one."""
    sizes = torch.tensor(counts, dtype=torch.int64)
    return torch.stack((sizes.cumsum(0) - sizes, sizes), dim=-1)


def indices(counts: tuple[int, ...]) -> Tensor:
    """The ray of each sample."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))


def with_zeros(x: Tensor, value: float = 0.0) -> Tensor:
    """The numbers with `value` at the second, at two neighbours further on, and at the last."""
    x = x.clone()
    for place in (1, 7, 8, len(x) - 1):
        if place < len(x):
            x[place] = value
    return x


def scan(x: Tensor, chunks: Tensor, *, product: bool, exclusive: bool) -> Tensor:
    """Running sums or products of each chunk; 0 outside of all."""
    out = [x.new_zeros(())] * len(x)
    for start, count in chunks.tolist():
        total = x.new_tensor(float(product))
        for i in range(start, start + count):
            before = total
            total = total * x[i] if product else total + x[i]
            out[i] = before if exclusive else total
    return torch.stack(out) if out else x


def transmittance_of_alpha(alphas: Tensor, chunks: Tensor) -> Tensor:
    return scan(1.0 - alphas, chunks, product=True, exclusive=True)


def transmittance_of_density(depth: Tensor, chunks: Tensor) -> Tensor:
    inside = torch.zeros(len(depth), dtype=torch.bool)
    for start, count in chunks.tolist():
        inside[start : start + count] = True
    return torch.where(inside, torch.exp(-scan(depth, chunks, product=False, exclusive=True)), 0.0)


def accumulate(weights: Tensor, values: Tensor, chunks: Tensor) -> Tensor:
    """[R, D] weighted sums of each chunk."""
    rows = []
    for start, count in chunks.tolist():
        row = values.new_zeros(values.shape[1])
        for i in range(start, start + count):
            row = row + weights[i] * values[i]
        rows.append(row)
    return torch.stack(rows)


def gradients(function: Callable[..., Tensor], *inputs: Tensor, seed: int = 3) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of a random combination of its elements."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    upstream = rand(*out.shape, low=-1.0, seed=seed).to(out)
    if not out.requires_grad:
        return out, [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(out, leaves, upstream, allow_unused=True)
    return out.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def bracket(sequence: list[float], value: float) -> tuple[int, int]:
    """Places of the neighbours of a value in an ascending sequence, clipped as nerfacc clips them."""
    above = 0
    while above < len(sequence) - 1 and sequence[above] <= value:
        above += 1
    return max(above - 1, 0), above


def sample_ray(edges: list[float], cdf: list[float], count: int, bias: float = 0.5) -> tuple[list[float], list[float]]:
    """New edges and samples of one ray by inverse transform sampling."""
    if count == 0:
        return [], []
    if not edges:
        return [0.0] * (count + 1), [0.0] * count
    samples = []
    for k in range(count):
        u = cdf[0] + (k + bias) * (cdf[-1] - cdf[0]) / count
        left, right = bracket(cdf, u)
        growth = cdf[right] - cdf[left]
        part = 0.5 if growth < 1e-10 else (u - cdf[left]) / growth
        samples.append(edges[left] + part * (edges[right] - edges[left]))
    if count == 1:
        return [edges[0], edges[-1]], samples
    inner = [(a + b) / 2 for a, b in pairwise(samples)]
    first = max(samples[0] - (inner[0] - samples[0]), edges[0])
    last = min(samples[-1] + (samples[-1] - inner[-1]), edges[-1])
    return [first, *inner, last], samples
