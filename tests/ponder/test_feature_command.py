"""`ponder features`: its files, and one sentence for each kind of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ponder.cli import main
from ponder.data.cloud_files import RawCloud, ply_bytes, read_cloud
from ponder.data.sources import load_scene
from ponder.models.pretrainer import PonderModel, voxelise
from ponder.recipes import get_recipe
from ponder.tasks.features import (
    Ponderv2Settings,
    extract_features,
    find_voxels,
    open_feature_model,
)
from ponder.train.checkpoint import save_checkpoint
from ponder.train.config import apply_overrides
from tests.ponder.feature_toys import TABLE, around, lively, prompted, room
from tests.ponder.test_cli import fails
from tests.ponder.tiny import tiny


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A PonderV2 checkpoint and a cloud without normals."""
    state = around(prompted(), **{"embedding_table.weight": TABLE})
    torch.save({"state_dict": state}, tmp_path / "model_last.pth")
    cloud = room(800)
    colours = (cloud.colour * 255).round().to(torch.uint8)
    (tmp_path / "room.ply").write_bytes(ply_bytes(cloud.coord.numpy() + 1000, colours.numpy()))
    return str(tmp_path / "model_last.pth"), str(tmp_path / "room.ply")


def test_command(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint, data = files
    cloud = read_cloud(Path(data))
    want = extract_features(open_feature_model(Path(checkpoint), "S3DIS"), cloud)
    arguments = ["features", checkpoint, "--data", data, "--condition", "S3DIS", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "o" / "f.npz"), "--pca"]) == 0
    assert "the cloud has no normals" in capsys.readouterr().out
    with np.load(tmp_path / "o" / "f.npz") as found:
        assert np.array_equal(found["coord"], cloud.coord.numpy()) and np.array_equal(found["feature"], want.numpy())
        assert found["pca"].shape == (800, 3) and found["pca"].dtype == np.uint8
    halved = ["--dtype", "float16", "--chunk", "700", "--overlap", "0.48"]
    assert main([*arguments, "--out", str(tmp_path / "f.npy"), *halved]) == 0
    half = np.load(tmp_path / "f.npy")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, want.numpy(), rtol=2e-3, atol=1e-3)
    assert main([*arguments, "--out", str(tmp_path / "f.ply")]) == 0
    coloured = read_cloud(tmp_path / "f.ply")
    assert torch.equal(coloured.coord, cloud.coord) and coloured.colour.std() > 0.1
    metrics = json.loads((tmp_path / "o" / "f.metrics.json").read_text(encoding="utf-8"))
    assert (metrics["points"], metrics["channels"], metrics["blocks"]) == (800, 4, 1)
    assert metrics["voxels"] == metrics["largest_block"] == metrics["voxels_computed"] <= 800
    assert metrics["seconds"] > metrics["seconds_network"] > 0 and metrics["peak_memory_bytes"] > 1e7
    assert metrics["assumed"] and "SpUNet-v1m3" in metrics["model"][0]
    blocks = json.loads((tmp_path / "f.metrics.json").read_text(encoding="utf-8"))
    assert not list(tmp_path.rglob("*.tmp")) and blocks["voxels"] == metrics["voxels"]


def test_command_with_a_config(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The config's names of the datasets and its voxels are taken."""
    backbone = 'dict(type="SpUNet-v1m3", conditions=("Mine", "Yours", "Theirs"))'
    text = f'model = dict(type="PonderIndoor-v2", conditions=("Theirs", "Yours", "Mine"), backbone={backbone})\n'
    text += 'data = dict(train=dict(transform=[dict(type="GridSample", grid_size=0.05)]))\n'
    (tmp_path / "config.py").write_text(text, encoding="utf-8")
    arguments = ["features", files[0], "--data", files[1], "--out", str(tmp_path / "f.npz")]
    arguments += ["--config", str(tmp_path / "config.py")]
    assert main([*arguments, "--condition", "Yours"]) == 0
    settings = Ponderv2Settings(
        voxel=0.05, conditions=("Mine", "Yours", "Theirs"), contexts=("Theirs", "Yours", "Mine")
    )
    want = extract_features(open_feature_model(Path(files[0]), "Yours", settings), read_cloud(Path(files[1])))
    with np.load(tmp_path / "f.npz") as found:
        assert np.array_equal(found["feature"], want.numpy())
    assert "expected one of Mine, Yours, Theirs, got 'ScanNet'" in fails([*arguments, "--condition", "ScanNet"], capsys)
    assert "absent.py" in fails([*arguments[:-1], "absent.py"], capsys)


def test_command_with_our_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = apply_overrides(get_recipe("demo"), tiny())
    trained = PonderModel(config.model)
    lively(trained.backbone)
    save_checkpoint(tmp_path / "checkpoint.pt", config, trained)
    checkpoint = str(tmp_path / "checkpoint.pt")
    arguments = ["features", checkpoint, "--data", "room:0", "--out", str(tmp_path / "f.npz"), "--condition", "ScanNet"]
    assert "is not one of PonderV2's" in fails(arguments, capsys)
    assert main(["features", checkpoint, "--data", "room:0", "--out", str(tmp_path / "f.npz")]) == 0
    with np.load(tmp_path / "f.npz") as found:
        assert found["feature"].shape == (len(found["coord"]), 4)
        coord, feature = found["coord"], found["feature"]
    cloud = load_scene("room:0", config.data).cloud
    encoded = voxelise(cloud, config.model)
    with torch.no_grad():
        scene = torch.zeros(len(encoded.features), dtype=torch.long)
        want = trained.backbone(encoded.features, encoded.grid_coord, scene, 1)
    # In the order of the voxels; training drops the few points outside the grid, of which a room has none.
    voxels = find_voxels(RawCloud(torch.from_numpy(coord)), config.model.voxel, centred=False)
    got = torch.zeros_like(want).index_copy(0, voxels.of_point, torch.from_numpy(feature))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    np.save(tmp_path / "room.npy", coord)
    assert main(["features", checkpoint, "--data", str(tmp_path / "room.npy"), "--out", str(tmp_path / "g.npy")]) == 0
    assert np.load(tmp_path / "g.npy").shape == (len(coord), 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--out", "f.obj"], "--out: expected a file ending in .npz, .npy, .ply, got f.obj"),
        (["--out", "f.npy", "--pca"], "--pca: .npy holds the features alone"),
        (["--dtype", "int8"], "--dtype: expected float32 or float16, got 'int8'"),
        (["--data", "absent.ply"], "absent.ply: there is no such file"),
        (["--data", "absent"], "expected a point cloud ending in"),
        (["--voxel", "-1"], "--voxel: expected a positive number of metres, got -1.0"),
        (["--reduce", "max"], "--reduce: expected one of mean, point, got 'max'"),
        (["--viewpoint", "1,x,2"], "--viewpoint: expected X,Y,Z, up or centre, got '1,x,2'"),
        (["--viewpoint", "1,2"], "--viewpoint: expected centre, up or 3 numbers, got (1.0, 2.0)"),
        (["--block", "0.01"], "--block: expected at least the network's coarsest voxel, 4, got 0"),
        (["--chunk", "10", "--overlap", "1"], "raise --chunk or lower --overlap"),
        (["--voxel", "1e-12"], "the cloud spans"),
        (["--condition", "Matterport"], "--condition: expected one of ScanNet, S3DIS, Structured3D"),
        (["--device", "tpu"], "--device: expected auto, cpu or cuda, got 'tpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_command_with_bad_arguments(
    changes: list[str], message: str, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    arguments = ["features", files[0], "--data", files[1], "--out", "f.npz", "--device", "cpu", *changes]
    assert message in fails(arguments, capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["features", "--help"])
    assert stop.value.code == 0 and "usage: ponder features" in capsys.readouterr().out


def test_half_precision_that_cannot_hold_the_features(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = torch.load(files[0], weights_only=True)
    content["state_dict"]["backbone.dec.0.block0.bn2.bns.0.weight"] *= 1e6
    torch.save(content, files[0])
    arguments = ["features", files[0], "--data", files[1], "--out", str(tmp_path / "f.npz")]
    assert "more than float16 can hold" in fails([*arguments, "--dtype", "float16"], capsys)
    content["state_dict"]["backbone.dec.0.block0.bn2.bns.0.weight"] *= 1e38
    torch.save(content, files[0])
    assert "not finite" in fails(arguments, capsys)
    assert not (tmp_path / "f.npz").exists()
