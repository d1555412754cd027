"""Inputs and outputs of `render_rays`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ponder_kernels.sdf_field.chain import Layer


class HeadWeights(NamedTuple):
    """A decoder on top of the SDF: colour, semantics, any per-pixel feature. ReLU between its layers.

    Its input has, in this order, the columns [SDF gradient 3 | features Cr | geometry features G | direction 3 |
    points 3]: Cr channels of the volume that the SDF does not read (or, in a shared volume, all channels), G rows of
    the SDF decoder after the first, the last two only where `directed` and `FieldWeights.points` say so.

    Attributes:
        layers: affine layers, O outputs in the last. Without sigmoid the last is applied once per ray, which is exact;
            time and memory per sample then do not depend on O.
        directed: whether it sees the ray's direction.
        sigmoid: whether its output passes a sigmoid.
    """

    layers: tuple[Layer, ...]
    directed: bool = False
    sigmoid: bool = False


class FieldWeights(NamedTuple):
    """The decoders of a neural field.

    Attributes:
        sdf: layers with PonderV2's softplus (sharpness 100) between them, on [features Cs | points 3]; the rows of the
            last are [sdf, G geometry features].
        heads: decoders that are rendered.
        shared: whether the heads read the same channels as the SDF (else the SDF reads the first Cs channels and the
            heads the others).
        points: whether all decoders see the points, as the last columns of their input.
    """

    sdf: tuple[Layer, ...]
    heads: tuple[HeadWeights, ...] = ()
    shared: bool = False
    points: bool = False


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


class SampleOutputs(NamedTuple):
    """Per-sample values: weights and sdf [B, R, S], gradient of the SDF [B, R, S, 3]."""

    weights: Tensor
    sdf: Tensor
    gradient: Tensor


class RenderedRays(NamedTuple):
    """Rendered pixels and reduced loss terms.

    Attributes:
        heads: [B, R, O] per head, weighted sums of its outputs on a black background.
        depth: [B, R] expected distance along the unit ray, 0 on a missed ray.
        opacity: [B, R] sum of the weights.
        normal: [B, R, 3] weighted sum of unit SDF gradients, not renormalised.
        eikonal: [] mean (|gradient| - 1)^2 over the samples of rays that hit the box.
        free_space: [] mean relu(truncation - sdf) over samples in front of the band; 0 without targets.
        sdf: [] mean |sdf - target| over samples in the band; 0 without targets.
        samples: per-sample values, None unless asked for.
    """

    heads: tuple[Tensor, ...]
    depth: Tensor
    opacity: Tensor
    normal: Tensor
    eikonal: Tensor
    free_space: Tensor
    sdf: Tensor
    samples: SampleOutputs | None = None

    @property
    def rgb(self) -> Tensor:
        """[B, R, 3] output of the first head, the colour by convention."""
        return self.heads[0]
