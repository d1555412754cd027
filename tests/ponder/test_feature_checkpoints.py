"""Backbones of checkpoints: ours, PonderV2's as they are, and those that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ponder.models.pdnorm_unet import PDNormUNet
from ponder.models.sparse_unet import SparseUNet
from ponder.tasks.features import (
    FeatureModel,
    FeatureOptions,
    Ponderv2Settings,
    extract_features,
    open_feature_model,
    ponderv2_model,
    prepare_cloud,
    settings_from_config,
)
from ponder.train.checkpoint import CheckpointError
from ponder.train.config import ConfigError
from tests.ponder.feature_toys import CONTEXTS, SIZES, TABLE, VOXEL, around, lively, prompted, room


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    return FeatureModel(lively(SparseUNet(6, **SIZES)), ("colour", "normal"), VOXEL, True, 4)


@pytest.mark.parametrize("ddp", [False, True], ids=["plain", "module."])
@pytest.mark.parametrize("prefix", ["backbone.", "backbone.backbone."])
@pytest.mark.parametrize("condition", [None, "S3DIS", "Structured3D"])
def test_prompted_checkpoints_of_ponderv2(ddp: bool, prefix: str, condition: str | None, tmp_path: Path) -> None:
    network = prompted()
    table = {prefix.removesuffix("backbone.") + "embedding_table.weight": TABLE}
    final = {f"{prefix}final.weight": torch.ones(7, 1, 1, 1, 4), f"{prefix}final.bias": torch.ones(7)}
    state = around(network, prefix, **table, **final)
    if ddp:
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    content = {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}, "best_metric_value": np.float64(0.77)}
    torch.save(content, tmp_path / "model_last.pth")
    opened = open_feature_model(tmp_path / "model_last.pth", condition)
    cloud = room(700)
    found = extract_features(opened, cloud)
    name = condition or "ScanNet"
    context = TABLE[CONTEXTS.index(name)][None]
    prepared = prepare_cloud(opened, cloud, FeatureOptions())
    scene = torch.zeros(len(prepared.inputs), dtype=torch.long)
    with torch.no_grad():
        want = network(prepared.inputs, prepared.voxels.cells, scene, 1, name, context)
    assert torch.equal(found, want[prepared.voxels.of_point])
    assert (
        opened.voxel == VOXEL
        and opened.alignment == 4
        and any(name in sentence for sentence in opened.about) == (condition is None)
    )


def test_plain_checkpoints_of_ponderv2(tmp_path: Path, model: FeatureModel) -> None:
    cloud = room(500)
    for content in ({"state_dict": around(model.network)}, around(model.network)):
        torch.save(content, tmp_path / "m.pth")
        opened = open_feature_model(tmp_path / "m.pth")
        assert torch.equal(extract_features(opened, cloud), extract_features(model, cloud))
    with pytest.raises(ConfigError, match="holds SpUNet-v1m1, which knows no datasets"):
        open_feature_model(tmp_path / "m.pth", "ScanNet")


def test_the_shipped_architecture_is_recognised() -> None:
    with torch.device("meta"):
        network = PDNormUNet(6, num_classes=20, norm_affine=True, zero_init=False)
    state = around(network, **{"embedding_table.weight": torch.zeros(3, 256)})
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}
    found = ponderv2_model(state, "shipped").network.unet
    assert found.state_dict().keys() == {name for name in network.state_dict() if not name.startswith("final.")}


def test_norms_are_recognised() -> None:
    for options in ({"norm_decouple": False}, {"norm_adaptive": False}, {"norm_affine": True}):
        network = lively(PDNormUNet(6, context_channels=5, **SIZES, **options))
        further = {} if options.get("norm_adaptive") is False else {"embedding_table.weight": TABLE}
        found = ponderv2_model(around(network, **further), "file").network.unet
        for name in ("norm_decouple", "norm_adaptive"):
            assert getattr(found, name) == getattr(network, name)
        assert all(torch.equal(tensor, network.state_dict()[n]) for n, tensor in found.state_dict().items())


CONFIG = {
    "model": {
        "type": "DefaultSegmentor",
        "conditions": ("wrong",),
        "backbone": {
            "type": "PPT-v1m1",
            "conditions": ("B", "A"),
            "backbone": {"type": "SpUNet-v1m3", "conditions": ("A", "B"), "in_channels": 9},
        },
    },
    "data": {
        "train": {"type": "ConcatDataset", "datasets": [{"transform": [
            {"type": "CenterShift"}, {"type": "GridSample", "grid_size": 0.05},
            {"type": "Collect", "feat_keys": ("coord", "color", "normal")},
        ]}]},
        "val": {"transform": [{"type": "GridSample", "grid_size": 0.02}, {"type": "Collect", "feat_keys": ["normal"]}]},
    },
}  # fmt: skip


def test_settings_of_a_config() -> None:
    settings = settings_from_config(CONFIG)
    assert settings == Ponderv2Settings(("coord", "colour", "normal"), 0.05, ("A", "B"), ("B", "A"))
    assert settings_from_config({"model": {"backbone": {"type": "SpUNet-v1m1"}}}) == Ponderv2Settings()
    network = lively(PDNormUNet(9, context_channels=5, conditions=("A", "B"), zero_init=False, **SIZES))
    state = around(network, "backbone.backbone.", **{"backbone.embedding_table.weight": TABLE[:2]})
    opened = ponderv2_model(state, "file", None, settings)
    assert (opened.network.condition, opened.voxel) == ("A", 0.05)
    assert torch.equal(opened.network.context, TABLE[1:2])
    for model, got in (({}, "no model"), ({"model": {"backbone": {"type": "PT-v2m3"}}}, "PT-v2m3")):
        with pytest.raises(ConfigError, match=f"expected a backbone of type SpUNet-v1m1 or SpUNet-v1m3, got {got}"):
            settings_from_config(model)
    collect = {"type": "Collect", "feat_keys": ("coord", "strength")}
    outdoor = {"model": {"type": "SpUNet-v1m1"}, "data": {"train": collect}}
    with pytest.raises(ConfigError, match="its backbone takes 'strength'"):
        settings_from_config(outdoor)


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_checkpoints_that_do_not_fit() -> None:
    state = around(prompted(), **{"embedding_table.weight": TABLE})
    cases: Sequence[tuple[dict, type, str, dict]] = (
        ({"a": TABLE}, CheckpointError, "holds no sparse U-Net of PonderV2 or of ours: it begins with a", {}),
        (without(state, "backbone.up.1.conv.weight"), CheckpointError, "expected up.1.conv.weight with 5 dims", {}),
        (without(state, "backbone.up.1.bn.bns.0.bias"), CheckpointError, "it lacks up.1.bn.bns.0.bias", {}),
        (without(state, "embedding_table.weight"), CheckpointError, "lacks embedding_table.weight", {}),
        (state | {"embedding_table.weight": TABLE[:2]}, ConfigError, "contexts of 2 datasets, not of Structured3D", {}),
        (state | {"backbone.extra": TABLE}, CheckpointError, "it has the unknown extra", {}),
        (state, ConfigError, "--condition: expected one of ScanNet, S3DIS, Structured3D, got 'Matterport'",
         {"condition": "Matterport"}),
        (state, ConfigError, "has norms for 3 datasets, not for A", {"settings": Ponderv2Settings(conditions=("A",))}),
        (around(SparseUNet(4, **SIZES)), CheckpointError, "takes 4 features per voxel, not the 6 of colour and normal; "
         "give its config", {}),
        (around(SparseUNet(6, cls_mode=True, **SIZES)), CheckpointError, "incomplete backbone: expected up.0.0", {}),
    )  # fmt: skip
    for weights, kind, message, options in cases:
        with pytest.raises(kind, match=message):
            ponderv2_model(weights, "file", **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"hello", "is truncated or not a checkpoint file"),
        ([1], "holds no state dict"),
        ({"state_dict": {"a": 1}}, "holds no weights"),
        ("nan", "conv_input.0.weight holds numbers that are not finite"),
    ],
    ids=["missing", "text", "list", "no weights", "nan"],
)
def test_damaged_checkpoints(content: object, message: str, tmp_path: Path, model: FeatureModel) -> None:
    path = tmp_path / "c.pth"
    if content == "nan":
        content = around(model.network) | {"backbone.conv_input.0.weight": torch.full((4, 5, 5, 5, 6), torch.nan)}
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        open_feature_model(path)
