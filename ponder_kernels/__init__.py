"""Differentiable volume-rendering operators: Triton kernels on a GPU, plain PyTorch everywhere else."""

from ponder_kernels.composite import RayWeights, composite, render_weights
from ponder_kernels.ray_sampling import intersect_aabb, merge_edges, resample_edges, stratified_edges
from ponder_kernels.render import ColourWeights, RayTargets, RenderedRays, render_rays
from ponder_kernels.sdf_density import alpha_from_density, laplace_density, neus_alpha
from ponder_kernels.sdf_field import SdfField, SdfWeights, sdf_field
from ponder_kernels.volume_sample import volume_sample

__all__ = [
    "ColourWeights",
    "RayTargets",
    "RayWeights",
    "RenderedRays",
    "SdfField",
    "SdfWeights",
    "alpha_from_density",
    "composite",
    "intersect_aabb",
    "laplace_density",
    "merge_edges",
    "neus_alpha",
    "render_rays",
    "render_weights",
    "resample_edges",
    "sdf_field",
    "stratified_edges",
    "volume_sample",
]
