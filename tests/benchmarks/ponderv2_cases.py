"""Small rays, volumes and targets for the tests of the PonderV2 baseline."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.ponderv2 import RayBundle, SurfaceModel, build_renderer

F64 = torch.float64
RAYS = 6


def t(*values: float) -> Tensor:
    """One row, float64."""
    return torch.tensor([values], dtype=F64)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=atol)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def bundle(dtype: torch.dtype = F64, miss: bool = True) -> RayBundle:
    """Rays from inside the indoor cube; the last one starts outside and looks away."""
    g = torch.Generator().manual_seed(0)
    origins = torch.rand(RAYS, 3, generator=g, dtype=F64) * 0.8 - 0.4
    directions = F.normalize(torch.randn(RAYS, 3, generator=g, dtype=F64), dim=-1)
    if miss:
        origins[-1], directions[-1] = torch.tensor([2.0, 2.0, 2.0]), F.normalize(torch.ones(3, dtype=F64), dim=0)
    return RayBundle(origins.to(dtype), directions.to(dtype))


def volumes(channels: int, dtype: torch.dtype = F64, count: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(channels, 4, 5, 6, generator=g, dtype=F64).to(dtype).requires_grad_() for _ in range(count)]


def targets(dtype: torch.dtype = F64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(2)
    semantic = F.normalize(torch.randn(RAYS, 512, generator=g, dtype=F64), dim=-1)
    semantic[1] = 0.0
    depth = torch.linspace(0.1, 0.4, RAYS, dtype=F64)[:, None]
    depth[-1] = -0.001
    rgb = torch.rand(RAYS, 3, generator=g, dtype=F64)
    return {"depth": depth.to(dtype), "rgb": rgb.to(dtype), "semantic": semantic.to(dtype)}


def without(cfg: dict[str, Any], *outputs: str) -> dict[str, Any]:
    cfg = copy.deepcopy(cfg)
    for name in outputs:
        del cfg["field"][f"{name}_decoder"], cfg["loss"]["weights"][f"{name}_loss"]
    return cfg


def model(cfg: dict[str, Any], dtype: torch.dtype = F64, **kwargs: Any) -> SurfaceModel:
    torch.manual_seed(3)
    return build_renderer(cfg, **kwargs).to(dtype)


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum((v for k, v in losses.items() if "loss" in k), torch.zeros(())).sum()


def limited(near: float, far: float, rays: int = 1) -> RayBundle:
    """Rays along z from the origin."""
    direction = torch.tensor([[0.0, 0.0, 1.0]], dtype=F64).expand(rays, 3)
    ones = torch.ones(rays, 1, dtype=F64)
    return RayBundle(torch.zeros(rays, 3, dtype=F64), direction, near * ones, far * ones)
