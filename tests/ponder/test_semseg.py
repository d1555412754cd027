"""Scores of semantic segmentation, the validation pass, the vote over fragments, and S3DIS's six folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ponder.tasks.semseg import (
    Overlap,
    labelled_prediction,
    nearest,
    overlap,
    read_area,
    save_area,
    scores,
    six_folds,
    validate,
)
from ponder.tasks.semseg_votes import prediction_writer, scene_iou, segment_scenes, summary, vote

CLASSES = 4


def test_counts_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, -1])
    predicted = torch.tensor([0, 1, 1, 1, 0, 3])
    found = overlap(predicted, labels, CLASSES)
    assert [value.tolist() for value in found] == [[1, 2, 0, 0], [3, 3, 1, 0], [2, 2, 1, 0]]
    both = found + found
    assert isinstance(both, Overlap) and both.target.tolist() == [4, 4, 2, 0]
    result = scores(found)
    # The class that occurs nowhere counts with 0.
    assert result.miou == pytest.approx((1 / 3 + 2 / 3) / 4) and result.macc == pytest.approx((0.5 + 1) / 4)
    assert result.all_acc == pytest.approx(3 / 5)
    assert scene_iou(found) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert summary(result, "abcd")["iou/b"] == pytest.approx(2 / 3)


def test_counts_are_those_of_histograms() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, CLASSES, (500,), generator=generator)
    predicted = torch.randint(0, CLASSES, (500,), generator=generator)
    kept = labels.numpy() != -1
    p, t = predicted.numpy()[kept], labels.numpy()[kept]
    table = np.histogram2d(p, t, bins=np.arange(CLASSES + 1) - 0.5)[0]
    expected = (table.diagonal(), table.sum(0) + table.sum(1) - table.diagonal(), table.sum(0))
    for value, truth in zip(overlap(predicted, labels, CLASSES), expected, strict=True):
        assert value.tolist() == truth.tolist()


def test_impossible_labels_are_named() -> None:
    with pytest.raises(ValueError, match=r"labels: expected classes 0 to 3, got 0\.\.4"):
        overlap(torch.tensor([0, 1]), torch.tensor([0, 4]), CLASSES)
    with pytest.raises(ValueError, match=r"predicted: expected classes 0 to 3, got -1\.\.0"):
        overlap(torch.tensor([0, -1]), torch.tensor([0, 1]), CLASSES)
    with pytest.raises(ValueError, match=r"predicted: expected one class per label, \[2\], got \[1\]"):
        overlap(torch.tensor([0]), torch.tensor([0, 1]), CLASSES)


def test_nearest_points_are_of_the_same_scene() -> None:
    coord = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.4, 0, 0]])
    queries = torch.tensor([[0.45, 0, 0], [0.6, 0, 0], [0.9, 0, 0]])
    found = nearest(coord, torch.tensor([2, 3]), queries, torch.tensor([2, 3]))
    assert found.tolist() == [0, 1, 2]
    batch = {
        "coord": coord, "offset": torch.tensor([2, 3]), "segment": torch.tensor([0, 1, 2]), "origin_coord": queries,
        "origin_offset": torch.tensor([2, 3]), "origin_segment": torch.tensor([3, 3, 3]),
    }  # fmt: skip
    predicted, labels = labelled_prediction(batch, torch.eye(CLASSES)[:3])
    assert predicted.tolist() == [0, 1, 2] and labels.tolist() == [3, 3, 3]


class Reader(nn.Module):
    """Takes its logits from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert not self.training
        return {"seg_logits": batch["logits"] * self.weight, "loss": batch["logits"].sum().reshape(1)}


def test_validation_adds_up_batches_and_ranks() -> None:
    batches = [
        {"logits": torch.eye(CLASSES)[[0, 1]], "segment": torch.tensor([0, 2])},
        {"logits": torch.eye(CLASSES)[[2]], "segment": torch.tensor([2])},
    ]
    found = validate(Reader(), batches, CLASSES, total=lambda value: value * 2)
    whole = overlap(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]), CLASSES)
    assert found.scores.miou == pytest.approx(scores(whole).miou) and found.loss == pytest.approx(1.5)


def fragment(index: list[int], classes: list[int], strength: float = 1.0) -> dict[str, Tensor]:
    return {"index": torch.tensor(index), "logits": strength * torch.eye(CLASSES)[classes]}


def first(samples: Any) -> Any:
    return samples[0]


def test_votes_are_sums_of_probabilities() -> None:
    # Two weak votes for class 1 lose against a strong one for class 2.
    fragments = [fragment([0, 1], [1, 3], 0.1), fragment([0], [1], 0.1), fragment([0], [2], 9.0)]
    found = vote(Reader().eval(), fragments, 3, CLASSES, first)
    assert found.tolist() == [2, 3, 0]


def test_scenes_are_segmented_and_written(tmp_path: Path) -> None:
    plain = {"name": "a", "segment": np.array([[0], [1], [-1]]), "fragment_list": [fragment([2, 1, 0], [3, 1, 2])]}
    reduced = {
        "name": "b", "segment": torch.tensor([0, 1]), "fragment_list": [fragment([0, 1], [0, 1])],
        "origin_segment": np.array([1, 1, 0]), "inverse": np.array([1, 0, 0]),
    }  # fmt: skip
    reports: dict[str, Overlap] = {}
    write = prediction_writer(tmp_path, class_ids=[10, 11, 12, 13])
    counts = segment_scenes(Reader(), [plain, reduced], CLASSES, first, write=write, report=reports.__setitem__)
    assert np.load(tmp_path / "a_pred.npy").tolist() == [2, 1, 3]
    assert np.load(tmp_path / "b_pred.npy").tolist() == [1, 0, 0]
    assert (tmp_path / "submit" / "a.txt").read_text() == "12\n11\n13\n"
    assert reports["a"].target.tolist() == [1, 1, 0, 0] and reports["b"].intersection.tolist() == [1, 1, 0, 0]
    assert counts.target.tolist() == [2, 3, 0, 0]


def area(number: int) -> Overlap:
    base = torch.arange(13) + number
    return Overlap(base, base * 2 + 1, base + 3)


def test_six_folds_are_the_sum_of_the_areas(tmp_path: Path) -> None:
    for number in range(1, 7):
        save_area(tmp_path / f"Area_{number}.pth", area(number))
    hits = sum(area(number).intersection.double() for number in range(1, 7))
    union = sum(area(number).union.double() for number in range(1, 7))
    assert six_folds(tmp_path).miou == pytest.approx(float((hits / union).mean()))
    (tmp_path / "Area_4.pth").unlink()
    with pytest.raises(ValueError, match=r"expected counts of 6 areas, lacks Area_4\.pth"):
        six_folds(tmp_path)


def test_areas_of_ponderv2_hold_arrays(tmp_path: Path) -> None:
    path = tmp_path / "Area_1.pth"
    torch.save({name: value.numpy() for name, value in area(1)._asdict().items()}, path)
    assert all(torch.equal(a, b) for a, b in zip(read_area(path), area(1), strict=True))
    torch.save({"intersection": 1}, path)
    with pytest.raises(ValueError, match="expected a dictionary with intersection, union, target"):
        read_area(path)
