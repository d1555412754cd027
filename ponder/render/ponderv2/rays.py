"""Rays, and the samples along them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TensorMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class RayBundle:
    """Rays of one scene; constants, no gradient flows to them.

    Attributes:
        origins: [R, 3] in the coordinates of the collider's box.
        directions: [R, 3] unit vectors.
        nears, fars: [R, 1] distances between which a ray is sampled; a collider sets them where they are None. They may
            be float64 where the rays are float32: samples are then drawn in float64.

    Raises:
        TypeError, ValueError: an entry that is no float32 or float64 tensor, or of a shape or dtype that does not fit.
    """

    origins: Tensor
    directions: Tensor
    nears: Tensor | None = None
    fars: Tensor | None = None

    def __post_init__(self) -> None:
        for name, width in (("origins", 3), ("directions", 3), ("nears", 1), ("fars", 1)):
            value = getattr(self, name)
            if value is None and width == 1:
                continue
            if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
                found = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"RayBundle.{name}: expected a float32 or float64 tensor, got {found}")
            if value.dtype != self.origins.dtype and (width == 3 or value.dtype != torch.float64):
                raise TypeError(f"RayBundle.{name}: expected the dtype of origins, got {value.dtype}")
            if value.shape != (len(self.origins) if self.origins.dim() else 0, width):
                raise ValueError(f"RayBundle.{name}: expected shape [R, {width}], got {list(value.shape)}")

    def limits(self) -> tuple[Tensor, Tensor]:
        """`nears` and `fars`; ValueError while they are unknown."""
        if self.nears is None or self.fars is None:
            raise ValueError("RayBundle: nears and fars are unknown; pass the rays through a collider first")
        return self.nears, self.fars

    def in_float64(self) -> RayBundle:
        """The same rays with float64 limits."""
        nears, fars = self.limits()
        return replace(self, nears=nears.double(), fars=fars.double())


@dataclass(frozen=True, eq=False)
class RaySamples:
    """S neighbouring intervals on each ray. A sample stands at the START of its interval, as in PonderV2.

    Distances are of the dtype of the rays' limits. In float32 some are off by 1e-3 of their distance to each other: new
    samples crowd where the distribution of the old ones is steep, and so do its rounding errors.

    Attributes:
        rays: R rays.
        edges: [R, S + 1] distances from the origin, ascending.
        units: [R, S + 1] the edges in the units of the spacing, 0 at near and 1 at far; None after `merge_distances`.
        to_distance: maps units [R, K] to distances [R, K].
    """

    rays: RayBundle
    edges: Tensor
    units: Tensor | None = None
    to_distance: TensorMap | None = None

    @property
    def starts(self) -> Tensor:
        """[R, S]."""
        return self.edges[:, :-1]

    @property
    def deltas(self) -> Tensor:
        """[R, S] lengths of the intervals."""
        return self.edges[:, 1:] - self.edges[:, :-1]

    def points(self) -> Tensor:
        """[R, S, 3] origin + direction * start, in the dtype of the rays."""
        along = self.rays.directions[:, None] * self.starts[..., None]
        return along.add_(self.rays.origins[:, None]).to(self.rays.origins.dtype)

    def known_units(self) -> tuple[Tensor, TensorMap]:
        """`units` and `to_distance`; ValueError where they are unknown."""
        if self.units is None or self.to_distance is None:
            raise ValueError("RaySamples: samples merged by distance have no units to resample in")
        return self.units, self.to_distance

    def rounded(self) -> Tensor:
        """`edges` in the dtype of the rays; still ascending."""
        return self.edges.to(self.rays.origins.dtype)

    def moved(self, units: Tensor) -> RaySamples:
        """Other intervals on the same rays, from edges [R, K + 1] in the same units."""
        _, to_distance = self.known_units()
        return RaySamples(self.rays, to_distance(units), units, to_distance)


def merge(first: RaySamples, second: RaySamples) -> tuple[RaySamples, Tensor]:
    """Union of S1 and S2 samples in common units: every start survives, every length is new.

    Returns:
        the samples, and the order [R, S1 + S2] of their starts in `cat(starts_1, starts_2)`.
    """
    edges, order = _merged(first.known_units()[0], second.known_units()[0])
    return first.moved(edges), order


def merge_distances(first: RaySamples, second: RaySamples) -> RaySamples:
    """Union of samples of different units."""
    return RaySamples(first.rays, _merged(first.edges, second.edges)[0])


def _merged(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    starts, order = torch.cat((first[:, :-1], second[:, :-1]), -1).sort(-1)
    return torch.cat((starts, torch.maximum(first[:, -1:], second[:, -1:])), -1), order
