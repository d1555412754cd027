"""Models from PonderV2's dictionaries: what is refused, and with which words."""

from __future__ import annotations

import copy
import warnings
from types import MappingProxyType

import pytest
import torch

from benchmarks.baselines.ponderv2 import configs
from ponder.models.ponderv2.build import build_model
from ponder.render.ponderv2 import Parity

TINY = {"base_channels": 3, "channels": (4, 5, 6, 7), "layers": (1, 1, 1, 1)}
INDOOR = {
    "type": "PonderIndoor-v2",
    "backbone": {"type": "SpUNet-v1m1", "in_channels": 3, "num_classes": 0, **TINY},
    "projection": {"type": "UNet3D-v1m2", "in_channels": 7, "out_channels": 128, "f_maps": 4, "num_levels": 2},
    "renderer": configs.indoor(),
    "mask": None,
    "grid_shape": (16, 16, 8),
    "backbone_out_channels": 7,
    "render_semantic": True,
    "conditions": ("ScanNet",),
    "template": ("a [x]", "the [x]"),
    "clip_model": "ViT-B/16",
    "class_name": ("wall", "ceiling", "floor"),
    "valid_index": ((1, 0, 2),),
    "ppt_criteria": [{"type": "CrossEntropyLoss", "ignore_index": -1}],
}


def without(*keys: str) -> dict:
    return {key: value for key, value in INDOOR.items() if key not in keys}


def test_any_mapping_will_do_and_stays_as_it_is() -> None:
    cfg = copy.deepcopy(INDOOR)
    frozen = MappingProxyType({key: MappingProxyType(v) if isinstance(v, dict) else v for key, v in cfg.items()})
    torch.manual_seed(0)
    one = build_model(frozen, text="offline")
    torch.manual_seed(0)
    two = build_model(cfg, text="offline")
    assert cfg == INDOOR
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert one.rows0.tolist() == [1, 0, 2] and one.parity == Parity()
    assert one.grid_shape == (16, 16, 8) and one.ppt_loss_weight == 1.0


def test_without_a_loss_of_the_points() -> None:
    """PonderV2's own configurations for S3DIS and Structured3D lack it, and stop there."""
    with pytest.warns(UserWarning, match="model: lacks ppt_criteria, so the points' own classes have no loss"):
        model = build_model(without("ppt_criteria"), text="offline")
    assert model.ppt_loss_weight == 0 and not hasattr(model, "proj_head")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build_model(without("ppt_criteria") | {"ppt_loss_weight": 0.0}, text="offline")
        silent = build_model(without("ppt_criteria", "template", "class_name") | {"render_semantic": False})
    assert not hasattr(silent, "class_embedding") and silent.ppt_loss_weight == 0


def test_optional_parts() -> None:
    model = build_model(INDOOR | {"mask": {"ratio": 0.5, "size": 4, "channel": 3}}, Parity.corrected(), text="offline")
    assert model.mtoken.shape == (1, 3) and model.mask.ratio == 0.5 and model.parity == Parity.corrected()
    assert build_model(without("valid_index"), text="offline").class_embedding.shape == (3, 512)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"in_channels": 3}, "model: lacks a type; known: SpUNet-v1m1, "),
        ({"type": "SpUNet-v1m4"}, r"model: type is 'SpUNet-v1m4'; did you mean 'SpUNet-v1m\d'\?"),
        ({"type": "PG-v1m1", "backbone": {}}, "model: PG-v1m1 is not available yet"),
        (INDOOR | {"type": "PonderOutdoor-v2"}, "model: PonderOutdoor-v2 is not available yet"),
        ({"type": "SpUNet-v1m1"}, "model: lacks in_channels"),
        (
            {"type": "SpUNet-v1m1", "in_channels": 3, "engine": "spconv"},
            "model: unknown key 'engine'; known: in_channels",
        ),
        (
            {"type": "UNet3D-v1m2", "in_channels": 3, "out_channels": 3, "num_level": 2},
            r"model: unknown key 'num_level'; did you mean 'num_levels'\?",
        ),
        (INDOOR | {"templates": "[x]"}, r"model: unknown key 'templates'; did you mean 'template'\?"),
        (INDOOR | {"parity": None}, "model: unknown key 'parity'"),
        (INDOOR | {"backbone": None}, "model: lacks backbone"),
        (without("projection", "conditions"), "model: lacks projection, conditions"),
        (without("template"), "model: render_semantic is on, but template missing"),
        (INDOOR | {"backbone": {"type": "PT-v2m3"}}, "model.backbone: type is 'PT-v2m3'"),
        (INDOOR | {"mask": {"ratio": 0.5, "size": 8}}, "model.mask: lacks channel"),
        (INDOOR | {"mask": {"ratio": 0.5, "size": 8, "channels": 3}}, r"model.mask: unknown key 'channels'; did you"),
        (INDOOR | {"valid_index": ((0, 1), (2,))}, "valid_index: expected one entry for each of 1 conditions, got 2"),
        (INDOOR | {"valid_index": ((0, 3),)}, r"valid_index: expected 0 to 2 for ScanNet, got \[0, 3\]"),
        (INDOOR | {"ppt_criteria": [{"type": "Dice"}]}, r"criteria\[0\]: type is 'Dice'; known: "),
        ({"type": "PPT-v1m1", "backbone": INDOOR["backbone"]}, "expected type SpUNet-v1m3, got SpUNet-v1m1"),
        ({"type": "PPT-v1m1"}, "model: lacks backbone"),
        ({"type": "DefaultSegmentor", "backbone": INDOOR["backbone"]}, "model: lacks criteria"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(cfg, text="offline")


def test_parts_must_be_dictionaries() -> None:
    with pytest.raises(TypeError, match="model: expected a dictionary, got str"):
        build_model("SpUNet-v1m1")
    with pytest.raises(TypeError, match=r"model.backbone: expected a dictionary, got str"):
        build_model(INDOOR | {"backbone": "SpUNet-v1m1"}, text="offline")


def test_texts_and_semantics_have_one_width() -> None:
    renderer = configs.indoor()
    renderer["field"]["semantic_decoder"]["out_dim"] = 64
    with pytest.raises(
        ValueError, match=r"semantic_decoder.out_dim: expected 512, the width of the text embeddings, got 64"
    ):
        build_model(INDOOR | {"renderer": renderer}, text="offline")
