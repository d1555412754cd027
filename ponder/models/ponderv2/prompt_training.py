"""Point Prompt Training: one network for several datasets, told apart by a learned context, with classes as texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ponder.models.ponderv2.networks import Batch, dataset_of
from ponder.models.ponderv2.point_losses import class_logits
from ponder.models.ponderv2.segmentor import Criterion, segmentation
from ponder.models.ponderv2.text import TextTable

CONDITIONS = ("Structured3D", "ScanNet", "S3DIS")

CLASS_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "bookcase", "picture",
    "counter", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "ceiling", "refrigerator", "television",
    "shower curtain", "nightstand", "toilet", "sink", "lamp", "bathtub", "garbagebin", "board", "beam", "column",
    "clutter", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip

# By condition, which of these its labels mean.
VALID_INDEX = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 25, 26, 33, 34, 35),
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 20, 22, 24, 25, 27, 34),
    (0, 1, 4, 5, 6, 7, 8, 10, 19, 29, 30, 31, 32),
)


class PromptTraining(nn.Module):
    """A backbone with one context per dataset and, unless it serves as a backbone itself, logits against texts.

    Names and order of the parameters are those of PonderV2's registry entry `PPT-v1m1`.

    Args:
        backbone: called with the batch and its `context` [1, context_channels]; returns features [N, C].
        conditions: names of the datasets, in the order of the table of contexts.
        context_channels: width of a context.
        backbone_out_channels: width of the features, C.
        text: embeddings of all classes [n_class, E]; None: backbone mode, the features are returned as they are.
        rows: by condition, the rows of `text` that its labels mean; needed with `text`.
        criteria: loss of logits [N, K] and labels [N]; needed with `text`.

    Raises:
        ValueError: `text` without criteria, or without rows for every condition.

    Reference:
        Wu et al., Towards Large-scale 3D Representation Learning with Multi-dataset Point Prompt Training, 2308.09718.
    """

    def __init__(
        self,
        backbone: nn.Module,
        conditions: Sequence[str] = CONDITIONS,
        context_channels: int = 256,
        backbone_out_channels: int = 96,
        text: TextTable | None = None,
        rows: Sequence[Sequence[int]] = (),
        criteria: Criterion | None = None,
    ) -> None:
        super().__init__()
        self.conditions = tuple(conditions)
        self.backbone = backbone
        self.embedding_table = nn.Embedding(len(self.conditions), context_channels)
        self.backbone_mode = text is None
        self.criteria = criteria
        if text is None:
            return
        if criteria is None:
            raise ValueError("criteria: expected a loss, got none")
        if len(rows) != len(self.conditions):
            raise ValueError(f"rows: expected those of {len(self.conditions)} conditions, got {len(rows)}")
        self.class_embedding: Tensor
        self.register_buffer("class_embedding", text.embedding)
        for number, own in enumerate(rows):
            self.register_buffer(f"rows{number}", torch.tensor(list(own)), persistent=False)
        self.proj_head = nn.Linear(backbone_out_channels, text.embedding.shape[1])
        self.logit_scale = nn.Parameter(torch.tensor(float(text.logit_scale)), requires_grad=False)

    def forward(self, batch: Batch) -> dict[str, Tensor] | Tensor:
        """`loss` [] of a batch with labels and, in evaluation, `seg_logits` [N, K] over the classes of its dataset.

        Args:
            batch: `condition`, the dataset's name or one name per scene; `segment` [N], -1 for points without a class;
                what the backbone reads. It is not changed.

        Returns:
            A dictionary; in backbone mode the backbone's features [N, C].

        Raises:
            ValueError: a batch of an unknown dataset or of several, or without labels in training.
        """
        condition = dataset_of(batch)
        if condition not in self.conditions:
            raise ValueError(f"condition: expected one of {', '.join(self.conditions)}, got {condition!r}")
        number = self.conditions.index(condition)
        features = self.backbone({**batch, "context": self.embedding_table.weight[number : number + 1]})
        if self.backbone_mode or self.criteria is None:
            return features
        table = self.class_embedding[getattr(self, f"rows{number}")]
        logits = class_logits(features, self.proj_head, table, self.logit_scale)
        return segmentation(logits, batch, self.criteria, self.training)
