"""Which rays are rendered together: neighbours, whose samples read the same voxels while these are in the caches."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels.render.chunk import Rays

# Of each of a ray's six numbers; 30 bits in all leave room for the number of the scene.
BITS = 5


def ray_order(rays: Rays) -> Tensor:
    """[R] int64 numbers of the rays, scene by scene, along a curve through the space of lines.

    A ray is two of its points, a quarter of its samples away from either end; their six coordinates, interleaved bit by
    bit, are its place on the curve (Z-order: Morton 1966).
    """
    samples = rays.edges.shape[1] - 1
    along = rays.edges[:, [samples // 4, samples - samples // 4]]
    points = rays.origins.unsqueeze(1) + along.unsqueeze(-1) * rays.directions.unsqueeze(1)
    place = points.flatten(1).nan_to_num(0.0, 0.0, 0.0)
    if not len(place):
        return rays.scene.new_empty(0)
    low, high = place.aminmax(dim=0)
    cell = ((place - low) / (high - low).clamp_min(torch.finfo(place.dtype).tiny) * (2**BITS - 1)).long()
    axes = cell.shape[1]
    bits = torch.arange(BITS, device=cell.device).unsqueeze(1)
    target = bits * axes + torch.arange(axes, device=cell.device)
    code = ((cell.unsqueeze(1) >> bits & 1) << target).sum((1, 2)) + (rays.scene << BITS * axes)
    return code.argsort(stable=True)
