"""Two ranks on the CPU against one process, a rank that stops and one that dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ponder.train.config import ConfigError
from ponder.train.ponderv2 import state
from ponder.train.ponderv2.distributed import World, is_peer_failure, local_device, read_world
from ponder.train.ponderv2.step import train_step
from ponder.train.ponderv2.sync_batch_norm import SyncBatchNorm, convert
from tests.ponder.ponderv2_ranks import FIRST, indoor, norm_case
from tests.ponder.ponderv2_toys import ToyBatches, toy_learner, toy_trainer

ROOT = Path(__file__).parents[2]
SIZE = 2
# Rounding of sums in another order.
RTOL, ATOL = 1e-6, 1e-6
Found = list[dict[str, Any]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path) -> list[subprocess.Popen[str]]:
    """The ranks, as torchrun would start them."""
    common = {"WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ponder.ponderv2_ranks", str(folder)],
            cwd=ROOT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(SIZE)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks ran all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = start(folder)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert processes[0].returncode == 0, errors[0]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    """What each rank found."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(SIZE)]


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, ()), (nn.BatchNorm3d, (2, 3, 2))])
def test_batch_norm_over_ranks_is_that_of_the_whole_batch(
    kind: type[nn.Module], shape: tuple[int, ...], found: Found
) -> None:
    norm, x, upstream = norm_case(kind, shape)
    norm, x = norm.double(), x.double().requires_grad_()
    out = norm(x)
    (out * upstream).sum().backward()
    weights = torch.stack([norm.weight.grad, norm.bias.grad])
    for rank, own in enumerate((slice(0, FIRST), slice(FIRST, None))):
        expected = [out[own], x.grad[own], weights, norm.running_mean, norm.running_var]
        for value, truth in zip(found[rank]["norms"][kind.__name__], expected, strict=True):
            torch.testing.assert_close(value.double(), truth, rtol=2e-6, atol=1e-5)


def test_conversion_keeps_names_and_parameters() -> None:
    model = nn.ModuleDict(
        {"a": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)), "b": nn.BatchNorm3d(2)}
    )
    before = {name: value.data_ptr() for name, value in model.state_dict(keep_vars=True).items()}
    model = convert(model)
    assert {name: value.data_ptr() for name, value in model.state_dict(keep_vars=True).items()} == before
    assert isinstance(model["a"][1], SyncBatchNorm) and isinstance(model["b"], SyncBatchNorm)
    model.eval()
    torch.testing.assert_close(model["b"](torch.ones(1, 2, 1, 1, 1)), torch.ones(1, 2, 1, 1, 1), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match=r"input: expected \[N, C, ...\], got \[2\]"):
        model["b"](torch.ones(2))


def test_sums_means_and_values_of_rank_0(found: Found) -> None:
    for values in (rank["helpers"] for rank in found):
        assert values["sum"].tolist() == [2, 1] and values["means"] == {"a": 0.5, "b": 7.0}
        assert values["main"] == 41 and values["buffer"].tolist() == [1, 1]


def test_gradients_of_two_ranks_are_those_of_one_process(found: Found) -> None:
    learner = toy_learner(noise=0.0)
    result = train_step(learner, next(ToyBatches(8).steps(0, 0)))
    for rank in found:
        assert rank["gradients"]["loss"] == pytest.approx(result.values["loss"], rel=RTOL)
        for value, truth in zip(rank["gradients"]["gradients"], learner.model.net.parameters(), strict=True):
            torch.testing.assert_close(value, truth.grad, rtol=RTOL, atol=ATOL)


def test_gradients_of_parts_are_exchanged_once(found: Found) -> None:
    learner = toy_learner(noise=0.0)
    learner.model.net[1].eval()
    train_step(learner, next(ToyBatches(8).steps(0, 0)))
    for rank in found:
        for value, truth in zip(rank["accumulated"]["gradients"], learner.model.net.parameters(), strict=True):
            torch.testing.assert_close(value, truth.grad, rtol=RTOL, atol=ATOL)


def test_gradients_of_the_indoor_model_are_those_of_one_process(found: Found) -> None:
    """In float64, where rounding hides nothing; those in float32 are as near to it as one process' are.

    How far that is depends on the processor, whose products are summed in other orders: 0.8e-6 to 1.1e-6.
    """
    truth, alone = indoor(World(), double=True), indoor(World())
    assert len(truth["gradients"]) > 10

    def error(gradients: dict[str, torch.Tensor], name: str) -> float:
        return float((gradients[name].double() - truth["gradients"][name]).abs().max())

    for rank in found:
        for case in ("indoor in float64", "indoor"):
            assert rank[case]["loss"] == pytest.approx(truth["loss"], rel=RTOL)  # reported in float32
            assert rank[case]["gradients"].keys() == truth["gradients"].keys()
        for name, gradient in truth["gradients"].items():
            exact = rank["indoor in float64"]["gradients"][name]
            torch.testing.assert_close(exact, gradient, rtol=1e-10, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
            assert error(rank["indoor"]["gradients"], name) <= max(ATOL, 2 * error(alone["gradients"], name)), name


def test_all_ranks_skip_what_one_cannot_use(found: Found) -> None:
    for rank in found:
        assert rank["bad_numbers"] == {"applied": False, "bad": True, "same": True}


def test_all_ranks_stop_when_one_is_asked_to(found: Found, folder: Path) -> None:
    assert [rank["stopping"]["step"] for rank in found] == [3, 3]
    assert "another rank" in found[0]["stopping"]["message"] and "SIGTERM" in found[1]["stopping"]["message"]
    assert state.read(folder / "stop0" / "model" / "model_last.pth")["ponder"]["progress"]["step"] == 3
    assert not list((folder / "stop1").rglob("*.pth")), "only rank 0 writes"


def test_a_lost_rank_ends_the_run_with_the_state_of_the_last_finished_step(found: Found, folder: Path) -> None:
    assert "dying" not in found[1], "the rank was not killed"
    left = found[0]["dying"]
    assert left["step"] == 3 and left["message"].startswith("rank 0 of 2 lost another process: ")
    assert "\n" not in left["message"] and left["message"].endswith("after step 3 is saved, go on with --resume")
    path = folder / "die0" / "model" / "model_last.pth"
    content = state.read(path)
    assert content["ponder"]["progress"]["step"] == 3
    torch.testing.assert_close(content["state_dict"], left["weights"], rtol=0, atol=0)
    assert int(content["state_dict"]["net.1.num_batches_tracked"]) == 3, "the unfinished step left its statistics"
    trainer = toy_trainer(folder / "die0")
    trainer.restore(content, path)
    trainer.train()
    assert trainer.progress.step == 12


def test_torchrun_tells_the_rank() -> None:
    assert read_world({}) == World()
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert read_world(given) == World(3, 4, 1) and not read_world(given).is_main
    with pytest.raises(ConfigError, match="LOCAL_RANK: expected a number from torchrun, got ''"):
        read_world({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="RANK: expected a number below WORLD_SIZE 2, got 2"):
        read_world(given | {"RANK": "2", "WORLD_SIZE": "2"})
    assert local_device(torch.device("cpu"), World(1, 2, 1)) == torch.device("cpu")
    with pytest.raises(ConfigError, match="LOCAL_RANK: expected a number below the"):
        local_device(torch.device("cuda"), World(99, 100, 99))


def test_errors_of_this_rank_are_not_blamed_on_others() -> None:
    assert is_peer_failure(RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:1] Connection closed"))
    assert is_peer_failure(torch.distributed.DistBackendError("NCCL error"))
    assert not is_peer_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_peer_failure(torch.OutOfMemoryError("out of memory"))
