"""Whole rays to pixels and loss terms."""

from ponder_kernels.render.chunk import Normalisation
from ponder_kernels.render.op import render_rays
from ponder_kernels.render.types import FieldWeights, HeadWeights, RayTargets, RenderedRays, SampleOutputs

__all__ = ["FieldWeights", "HeadWeights", "Normalisation", "RayTargets", "RenderedRays", "SampleOutputs", "render_rays"]
