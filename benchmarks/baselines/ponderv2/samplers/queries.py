"""What ray samplers may ask of the field, and what they give back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from benchmarks.baselines.ponderv2.density import LaplaceDensity
from benchmarks.baselines.ponderv2.rays import RaySamples


class FieldQueries(NamedTuple):
    """A field bound to the volumes of one scene."""

    sdf: Callable[[Tensor], Tensor]  # positions [R, S, 3] as they lie on the rays -> [R, S, 1]
    occupancy: Callable[[Tensor], Tensor]  # SDF -> occupancy, any shape
    density: LaplaceDensity


class SampledRays(NamedTuple):
    """Final samples, and how they came about (None where a sampler took no such step)."""

    samples: RaySamples
    initial_points: Tensor | None  # [R, S0, 3]
    initial_weights: Tensor | None  # [R, S0, 1]
    new_points: Tensor | None  # [R, S1, 3]
