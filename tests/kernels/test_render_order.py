"""Which rays are rendered together."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels.render.chunk import Rays
from ponder_kernels.render.order import ray_order


def _rays(count: int, scenes: int = 1) -> Rays:
    """Through random pixels of two cameras that look at the middle of the unit cube."""
    g = torch.Generator().manual_seed(0)
    origins = torch.tensor([[0.5, 0.5, -1.0], [-1.0, 0.5, 0.5]])[torch.randint(2, (count,), generator=g)]
    at = torch.rand(count, 3, generator=g)
    edges = torch.linspace(0.5, 2.5, 9).expand(count, 9)
    scene = torch.randint(scenes, (count,), generator=g)
    nothing = torch.zeros(count)
    return Rays(origins, torch.nn.functional.normalize(at - origins, dim=-1), edges, scene, nothing, nothing, None)


def _spread(rays: Rays, order: Tensor, together: int = 32) -> float:
    """Volume of the boxes around the samples of rays rendered together, on average."""
    points = rays.origins[:, None] + rays.edges[..., None] * rays.directions[:, None]
    boxes = [points[part].flatten(0, 1) for part in order.split(together)]
    return float(torch.stack([(box.amax(0) - box.amin(0)).prod() for box in boxes]).mean())


def test_neighbours_are_together() -> None:
    rays = _rays(1024)
    order = ray_order(rays)
    assert torch.equal(order.sort().values, torch.arange(1024))
    assert _spread(rays, order) < 0.3 * _spread(rays, torch.arange(1024))


def test_scene_after_scene() -> None:
    rays = _rays(200, scenes=3)
    scenes = rays.scene[ray_order(rays)]
    assert torch.equal(scenes, scenes.sort().values)


def test_rays_that_are_nowhere_have_a_place() -> None:
    rays = _rays(40)
    for k, value in enumerate((torch.nan, torch.inf, -torch.inf, 3e38)):
        rays.origins[k] = value
    assert torch.equal(ray_order(rays).sort().values, torch.arange(40))
    assert torch.equal(ray_order(rays.part(slice(5, 6))), torch.zeros(1, dtype=torch.long))
    assert ray_order(rays.part(slice(0))).shape == (0,)
