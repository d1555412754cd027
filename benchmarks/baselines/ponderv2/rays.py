"""Rays, and the samples along them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RayBundle:
    """Rays of one scene.

    Attributes:
        origins: [R, 3] in the cube of the field.
        directions: [R, 3], unit length.
        nears, fars: [R, 1] distances between which the ray is sampled; None until a collider has set them.
    """

    origins: Tensor
    directions: Tensor
    nears: Tensor | None = None
    fars: Tensor | None = None

    def limits(self) -> tuple[Tensor, Tensor]:
        """`nears` and `fars`; ValueError while they are unknown."""
        if self.nears is None or self.fars is None:
            raise ValueError("the rays have no nears and fars; pass them through a collider first")
        return self.nears, self.fars


@dataclass(frozen=True, eq=False)
class RaySamples:
    """S neighbouring intervals on each ray; a sample stands at the START of its interval.

    Attributes:
        origins, directions: [R, 3].
        edges: [R, S + 1] distances from the origin, ascending.
        spacing: [R, S + 1] the same edges in the sampler's own units, 0 at near and 1 at far; None after a merge of
            samples whose units differ.
        to_euclidean: maps spacing units to distances, [R, K] to [R, K].
    """

    origins: Tensor
    directions: Tensor
    edges: Tensor
    spacing: Tensor | None = None
    to_euclidean: Callable[[Tensor], Tensor] | None = None

    @property
    def starts(self) -> Tensor:
        """[R, S, 1]."""
        return self.edges[:, :-1, None]

    @property
    def deltas(self) -> Tensor:
        """Interval lengths, [R, S, 1]."""
        return (self.edges[:, 1:] - self.edges[:, :-1])[..., None]

    def positions(self) -> Tensor:
        """Origin + direction * start, [R, S, 3]; a new tensor at each call."""
        return self.origins[:, None] + self.directions[:, None] * self.starts

    def units(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """`spacing` and `to_euclidean`; ValueError where they are unknown."""
        if self.spacing is None or self.to_euclidean is None:
            raise ValueError("these samples were merged by distance and have no spacing units to resample in")
        return self.spacing, self.to_euclidean

    def replaced(self, spacing: Tensor) -> RaySamples:
        """Other intervals on the same rays, from edges [R, K + 1] in the same units; no gradient through the edges."""
        _, to_euclidean = self.units()
        spacing = spacing.detach()
        return RaySamples(self.origins, self.directions, to_euclidean(spacing), spacing, to_euclidean)


def merge(first: RaySamples, second: RaySamples) -> tuple[RaySamples, Tensor]:
    """Union of two sets of samples in common spacing units.

    All starts are sorted and the larger of the two last ends closes the ray, so every interval length is new but every
    start survives.

    Returns:
        samples: S1 + S2 of them.
        order: [R, S1 + S2]; `cat(values_1, values_2).gather(1, order)` sorts values per sample the same way.
    """
    (a, _), (b, _) = first.units(), second.units()
    edges, order = merged_edges(a, b)
    return first.replaced(edges), order


def merge_by_distance(first: RaySamples, second: RaySamples) -> RaySamples:
    """Union of two sets of samples whose spacing units differ; the result has none."""
    edges, _ = merged_edges(first.edges, second.edges)
    return RaySamples(first.origins, first.directions, edges.detach())


def merged_edges(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted starts of two rows of edges [R, S1 + 1] and [R, S2 + 1] plus the last end, and the order of the starts."""
    starts, order = torch.sort(torch.cat((first[:, :-1], second[:, :-1]), -1), -1)
    return torch.cat((starts, torch.maximum(first[:, -1:], second[:, -1:])), -1), order
