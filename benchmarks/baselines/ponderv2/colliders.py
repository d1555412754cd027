"""Where rays enter and leave the scene."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.baselines.ponderv2.rays import RayBundle

# PonderV2 adds this to every direction component before dividing, whatever its sign: a component of exactly -1e-6
# divides by zero.
DIRECTION_OFFSET = 1e-6


class Collider(nn.Module, ABC):
    """Sets the limits of rays that have none yet."""

    def forward(self, rays: RayBundle) -> RayBundle:
        """The same rays with nears and fars [R, 1]; rays that carry both already come back as they are."""
        if rays.nears is not None and rays.fars is not None:
            return rays
        nears, fars = self.limits(rays)
        return replace(rays, nears=nears, fars=fars)

    @abstractmethod
    def limits(self, rays: RayBundle) -> tuple[Tensor, Tensor]:
        """nears and fars, [R, 1] each."""


class AABBBoxCollider(Collider):
    """Limits of a ray inside an axis-aligned box, by the slab test (Kay & Kajiya 1986).

    A ray that misses the box gets near = far = 0: all its samples coincide at its origin with length 0.

    Args:
        bbox: (x0, y0, z0, x1, y1, z1).
        near_plane: smallest near.
    """

    def __init__(self, bbox: Sequence[float], near_plane: float) -> None:
        super().__init__()
        if len(bbox) != 6:
            raise ValueError(f"bbox must hold 6 numbers (x0, y0, z0, x1, y1, z1), got {len(bbox)}")
        self.bbox = tuple(float(v) for v in bbox)
        self.near_plane = near_plane

    def limits(self, rays: RayBundle) -> tuple[Tensor, Tensor]:
        inverse = 1.0 / (rays.directions + DIRECTION_OFFSET)
        lower, upper = (self._slab_distances(rays.origins, inverse, corner) for corner in (0, 3))
        nears = torch.minimum(lower, upper).amax(-1, keepdim=True).clamp(min=self.near_plane)
        fars = torch.maximum(lower, upper).amin(-1, keepdim=True)
        hit = nears < fars
        return torch.where(hit, nears, 0.0), torch.where(hit, fars, 0.0)

    def _slab_distances(self, origins: Tensor, inverse: Tensor, corner: int) -> Tensor:
        """Distances to the three planes through a corner of the box, [R, 3]."""
        planes = self.bbox[corner : corner + 3]
        return torch.stack([(plane - origins[:, k]) * inverse[:, k] for k, plane in enumerate(planes)], -1)


class NearFarCollider(Collider):
    """The same limits for every ray."""

    def __init__(self, near_plane: float, far_plane: float) -> None:
        super().__init__()
        self.near_plane = near_plane
        self.far_plane = far_plane

    def limits(self, rays: RayBundle) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(rays.origins[:, :1])
        return ones * self.near_plane, ones * self.far_plane
