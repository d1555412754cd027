"""Runs of a flat tensor of samples, and scans that start afresh with each run: nerfacc's pack and scan modules.

Flat scans double their reach with every pass (Hillis and Steele 1986), log2 of the longest run in all, over all rays at
once. They add and multiply only, so that sums do not cancel against other rays and a factor of 0 keeps its derivative.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels.composite.reference import ray_and_position, values_at_hand

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Runs(NamedTuple):
    """A flat tensor of N samples cut into K stretches of neighbours, each scanned on its own.

    Attributes:
        offsets: [K + 1] int64, ascending, from 0 to N: run k is offsets[k] ... offsets[k + 1] - 1 and may be empty.
        run: [N] int64, the run of each sample.
        inside: [N] bool, whether a sample belongs to any ray; None where all do.
    """

    offsets: Tensor
    run: Tensor
    inside: Tensor | None = None

    def owned(self, values: Tensor) -> Tensor:
        """The values, with 0 for samples of no ray."""
        return values if self.inside is None else torch.where(self.inside, values, 0.0)


def check_indices(name: str, indices: Tensor, n_rays: int | None = None) -> None:
    """Require integer ray ids [N]; their range (0 to n_rays - 1) is checked on the CPU."""
    _check.floating(name, indices, INTEGERS)
    _check.shape(name, indices, "N")
    if n_rays is not None and n_rays < 0:
        raise ValueError(f"n_rays: expected at least 0, got {n_rays}")
    if indices.numel() and values_at_hand(indices):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or (n_rays is not None and high >= n_rays):
            limit = "" if n_rays is None else f" and below n_rays = {n_rays}"
            raise ValueError(f"{name}: expected ray ids of at least 0{limit}, got {low} to {high}")


@torch.no_grad()
def pack_info(ray_indices: Tensor, n_rays: int | None = None) -> Tensor:
    """Where the samples of each ray lie in the flat tensors, from the ray of each sample.

    Args:
        ray_indices: [N] integer ray ids in ascending order.
        n_rays: number of rays R; None takes the largest id plus one (on a GPU this waits for the value).

    Returns:
        [R, 2] (start, count) in the dtype of `ray_indices`; without samples and `n_rays`, [0, 2].

    Raises:
        TypeError: not a tensor of integers.
        ValueError: not one-dimensional, a negative `n_rays`, an id outside of the rays (checked on the CPU).

    >>> pack_info(torch.tensor([0, 2, 2]), n_rays=4).tolist()
    [[0, 1], [1, 0], [1, 2], [3, 0]]
    """
    check_indices("ray_indices", ray_indices, n_rays)
    if n_rays is None:
        n_rays = int(ray_indices.max()) + 1 if ray_indices.numel() else 0
    counts = torch.zeros(n_rays, dtype=ray_indices.dtype, device=ray_indices.device)
    counts = counts.index_add(0, ray_indices.long(), torch.ones_like(ray_indices))
    return torch.stack((counts.cumsum(0, dtype=counts.dtype) - counts, counts), dim=-1)


def check_packed(name: str, packed_info: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Starts and counts [R] as int64; whether chunks lie inside the samples and apart is checked on the CPU."""
    _check.floating(name, packed_info, INTEGERS)
    _check.shape(name, packed_info, "R 2")
    starts, counts = packed_info.long().unbind(-1)
    if values_at_hand(packed_info):
        if packed_info.numel() and (int(packed_info.min()) < 0 or int((starts + counts).max()) > samples):
            raise ValueError(f"{name}: expected chunks (start, count) inside the {samples} samples, got others")
        begins, ends = starts[counts > 0].sort().values, (starts + counts)[counts > 0].sort().values
        if bool((begins[1:] < ends[:-1]).any()):
            raise ValueError(f"{name}: expected chunks (start, count) that do not overlap, got some that do")
    return starts, counts


@torch.no_grad()
def runs_of_chunks(packed_info: Tensor, samples: int) -> Runs:
    """Runs of chunks in any order: between two of them may lie samples of no ray, which make a run of their own."""
    starts, counts = check_packed("packed_info", packed_info, samples)
    # An empty chunk must not cut another one in two.
    filled = counts > 0
    borders = torch.cat((torch.where(filled, starts, samples), torch.where(filled, starts + counts, samples)))
    # Clamped, so that kernels stay inside the samples whatever a GPU caller gave.
    borders = borders.clamp(0, samples).sort().values
    offsets = torch.cat((borders.new_zeros(1), borders, borders.new_full((1,), samples)))
    run, _ = ray_and_position(offsets, samples)
    # A chunk begins at every other border.
    return Runs(offsets, run, run % 2 == 1)


@torch.no_grad()
def runs_of_indices(name: str, indices: Tensor, n_rays: int | None = None) -> Runs:
    """Runs of equal neighbours; `n_rays`, if known, bounds their number."""
    check_indices(name, indices, n_rays)
    samples = indices.shape[0]
    if samples and n_rays == 0:
        raise ValueError(f"n_rays: expected at least 1 for {samples} samples, got 0")
    begins = torch.ones_like(indices, dtype=torch.bool)
    begins[1:] = indices[1:] != indices[:-1]
    run = begins.long().cumsum(0) - 1
    rows = samples if n_rays is None else n_rays
    if samples and values_at_hand(indices):
        found = int(run[-1]) + 1
        if found > rows:
            raise ValueError(f"{name}: expected the samples of a ray side by side, got {found} runs of {rows} rays")
        rows = found if n_rays is None else rows
    position = torch.arange(samples, device=indices.device)
    # Samples that begin no run write to the last slot the value that it holds already.
    kept = begins & (run < rows)
    offsets = position.new_full((rows + 1,), samples)
    offsets = offsets.scatter(0, torch.where(kept, run, rows), torch.where(kept, position, samples))
    return Runs(offsets, run.clamp_max(rows - 1))


def runs_of(
    name: str,
    samples: Tensor,
    packed_info: Tensor | None,
    indices_name: str,
    indices: Tensor | None,
    n_rays: int | None = None,
) -> Runs:
    """Runs of flat samples [N] by one of chunks [R, 2] and ray ids [N]."""
    dims = _check.shape(name, samples, "N")
    if packed_info is not None:
        _check.tensor("packed_info", packed_info)
        _check.same_device(name, samples, packed_info=packed_info)
        return runs_of_chunks(packed_info, dims["N"])
    ids = _check.tensor(indices_name, indices)
    _check.shape(indices_name, ids, "N", dims)
    _check.same_device(name, samples, **{indices_name: ids})
    return runs_of_indices(indices_name, ids, n_rays)


class Reach(NamedTuple):
    """How many samples of its own ray lie before and after each sample [N], and a bound on both plus one."""

    before: Tensor
    after: Tensor
    longest: int

    @classmethod
    def of(cls, runs: Runs) -> Reach:
        samples = runs.run.shape[0]
        position = torch.arange(samples, device=runs.run.device)
        counts = runs.offsets.diff()
        longest = int(counts.max()) if samples and values_at_hand(counts) else samples
        return cls(position - runs.offsets[runs.run], runs.offsets[runs.run + 1] - 1 - position, longest)


def _behind(x: Tensor, step: int) -> Tensor:
    """The value `step` samples earlier; the first `step` values, which have none, are anything."""
    return torch.cat((x[:step], x[:-step]))


def _reversed(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    return after.flip(0), before.flip(0)


def _earlier(y: Tensor, before: Tensor, first: float) -> Tensor:
    """The value of the sample before on the same ray, `first` where there is none."""
    return torch.where(before > 0, _behind(y, 1), first)


class _Scan(torch.autograd.Function):
    """What the scans below share; their arguments end with (before, after, longest) of a `Reach`."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *values, before, after, ctx.longest = inputs
        ctx.save_for_backward(*values, output, before, after)


class _Sum(_Scan):
    """``y_i = x_i + y_{i-1}`` on each ray."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, before, after, ctx.longest = inputs
        ctx.save_for_backward(before, after)

    @staticmethod
    def forward(x: Tensor, before: Tensor, after: Tensor, longest: int) -> Tensor:
        step = 1
        while step < longest:
            x = torch.where(before >= step, x + _behind(x, step), x)
            step *= 2
        return x.clone() if step == 1 else x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        out = _Sum.apply(grad.flip(0), *_reversed(*ctx.saved_tensors), ctx.longest)
        return out.flip(0), None, None, None


class _Recurrence(_Scan):
    """``y_i = b_i + a_i y_{i-1}`` on each ray."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, before: Tensor, after: Tensor, longest: int) -> Tensor:
        step = 1
        while step < longest:
            b = torch.where(before >= step, b + a * _behind(b, step), b)
            a = a * _behind(a, step)
            step *= 2
        return b.clone() if step == 1 else b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        a, _, y, before, after = ctx.saved_tensors
        grad_b = _carried_back(a, grad, before, after, ctx.longest)
        return torch.where(before > 0, grad_b * _behind(y, 1), 0.0), grad_b, None, None, None


def _carried_back(a: Tensor, grad: Tensor, before: Tensor, after: Tensor, longest: int) -> Tensor:
    """``h_i = g_i + a_{i+1} h_{i+1}`` on each ray: the recurrence from the far end."""
    following = torch.cat((a[1:], a[:1]))
    out: Tensor = _Recurrence.apply(following.flip(0), grad.flip(0), *_reversed(before, after), longest)
    return out.flip(0)


class _Product(_Scan):
    """``y_i = x_i y_{i-1}`` on each ray. Its derivative is a recurrence again: no factor is divided by."""

    @staticmethod
    def forward(x: Tensor, before: Tensor, after: Tensor, longest: int) -> Tensor:
        step = 1
        while step < longest:
            x = torch.where(before >= step, x * _behind(x, step), x)
            step *= 2
        return x.clone() if step == 1 else x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, y, before, after = ctx.saved_tensors
        return _earlier(y, before, 1.0) * _carried_back(x, grad, before, after, ctx.longest), None, None, None


def scan_runs(inputs: Tensor, runs: Runs, *, product: bool, exclusive: bool) -> Tensor:
    """Scan each run of a flat tensor [N]; samples of no ray get 0.

    Half precision is accumulated in float32, integers in int64.
    """
    wide = inputs if inputs.dtype in (torch.float32, torch.float64) else inputs.float()
    wide = wide if inputs.is_floating_point() else inputs.long()
    reach = Reach.of(runs)
    out = (_Product if product else _Sum).apply(wide, *reach)
    if exclusive:
        out = _earlier(out, reach.before, int(product))
    out = runs.owned(out)
    return out.to(inputs.dtype) if inputs.is_floating_point() else out


def scan_rows(inputs: Tensor, *, product: bool, exclusive: bool) -> Tensor:
    """Scan along the last dimension. The derivative of torch.cumprod is right at factors of 0."""
    if exclusive:
        inputs = torch.cat((torch.full_like(inputs[..., :1], product), inputs[..., :-1]), dim=-1)
    return inputs.cumprod(dim=-1) if product else inputs.cumsum(dim=-1)


def _run(inputs: Tensor, packed_info: Tensor | None, indices: Tensor | None, product: bool, exclusive: bool) -> Tensor:
    _check.tensor("inputs", inputs)
    if packed_info is not None and indices is not None:
        raise ValueError("indices: expected at most one of packed_info and indices, got both")
    if packed_info is None and indices is None:
        if inputs.dim() == 0:
            raise ValueError("inputs: expected at least one dimension, got a scalar")
        return scan_rows(inputs, product=product, exclusive=exclusive)
    runs = runs_of("inputs", inputs, packed_info, "indices", indices)
    return scan_runs(inputs, runs, product=product, exclusive=exclusive)


def inclusive_sum(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Running sum of the samples of each ray: ``y_i = x_1 + ... + x_i``.

    Args:
        inputs: any shape, summed along the last dimension; or [N], all rays one by one, with one of the two
            arguments below. Half precision is accumulated in float32.
        packed_info: [R, 2] (start, count) of the samples of each ray, in any order, not overlapping; samples of no ray
            get 0. Chunks are checked on the CPU only; a GPU caller who gives others gets numbers without meaning.
        indices: [N] ray ids, samples of one ray side by side: a change of the id starts a new sum.

    Returns:
        shape and dtype of `inputs` (int64 for integers). Differentiable to any order.

    Raises:
        TypeError: not a tensor, or ids and chunks that are not integers.
        ValueError: both `packed_info` and `indices`, shapes or devices that do not fit, bad chunks or negative ids.

    >>> inclusive_sum(torch.tensor([1.0, 2.0, 3.0, 4.0]), indices=torch.tensor([0, 0, 5, 5])).tolist()
    [1.0, 3.0, 3.0, 7.0]
    """
    return _run(inputs, packed_info, indices, product=False, exclusive=False)


def exclusive_sum(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Running sum of the samples before each one on its ray: ``y_i = x_1 + ... + x_{i-1}``, 0 for the first.

    Args:
        inputs, packed_info, indices: as in `inclusive_sum`.

    Returns:
        as `inclusive_sum`.

    Raises:
        TypeError, ValueError: as `inclusive_sum`.

    >>> exclusive_sum(torch.tensor([1.0, 2.0, 3.0, 4.0]), packed_info=torch.tensor([[0, 1], [1, 3]])).tolist()
    [0.0, 0.0, 2.0, 5.0]
    """
    return _run(inputs, packed_info, indices, product=False, exclusive=True)


def inclusive_prod(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Running product of the samples of each ray: ``y_i = x_1 ... x_i``, with its exact derivative at factors of 0.

    Args:
        inputs, packed_info, indices: as in `inclusive_sum`.

    Returns:
        as `inclusive_sum`.

    Raises:
        TypeError, ValueError: as `inclusive_sum`.

    >>> inclusive_prod(torch.tensor([[2.0, 3.0, 0.0, 4.0]])).tolist()
    [[2.0, 6.0, 0.0, 0.0]]
    """
    return _run(inputs, packed_info, indices, product=True, exclusive=False)


def exclusive_prod(inputs: Tensor, packed_info: Tensor | None = None, indices: Tensor | None = None) -> Tensor:
    """Running product of the samples before each one on its ray: ``y_i = x_1 ... x_{i-1}``, 1 for the first.

    Args:
        inputs, packed_info, indices: as in `inclusive_sum`.

    Returns:
        as `inclusive_sum`, its derivative exact at factors of 0.

    Raises:
        TypeError, ValueError: as `inclusive_sum`.

    >>> exclusive_prod(torch.tensor([2.0, 3.0, 5.0, 7.0]), indices=torch.tensor([0, 0, 0, 2])).tolist()
    [1.0, 2.0, 6.0, 1.0]
    """
    return _run(inputs, packed_info, indices, product=True, exclusive=True)
