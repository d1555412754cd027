"""PonderV2's contrastive semantic loss over all pairs of rays, computed over pairs of rays and classes.

Target embeddings repeat: n_k rays carry that of class k, n_0 none (zeros). With ``s_ik = p_i . e_k / T`` the cross
entropy of ray i against all R rays is ``log sum_k n_k exp(s_ik - s_i,c(i))``, exactly: R x K logits instead of R x R.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Entries of the largest temporary of a chunk of rays.
CHUNK_ENTRIES = 1 << 18

# torch.nn.functional.normalize divides by at least this.
NORM_FLOOR = 1e-12


class Classes(NamedTuple):
    """Target embeddings: class of every ray [R] int64, embeddings [K, E]; a row of zeros stands for "no target"."""

    ids: Tensor
    table: Tensor

    def has_target(self) -> Tensor:
        """[R] bool."""
        return self.table.any(-1)[self.ids]


def _chunks(count: int, width: int) -> Iterator[slice]:
    size = max(1, CHUNK_ENTRIES // max(1, width))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def classes_of_rows(rows: Tensor) -> Classes:
    """Find the classes of expanded target rows [R, E]: rows of the same bits are one class.

    Sorting rows would cost as much as the loss. Instead each row's bits are hashed with integer arithmetic, which is
    exact in any order, the hashes are sorted, and equality is verified.
    """
    if not len(rows):
        return Classes(rows.new_zeros(0, dtype=torch.long), rows)
    rows = rows.detach().contiguous()
    bits = rows.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()])
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator).to(rows.device) * 2 + 1
    parts = list(_chunks(*rows.shape))
    hashes = torch.cat([(bits[part].long() * keys).sum(1) for part in parts])
    found, ids = hashes.unique(return_inverse=True)
    numbers = torch.arange(len(rows), device=rows.device)
    first = numbers.new_full(found.shape, len(rows)).scatter_reduce_(0, ids, numbers, "amin")
    if not all(torch.equal(bits[part], bits[first[ids[part]]]) for part in parts):
        # Two different rows with one hash.
        _, ids = bits.unique(dim=0, return_inverse=True)
        first = numbers.new_full((int(ids.max()) + 1,), len(rows)).scatter_reduce_(0, ids, numbers, "amin")
    return Classes(ids, rows[first])


def classes_of_labels(labels: Tensor, table: Tensor) -> Classes:
    """Classes from labels [R] (negative: no target) and embeddings [K, E].

    Raises:
        ValueError: a label that is no row of the table.
    """
    count = len(table)
    if bool((labels >= count).any()):
        raise ValueError(f"semantic_class: expected labels below K={count}, got {int(labels.max())}")
    ids = torch.where(labels < 0, count, labels.long())
    return Classes(ids, torch.cat([table.detach(), table.new_zeros(1, table.shape[1])]))


class _Contrast(torch.autograd.Function):
    """Sum over valid rows of the class-wise cross entropy; see `contrast`. Probabilities are rebuilt in backward."""

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, ids: Tensor, table: Tensor, log_counts: Tensor, valid: Tensor, options: _Options
    ) -> Tensor:
        total = pred.new_zeros(())
        for part in _chunks(len(pred), max(table.shape)):
            unit = F.normalize(pred[part], dim=-1)
            logits = _logits(unit, ids[part], table, log_counts, options)
            total += (logits.logsumexp(1) * valid[part]).sum()
        ctx.save_for_backward(pred, ids, table, log_counts, valid)
        ctx.options = options
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        pred, ids, table, log_counts, valid = ctx.saved_tensors
        out = torch.empty_like(pred)
        for part in _chunks(len(pred), max(table.shape)):
            length = pred[part].norm(2, dim=-1, keepdim=True)
            unit = pred[part] / length.clamp_min(NORM_FLOOR)
            logits = _logits(unit, ids[part], table, log_counts, ctx.options)
            by_logits = logits.softmax(1)
            by_logits.scatter_add_(1, ids[part, None], by_logits.new_full((len(unit), 1), -1.0))
            by_logits.mul_((valid[part] * (bar / ctx.options.temperature))[:, None])
            by_unit = _product(by_logits, table)
            radial = (by_unit * unit).sum(1, keepdim=True) * (length >= NORM_FLOOR)
            out[part] = (by_unit - radial * unit) / length.clamp_min(NORM_FLOOR)
        return out, None, None, None, None, None


class _Options(NamedTuple):
    temperature: float
    same_class_negatives: bool


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b in their own precision, also under autocast: the temperature magnifies what rounding to half would lose."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _logits(unit: Tensor, ids: Tensor, table: Tensor, log_counts: Tensor, options: _Options) -> Tensor:
    """Logits [R, K] less those of the rays' own classes, the logarithm of the classes' sizes added.

    The difference comes first: logits are up to 1 / temperature, and beside them a small loss would lose its digits.
    """
    logits = _product(unit, table.T) / options.temperature
    logits -= logits.gather(1, ids[:, None])
    logits += log_counts
    return logits if options.same_class_negatives else logits.scatter_(1, ids[:, None], 0.0)


def contrast(
    pred: Tensor, classes: Classes, valid: Tensor, temperature: float, same_class_negatives: bool = True
) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) of rendered embeddings: each ray against every other.

    Args:
        pred: [R, E].
        classes: of the rays.
        valid: [R] bool, rays whose cross entropy counts; the others still are negatives.
        temperature: divides the logits.
        same_class_negatives: whether rays of the same class are negatives (PonderV2), or only other classes.

    Returns:
        [] mean over valid rays; [1] zeros without any, as in PonderV2.
    """
    if not bool(valid.any()):
        return pred.new_zeros(1)
    sizes = torch.zeros(len(classes.table), dtype=pred.dtype, device=pred.device)
    sizes.index_add_(0, classes.ids, torch.ones_like(classes.ids, dtype=pred.dtype))
    options = _Options(temperature, same_class_negatives)
    total: Tensor = _Contrast.apply(pred, classes.ids, classes.table.to(pred.dtype), sizes.log(), valid, options)
    return total / valid.sum()


def semantic_loss(
    pred: Tensor, classes: Classes, measured: Tensor, temperature: float, chunk: int | None, same_class_negatives: bool
) -> Tensor:
    """`contrast` of all rays (chunk None), or the mean over chunks of rays contrasted among themselves.

    A ray counts if it has a target and a measured depth. PonderV2's own evaluation stops with a NameError; the mean
    over chunks is what it intends.

    Args:
        pred: [R, E].
        classes: of the rays.
        measured: [R] bool, rays with a depth.
        temperature: divides the logits.
        chunk: rays per contrast, None for one contrast of all.
        same_class_negatives: see `contrast`.
    """
    valid = measured & classes.has_target()
    if chunk is None:
        return contrast(pred, classes, valid, temperature, same_class_negatives)
    terms = []
    for start in range(0, len(pred), chunk):
        part = slice(start, start + chunk)
        own = Classes(classes.ids[part], classes.table)
        terms.append(contrast(pred[part], own, valid[part], temperature, same_class_negatives).mean())
    return torch.stack(terms).mean() if terms else pred.new_zeros(())
