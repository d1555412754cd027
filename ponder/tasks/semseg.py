"""Semantic segmentation: intersection over union, the validation pass, and the sums of S3DIS's six folds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from ponder.data.plain_files import read_plain
from ponder.train.files import write_atomically

# Keeps the ratio of a class that occurs nowhere at 0 rather than 0 / 0, as PonderV2's.
NO_POINTS = 1e-10
AREAS = 6


class Overlap(NamedTuple):
    """Numbers of points per class, int64 [K]; they add up over scenes and ranks.

    Attributes:
        intersection: predicted and labelled as the class.
        union: predicted or labelled as it.
        target: labelled as it.
    """

    intersection: Tensor
    union: Tensor
    target: Tensor

    def __add__(self, other: tuple[Tensor, ...]) -> Overlap:  # type: ignore[override]
        return Overlap(*(a + b for a, b in zip(self, other, strict=True)))


class Scores(NamedTuple):
    """Fractions, 0 .. 1.

    Attributes:
        miou, macc: means over all classes, those that occur nowhere with 0, as in PonderV2.
        all_acc: of all points.
        iou, acc: per class, float64 [K].
    """

    miou: float
    macc: float
    all_acc: float
    iou: Tensor
    acc: Tensor


class Validation(NamedTuple):
    """Result of a pass over validation scenes: scores, and the mean loss of the batches (NaN without labels)."""

    scores: Scores
    loss: float


def no_overlap(classes: int, device: torch.device | None = None) -> Overlap:
    """Zeros, to add to."""
    return Overlap(*(torch.zeros(classes, dtype=torch.int64, device=device) for _ in range(3)))


def overlap(predicted: Tensor, labels: Tensor, classes: int, ignore: int = -1) -> Overlap:
    """Count points by predicted and true class.

    Args:
        predicted: classes [N], int64, 0 .. K - 1.
        labels: true classes [N], int64, 0 .. K - 1 or `ignore`; those points do not count at all.
        classes: K.
        ignore: label of points to leave out.

    Raises:
        ValueError: different numbers of points, or a label that is no class.
    """
    if predicted.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"predicted: expected one class per label, {list(labels.shape)}, got {list(predicted.shape)}")
    kept = labels != ignore
    predicted, labels = predicted[kept], labels[kept]
    for name, values in (("predicted", predicted), ("labels", labels)):
        if values.numel() and not bool(((values >= 0) & (values < classes)).all()):
            raise ValueError(f"{name}: expected classes 0 to {classes - 1}, got {values.min()}..{values.max()}")
    hits = torch.bincount(labels[predicted == labels], minlength=classes)
    target = torch.bincount(labels, minlength=classes)
    union = torch.bincount(predicted, minlength=classes) + target - hits
    return Overlap(hits, union, target)


def scores(counts: Overlap) -> Scores:
    """Fractions from counts.

    Reference:
        Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010 (intersection over union).
    """
    hits, union, target = (value.double() for value in counts)
    iou, acc = hits / (union + NO_POINTS), hits / (target + NO_POINTS)
    all_acc = float(hits.sum() / (target.sum() + NO_POINTS))
    return Scores(float(iou.mean()), float(acc.mean()), all_acc, iou, acc)


def nearest(coord: Tensor, offset: Tensor, queries: Tensor, query_offset: Tensor) -> Tensor:
    """Index of the nearest point of the same scene.

    Args:
        coord: points [N, 3].
        offset: cumulative numbers of points per scene [B], none empty.
        queries: points [M, 3].
        query_offset: cumulative numbers of queries per scene [B].

    Returns:
        rows of `coord` [M], int64.
    """
    points, asked = coord.cpu().numpy(), queries.cpu().numpy()
    found, start, first = [], 0, 0
    for end, last in zip(offset.tolist(), query_offset.tolist(), strict=True):
        _, index = cKDTree(points[start:end]).query(asked[first:last])
        found.append(index + start)
        start, first = end, last
    return torch.from_numpy(np.concatenate(found)).to(coord.device)


def labelled_prediction(batch: Mapping[str, Any], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of a batch: of its voxels, or of its original points where the batch has them.

    Args:
        batch: with "segment" [N]; optionally "origin_coord" [M, 3], "origin_segment" [M] and "origin_offset" [B].
        logits: [N, K].
    """
    predicted = logits.argmax(dim=1)
    if "origin_coord" not in batch:
        return predicted, batch["segment"]
    index = nearest(batch["coord"], batch["offset"], batch["origin_coord"], batch["origin_offset"])
    return predicted[index], batch["origin_segment"]


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    classes: int,
    ignore: int = -1,
    total: Callable[[Tensor], Tensor] = lambda value: value,
) -> Validation:
    """Segment voxelised scenes once and compare with their labels. The model is left in evaluation mode.

    Args:
        model: takes a batch dict and returns "seg_logits" [N, K] and "loss".
        batches: on the model's device.
        classes: K.
        ignore: label of points to leave out.
        total: sums a tensor over ranks.
    """
    model.eval()
    device = next(model.parameters()).device
    counts = no_overlap(classes, device)
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        output = model(batch)
        counts += overlap(*labelled_prediction(batch, output["seg_logits"]), classes, ignore)
        losses += torch.stack([output["loss"].double().reshape(()), losses.new_ones(())])
    counts, losses = Overlap(*total(torch.stack(counts))), total(losses)
    return Validation(scores(counts), float(losses[0] / losses[1]))


def save_area(path: Path, counts: Overlap) -> None:
    """Write the counts of one S3DIS area, with the keys of PonderV2's file."""
    content = {name: value.cpu() for name, value in counts._asdict().items()}
    write_atomically(path, lambda stream: torch.save(content, stream))


def read_area(path: Path) -> Overlap:
    """Read counts of an area written here or by PonderV2, whose files hold NumPy arrays.

    Raises:
        DataError: unreadable.
        ValueError: not such a file.
    """
    content = read_plain(path)
    if not isinstance(content, dict) or not set(Overlap._fields) <= content.keys():
        raise ValueError(f"{path}: expected a dictionary with {', '.join(Overlap._fields)}")
    return Overlap(*(torch.as_tensor(content[name]).long() for name in Overlap._fields))


def six_folds(folder: Path) -> Scores:
    """S3DIS's 6-fold scores: the counts of the six areas together, each tested by the model trained without it.

    Args:
        folder: with Area_1.pth .. Area_6.pth.

    Raises:
        ValueError: an area is missing.
    """
    paths: Sequence[Path] = [folder / f"Area_{number}.pth" for number in range(1, AREAS + 1)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{folder}: expected counts of {AREAS} areas, lacks {', '.join(missing)}")
    counts = [read_area(path) for path in paths]
    return scores(sum(counts[1:], counts[0]))
