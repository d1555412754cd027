"""Configurations, rays, volumes and targets on which PonderV2's renderer and its lean drop-in are compared."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines import ponderv2 as baseline
from benchmarks.baselines.ponderv2 import configs
from ponder.compat.ponderv2 import Parity, RayBundle, build_renderer

Config = dict[str, Any]

# Classes of the semantic targets.
CLASSES = 4


@dataclass(frozen=True)
class Scenario:
    """A configuration, volumes of some scale, and rays; `cube` is the lower end and the length of the rays' box."""

    config: Config
    channels: int = 128
    volumes: int = 1
    rays: int = 5
    cube: tuple[float, float] = (-0.5, 1.0)
    scale: float = 1.0


class Result(NamedTuple):
    """What a renderer gives: outputs, losses, gradient of the total loss by volumes and parameters."""

    preds: dict[str, Tensor]
    losses: dict[str, Tensor]
    grads: dict[str, Tensor]


def changed(config: Config, **values: Any) -> Config:
    """A copy with other entries, named by paths with `__` between keys; None deletes."""
    config = copy.deepcopy(config)
    for path, value in values.items():
        *parents, key = path.split("__")
        part = config
        for name in parents:
            part = part[name]
        if value is None:
            del part[key]
        else:
            part[key] = value
    return config


def without(config: Config, *outputs: str) -> Config:
    """The configuration without decoders and losses of outputs."""
    removed = {f"field__{name}_decoder": None for name in outputs}
    return changed(config, **removed, **{f"loss__weights__{name}_loss": None for name in outputs})


def rays_of(scenario: Scenario, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Origins and directions: from inside the box; the last ray misses it."""
    g = torch.Generator().manual_seed(0)
    low, length = scenario.cube
    origins = (torch.rand(scenario.rays, 3, generator=g, dtype=torch.float64) * 0.8 + 0.1) * length + low
    directions = F.normalize(torch.randn(scenario.rays, 3, generator=g, dtype=torch.float64), dim=-1)
    origins[-1], directions[-1] = low + 2.5 * length, 3**-0.5
    # From outside through the middle.
    origins[0] = low + length * torch.tensor([-0.2, 0.45, 0.62], dtype=torch.float64)
    directions[0] = F.normalize(torch.tensor([1.0, 0.05, -0.08], dtype=torch.float64), dim=0)
    return origins.to(dtype), directions.to(dtype)


def volumes_of(scenario: Scenario, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    shape = (scenario.channels, 4, 5, 6)
    drawn = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(scenario.volumes)]
    return [(v * scenario.scale).to(dtype).requires_grad_() for v in drawn]


def targets_of(scenario: Scenario, dtype: torch.dtype) -> dict[str, Tensor]:
    """Depths, two of them missing; colours; class embeddings, one of them zeros, of few classes."""
    g = torch.Generator().manual_seed(2)
    rays = scenario.rays
    depth = torch.rand(rays, 1, generator=g, dtype=torch.float64) * 0.5 + 0.1
    depth[2], depth[-1] = 0.0, -0.001
    rgb = torch.rand(rays, 3, generator=g, dtype=torch.float64)
    table = F.normalize(torch.randn(CLASSES, 512, generator=g, dtype=torch.float64), dim=-1)
    semantic = table[torch.randint(CLASSES, (rays,), generator=g)]
    semantic[1] = 0.0
    return {"depth": depth.to(dtype), "rgb": rgb.to(dtype), "semantic": semantic.to(dtype)}


def models(config: Config, dtype: torch.dtype, parity: Parity | None = None) -> tuple[Any, Any]:
    """The baseline and the drop-in, from the same seed."""
    torch.manual_seed(3)
    theirs = baseline.build_renderer(config).to(dtype)
    torch.manual_seed(3)
    return theirs, build_renderer(config, parity).to(dtype)


def run(model: Any, bundle: Any, volumes: list[Tensor], targets: dict[str, Tensor], seed: int = 4) -> Result:
    """Forward, losses and backward with fixed random draws."""
    for leaf in (*volumes, *model.parameters()):
        leaf.grad = None
    torch.manual_seed(seed)
    preds = model(bundle, volumes)
    losses = model.get_loss(preds, targets)
    total = sum((term.sum() for name, term in losses.items() if "loss" in name), torch.zeros(()))
    total.backward()
    leaves = {f"volume {k}": v for k, v in enumerate(volumes)} | dict(model.named_parameters())
    grads = {name: torch.zeros_like(v) if v.grad is None else v.grad.clone() for name, v in leaves.items()}
    return Result(dict(preds), dict(losses), grads)


def compare(
    scenario: Scenario, dtype: torch.dtype, training: bool, parity: Parity | None = None
) -> tuple[Result, Result]:
    """Results of the baseline and of the drop-in."""
    theirs, ours = models(scenario.config, dtype, parity)
    origins, directions = rays_of(scenario, dtype)
    targets = targets_of(scenario, dtype)
    rest = (volumes_of(scenario, dtype), targets)
    expected = run(theirs.train(training), baseline.RayBundle(origins, directions), *rest)
    return expected, run(ours.train(training), RayBundle(origins, directions), *rest)


def relative(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference by the norm of the expected value; absolute where that is 0."""
    difference = float((actual.detach().double() - expected.detach().double()).norm())
    size = float(expected.detach().double().norm())
    return difference / size if size else difference


INDOOR, OUTDOOR = configs.indoor(), configs.outdoor(rgb=True, semantic=True)
UNIT = (0.0, 1.0)


def _wide(config: Config, sdf: int, rgb: int, semantic: int, **changes: Any) -> Config:
    widths = {"sdf": sdf, "rgb": rgb, "semantic": semantic}
    return changed(config, **{f"field__{k}_decoder__in_dim": v for k, v in widths.items()}, **changes)


def _all_losses(config: Config) -> Config:
    weights = {"eikonal_loss": 0.01, "free_space_loss": 1.0, "sdf_loss": 10.0}
    return changed(config, **{f"loss__weights__{k}": v for k, v in weights.items()})


SCENARIOS = {
    "indoor": Scenario(INDOOR),
    "indoor-no-rgb": Scenario(without(INDOOR, "rgb")),
    "indoor-no-semantic": Scenario(without(INDOOR, "semantic")),
    "indoor-geometry-only": Scenario(without(INDOOR, "rgb", "semantic")),
    # SDF gradients far below the floor that our own recipes put under a normal.
    "indoor-flat": Scenario(INDOOR, scale=1e-6),
    "indoor-volsdf": Scenario(configs.volsdf(INDOOR)),
    "indoor-no-gradient": Scenario(_wide(INDOOR, 64, 131, 128, field__use_gradient=False)),
    "indoor-raw-points": Scenario(changed(INDOOR, field__norm_pts=False), cube=UNIT),
    "indoor-shared": Scenario(_wide(INDOOR, 128, 198, 195, field__share_volume=True)),
    "indoor-two-volumes": Scenario(INDOOR, channels=64, volumes=2),
    "indoor-two-shared-volumes": Scenario(
        _wide(INDOOR, 128, 198, 195, field__share_volume=True), channels=64, volumes=2
    ),
    "outdoor": Scenario(_all_losses(OUTDOOR), channels=32, cube=UNIT),
    "outdoor-depth": Scenario(configs.outdoor(), channels=32, cube=UNIT),
    "outdoor-volsdf": Scenario(configs.volsdf(OUTDOOR), channels=32, cube=UNIT),
    "outdoor-normalised": Scenario(changed(OUTDOOR, field__norm_pts=True), channels=32),
}
