"""Where to put samples on rays: box intersection, stratified bins, inverse-CDF resampling, merging."""

from ponder_kernels.ray_sampling.op import intersect_aabb, merge_edges, resample_edges, stratified_edges
from ponder_kernels.ray_sampling.reference import SPACINGS, RayInterval

__all__ = ["SPACINGS", "RayInterval", "intersect_aabb", "merge_edges", "resample_edges", "stratified_edges"]
