"""Where to put samples on rays: box intersection, stratified bins, inverse-CDF resampling."""

from ponder_kernels.ray_sampling.reference import (
    intersect_aabb,
    merge_edges,
    resample_edges,
    stratified_edges,
)

__all__ = ["intersect_aabb", "merge_edges", "resample_edges", "stratified_edges"]
