"""Cameras, poses and scene boxes: pure functions on tensors. OpenCV axes, metres, pixel centres at +0.5."""

from ponder.geometry.cameras import (
    pixel_grid,
    project_points,
    ray_depth_to_z_depth,
    rays_through_pixels,
    resize_intrinsics,
    unproject_depth,
    z_depth_to_ray_depth,
)
from ponder.geometry.normals import normals_from_depth
from ponder.geometry.poses import interpolate_poses, look_at, nearest_rotation, rigid_error

__all__ = [
    "interpolate_poses",
    "look_at",
    "nearest_rotation",
    "normals_from_depth",
    "pixel_grid",
    "project_points",
    "ray_depth_to_z_depth",
    "rays_through_pixels",
    "resize_intrinsics",
    "rigid_error",
    "unproject_depth",
    "z_depth_to_ray_depth",
]
