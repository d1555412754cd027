"""The command line: outputs of each command, and one clear sentence for each kind of bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from ponder.cli import main, parse
from ponder.train.checkpoint import read_checkpoint
from tests.ponder.conftest import FINISHED
from tests.ponder.rgbd_writer import write_folder
from tests.ponder.tiny import tiny


def fails(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Run a command that must fail; returns its one sentence."""
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 2
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_pretrain_writes_every_output(finished_run: Path) -> None:
    config = json.loads((finished_run / "config.json").read_text(encoding="utf-8"))
    assert config["steps"] == 30 and config["model"]["renderer"]["hidden"] == 8
    metrics = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    for moment in ("initial", "final"):
        assert set(metrics[moment]) == {"psnr", "psnr_mean_colour", "ssim", "depth_mae", "depth_rmse", "views"}
    assert metrics["steps"] == 30 and metrics["skipped_steps"] == 0 and metrics["mesh"]["vertices"] > 0
    assert 0 < metrics["mesh"]["median_distance"] < 0.3
    assert metrics["final"]["depth_mae"] < 0.6 * metrics["initial"]["depth_mae"]
    records = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["step"] for r in records if r["group"] == "train"] == list(range(1, 31))
    assert all(r["loss"] > 0 and r["lr"] > 0 for r in records if r["group"] == "train")
    previews = sorted(p.name for p in (finished_run / "preview").iterdir())
    assert previews == [f"step-{step:06d}-room-0000.png" for step in (0, 15, 30)]
    picture = np.asarray(Image.open(finished_run / "preview" / previews[0]))
    assert picture.shape == (2 * 24 + 2, 3 * 32, 3) and picture[:24].std() > 10
    assert len(trimesh.load(finished_run / "mesh.ply", process=False).vertices) == metrics["mesh"]["vertices"]
    assert list((finished_run / "tensorboard").glob("events.*"))


def test_evaluate(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert (
        main(["evaluate", str(finished_run / "checkpoint.pt"), "--data", "room:0", "--out", str(tmp_path / "e")]) == 0
    )
    found = json.loads((tmp_path / "e" / "metrics.json").read_text(encoding="utf-8"))
    final = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))["final"]
    for name, value in final.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    assert "PSNR" in capsys.readouterr().out
    assert len(list((tmp_path / "e").glob("*.png"))) == found["views"] == 1


def test_evaluate_on_given_views(finished_run: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "sequence")
    checkpoint = str(finished_run / "checkpoint.pt")
    arguments = ["evaluate", checkpoint, "--data", str(folder), "--views", str(folder), "--out", str(tmp_path / "e")]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "e" / "metrics.json").read_text(encoding="utf-8"))
    assert found["views"] == len(list(folder.glob("*.pose.txt")))
    assert all(np.isfinite(found[key]) for key in ("psnr", "psnr_mean_colour", "ssim", "depth_mae", "depth_rmse"))


def test_rgbd_recipe_trains_evaluates_and_resumes(tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "sequence"), tmp_path / "run"
    settings = [text for text in tiny("steps=2") if not text.startswith("data.")]
    arguments = ["pretrain", "rgbd", "--data", str(folder), *settings, "--out", str(out), "--device", "cpu"]
    assert main(arguments) == 0
    assert main([*arguments, "--resume"]) == 0
    assert main(["evaluate", str(out / "checkpoint.pt"), "--out", str(tmp_path / "e")]) == 0


def test_render_and_mesh(finished_run: Path, tmp_path: Path) -> None:
    checkpoint = str(finished_run / "checkpoint.pt")
    assert main(["render", checkpoint, "--frames", "3", "--width", "20", "--out", str(tmp_path / "r")]) == 0
    names = sorted(p.name for p in (tmp_path / "r").iterdir())
    kinds = ("colour", "depth", "depth-view", "normal")
    assert names == sorted([f"{i:04d}.{kind}.png" for i in range(3) for kind in kinds] + ["animation.gif"])
    depth = np.asarray(Image.open(tmp_path / "r" / "0000.depth.png"))
    assert depth.dtype == np.uint16 and depth.shape == (15, 20) and depth.max() > 100
    assert Image.open(tmp_path / "r" / "animation.gif").n_frames >= 2
    poses = tmp_path / "poses.txt"
    poses.write_text(" ".join(map(str, np.eye(4).ravel())) + "\n", encoding="utf-8")
    assert main(["render", checkpoint, "--poses", str(poses), "--out", str(tmp_path / "p")]) == 0
    assert (tmp_path / "p" / "0000.colour.png").exists()
    assert main(["mesh", checkpoint, "--out", str(tmp_path / "m.ply"), "--cell", "0.25"]) == 0
    assert len(trimesh.load(tmp_path / "m.ply", process=False).vertices) > 0


def test_overrides_may_stand_anywhere() -> None:
    for words in ("a=1 --data d b=2 --resume", "--data d a=1 --resume b=2", "--data d --resume a=1 b=2"):
        options = parse(["pretrain", "rgbd", *words.split()])
        assert sorted(options.overrides) == ["a=1", "b=2"] and options.data == "d" and options.resume
    for words in (["pretrain", "demo", "--stpes", "3"], ["mesh", "c.pt", "--out", "m.ply", "a=1"]):
        with pytest.raises(SystemExit) as stop:
            parse(words)
        assert stop.value.code == 2


def test_doctor(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("torch", "triton", "CUDA device", "sparse engine", "spconv", "operator render_rays"):
        assert word in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "dmeo"], "unknown recipe 'dmeo'; did you mean 'demo'?"),
        (["pretrain", "demo", "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["pretrain", "demo", "steps=0"], "steps: expected a value above 0, got 0"),
        (["pretrain", "demo", "--data", "somewhere"], "recipe 'demo' generates its own scenes"),
        (["pretrain", "rgbd"], "an RGB-D recipe needs a folder"),
        (["pretrain", "rgbd", "--data", "no/such/folder"], "no/such/folder"),
        (["pretrain", "demo", "--device", "tpu"], "--device: expected auto, cpu or cuda, got 'tpu'"),
        (["evaluate", "no.pt", "--out", "e"], "checkpoint no.pt does not exist"),
        (["mesh", "no.pt", "--out", "m.obj"], "--out: expected a file ending in .ply, got m.obj"),
        (["render", "no.pt", "--frames", "0", "--out", "r"], "--frames: expected at least 1, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(arguments, capsys)
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_cuda_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "o"
    message = fails(["pretrain", "demo", "--device", "cuda", "--out", str(out)], capsys)
    assert "no CUDA device is available" in message and not out.exists()


def test_output_folder_not_writable(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("kept", encoding="utf-8")
    assert "is not writable" in fails(["pretrain", "demo", "--out", str(blocker / "run")], capsys)
    assert blocker.read_text(encoding="utf-8") == "kept"


def test_a_run_is_never_overwritten(finished_run: Path, capsys: pytest.CaptureFixture) -> None:
    before = snapshot(finished_run)
    arguments = ["pretrain", "demo", *tiny(*FINISHED), "--out", str(finished_run)]
    assert "already holds a run" in fails(arguments, capsys)
    other = ["pretrain", "demo", *tiny(*FINISHED, "steps=31"), "--out", str(finished_run), "--resume"]
    assert "has other settings (steps: 30 -> 31)" in fails(other, capsys)
    assert snapshot(finished_run) == before


def test_nothing_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no run" in fails(["pretrain", "demo", "--resume"], capsys)
    assert "there is no run" in fails(["pretrain", "demo", "--resume", "--out", "absent"], capsys)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint(share: float, copied_run: Path, capsys: pytest.CaptureFixture) -> None:
    path = copied_run / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    before = snapshot(copied_run)
    for arguments in (
        ["evaluate", str(path), "--out", str(copied_run / "e")],
        ["pretrain", "demo", *tiny(*FINISHED), "--out", str(copied_run), "--resume"],
    ):
        assert "is truncated or not a checkpoint file" in fails(arguments, capsys)
    assert snapshot(copied_run) == before


def test_checkpoint_of_another_architecture(copied_run: Path, capsys: pytest.CaptureFixture) -> None:
    path = copied_run / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["config"]["model"]["renderer"]["hidden"] = 9
    torch.save(content, path)
    message = fails(["evaluate", str(path), "--out", str(copied_run / "e")], capsys)
    assert "is of another architecture: renderer.field." in message and "expected [9" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"some": 1}, "was not written by `ponder pretrain`"),
        ({"format": "ponder-pretrain", "version": 99}, "expected version 1, got 99"),
        (
            {"format": "ponder-pretrain", "version": 1, "config": {}, "model": {}},
            "configuration this version cannot read",
        ),
    ],
    ids=["foreign", "version", "config"],
)
def test_foreign_checkpoints(content: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(content, tmp_path / "c.pt")
    assert message in fails(["evaluate", str(tmp_path / "c.pt"), "--out", str(tmp_path / "e")], capsys)
    assert not (tmp_path / "e").exists()


def test_a_checkpoint_never_runs_code(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": "ponder-pretrain", "trap": Trap()}, tmp_path / "c.pt")
    fails(["evaluate", str(tmp_path / "c.pt"), "--out", str(tmp_path / "e")], capsys)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", "expected 16 numbers per pose, got 3"),
        ("a b c", "is not a text file of numbers"),
        (" ".join(["nan"] * 16), "pose 0 is not a finite rigid"),
        (" ".join(["2"] * 16), "pose 0 is not a finite rigid"),
    ],
    ids=["count", "words", "nan", "not rigid"],
)
def test_bad_pose_files(
    text: str, message: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    poses = tmp_path / "poses.txt"
    poses.write_text(text, encoding="utf-8")
    arguments = ["render", str(finished_run / "checkpoint.pt"), "--poses", str(poses), "--out", str(tmp_path / "r")]
    assert message in fails(arguments, capsys)
    assert not (tmp_path / "r").exists()


def test_bad_scenes(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = str(finished_run / "checkpoint.pt")
    out = ["--out", str(tmp_path / "e")]
    assert "expected room:SEED" in fails(["evaluate", checkpoint, "--data", "room:x", *out], capsys)
    assert "absent" in fails(["evaluate", checkpoint, "--data", str(tmp_path / "absent"), *out], capsys)
    views = ["--views", str(tmp_path / "absent")]
    assert "absent" in fails(["evaluate", checkpoint, "--data", "room:0", *views, *out], capsys)
    assert not (tmp_path / "e").exists()


def test_help_of_every_command(capsys: pytest.CaptureFixture) -> None:
    for command in ("pretrain", "evaluate", "render", "mesh", "doctor"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0 and "usage: ponder" in capsys.readouterr().out


def test_progress_of_a_checkpoint_is_plain(finished_run: Path) -> None:
    config, content = read_checkpoint(finished_run / "checkpoint.pt")
    assert config.steps == content["progress"]["step"] == 30
    assert content["progress"]["initial"]["views"] == 1
