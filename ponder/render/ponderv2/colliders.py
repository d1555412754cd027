"""Where rays enter and leave the scene."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ponder.render.ponderv2.rays import RayBundle
from ponder_kernels import intersect_aabb

# PonderV2 adds this to every direction component, whatever its sign, before dividing by it.
DIRECTION_OFFSET = 1e-6


class Collider(nn.Module, ABC):
    """Limits of rays that have none yet."""

    def forward(self, rays: RayBundle) -> RayBundle:
        """The rays with nears and fars [R, 1]; rays that have both come back as they are."""
        if rays.nears is not None and rays.fars is not None:
            return rays
        nears, fars = self.limits(rays)
        return replace(rays, nears=nears, fars=fars)

    @abstractmethod
    def limits(self, rays: RayBundle) -> tuple[Tensor, Tensor]:
        """nears and fars, [R, 1] each."""


class AABBBoxCollider(Collider):
    """Limits inside an axis-aligned box; a ray that misses it gets 0 and 0, so that all its samples coincide.

    Args:
        bbox: (x0, y0, z0, x1, y1, z1).
        near_plane: smallest near.
        unsigned_offset: see `Parity.unsigned_direction_offset`.

    Reference:
        Kay and Kajiya, Ray tracing complex scenes, 1986 (slab test).
    """

    def __init__(self, bbox: Sequence[float], near_plane: float, unsigned_offset: bool = True) -> None:
        super().__init__()
        if len(bbox) != 6:
            raise ValueError(f"bbox: expected 6 numbers (x0, y0, z0, x1, y1, z1), got {len(bbox)}")
        self.bbox = tuple(float(v) for v in bbox)
        self.near_plane = float(near_plane)
        self.unsigned_offset = unsigned_offset

    def limits(self, rays: RayBundle) -> tuple[Tensor, Tensor]:
        box = rays.origins.new_tensor(self.bbox).view(2, 3)
        if not self.unsigned_offset:
            interval = intersect_aabb(rays.origins, rays.directions, box, near_min=self.near_plane)
            return interval.near[:, None], interval.far[:, None]
        inverse = 1.0 / (rays.directions + DIRECTION_OFFSET)
        lower, upper = ((plane - rays.origins) * inverse for plane in box)
        nears = torch.minimum(lower, upper).amax(-1, keepdim=True).clamp(min=self.near_plane)
        fars = torch.maximum(lower, upper).amin(-1, keepdim=True)
        hit = nears < fars
        return torch.where(hit, nears, 0.0), torch.where(hit, fars, 0.0)


class NearFarCollider(Collider):
    """The same limits for every ray."""

    def __init__(self, near_plane: float, far_plane: float) -> None:
        super().__init__()
        self.near_plane, self.far_plane = float(near_plane), float(far_plane)

    def limits(self, rays: RayBundle) -> tuple[Tensor, Tensor]:
        count = (len(rays.origins), 1)
        return rays.origins.new_full(count, self.near_plane), rays.origins.new_full(count, self.far_plane)
