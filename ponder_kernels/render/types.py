"""Inputs and outputs of `render_rays`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ColourWeights(NamedTuple):
    """Collapsed colour head: logits = hidden h + sdf_features f + features f2 + gradient n + direction d + bias.

    PonderV2's colour decoder has no activation before its sigmoid, so its input (SDF gradient n, second channel half
    f2, geometry features, ray direction d) is an affine function of h, f, f2, n and d; K hidden units, Cs and Cr
    channels of the two volume halves.

    Attributes:
        hidden: [3, K].
        sdf_features: [3, Cs].
        features: [3, Cr] (Cr may be 0).
        gradient: [3, 3].
        direction: [3, 3].
        bias: [3].
    """

    hidden: Tensor
    sdf_features: Tensor
    features: Tensor
    gradient: Tensor
    direction: Tensor
    bias: Tensor


class RayTargets(NamedTuple):
    """What the per-sample loss terms compare with.

    Attributes:
        ray_depth: [B, R] measured distance along the unit ray, 0 = missing.
        slope: [B, R] |cosine| between ray and surface normal, which turns a distance along the ray into a distance
            to the surface plane; 1 gives PonderV2's terms.
        truncation: half width of the band around the surface in which the SDF is supervised, in the box's unit.
    """

    ray_depth: Tensor
    slope: Tensor
    truncation: float


class RenderedRays(NamedTuple):
    """Rendered pixels and reduced loss terms.

    Attributes:
        rgb: [B, R, 3] weighted sum of sample colours on a black background.
        depth: [B, R] expected distance along the unit ray, 0 on a missed ray.
        opacity: [B, R] sum of the weights.
        normal: [B, R, 3] weighted sum of unit SDF gradients, not renormalised.
        eikonal: [] mean (|gradient| - 1)^2 over the samples of rays that hit the box.
        free_space: [] mean relu(truncation - sdf) over samples in front of the band; 0 without targets.
        sdf: [] mean |sdf - target| over samples in the band; 0 without targets.
    """

    rgb: Tensor
    depth: Tensor
    opacity: Tensor
    normal: Tensor
    eikonal: Tensor
    free_space: Tensor
    sdf: Tensor
