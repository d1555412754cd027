"""Pinhole cameras: pixels to rays and back, z-depth to ray depth and back.

OpenCV axes (+x right, +y down, +z forward). Pixel (column i, row j) covers [i, i+1] x [j, j+1] and its centre is
(i + 0.5, j + 0.5); the intrinsics' principal point is in the same coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Centres of all pixels of an image.

    Returns:
        [H, W, 2] float32 (u, v) = (column + 0.5, row + 0.5).
    """
    rows = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    columns = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([u, v], -1)


def camera_directions(pixels: Tensor, intrinsics: Tensor) -> Tensor:
    """Directions with z = 1 in camera axes.

    Args:
        pixels: [..., 2] (u, v) pixel coordinates.
        intrinsics: [..., 3, 3] pinhole matrices broadcastable against the leading dims of `pixels`.

    Returns:
        [..., 3] vectors (x, y, 1); multiplied by the z-depth they are the camera-space points.
    """
    u, v = pixels.unbind(-1)
    fx, fy = intrinsics[..., 0, 0], intrinsics[..., 1, 1]
    cx, cy, skew = intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 0, 1]
    y = (v - cy) / fy
    x = (u - cx - skew * y) / fx
    return torch.stack([x, y, torch.ones_like(x)], -1)


def rays_through_pixels(pixels: Tensor, intrinsics: Tensor, camera_to_world: Tensor) -> tuple[Tensor, Tensor]:
    """World-space rays through pixels.

    Args:
        pixels: [..., 2] (u, v).
        intrinsics: [..., 3, 3].
        camera_to_world: [..., 4, 4] rigid poses.

    Returns:
        origins [..., 3] in metres and unit directions [..., 3].
    """
    camera = camera_directions(pixels, intrinsics)
    rotated = (camera_to_world[..., :3, :3] @ camera.unsqueeze(-1)).squeeze(-1)
    directions = torch.nn.functional.normalize(rotated, dim=-1)
    origins = camera_to_world[..., :3, 3].expand_as(directions)
    return origins, directions


def z_depth_to_ray_depth(z_depth: Tensor, pixels: Tensor, intrinsics: Tensor) -> Tensor:
    """Distance along the unit ray of a point given by its z-depth; 0 (missing) stays 0."""
    return z_depth * camera_directions(pixels, intrinsics).norm(dim=-1)


def ray_depth_to_z_depth(ray_depth: Tensor, pixels: Tensor, intrinsics: Tensor) -> Tensor:
    """Inverse of `z_depth_to_ray_depth`."""
    return ray_depth / camera_directions(pixels, intrinsics).norm(dim=-1)


def unproject_depth(z_depth: Tensor, intrinsics: Tensor, camera_to_world: Tensor) -> Tensor:
    """World-space point of every pixel.

    Args:
        z_depth: [..., H, W] metres; missing pixels (0) map to the camera centre.
        intrinsics: [..., 3, 3].
        camera_to_world: [..., 4, 4].

    Returns:
        [..., H, W, 3] metres.
    """
    height, width = z_depth.shape[-2:]
    pixels = pixel_grid(height, width, z_depth.device)
    camera = camera_directions(pixels, intrinsics[..., None, None, :, :]) * z_depth.unsqueeze(-1)
    # One product per view, not one 3x3 product per pixel.
    world = camera.flatten(-3, -2) @ camera_to_world[..., :3, :3].mT + camera_to_world[..., None, :3, 3]
    return world.unflatten(-2, (height, width))


def project_points(points: Tensor, intrinsics: Tensor, camera_to_world: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates and z-depth of world points in one camera.

    Args:
        points: [N, 3] metres.
        intrinsics: [3, 3].
        camera_to_world: [4, 4].

    Returns:
        pixels [N, 2] and z_depth [N] (negative behind the camera, where the pixels mean nothing).
    """
    camera = (points - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]
    z_depth = camera[:, 2]
    safe = torch.where(z_depth.abs() < 1e-9, torch.full_like(z_depth, 1e-9), z_depth)
    homogeneous = (camera / safe.unsqueeze(-1)) @ intrinsics.T
    return homogeneous[:, :2], z_depth


def resize_intrinsics(intrinsics: Tensor, scale_x: float, scale_y: float) -> Tensor:
    """Intrinsics of an image resized by (scale_x, scale_y); exact because pixel centres sit at +0.5."""
    factors = intrinsics.new_tensor([scale_x, scale_y, 1.0])
    return intrinsics * factors[:, None]
