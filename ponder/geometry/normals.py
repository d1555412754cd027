"""Surface normals of depth maps: a local plane fit in inverse depth.

On a plane the inverse z-depth is an affine function of the pixel, 1 / z = a u + b v + c, whatever the
perspective. A weighted least-squares fit of that function over a window around each pixel is therefore exact
on planes and averages sensor noise over the whole window, which differences of single pixels do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ponder.geometry.cameras import camera_directions, pixel_grid

# Half width of the window in taps. Seven by seven taps at 320 x 240 turn 3 mm of noise into a few degrees.
_MAX_RADIUS = 3
# The image width at which neighbouring taps are neighbouring pixels; wider images space their taps, so that
# the window covers the same angle and the cost per pixel stays the same.
_REFERENCE_WIDTH = 320
# A neighbour farther in relative depth than this slope (tangent of 76 degrees) allows lies on another
# surface.
_MAX_SLOPE = 4.0
# Relative depth difference that sensor noise and quantisation alone produce between neighbours.
_NOISE_FLOOR = 0.01
# Residual of a trustworthy plane fit, relative to the depth; above it the window mixes surfaces.
_MAX_RESIDUAL = 0.008
# Smaller support, in number of taps or in the smaller spread of the support over that of a full window,
# leaves one direction of the plane undetermined.
_MIN_SUPPORT_SHARE = 0.3
_MIN_SPREAD_SHARE = 0.1
# Rows fitted at a time: all taps of a strip of a 320-wide image then fit into a processor's cache.
_STRIP_ROWS = 40


def window(width: int) -> tuple[int, int]:
    """Taps of the fitting window of an image.

    Returns:
        (radius in taps, spacing of taps in pixels); both grow with the image width.
    """
    radius = min(max(round(_MAX_RADIUS * width / _REFERENCE_WIDTH), 1), _MAX_RADIUS)
    return radius, max(round(width / _REFERENCE_WIDTH), 1)


def _window_moments(z_depth: Tensor, focal: float) -> Tensor:
    """Sums over the taps on the surface of each pixel.

    Args:
        z_depth: [H, W] metres, 0 = missing.
        focal: pixels.

    Returns:
        [10, H, W] sums of 1, u, v, uu, uv, vv, d, ud, vd, dd with (u, v) the tap's offset in pixels and d its
        relative inverse depth z / z_tap - 1.
    """
    height, width = z_depth.shape
    radius, spacing = window(width)
    reach = radius * spacing
    offsets = torch.arange(-reach, reach + 1, spacing, dtype=z_depth.dtype, device=z_depth.device)
    v, u = (grid.flatten() for grid in torch.meshgrid(offsets, offsets, indexing="ij"))
    basis = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v])
    limit = (_NOISE_FLOOR + _MAX_SLOPE / focal * (u * u + v * v).sqrt()).reshape(len(offsets), -1, 1, 1)
    # Missing taps have inverse depth 0, hence d = -1, which no limit lets through.
    inverse = torch.where(z_depth > 0, 1 / z_depth.clamp(min=1e-6), 0.0)
    padded = torch.nn.functional.pad(inverse, (reach,) * 4)
    sums = []
    for top in range(0, height, _STRIP_ROWS):
        strip = z_depth[top : top + _STRIP_ROWS]
        rows = strip.shape[0]
        taps = padded[top : top + rows + 2 * reach].unfold(0, rows, spacing).unfold(1, width, spacing)
        # [rows of taps, columns of taps, rows, W]
        d = taps * strip - 1
        same = (d.abs() <= limit).to(d.dtype)
        d = (d * same).reshape(len(u), -1)
        moments = [basis @ same.reshape(len(u), -1), basis[:3] @ d, d.square().sum(0, keepdim=True)]
        sums.append(torch.cat(moments).reshape(10, rows, width))
    return torch.cat(sums, 1)


def _fit_planes(sums: Tensor, taps: int, full_spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve the 3x3 normal equations of each pixel.

    Args:
        sums: [10, H, W] from `_window_moments`.
        taps: taps of a full window.
        full_spread: variance of a full window's offsets along one axis, pixels squared.

    Returns:
        slope_u, slope_v [H, W] (relative inverse depth per pixel), the fitted value at the pixel itself [H,
        W], and the mask [H, W] of well determined fits.
    """
    count = sums[0].clamp(min=1)
    mean_u, mean_v, uu, uv, vv, mean_d, ud, vd, dd = (sums[1:] / count).unbind(0)
    uu, uv, vv = uu - mean_u * mean_u, uv - mean_u * mean_v, vv - mean_v * mean_v
    ud, vd, dd = ud - mean_u * mean_d, vd - mean_v * mean_d, dd - mean_d * mean_d
    determinant = uu * vv - uv * uv
    # Smaller eigenvalue of the 2x2 covariance of the support: zero where all taps lie on one line.
    half_trace = (uu + vv) / 2
    spread = half_trace - (half_trace * half_trace - determinant).clamp(min=0).sqrt()
    solvable = (sums[0] >= _MIN_SUPPORT_SHARE * taps) & (spread >= _MIN_SPREAD_SHARE * full_spread)
    safe = torch.where(solvable, determinant, 1.0)
    slope_u = (ud * vv - vd * uv) / safe
    slope_v = (vd * uu - ud * uv) / safe
    residual = (dd - slope_u * ud - slope_v * vd).clamp(min=0).sqrt()
    value = 1 + mean_d - slope_u * mean_u - slope_v * mean_v
    return slope_u, slope_v, value, solvable & (residual <= _MAX_RESIDUAL) & (value > 0)


def _camera_normals(z_depth: Tensor, intrinsics: Tensor) -> Tensor:
    """[H, W, 3] unit normals in camera axes facing the camera, 0 where unknown, of one [H, W] depth map."""
    height, width = z_depth.shape
    radius, spacing = window(width)
    sums = _window_moments(z_depth, float(intrinsics[0, 0].abs()))
    full_spread = spacing**2 * radius * (radius + 1) / 3
    slope_u, slope_v, value, known = _fit_planes(sums, (2 * radius + 1) ** 2, full_spread)
    # 1 / z = n . (x, y, 1) / distance with (x, y) the pixel's direction, so n is the gradient in (x, y)
    # completed by # the value at the pixel; it points away from the camera by construction.
    x, y, _ = camera_directions(pixel_grid(height, width, z_depth.device), intrinsics).unbind(-1)
    normal_x = slope_u * intrinsics[0, 0]
    normal_y = slope_u * intrinsics[0, 1] + slope_v * intrinsics[1, 1]
    outward = torch.stack([normal_x, normal_y, value - normal_x * x - normal_y * y], -1)
    return torch.where(known[..., None], -torch.nn.functional.normalize(outward, dim=-1), 0.0)


def normals_from_depth(z_depth: Tensor, intrinsics: Tensor, camera_to_world: Tensor) -> Tensor:
    """World-frame unit normals of depth maps, facing the camera.

    A plane is fitted to each pixel and those of its 7 x 7 taps (fewer in images narrower than 320) that lie
    on the same surface. The normal is unknown where the depth is missing, where too few taps lie on the
    pixel's surface, and where no plane fits, as on the edges between surfaces closer together than the
    discontinuity test resolves.

    Args:
        z_depth: [..., H, W] float metres, 0 = missing.
        intrinsics: [..., 3, 3] pixels, centres at +0.5; leading dims broadcast against those of `z_depth`.
        camera_to_world: [..., 4, 4] rigid; leading dims broadcast likewise.

    Returns:
        [..., H, W, 3] unit vectors towards the camera's side, 0 = unknown.

    Raises:
        ValueError: `z_depth` has fewer than two dims, or the matrices do not end in [3, 3] and [4, 4].
    """
    if z_depth.ndim < 2:
        raise ValueError(f"z_depth: expected shape [..., H, W], got {list(z_depth.shape)}")
    if intrinsics.shape[-2:] != (3, 3):
        raise ValueError(f"intrinsics: expected shape [..., 3, 3], got {list(intrinsics.shape)}")
    if camera_to_world.shape[-2:] != (4, 4):
        raise ValueError(f"camera_to_world: expected shape [..., 4, 4], got {list(camera_to_world.shape)}")
    leading = z_depth.shape[:-2]
    maps = z_depth.reshape(-1, *z_depth.shape[-2:])
    cameras = intrinsics.expand(*leading, 3, 3).reshape(-1, 3, 3)
    rotations = camera_to_world.expand(*leading, 4, 4).reshape(-1, 4, 4)[:, :3, :3]
    out = z_depth.new_zeros(*maps.shape, 3)
    for index in range(maps.shape[0]):
        out[index] = _camera_normals(maps[index], cameras[index]) @ rotations[index].T
    return out.reshape(*z_depth.shape, 3)
