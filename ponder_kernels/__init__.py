"""Differentiable volume-rendering operators: Triton kernels on a GPU, plain PyTorch everywhere else."""

from ponder_kernels.ray_sampling import intersect_aabb, merge_edges, resample_edges, stratified_edges
from ponder_kernels.render import ColourWeights, RayTargets, RenderedRays, render_rays
from ponder_kernels.sdf_field import SdfField, SdfWeights, sdf_field

__all__ = [
    "ColourWeights",
    "RayTargets",
    "RenderedRays",
    "SdfField",
    "SdfWeights",
    "intersect_aabb",
    "merge_edges",
    "render_rays",
    "resample_edges",
    "sdf_field",
    "stratified_edges",
]
