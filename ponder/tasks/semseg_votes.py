"""The test protocol of semantic segmentation: votes of fragments and augmentations, on the original points."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ponder.tasks.semseg import Overlap, Scores, no_overlap, overlap, scores
from ponder.train.files import make_output_folder, write_bytes, write_text

Sample = Mapping[str, Any]
Collate = Callable[[list[Any]], Mapping[str, Any]]


@torch.no_grad()
def vote(model: nn.Module, fragments: Sequence[Sample], points: int, classes: int, collate: Collate) -> Tensor:
    """Classes of a scene's points by the sum of the probabilities that all fragments give them.

    Args:
        model: in evaluation mode; takes a batch dict and returns "seg_logits" [n, K].
        fragments: each has the "index" [n] of its points among the scene's; all augmentations together.
        points: P, number of the scene's points.
        classes: K.
        collate: makes a batch of a list of fragments.

    Returns:
        [P] int64 on the model's device; class 0 for a point that is in no fragment, as in PonderV2.
    """
    device = next(model.parameters()).device
    votes = torch.zeros(points, classes, device=device)
    for fragment in fragments:
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in collate([fragment]).items()}
        probability = model(batch)["seg_logits"].float().softmax(dim=1)
        # The points of a fragment are all different, so that nothing is lost.
        votes[batch["index"]] += probability
    return votes.argmax(dim=1)


def segment_scenes(
    model: nn.Module,
    scenes: Iterable[Sample],
    classes: int,
    collate: Collate,
    ignore: int = -1,
    write: Callable[[str, Tensor], None] | None = None,
    report: Callable[[str, Overlap], None] | None = None,
) -> Overlap:
    """Segment scenes by votes and count. The model is left in evaluation mode.

    Args:
        model: see `vote`.
        scenes: items of a dataset in test mode: "fragment_list", "segment" [P] and "name"; where the fragments are of a
            reduced cloud also "origin_segment" [Q] and "inverse" [Q], the row of each original point.
        classes: K.
        collate: makes a batch of a list of fragments.
        ignore: label of points to leave out.
        write: called with the name of a scene and its classes [P or Q].
        report: called with the name of a scene and its counts.
    """
    model.eval()
    counts = no_overlap(classes)
    for scene in scenes:
        labels = torch.as_tensor(scene["segment"]).reshape(-1).long()
        predicted = vote(model, scene["fragment_list"], len(labels), classes, collate).cpu()
        if "origin_segment" in scene:
            labels = torch.as_tensor(scene["origin_segment"]).reshape(-1).long()
            predicted = predicted[torch.as_tensor(scene["inverse"]).long()]
        own = overlap(predicted, labels, classes, ignore)
        counts += own
        if write is not None:
            write(scene["name"], predicted)
        if report is not None:
            report(scene["name"], own)
    return counts


def scene_iou(counts: Overlap) -> float:
    """Mean intersection over union of the classes that occur in one scene."""
    present = counts.union > 0
    return float(scores(counts).iou[present].mean()) if bool(present.any()) else 0.0


def prediction_writer(folder: Path, class_ids: Sequence[int] | None = None) -> Callable[[str, Tensor], None]:
    """Writes the classes of scenes to `NAME_pred.npy` [P] and, for benchmarks with other numbers, `submit/NAME.txt`.

    Args:
        folder: where to.
        class_ids: the benchmark's number of each class [K]; None writes no text.
    """
    make_output_folder(folder / "submit" if class_ids is not None else folder)

    def write(name: str, predicted: Tensor) -> None:
        stream = io.BytesIO()
        np.save(stream, predicted.cpu().numpy(), allow_pickle=False)
        write_bytes(folder / f"{name}_pred.npy", stream.getvalue())
        if class_ids is not None:
            ids = torch.as_tensor(class_ids)[predicted.cpu()].tolist()
            write_text(folder / "submit" / f"{name}.txt", "".join(f"{number}\n" for number in ids))

    return write


def summary(found: Scores, names: Sequence[str] = ()) -> dict[str, float]:
    """Scores as named numbers: mIoU, mAcc, allAcc, and iou/NAME and acc/NAME of each class."""
    labels = list(names) or [str(number) for number in range(len(found.iou))]
    values = {"mIoU": found.miou, "mAcc": found.macc, "allAcc": found.all_acc}
    for label, iou, acc in zip(labels, found.iou.tolist(), found.acc.tolist(), strict=True):
        values |= {f"iou/{label}": iou, f"acc/{label}": acc}
    return values
