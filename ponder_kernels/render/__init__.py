"""Whole rays to pixels and reduced loss terms, recomputed in the backward pass."""

from ponder_kernels.render.op import render_rays
from ponder_kernels.render.types import ColourWeights, RayTargets, RenderedRays

__all__ = ["ColourWeights", "RayTargets", "RenderedRays", "render_rays"]
