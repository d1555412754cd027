"""A small model, data and schedule that go through every stage of the PonderV2 training loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ponder.train.ponderv2.distributed import World
from ponder.train.ponderv2.loop import Trainer
from ponder.train.ponderv2.settings import HookConfig, TrainerConfig
from ponder.train.ponderv2.step import Batch, Learner
from ponder.train.ponderv2.sync_batch_norm import convert


class ToyModel(nn.Module):
    """A network with batch norm, noise drawn in every step, and a head outside the loss."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        self.noise = noise
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.outside = nn.Linear(1, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        predicted = self.net(batch["feat"])
        noisy = predicted + self.noise * torch.randn_like(predicted) if self.training else predicted
        loss = (noisy - batch["target"]).square().mean()
        return {"loss": loss, "depth_loss": loss.detach(), "outside_loss": self.outside(predicted).mean()}


def samples(count: int = 24, points: int = 4) -> list[dict[str, Tensor]]:
    """Scenes of 4 points [4, 3] with their targets [4, 1]."""
    generator = torch.Generator().manual_seed(5)
    feat = torch.randn(count, points, 3, generator=generator)
    return [{"feat": f, "target": f.sum(1, keepdim=True).sin()} for f in feat]


def collate(chosen: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of scenes."""
    batch = {name: torch.cat([sample[name] for sample in chosen]) for name in chosen[0]}
    return batch | {"offset": torch.arange(1, len(chosen) + 1) * len(chosen[0]["feat"])}


class ToyBatches:
    """Batches of the samples in an order of the epoch's own; each rank takes every size-th sample of a step."""

    def __init__(self, batch: int = 4, parts: int = 1, world: World | None = None) -> None:
        self.world = world or World()
        self.samples, self.batch, self.parts = samples(), batch, parts
        self.loaded: list[int] = []
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.samples) // self.batch

    def steps(self, epoch: int, start: int) -> Iterator[list[dict[str, Tensor]]]:
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(epoch)).tolist()
        for step in range(start, len(self)):
            self.loaded.append(epoch * len(self) + step)
            chosen = order[step * self.batch : (step + 1) * self.batch][self.world.rank :: self.world.size]
            size = len(chosen) // self.parts
            yield [collate([self.samples[i] for i in chosen[p * size : (p + 1) * size]]) for p in range(self.parts)]


class ToySchedule:
    """A rate that falls with every update."""

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (1 + step)

    def state_dict(self, step: int) -> dict[str, Any]:
        return {"last_epoch": step}


def toy_learner(world: World | None = None, noise: float = 0.1, synchronise: bool = False, **options: Any) -> Learner:
    """A fresh learner, always with the same weights."""
    torch.manual_seed(1)
    model = ToyModel(noise)
    if synchronise:
        convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options.setdefault("find_unused", True)
    return Learner(model, optimizer, torch.device("cpu"), world or World(), **options)


def toy_trainer(folder: Path, world: World | None = None, epochs: int = 2, **options: Any) -> Trainer:
    """A trainer of two epochs of six steps in a new or an old folder."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    options = {"seed": 3, "log_every": 1, "save_every": 1000, "batch_size": 4, "hooks": HookConfig()} | options
    world = world or World()
    settings = TrainerConfig(epochs=epochs, **options)
    batches = ToyBatches(world=world)
    return Trainer(settings, toy_learner(world), batches, ToySchedule(), folder, Console(quiet=True))
