"""Point prompt training, segmentation, block masking, and the points' losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.models.ponderv2.build import build_model
from ponder.models.ponderv2.masking import kept_voxels, mask_token, masked_features
from ponder.models.ponderv2.point_losses import (
    CrossEntropyLoss,
    LovaszLoss,
    build_criteria,
    lovasz_slopes,
    unit_or_zero,
)
from ponder.models.ponderv2.prompt_training import CLASS_NAMES, VALID_INDEX, PromptTraining
from ponder.models.ponderv2.segmentor import DefaultSegmentor
from ponder.models.ponderv2.text import S3DIS_LABELS, TextTable
from ponder.render.ponderv2 import Parity

CE = {"type": "CrossEntropyLoss", "loss_weight": 1.0, "ignore_index": -1}
LOVASZ = {"type": "LovaszLoss", "mode": "multiclass", "loss_weight": 1.0, "ignore_index": -1}
TINY = {"base_channels": 3, "channels": (4, 5, 6, 7), "layers": (1, 1, 1, 1)}
PPT = {
    "type": "PPT-v1m1",
    "backbone": {"type": "SpUNet-v1m3", "in_channels": 3, "context_channels": 16, "zero_init": False, **TINY},
    "criteria": [CE, LOVASZ],
    "backbone_out_channels": 7,
    "context_channels": 16,
    "template": ("a [x]", "the [x]", "[x] in a kitchen"),
}


def some_batch(condition: object = None, classes: int = 13) -> dict:
    generator = torch.Generator().manual_seed(0)
    coords = [torch.unique(torch.randint(9, (60, 3), generator=generator), dim=0) for _ in range(2)]
    grid_coord = torch.cat(coords)
    batch: dict = {"grid_coord": grid_coord, "feat": torch.randn(len(grid_coord), 3, generator=generator)}
    batch |= {"offset": torch.tensor([len(c) for c in coords]).cumsum(0)}
    batch |= {"segment": torch.randint(-1, classes, (len(grid_coord),), generator=generator)}
    return batch | ({} if condition is None else {"condition": condition})


# Block masking.


def masked_one_scene_at_a_time(grid_coord: Tensor, offset: Tensor, size: int, ratio: float) -> Tensor:
    """PonderV2's draws, from the description: per scene n uniform numbers, the first round(n (1 - ratio)) kept."""
    kept, start = [], 0
    for end in offset.tolist():
        blocks, which = torch.unique(torch.div(grid_coord[start:end], size).int(), dim=0, return_inverse=True)
        chosen = torch.rand(len(blocks)).argsort()[: round(len(blocks) * (1 - ratio))]
        kept.append(torch.isin(which, chosen))
        start = end
    return torch.cat(kept)


@pytest.mark.parametrize("ratio", [0.8, 0.5, 0.0, 1.0])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_masks_are_ponderv2s(ratio: float, size: int) -> None:
    """Of one seed; size 100 makes a single block of every scene."""
    coords = [torch.randint(30, (n, 3)) for n in (200, 1, 63)]
    offset = torch.tensor([200, 201, 264])
    torch.manual_seed(7)
    wanted = masked_one_scene_at_a_time(torch.cat(coords), offset, size, ratio)
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(kept_voxels(torch.cat(coords), offset, size, ratio), wanted)
    assert torch.equal(torch.rand(1), after)


def test_masks_hold_whole_blocks() -> None:
    grid_coord, offset = torch.randint(64, (3000, 3)), torch.tensor([1000, 3000])
    kept = kept_voxels(grid_coord, offset, 8, 0.75)
    scene = (torch.arange(3000) >= 1000).long()
    blocks = torch.cat([scene[:, None], grid_coord // 8], 1)
    for value in (True, False):
        assert not (blocks[kept == value][:, None] == blocks[kept != value][None]).all(-1).any()
    for s in range(2):
        own = blocks[scene == s]
        total = len(torch.unique(own, dim=0))
        assert len(torch.unique(own[kept[scene == s]], dim=0)) == round(total * 0.25)
    assert kept_voxels(grid_coord[:0], torch.tensor([0, 0]), 8, 0.5).shape == (0,)


def test_tokens_replace_features() -> None:
    token = mask_token(6)
    assert token.shape == (1, 6) and 0 < token.abs().max() <= 0.02 and token.requires_grad
    feat, kept = torch.randn(5, 6), torch.tensor([True, False, True, False, False])
    before = feat.clone()
    out = masked_features(feat, kept, token)
    assert torch.equal(feat, before) and torch.equal(out[kept], feat[kept])
    assert torch.equal(out[~kept], token.expand(3, 6))
    out.sum().backward()
    assert token.grad is not None and torch.equal(token.grad, torch.full((1, 6), 3.0))
    assert masked_features(feat.half(), kept, token).dtype == torch.half
    with pytest.raises(ValueError, match=r"mask.channel: expected 4, the width of feat, got 6"):
        masked_features(feat[:, :4], kept, token)
    with pytest.raises(ValueError, match=r"mask.ratio: expected 0 to 1, got 1.5"):
        kept_voxels(torch.zeros(1, 3), torch.tensor([1]), 8, 1.5)
    with pytest.raises(ValueError, match=r"mask.size: expected at least 1, got 0"):
        kept_voxels(torch.zeros(1, 3), torch.tensor([1]), 0, 0.5)


# Losses.


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(weight: list[float] | None, smoothing: float) -> None:
    logits, labels = torch.randn(20, 3, requires_grad=True), torch.randint(-1, 3, (20,))
    values = None if weight is None else torch.tensor(weight)
    wanted = F.cross_entropy(logits, labels, values, ignore_index=-1, label_smoothing=smoothing)
    loss = CrossEntropyLoss(weight, label_smoothing=smoothing, loss_weight=3.0)
    torch.testing.assert_close(loss(logits, labels), 3 * wanted)
    nothing = loss(logits, torch.full((20,), -1))
    assert nothing == 0
    assert torch.equal(torch.autograd.grad(nothing, logits)[0], torch.zeros(20, 3))
    assert not loss.state_dict()


def lovasz_by_sets(errors: Tensor, foreground: Tensor) -> Tensor:
    """The Lovasz extension by its definition: falling errors times the rises of 1 - IoU of growing sets of mistakes."""
    wrong = torch.zeros_like(foreground)
    total, before = errors.new_zeros(()), 0.0
    for place in errors.argsort(descending=True):
        wrong[place] = True
        # The points of the class that are not mistaken, of all that are of it or are mistaken for it.
        now = 1 - (foreground & ~wrong).sum().item() / (foreground | wrong).sum().item()
        total, before = total + errors[place] * (now - before), now
    return total


@pytest.mark.parametrize("points", [1, 2, 9, 60])
@pytest.mark.parametrize("seen", [None, (0, 2)])
def test_lovasz(points: int, seen: tuple[int, ...] | None) -> None:
    logits = torch.randn(points, 4, requires_grad=True)
    labels = torch.randint(-1, 4, (points,))
    labels[0] = 2
    kept = labels >= 0
    terms = []
    for number in labels[kept].unique().tolist():
        if seen is None or number in seen:
            errors = ((labels[kept] == number).float() - logits[kept].softmax(1)[:, number]).abs()
            terms.append(lovasz_by_sets(errors, labels[kept] == number))
    wanted = torch.stack(terms).mean() * 0.5
    loss = LovaszLoss("multiclass", class_seen=seen, ignore_index=-1, loss_weight=0.5)(logits, labels)
    torch.testing.assert_close(loss, wanted)
    got, expected = (torch.autograd.grad(value, logits)[0] for value in (loss, wanted))
    torch.testing.assert_close(got, expected)


def test_lovasz_of_decided_points_is_one_minus_iou() -> None:
    labels, guesses = torch.randint(3, (50,)), torch.randint(3, (50,))
    ious = [((labels == k) & (guesses == k)).sum() / ((labels == k) | (guesses == k)).sum() for k in range(3)]
    loss = LovaszLoss("multiclass")(F.one_hot(guesses, 3) * 1e4, labels)
    torch.testing.assert_close(loss, 1 - torch.stack(ious).mean())
    none = LovaszLoss("multiclass", ignore_index=-1)(torch.randn(4, 3, requires_grad=True), torch.full((4,), -1))
    assert none == 0 and none.requires_grad


def test_lovasz_slopes_keep_their_digits() -> None:
    """Differences of rounded numbers near 1, as PonderV2 takes them, have lost most digits at a million points."""
    errors, foreground = torch.rand(1_000_000), torch.rand(1_000_000) < 0.3
    slopes = lovasz_slopes(errors, foreground)
    order = errors.argsort(descending=True)
    found = foreground[order].double().cumsum(0)
    total, places = found[-1], torch.arange(1, 1_000_001)
    jaccard = 1 - (total - found) / (total + places - found)
    truth = torch.diff(jaccard, prepend=torch.zeros(1))
    torch.testing.assert_close(slopes[order].double(), truth, rtol=1e-5, atol=1e-13)


def test_criteria() -> None:
    logits, labels = torch.randn(9, 4), torch.randint(4, (9,))
    both = build_criteria([CE, LOVASZ])(logits, labels)
    torch.testing.assert_close(both, build_criteria([CE])(logits, labels) + build_criteria((LOVASZ,))(logits, labels))
    with pytest.raises(ValueError, match="criteria: expected at least one loss, got none"):
        build_criteria(None)(logits, labels)
    with pytest.raises(ValueError, match=r"criteria\[1\]: type is 'LovazLoss'; did you mean 'LovaszLoss'\?"):
        build_criteria([CE, {"type": "LovazLoss"}])
    with pytest.raises(ValueError, match=r"criteria\[0\]: unknown key 'los_weight'; did you mean 'loss_weight'\?"):
        build_criteria([{"type": "CrossEntropyLoss", "los_weight": 2.0}])
    with pytest.raises(ValueError, match="mode: only 'multiclass' is supported, got 'binary'"):
        build_criteria([{"type": "LovaszLoss", "mode": "binary"}])
    with pytest.raises(ValueError, match="reduction: expected one of mean, sum, got 'none'"):
        CrossEntropyLoss(reduction="none")
    with pytest.raises(TypeError, match="criteria: expected a list of dictionaries, got dict"):
        build_criteria(CE)


def test_features_of_length_zero_get_no_direction() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    out = unit_or_zero(rows)
    torch.testing.assert_close(out, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    gradient = torch.autograd.grad((out * torch.tensor([[1.0, 0.0], [1.0, 1.0]])).sum(), rows)[0]
    torch.testing.assert_close(gradient, torch.tensor([[0.128, -0.096], [0.0, 0.0]]))


# Models.


class Echo(nn.Module):
    """Returns feat plus the context it is given, and remembers the batch."""

    def forward(self, batch: dict) -> Tensor:
        self.seen = batch
        return batch["feat"] + batch["context"]


def prompted(rows: list[list[int]]) -> PromptTraining:
    torch.manual_seed(0)
    text = TextTable(F.normalize(torch.randn(5, 8), dim=1), math.log(10), "test")
    return PromptTraining(Echo(), ("A", "B"), 3, 3, text, rows, build_criteria([CE]))


@pytest.mark.parametrize("condition", ["B", ["B"], ["B", "B"]], ids=["bare", "one", "two"])
def test_logits_are_scaled_cosines_with_the_datasets_classes(condition: object) -> None:
    model = prompted([[0, 1], [4, 0, 2]])
    batch = some_batch(condition, classes=3)
    keys, feat = set(batch), batch["feat"].clone()
    out = model(batch)
    assert set(out) == {"loss"} and set(batch) == keys and torch.equal(batch["feat"], feat)
    context = model.embedding_table.weight[1:]
    assert torch.equal(model.backbone.seen["context"], context)
    embedding = F.normalize(model.proj_head(feat + context), dim=1)
    logits = 10 * embedding @ model.class_embedding[[4, 0, 2]].T
    torch.testing.assert_close(out["loss"], F.cross_entropy(logits, batch["segment"], ignore_index=-1))
    out["loss"].backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert grads["logit_scale"] is None and grads["embedding_table.weight"][0].abs().sum() == 0
    assert grads["embedding_table.weight"][1].abs().sum() > 0 and grads["proj_head.weight"].abs().sum() > 0
    model.eval()
    torch.testing.assert_close(model(batch)["seg_logits"], logits)
    del batch["segment"]
    assert set(model(batch)) == {"seg_logits"}
    with pytest.raises(ValueError, match="batch: lacks 'segment'"):
        model.train()(batch)
    with pytest.raises(ValueError, match="condition: expected one of A, B, got 'C'"):
        model(batch | {"condition": ["C"]})
    with pytest.raises(ValueError, match="condition: expected one of A, B, got None"):
        model({key: value for key, value in batch.items() if key != "condition"})


def test_prompt_training_needs_its_parts() -> None:
    text = TextTable(torch.eye(3), 1.0, "test")
    with pytest.raises(ValueError, match="criteria: expected a loss, got none"):
        PromptTraining(Echo(), ("A",), 3, 3, text, [[0]])
    with pytest.raises(ValueError, match="rows: expected those of 1 conditions, got 2"):
        PromptTraining(Echo(), ("A",), 3, 3, text, [[0], [1]], build_criteria([CE]))


@pytest.mark.parametrize("condition", [["ScanNet", "ScanNet"], "ScanNet"], ids=["list", "bare"])
def test_segmentor_around_prompt_training(condition: object) -> None:
    """PonderV2 takes the first letter of the dataset's name here, and stops."""
    backbone = {**PPT, "backbone_mode": True, "backbone": {**PPT["backbone"], "num_classes": 200}}
    model = build_model({"type": "DefaultSegmentor", "backbone": backbone, "criteria": [CE, LOVASZ]})
    assert isinstance(model, DefaultSegmentor)
    batch = some_batch(condition, classes=200)
    loss = model(batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and model.backbone.embedding_table.weight.grad[1].abs().sum() > 0
    out = model.eval()(batch)
    assert out["seg_logits"].shape == (len(batch["feat"]), 200) and torch.isfinite(out["loss"])
    features = model.backbone(batch)
    assert torch.equal(features, out["seg_logits"]) and batch["condition"] is condition


def test_segmentor_on_a_plain_backbone() -> None:
    backbone = {"type": "SpUNet-v1m1", "in_channels": 3, "num_classes": 13, **TINY}
    model = build_model({"type": "DefaultSegmentor", "backbone": backbone, "criteria": [CE]})
    batch = some_batch()
    wanted = F.cross_entropy(model.backbone(batch), batch["segment"], ignore_index=-1)
    torch.testing.assert_close(model(batch)["loss"], wanted)


@pytest.mark.parametrize("corrected", [False, True])
def test_parity_of_texts_and_rows(corrected: bool) -> None:
    model = build_model(PPT, Parity.corrected() if corrected else None, text="offline")
    alone = build_model({**PPT, "template": "[x]"}, text="offline").class_embedding
    nearest = (model.class_embedding @ alone.T).argmax(1)
    assert bool((nearest == torch.arange(36)).all()) == corrected
    assert [CLASS_NAMES[row] for row in model.rows2] == [
        *(S3DIS_LABELS if corrected else (CLASS_NAMES[row] for row in VALID_INDEX[2]))
    ]
    assert model.rows1.tolist() == list(VALID_INDEX[1])
    assert model.backbone.dec[0].block0.proj_conv.reinterpreted != corrected
    out = model(some_batch(["S3DIS", "S3DIS"]))
    assert torch.isfinite(out["loss"])


def test_text_may_come_from_anywhere() -> None:
    table = TextTable(F.normalize(torch.randn(36, 12), dim=1), 2.0, "test")
    model = build_model(PPT, text=table)
    assert torch.equal(model.class_embedding, table.embedding) and model.proj_head.weight.shape == (12, 7)
    assert model.logit_scale == 2.0 and not model.logit_scale.requires_grad
    with pytest.raises(ValueError, match="text: expected 36 classes, got 35"):
        build_model(PPT, text=table._replace(embedding=table.embedding[1:]))
    with pytest.warns(UserWarning, match="classes are embedded offline, from their words alone, not by CLIP"):
        build_model(PPT)
