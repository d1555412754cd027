"""What every rank of the distributed tests does; started once per rank with torchrun's variables in the environment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ponder.models.ponderv2.indoor import PonderIndoor
from ponder.models.ponderv2.pixel_rays import PixelRays
from ponder.models.ponderv2.unit_cube import UnitCube
from ponder.models.volume_norm import VolumeBatchNorm
from ponder.render.ponderv2 import build_renderer
from ponder.train.ponderv2.distributed import (
    PeerError,
    World,
    all_sum,
    from_main,
    mean_over_ranks,
    process_group,
    share_buffers,
)
from ponder.train.ponderv2.signals import Stopped
from ponder.train.ponderv2.step import Learner, train_step
from ponder.train.ponderv2.sync_batch_norm import convert
from tests.ponder.ponderv2_rooms import Points, renderer_config, room_batch
from tests.ponder.ponderv2_toys import ToyBatches, toy_learner, toy_trainer

TIMEOUT = 30.0
# Samples of rank 0; the other rank has the rest.
FIRST = 3
# Generated rooms of the indoor model's batch.
ROOMS = 4


def norm_case(kind: type[nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A batch norm with weights, its input far from 0, and an upstream gradient; the same on every rank."""
    torch.manual_seed(0)
    norm = kind(5, eps=1e-3, momentum=0.01)
    nn.init.uniform_(norm.weight, 0.5, 2)
    return norm, torch.randn(8, 5, *shape) * 3 + 20, torch.randn(8, 5, *shape)


def norms(world: World) -> dict[str, Any]:
    """Batch norm of unequal parts of a batch."""
    found = {}
    own = slice(0, FIRST) if world.rank == 0 else slice(FIRST, None)
    for kind, shape in ((nn.BatchNorm1d, ()), (nn.BatchNorm3d, (2, 3, 2))):
        norm, x, upstream = norm_case(kind, shape)
        norm = convert(nn.Sequential(norm))[0]
        part = x[own].clone().requires_grad_()
        out = norm(part)
        (out * upstream[own]).sum().backward()
        weights = all_sum(torch.stack([norm.weight.grad, norm.bias.grad]), world)
        found[kind.__name__] = [out.detach(), part.grad, weights, norm.running_mean, norm.running_var]
    return found


def helpers(world: World) -> dict[str, Any]:
    """Sums, means and values of rank 0."""
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(world.rank + 1)
    share_buffers(model, world)
    return {
        "sum": all_sum(torch.tensor([1.0, float(world.rank)]), world),
        "means": mean_over_ranks({"a": float(world.rank), **({"b": 7.0} if world.rank else {})}, world),
        "main": from_main(41 + world.rank, torch.device("cpu"), world),
        "buffer": model.running_mean,
    }


def gradients(world: World) -> dict[str, Any]:
    """One step on half of a batch, in two parts, with batch norm over all ranks."""
    learner = toy_learner(world, noise=0.0, synchronise=True)
    result = train_step(learner, next(ToyBatches(8, world=world).steps(0, 0)))
    return {"gradients": [p.grad for p in learner.model.net.parameters()], "loss": result.values["loss"]}


def accumulated(world: World) -> dict[str, Any]:
    """Gradients of parts, exchanged once; without batch statistics."""
    learner = toy_learner(world, noise=0.0)
    learner.model.net[1].eval()
    train_step(learner, next(ToyBatches(8, parts=2, world=world).steps(0, 0)))
    return {"gradients": [p.grad for p in learner.model.net.parameters()]}


def bad_numbers(world: World) -> dict[str, Any]:
    """A loss that is not finite on one rank only."""
    learner = toy_learner(world)
    before = [p.detach().clone() for p in learner.model.parameters()]
    (batch,) = next(ToyBatches(8, world=world).steps(0, 0))
    if world.rank == 1:
        batch["target"] = batch["target"] * float("nan")
    result = train_step(learner, [batch])
    same = all(torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))
    return {"applied": result.applied, "bad": result.bad, "same": same}


class InFloat64(PonderIndoor):
    """Rays, dense network, renderer and losses in float64: all that sums over scenes, whose order is then no matter."""

    def prepare_rays(self, batch: Mapping[str, Any]) -> tuple[UnitCube, PixelRays]:
        cube, rays = super().prepare_rays(batch)
        named = ("origins", "directions", "rgb", "depth")
        return cube, rays._replace(**{name: getattr(rays, name).double() for name in named})


def indoor_learner(world: World, double: bool) -> Learner:
    """PonderV2's indoor model with losses that are means over rays, and nothing drawn at random."""
    kind = InFloat64 if double else PonderIndoor
    config = renderer_config()
    config["sampler"]["train_stratified"] = False
    config["loss"]["weights"] = {"rgb_loss": 10.0, "depth_loss": 1.0, "eikonal_loss": 0.01}
    torch.manual_seed(1)
    projection = nn.Sequential(nn.Conv3d(10, 16, 3, padding=1, bias=False), VolumeBatchNorm(16))
    model = kind(
        Points(10), projection, build_renderer(config), grid_shape=(12, 12, 8), ray_nsample=10_000,
        backbone_out_channels=10, context_channels=5, conditions=("A",),
    )  # fmt: skip
    if double:
        model.double()
    if world.size > 1:
        convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, optimizer, torch.device("cpu"), world, find_unused=True)


def rooms(chosen: Sequence[int]) -> dict[str, Any]:
    """Generated rooms of these numbers as one batch, every pixel of their images with a depth."""
    own = [room_batch([(4.0, 3.0, 2.5)], image=(6, 8), points=100 + 10 * n, seed=n, missing=0.0) for n in chosen]
    batch = {k: torch.cat([room[k] for room in own]) for k in own[0] if k not in ("condition", "offset")}
    return batch | {"condition": ["A"] * len(own), "offset": torch.cat([room["offset"] for room in own]).cumsum(0)}


def indoor(world: World, double: bool = False) -> dict[str, Any]:
    """One step of PonderV2's indoor model on this rank's rooms."""
    learner = indoor_learner(world, double)
    batch = rooms(range(ROOMS)[world.rank :: world.size])
    if double:
        batch["feat"] = batch["feat"].double()
    result = train_step(learner, [batch])
    gradients = {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}
    return {"gradients": gradients, "loss": result.values["loss"]}


def stopping(world: World, folder: Path) -> dict[str, Any]:
    """One rank is asked to stop."""
    trainer = toy_trainer(folder / f"stop{world.rank}", world)
    batches = list(trainer.batches.steps(0, 0))

    def steps(epoch: int, start: int) -> Any:
        for number, step in enumerate(batches):
            if number == 2 and world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    trainer.batches.steps = steps
    try:
        trainer.train()
    except Stopped as stopped:
        return {"message": str(stopped), "step": trainer.progress.step}
    return {}


def dying(world: World, folder: Path) -> dict[str, Any]:
    """One rank is killed in the middle of a step."""
    trainer = toy_trainer(folder / f"die{world.rank}", world)

    def die(gradient: torch.Tensor) -> None:
        if trainer.progress.step == 3 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    next(trainer.learner.model.parameters()).register_hook(die)
    try:
        trainer.train()
    except PeerError as error:
        weights = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
        return {"message": str(error), "weights": weights, "step": trainer.progress.step}
    return {}


def main(folder: Path) -> None:
    """Run all cases; each rank writes what it found."""
    with process_group(torch.device("cpu"), TIMEOUT) as world:
        cases: dict[str, Callable[[], dict[str, Any]]] = {
            "norms": lambda: norms(world),
            "helpers": lambda: helpers(world),
            "gradients": lambda: gradients(world),
            "accumulated": lambda: accumulated(world),
            "indoor": lambda: indoor(world),
            "indoor in float64": lambda: indoor(world, double=True),
            "bad_numbers": lambda: bad_numbers(world),
            "stopping": lambda: stopping(world, folder),
            "dying": lambda: dying(world, folder),
        }
        found = {}
        for name, case in cases.items():
            found[name] = case()
            torch.save(found, folder / f"rank{world.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
