"""Config files in PonderV2's form, from the file to a trained and tested model, on generated rooms in its layouts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ponder.cli import main
from ponder.compat.ponderv2 import Parity, load_config
from ponder.data.synthetic.ponderv2_layouts import write_s3dis, write_scannet, write_structured3d
from ponder.models.ponderv2.build import build_model
from ponder.tasks.semseg import read_area
from ponder.train.ponderv2.distributed import World
from ponder.train.ponderv2.loaders import training_batches
from ponder.train.ponderv2.loop import Trainer
from ponder.train.ponderv2.run import RunOptions, open_run
from ponder.train.ponderv2.settings import trainer_config
from ponder.train.ponderv2.step import train_step

CONFIGS = Path(__file__).parent / "ponderv2_configs"
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.glob("[!_]*/*.py"))
PPT = "scannet/pretrain-ppt.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training rooms of every dataset, and one to validate with."""
    root = tmp_path_factory.mktemp("data")
    write_scannet(root, scenes=2, size=(24, 32), frames=3, points=800, frame_step=10)
    write_s3dis(root, scenes=2, size=(24, 32), frames=3, points=800)
    write_structured3d(root, scenes=2, size=(24, 32), frames=3, points=800)
    return root


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Without the advice that the small configs call for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def opened(file: str | Path, data: Path, folder: Path, *options: str, parity: Parity | None = None) -> Trainer:
    """The trainer of a file, ready for its first step."""
    config = load_config(CONFIGS / file, options)
    return open_run(config, RunOptions("test", data=data, out=str(folder), parity=parity or Parity()), CPU, World())


def test_there_is_a_file_of_each_kind() -> None:
    names = {str(path) for path in FILES}
    kinds = {
        f"{dataset}/{kind}.py" for dataset in ("scannet", "s3dis", "structured3d") for kind in ("pretrain", "semseg")
    }
    assert names == kinds | {PPT, "scannet/semseg-ppt.py", "s3dis/semseg-ppt.py", "scannet200/semseg-ppt.py"}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_one_step_of_every_file(file: Path, data: Path, tmp_path: Path) -> None:
    trainer = opened(file, data, tmp_path / "run")
    assert len(trainer.batches) > 0 and trainer.total_steps == len(trainer.batches)
    before = {name: value.clone() for name, value in trainer.learner.model.named_parameters()}
    trainer.learner.model.train()
    trainer.schedule.apply(trainer.learner.optimizer, 0)
    (batch,) = next(trainer.batches.steps(0, 0))
    result = train_step(trainer.learner, [batch])
    assert result.applied and np.isfinite(list(result.values.values())).all(), result.values
    after = dict(trainer.learner.model.named_parameters())
    # Weight decay alone does not turn a value around, and changes it by a millionth.
    learned = [n for n, value in before.items() if (after[n] - value).abs().max() > 1e-5 * value.abs().max()]
    assert any("backbone" in name for name in learned), "the backbone learns nothing"
    terms = {"rgb_loss", "depth_loss", "sdf_loss", "free_space_loss", "eikonal_loss", "semantic_loss"}
    if "pretrain" in file.stem:
        assert terms <= result.values.keys() and any("renderer" in name for name in learned)


def test_datasets_take_turns(data: Path, tmp_path: Path) -> None:
    """Shares 4 : 2 : 1, the length of PonderV2's formula, the first dataset as often as epoch / eval_epoch."""
    trainer = opened(PPT, data, tmp_path / "run", "batch_size=1", "epoch=3")
    # Two scenes three times are six batches of the first dataset: a whole turn of seven, and two that are left over.
    assert len(trainer.batches) == 6 // 4 * 7 + 6 % 4 == 9
    order = [step[0]["condition"][0] for step in trainer.batches.steps(0, 0)]
    turn = ["Structured3D"] * 4 + ["ScanNet"] * 2 + ["S3DIS"]
    assert order == turn + ["Structured3D"] * 2
    assert [step[0]["condition"][0] for step in trainer.batches.steps(0, 5)] == order[5:]


def test_momentum_moves_with_the_rate(data: Path, tmp_path: Path) -> None:
    options = ("batch_size=1", "epoch=40", "scheduler.pct_start=0.1")
    trainer = opened(PPT, data, tmp_path / "run", *options)
    group = trainer.learner.optimizer.param_groups[0]
    seen = []
    for step in range(trainer.total_steps):
        trainer.schedule.apply(trainer.learner.optimizer, step)
        seen.append((group["lr"], group["momentum"]))
    rates, momenta = np.array(seen).T
    peak = round(0.1 * trainer.total_steps) - 1
    assert len(seen) == 80 // 4 * 7 and rates.argmax() == momenta.argmin() == peak
    # An option that changes the batch does not change what the file computed from it.
    assert rates[[0, peak, -1]] == pytest.approx(np.array([0.1, 1, 1e-5]) * 0.0001 * 2 / 8)
    assert momenta[[0, peak, -1]] == pytest.approx([0.95, 0.85, 0.95])
    corrected = opened(PPT, data, tmp_path / "other", *options, parity=Parity.corrected())
    corrected.schedule.apply(corrected.learner.optimizer, peak)
    group = corrected.learner.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (pytest.approx(rates[peak]), 0.9)


@pytest.mark.parametrize("file", ["scannet/semseg.py", PPT])
def test_parts_of_a_step_are_those_of_its_batch(file: str, data: Path) -> None:
    """The same scenes, of the same dataset, in as many steps."""
    found: list[list[torch.Tensor]] = []
    for parts in (1, 2):
        config = load_config(CONFIGS / file, ["epoch=8", "eval_epoch=1", "mix_prob=0", f"accumulate={parts}"])
        batches = training_batches(config, trainer_config(config), World(), data, Parity())
        steps = list(batches.steps(0, 0))
        assert len(steps) == len(batches) >= 7 and {len(step) for step in steps} == {parts}
        found.append([torch.cat([part["coord"] for part in step]) for step in steps])
    assert all(torch.equal(whole, parts) for whole, parts in zip(*found, strict=True))


def ponder(*arguments: object) -> int:
    """Run a command on the CPU."""
    return main([str(argument) for argument in arguments] + ["--device", "cpu"])


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training on all datasets."""
    folder = tmp_path_factory.mktemp("run") / "pretrained"
    command = ("pretrain", CONFIGS / PPT, "batch_size=1", "epoch=2", "log_every=1", "save_every=3")
    assert ponder(*command, "--data", data, "--out", folder) == 0
    return folder


def test_pretraining_from_the_command_line(pretrained: Path) -> None:
    summary = json.loads((pretrained / "metrics.json").read_text())
    assert (summary["epochs"], summary["steps"], summary["seed"]) == (1, 7, 7)
    records = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 8))
    assert load_config(pretrained / "config.py")["batch_size"] == 1
    content = torch.load(pretrained / "model" / "model_last.pth", weights_only=True)
    assert content["epoch"] == 1 and content["scheduler"]["last_epoch"] == 7


def test_finetuning_starts_from_pretrained_weights(
    pretrained: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Training, validation after each epoch, and the vote over augmentations with the best weights."""
    out = tmp_path / "run"
    weights = pretrained / "model" / "model_last.pth"
    command = ("finetune", CONFIGS / "s3dis" / "semseg-ppt.py", "batch_size=1", "epoch=2", "eval_epoch=2")
    assert ponder(*command, "--weights", weights, "--data", data, "--out", out) == 0
    printed = capfd.readouterr().out
    # Backbone, contexts, projection to texts, their table and its scale: everything but the criteria.
    model = build_model(load_config(CONFIGS / "s3dis" / "semseg-ppt.py").model)
    assert f"loaded {len(model.state_dict())} of {len(model.state_dict())} tensors" in printed
    summary = json.loads((out / "metrics.json").read_text())
    assert summary["epochs"] == 2 and 0 <= summary["validation"]["mIoU"] <= summary["best"] + 1e-9
    assert summary["test"].keys() >= {"mIoU", "mAcc", "allAcc", "iou/ceiling", "acc/clutter"}
    assert (out / "model" / "model_best.pth").exists()
    counts = read_area(out / "result" / "Area_5.pth")
    assert int(counts.target.sum()) == 800 and np.load(out / "result" / "office_1_pred.npy").shape == (800,)
    best = out / "model" / "model_best.pth"
    arguments = ("--weights", best, "--data", data, "--out", tmp_path / "test")
    assert ponder("evaluate", CONFIGS / "s3dis" / "semseg-ppt.py", *arguments) == 0
    again = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert again["mIoU"] == pytest.approx(summary["test"]["mIoU"])
    assert ponder("evaluate", CONFIGS / "scannet" / "semseg.py", *arguments) == 2
    # Other weights would give scores that mean nothing.
    assert "error: checkpoint" in capfd.readouterr().err


def test_weights_go_into_a_wrapped_backbone(pretrained: Path, data: Path, tmp_path: Path) -> None:
    """ScanNet200's configuration renames "module." to "module.backbone."."""
    weights = f"weight={pretrained / 'model' / 'model_last.pth'}"
    trainer = opened("scannet200/semseg-ppt.py", data, tmp_path / "run", weights)
    saved = torch.load(pretrained / "model" / "model_last.pth", weights_only=True)["state_dict"]
    found = trainer.learner.model.state_dict()
    wrapped = {f"backbone.{name}": value for name, value in saved.items() if name.startswith("backbone.")}
    assert len(wrapped) > 100 and wrapped.keys() <= found.keys()
    assert all(torch.equal(found[name], value) for name, value in wrapped.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrain", "scannet/semseg.py"), "model.type: DefaultSegmentor is trained by `ponder finetune`"),
        (("finetune", PPT), "model.type: PonderIndoor-v2 is trained by `ponder pretrain`"),
        (("pretrain", PPT, "batch_size=100"), "batch_size"),
        (("pretrain", PPT, "model.grid_shpe=3"), "model: unknown key 'grid_shpe'; did you mean 'grid_shape'?"),
        (("pretrain", PPT, "data.train.datasets.0.split=trian"), "trian"),
        (("pretrain", PPT, "optimizer.lr=fast"), "optimizer.lr: expected a number"),
        (
            ("pretrain", PPT, "train.type=DefaultTrainer"),
            "train.type: expected MultiDatasetTrainer for several datasets",
        ),
        (("pretrain", "scannet/pretrain.py", "train.type=MultiDatasetTrainer"), "MultiDatasetTrainer needs a Concat"),
        (("pretrain", PPT, "--weights", "absent.pth"), "checkpoint absent.pth does not exist"),
        (("pretrain", PPT, "--text", "absent.npz"), "absent.npz"),
        (("pretrain", "scannet/absent.py"), "absent.py does not exist"),
        (("evaluate", "scannet/semseg.py"), "--weights: expected a path, got none"),
        (("pretrain", "demo", "--weights", "a.pth"), "--weights: only a PonderV2 config file takes it"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: tuple[str, ...], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, file, *rest = arguments
    place = CONFIGS / file if file.endswith(".py") else file
    assert ponder(name, place, *rest, "--data", data, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not list((tmp_path / "run").rglob("*.pth"))


def test_misspelt_keys_are_reported(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened("scannet/pretrain.py", data, tmp_path / "run", "batch_sise=4")
    assert "unknown key 'batch_sise': nothing reads it; did you mean 'batch_size'?" in capsys.readouterr().out


def test_a_folder_with_a_run_is_resumed_or_left_alone(
    pretrained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (pretrained / "model" / "model_last.pth").stat().st_mtime_ns
    command = ("pretrain", CONFIGS / PPT, "--data", data, "--out", pretrained)
    assert ponder(*command) == 2 and "already holds a run: add --resume" in capsys.readouterr().err
    assert ponder(*command, "--resume", "epoch=2", "batch_size=2", "seed=8") == 2
    assert "has other settings (seed: 7 -> 8; global_batch: 1 -> 2)" in capsys.readouterr().err
    assert ponder(*command, "--resume", "epoch=2", "batch_size=1") == 0
    assert "at step 7 of 7" in capsys.readouterr().out
    assert (pretrained / "model" / "model_last.pth").stat().st_mtime_ns == before


def test_without_a_seed_one_is_drawn_and_kept(data: Path, tmp_path: Path) -> None:
    first = opened("scannet/pretrain.py", data, tmp_path / "a", "seed=None")
    second = opened("scannet/pretrain.py", data, tmp_path / "b", "seed=None")
    assert first.seed != second.seed
    first.save()
    config = load_config(CONFIGS / "scannet" / "pretrain.py", ["seed=None"])
    options = RunOptions("test", data=data, out=str(tmp_path / "a"), resume=True)
    assert open_run(config, options, CPU, World()).seed == first.seed
