"""Semantic segmentation of points: logits and, where there are labels, a loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ponder.models.ponderv2.networks import Batch, entry

Criterion = Callable[[Tensor, Tensor], Tensor]


def segmentation(logits: Tensor, batch: Batch, criteria: Criterion, training: bool) -> dict[str, Tensor]:
    """What a segmentation model returns for logits [N, K]: `loss` where the batch has a `segment` [N], and in
    evaluation `seg_logits`.

    Raises:
        ValueError: a training batch without labels.
    """
    out: dict[str, Tensor] = {}
    if training or "segment" in batch:
        out["loss"] = criteria(logits, entry(batch, "segment"))
    if not training:
        out["seg_logits"] = logits
    return out


class DefaultSegmentor(nn.Module):
    """A backbone whose outputs are logits, after PonderV2's DefaultSegmentor.

    Args:
        backbone: batch to logits [N, K].
        criteria: loss of logits [N, K] and labels [N].
    """

    def __init__(self, backbone: nn.Module, criteria: Criterion) -> None:
        super().__init__()
        self.backbone = backbone
        self.criteria = criteria

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` [] of a batch with labels (`segment` [N]); in evaluation `seg_logits` [N, K]."""
        return segmentation(self.backbone(batch), batch, self.criteria, self.training)
