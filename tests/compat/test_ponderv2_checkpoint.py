"""Weights in PonderV2's files: prefixes, renaming, other shapes, damaged and old files, and what we write."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ponder.compat.ponderv2 import CheckpointError, load_checkpoint, save_checkpoint
from ponder.train.checkpoint import read_file
from ponder.train.foreign import Placeholder

KEYS = {"epoch", "state_dict", "optimizer", "scheduler", "scaler", "best_metric_value"}


class Network(nn.Module):
    """Three layers, one of which has buffers and a name that contains "module."."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(2, width)
        self.basic_module = nn.Sequential(nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 1)


class Wrapper(nn.Module):
    """A task head around a backbone, as PonderV2's segmentors are."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Network()
        self.classes = nn.Linear(1, 4)


def filled(model: nn.Module, start: float) -> nn.Module:
    """Every tensor another constant."""
    with torch.no_grad():
        for number, value in enumerate(model.state_dict().values()):
            value.fill_(start + number)
    return model


def saved(path: Path, model: nn.Module, prefix: str = "", bare: bool = False) -> Path:
    weights = OrderedDict((prefix + name, value) for name, value in model.state_dict().items())
    torch.save(weights if bare else {"epoch": 3, "state_dict": weights, "optimizer": {"state": {}}}, path)
    return path


def wrapped(around: type[nn.Module], model: nn.Module) -> nn.Module:
    """A parallel wrapper without the process group that its constructor needs."""
    outer = around.__new__(around)
    nn.Module.__init__(outer)
    outer.module = model
    return outer


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("bare", [False, True], ids=["checkpoint", "state dict"])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "module"])
@pytest.mark.parametrize("around", [nn.Identity, nn.DataParallel, nn.parallel.DistributedDataParallel])
def test_names_match_with_and_without_module(around: type[nn.Module], prefix: str, bare: bool, tmp_path: Path) -> None:
    source = filled(Network(), 1.0)
    path = saved(tmp_path / "file.pth", source, prefix, bare)
    model = Network()
    outer = model if around is nn.Identity else wrapped(around, model)
    report = load_checkpoint(outer, path)
    assert equal(model, source) and report.complete
    assert report.loaded == list(source.state_dict()) and report.missing == report.unexpected == report.mismatched == []
    assert str(report) == f"loaded 9 of 9 tensors from {path}"
    save_checkpoint(tmp_path / "own.pth", outer)
    assert list(read_file(tmp_path / "own.pth")["state_dict"]) == list(source.state_dict())


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "module"])
def test_renaming_puts_a_network_into_a_wrapper(prefix: str, tmp_path: Path) -> None:
    source = filled(Network(), 1.0)
    path = saved(tmp_path / "file.pth", source, prefix)
    model = Wrapper()
    before = model.classes.weight.clone()
    report = load_checkpoint(model, path, keywords="module.", replacement="module.backbone.")
    assert torch.equal(model.backbone.stem.weight, source.stem.weight)
    assert torch.equal(model.classes.weight, before)
    # PonderV2 replaces the keyword wherever it stands, hence also inside "basic_module.".
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert report.unexpected == [f"backbone.basic_module.backbone.0.{part}" for part in parts]
    assert report.missing == [f"backbone.basic_module.0.{part}" for part in parts] + ["classes.weight", "classes.bias"]
    assert "5 unknown to the model" in str(report) and "classes.weight and 1 more" not in str(report)
    assert "and 2 more" in str(report) and not report.complete


def test_keywords_alone_rename_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pth", filled(Network(), 1.0))
    assert load_checkpoint(Network(), path, keywords="stem").complete
    assert load_checkpoint(Network(), path, keywords="", replacement="x").complete
    assert "head.weight" in load_checkpoint(Network(), path, keywords="head.", replacement="tail.").missing


def test_other_shapes_are_reported_and_skipped(tmp_path: Path) -> None:
    source = filled(Network(width=5), 1.0)
    path = saved(tmp_path / "file.pth", source)
    model = Network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_checkpoint(model, path)
    assert report.loaded == ["basic_module.0.num_batches_tracked", "head.bias"]
    assert report.mismatched[:2] == ["stem.weight", "stem.bias"] and len(report.mismatched) == 7
    assert report.shapes["stem.weight"] == ([5, 2], [3, 2])
    assert "7 of another shape: stem.weight [5, 2], here [3, 2]" in str(report)
    for name, value in model.state_dict().items():
        expected: Tensor = source.state_dict()[name] if name in report.loaded else before[name]
        assert torch.equal(value, expected), name


def test_files_without_fitting_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    before = Network()
    model = Network()
    model.load_state_dict(before.state_dict())
    for content, message in (
        (
            {"state_dict": {"other": torch.zeros(2)}},
            "nothing that fits the model: it holds other; the model holds stem",
        ),
        ({"state_dict": {}}, "holds no weights"),
        ({"epoch": 3}, "holds no weights"),
        ({"state_dict": 5}, "holds no state dict"),
        ([torch.zeros(2)], "holds no state dict"),
        (torch.zeros(2), "holds no state dict"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(model, path)
    assert equal(model, before)


def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pth", Network())
    whole = path.read_bytes()
    pickled = whole.index(b"state_dict")
    changed = bytearray(whole)
    changed[pickled - 20 : pickled - 10] = b"\xff" * 10
    for data in (
        b"",
        b"hello",
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-30],
        bytes(changed),
        bytes(range(256)) * 12,
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"^checkpoint \S*file.pth is truncated or not a checkpoint file$"):
            load_checkpoint(Network(), path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(Network(), tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(Network(), tmp_path)


class OneCycle:
    """Like the scheduler of PyTorch's versions before 2.2: a bound method in its state brings all of it along."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.last_epoch, self.base_lrs = optimizer, 7, [0.1]
        self.anneal_func = self.anneal

    def anneal(self) -> None:
        raise AssertionError("code of a checkpoint ran")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_of_old_versions_are_read_without_running_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ponder.utils.scheduler"
    module = ModuleType(name)
    monkeypatch.setattr(OneCycle, "__module__", name)
    monkeypatch.setattr(module, "OneCycle", OneCycle, raising=False)
    source = filled(Network(), 1.0)
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in source.parameters()).backward()
    optimizer.step()
    state = {key: value for key, value in vars(OneCycle(optimizer)).items() if key != "optimizer"}
    content = dict(
        epoch=np.int64(3),
        state_dict={"module." + key: value for key, value in source.state_dict().items()},
        optimizer=optimizer.state_dict(),
        scheduler=state,
        half=torch.arange(12, dtype=torch.bfloat16).reshape(3, 4).t()[1:],
        empty=torch.zeros(0, 2),
        best_metric_value=np.float64(0.77),
        scores=[np.float32(0.5), np.bool_(True), np.float64(-np.inf)],
        array=np.arange(3),
        trap=Trap(tmp_path / "ran"),
    )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        torch.save(content, tmp_path / "old.pth")
    with pytest.raises(Exception, match=r"[Uu]nsupported"):  # what makes this test worth having
        torch.load(tmp_path / "old.pth", weights_only=True)
    found = read_file(tmp_path / "old.pth")
    assert not (tmp_path / "ran").exists() and name not in sys.modules
    assert found["epoch"] == 3 and found["best_metric_value"] == 0.77 and found["scores"] == [0.5, True, -np.inf]
    assert {type(value) for value in found["scores"]} == {float, bool}
    assert torch.equal(found["half"], content["half"]) and torch.equal(found["empty"], content["empty"])
    assert found["scheduler"]["last_epoch"] == 7 and isinstance(found["scheduler"]["anneal_func"], Placeholder)
    assert isinstance(found["array"], Placeholder) and isinstance(found["trap"], Placeholder)
    momentum = found["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state_dict()["state"][0]["momentum_buffer"])
    model = Network()
    assert load_checkpoint(model, tmp_path / "old.pth").complete and equal(model, source)
    torch.save(source, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(model, tmp_path / "model.pth")


@pytest.mark.parametrize("module_prefix", [False, True])
def test_what_we_write_has_ponderv2s_keys(module_prefix: bool, tmp_path: Path) -> None:
    source = filled(Network(), 1.0)
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1)
    path = tmp_path / "model_last.pth"
    save_checkpoint(path, source, module_prefix, epoch=4, optimizer=optimizer.state_dict(), own={"step": 9})
    content = torch.load(path, weights_only=True)
    assert set(content) == KEYS | {"own"} and content["epoch"] == 4 and content["own"] == {"step": 9}
    assert content["scaler"] is None and content["best_metric_value"] == -float("inf")
    # PonderV2's loader cuts seven characters off every name on one process.
    names = [key[7:] for key in content["state_dict"]] if module_prefix else list(content["state_dict"])
    assert names == list(source.state_dict())
    model = Network()
    assert load_checkpoint(model, path).complete and equal(model, source)
    assert [file.name for file in tmp_path.iterdir()] == ["model_last.pth"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model_last.pth"
    save_checkpoint(path, filled(Network(), 1.0), epoch=1)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, Network(), epoch=2, wrong=lambda: None)
    assert read_file(path)["epoch"] == 1 and [file.name for file in tmp_path.iterdir()] == ["model_last.pth"]
