"""Losses of the points' classes: logits against text embeddings, cross entropy, Lovasz-softmax, and sums of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.registry import choose, construct

REDUCTIONS = ("mean", "sum")


def class_logits(features: Tensor, head: nn.Module, table: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled cosines between points and classes, in float32 also under autocast.

    Args:
        features: [N, C].
        head: maps them to the width of the embeddings, [N, E].
        table: [K, E] unit embeddings of the classes.
        logit_scale: [] logarithm of the scale.

    Returns:
        [N, K] logits; a point that `head` maps to 0 has logits 0.
    """
    with torch.autocast(features.device.type, enabled=False):
        return logit_scale.exp() * unit_or_zero(head(features.float())) @ table.T


def unit_or_zero(rows: Tensor) -> Tensor:
    """[N, E] rows scaled to length 1; a row of zeros stays 0 and gets no gradient, where PonderV2 divides by 0."""
    length = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, torch.inf)


class CrossEntropyLoss(nn.Module):
    """Cross entropy of points; 0 where "mean" has no labelled point, of which torch makes NaN.

    Args:
        weight: per class.
        reduction: "mean" over the labelled points (weighted, if they are) or "sum".
        label_smoothing: part of the target that is spread over all classes.
        loss_weight: factor.
        ignore_index: the label of points without a class.

    Raises:
        ValueError: an unknown reduction.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        loss_weight: float = 1.0,
        ignore_index: int = -1,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        values = None if weight is None else torch.tensor(weight, dtype=torch.float32)
        self.register_buffer("weight", values, persistent=False)
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.loss_weight, self.ignore_index = loss_weight, ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[] loss of logits [N, K] and labels [N]."""
        loss = F.cross_entropy(
            logits, labels, self.weight,
            ignore_index=self.ignore_index, reduction="sum", label_smoothing=self.label_smoothing,
        )  # fmt: skip
        if self.reduction == "mean":
            labelled = labels != self.ignore_index
            total = labelled.to(loss.dtype)
            if self.weight is not None:
                total = total * self.weight[torch.where(labelled, labels, 0)]
            total = total.sum()
            loss = loss / torch.where(total > 0, total, 1.0)
        return loss * self.loss_weight


class LovaszLoss(nn.Module):
    """Lovasz-softmax: a convex surrogate of 1 - IoU, the mean over the classes that are present; 0 if none is.

    Args:
        mode: "multiclass".
        class_seen: only these of the present classes count; None: all.
        ignore_index: the label of points without a class; None: every point has one.
        loss_weight: factor.

    Raises:
        ValueError: another mode.

    Reference:
        Berman et al., The Lovasz-Softmax loss, arXiv 1705.08790, algorithm 1 and equation 9.
    """

    def __init__(
        self,
        mode: str,
        class_seen: Iterable[int] | None = None,
        ignore_index: int | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if mode != "multiclass":
            raise ValueError(f"mode: only 'multiclass' is supported, got {mode!r}")
        self.class_seen = None if class_seen is None else sorted(class_seen)
        self.ignore_index, self.loss_weight = ignore_index, loss_weight

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[] loss of logits [N, K] and labels [N]."""
        probabilities = logits.float().softmax(1)
        if self.ignore_index is not None:
            kept = labels != self.ignore_index
            probabilities, labels = probabilities[kept], labels[kept]
        classes = labels.unique()
        if self.class_seen is not None:
            classes = classes[torch.isin(classes, torch.tensor(self.class_seen, device=classes.device))]
        if not len(classes):
            return probabilities.sum() * 0.0
        chosen = probabilities[:, classes]
        errors = torch.where(labels[:, None] == classes, 1 - chosen, chosen)
        # The loss is linear in the errors as long as their order stays, so its slopes are all that the gradient needs.
        with torch.no_grad():
            slopes = torch.empty_like(errors)
            for column, number in enumerate(classes):
                slopes[:, column] = lovasz_slopes(errors[:, column], labels == number)
        return (errors * slopes).sum() / len(classes) * self.loss_weight


def lovasz_slopes(errors: Tensor, foreground: Tensor) -> Tensor:
    """Derivatives [P] of the Lovasz extension of the Jaccard loss with respect to the errors [P] of one class.

    The loss rises, in the order of falling errors, by 1 / U at a point of the class and by I / (U (U - 1)) at another,
    where I and U are intersection and union once the point is counted as wrong: differences of 1 - I / U in closed
    form, since those of rounded numbers near 1 would be lost.

    Args:
        errors: [P] absolute differences of probability and truth.
        foreground: [P] bool, at least one of them set: the points of the class.
    """
    order = errors.argsort(descending=True)
    truth = foreground[order]
    total, found = truth.sum(), truth.cumsum(0)
    left = (total - found).to(errors.dtype)
    union = (total + torch.arange(1, len(order) + 1, device=order.device) - found).to(errors.dtype)
    rises = torch.where(truth, 1 / union, left / (union * (union - 1).clamp_min(1)))
    return torch.empty_like(errors).scatter_(0, order, rises)


LOSSES: dict[str, type[nn.Module]] = {"CrossEntropyLoss": CrossEntropyLoss, "LovaszLoss": LovaszLoss}


class Criteria(nn.Module):
    """The sum of several losses of logits [N, K] and labels [N].

    Args:
        terms: the losses.
    """

    def __init__(self, terms: Iterable[nn.Module]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[] loss.

        Raises:
            ValueError: there is no loss to compute.
        """
        if not self.terms:
            raise ValueError("criteria: expected at least one loss, got none")
        return torch.stack([term(logits, labels) for term in self.terms]).sum()


def build_criteria(cfg: Sequence[Mapping[str, Any]] | None) -> Criteria:
    """The losses that a list of dictionaries names, such as `[{"type": "CrossEntropyLoss", "loss_weight": 1.0}]`.

    Raises:
        ValueError: an unknown type or key.
        TypeError: no list of dictionaries.
    """
    if isinstance(cfg, Mapping | str):
        raise TypeError(f"criteria: expected a list of dictionaries, got {type(cfg).__name__}")
    terms = []
    for number, part in enumerate(cfg or ()):
        _, loss, arguments = choose(part, LOSSES, f"criteria[{number}]")
        terms.append(construct(loss, arguments, f"criteria[{number}]"))
    return Criteria(terms)
