"""Several processes as `torchrun` starts them: the process group, sums over ranks, and what a lost rank looks like."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ponder.train.config import ConfigError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# How gloo and NCCL begin or word an error of the connection; gloo raises a plain RuntimeError.
CONNECTION_WORDS = ("gloo/", "[Gloo]", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class PeerError(RuntimeError):
    """Another process of the run died, or did not answer in time; the message is one sentence."""


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: number of the process, 0 .. size - 1.
        size: number of processes.
        local_rank: number among those of this machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def read_world(environment: Mapping[str, str]) -> World:
    """What `torchrun` wrote into the environment; one process where it wrote nothing.

    Raises:
        ConfigError: a variable is missing or impossible.
    """
    if "WORLD_SIZE" not in environment:
        return World()
    values = []
    for name in VARIABLES:
        text = environment.get(name, "")
        if not text.isdigit():
            raise ConfigError(f"{name}: expected a number from torchrun, got {text!r}")
        values.append(int(text))
    rank, size, local_rank = values
    if not rank < size:
        raise ConfigError(f"RANK: expected a number below WORLD_SIZE {size}, got {rank}")
    return World(rank, size, local_rank)


def local_device(device: torch.device, world: World) -> torch.device:
    """The device of this rank: its own GPU, or the CPU.

    Raises:
        ConfigError: the machine has fewer GPUs than ranks.
    """
    if device.type != "cuda" or world.size == 1:
        return device
    found = torch.cuda.device_count()
    if world.local_rank >= found:
        raise ConfigError(
            f"LOCAL_RANK: expected a number below the {found} GPUs of this machine, got {world.local_rank}"
        )
    return torch.device("cuda", world.local_rank)


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[World]:
    """The run's process group: gloo on the CPU, NCCL on GPUs, none for one process.

    Args:
        device: of the run; sets the GPU of this process.
        timeout: seconds after which a rank that does not answer counts as lost.
    """
    world = read_world(os.environ)
    if world.size == 1:
        yield world
        return
    if device.type == "cuda":
        torch.cuda.set_device(local_device(device, world))
    with peer_errors(world):
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield world
    except PeerError:
        # Without all ranks the group cannot be closed in order, and the process is about to end.
        raise
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def peer_errors(world: World) -> Iterator[None]:
    """Turn errors of the connection into PeerError; others pass."""
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not is_peer_failure(error):
            raise
        raise PeerError(f"rank {world.rank} of {world.size} lost another process: {_reason(error)}") from error


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error comes from the connection between ranks rather than from this rank's own work."""
    own = isinstance(error, dist.DistError)
    return own or (isinstance(error, RuntimeError) and any(word in str(error) for word in CONNECTION_WORDS))


def _reason(error: BaseException) -> str:
    """The first sentence of an error, without the line of code that it begins with."""
    text = re.sub(r"^\[[^\]]*\] *", "", str(error).strip())
    return text.split("\n")[0].split(". ")[0] or type(error).__name__


def all_sum(values: Tensor, world: World) -> Tensor:
    """Sum over ranks, elementwise; the argument stays as it is."""
    if world.size == 1:
        return values
    total = values.clone()
    with peer_errors(world):
        dist.all_reduce(total)
    return total


def mean_over_ranks(values: Mapping[str, float], world: World) -> dict[str, float]:
    """Means of named numbers over the ranks that have them."""
    if world.size == 1:
        return dict(values)
    found: list[Any] = [None] * world.size
    with peer_errors(world):
        dist.all_gather_object(found, dict(values))
    names = dict.fromkeys(name for table in found for name in table)
    columns = {name: [table[name] for table in found if name in table] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}


def from_main(value: int, device: torch.device, world: World) -> int:
    """Rank 0's value of a number, on every rank."""
    if world.size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.int64, device=device)
    with peer_errors(world):
        dist.broadcast(shared, src=0)
    return int(shared)


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every rank the buffers of rank 0: running statistics differ where ranks normalise their own batches."""
    if world.size == 1:
        return
    with peer_errors(world):
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


# torch 2.13 calls it by another name, and warns of the old one.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


def data_parallel(model: nn.Module, device: torch.device, find_unused: bool, world: World) -> nn.Module:
    """The model with gradients averaged over ranks; itself where there is one process.

    Buffers are left to each rank, as PonderV2 does.
    """
    if world.size == 1:
        return model
    options: dict[str, Any] = {_SYNC_BUFFERS: False, "find_unused_parameters": find_unused}
    with peer_errors(world):
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, **options)
