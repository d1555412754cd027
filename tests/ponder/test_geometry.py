"""Cameras, poses and normals against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ponder.geometry import (
    interpolate_poses,
    look_at,
    nearest_rotation,
    pixel_grid,
    project_points,
    ray_depth_to_z_depth,
    rays_through_pixels,
    resize_intrinsics,
    rigid_error,
    unproject_depth,
    z_depth_to_ray_depth,
)
from ponder.geometry.normals import normals_from_depth, window
from tests.ponder.rgbd_writer import camera, orbit, render

SKEWED = torch.tensor([[130.0, 2.0, 70.0], [0.0, 120.0, 44.0], [0.0, 0.0, 1.0]])


def turn(axis: tuple[float, float, float], angle: float) -> Tensor:
    """[3, 3] float64 rotation."""
    x, y, z = (torch.tensor(axis, dtype=torch.float64) / math.sqrt(sum(a * a for a in axis))).tolist()
    return torch.linalg.matrix_exp(angle * torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def pose_of(rotation: Tensor, position: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """[4, 4] of the rotation's dtype."""
    pose = torch.eye(4, dtype=rotation.dtype)
    pose[:3, :3] = rotation
    pose[:3, 3] = torch.tensor(position)
    return pose


def plane_depth(normal: Tensor, distance: float, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """[H, W] z-depth of the plane n . p = -distance in camera axes, n towards the camera; 0 behind it."""
    pixels = torch.cat([pixel_grid(height, width), torch.ones(height, width, 1)], -1).double()
    rays = pixels @ torch.linalg.inv(intrinsics.double()).T
    z_depth = -distance / (rays @ normal.double())
    return torch.where(z_depth > 0, z_depth, 0.0).float()


def angles(normals: Tensor, expected: Tensor) -> Tensor:
    """Degrees between unit vectors."""
    return torch.rad2deg(2 * torch.asin(((normals - expected).norm(dim=-1) / 2).clamp(max=1)))


def test_pixel_centres() -> None:
    grid = pixel_grid(2, 3)
    assert grid.shape == (2, 3, 2)
    assert grid[0, 0].tolist() == [0.5, 0.5]
    assert grid[1, 2].tolist() == [2.5, 1.5]


def test_unproject_and_project_are_inverse() -> None:
    pose = orbit(5)[2]
    generator = torch.Generator().manual_seed(0)
    z_depth = 0.5 + 3 * torch.rand(20, 30, generator=generator)
    points = unproject_depth(z_depth, SKEWED, pose).reshape(-1, 3)
    pixels, depth = project_points(points, SKEWED, pose)
    torch.testing.assert_close(depth, z_depth.flatten())
    torch.testing.assert_close(pixels, pixel_grid(20, 30).reshape(-1, 2), atol=1e-3, rtol=1e-5)


def test_unproject_batches_views() -> None:
    poses = orbit(3)
    z_depth = torch.rand(3, 4, 5) + 1
    together = unproject_depth(z_depth, SKEWED.expand(3, 3, 3), poses)
    alone = torch.stack([unproject_depth(z, SKEWED, pose) for z, pose in zip(z_depth, poses, strict=True)])
    torch.testing.assert_close(together, alone)


def test_missing_depth_maps_to_the_camera_centre() -> None:
    pose = orbit(3)[1]
    points = unproject_depth(torch.zeros(2, 2), SKEWED, pose)
    torch.testing.assert_close(points, pose[:3, 3].expand(2, 2, 3))


def test_points_behind_the_camera_have_negative_depth() -> None:
    pixels, depth = project_points(torch.tensor([[0.1, 0.2, -3.0], [0.0, 0.0, 0.0]]), SKEWED, torch.eye(4))
    assert depth.tolist() == [-3.0, 0.0]
    assert torch.isfinite(pixels).all()


def test_rays_reach_the_unprojected_points() -> None:
    pose = orbit(4)[3]
    pixels = pixel_grid(6, 8)
    z_depth = torch.rand(6, 8) + 1
    origins, directions = rays_through_pixels(pixels, SKEWED, pose)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(6, 8))
    ray_depth = z_depth_to_ray_depth(z_depth, pixels, SKEWED)
    torch.testing.assert_close(origins + ray_depth[..., None] * directions, unproject_depth(z_depth, SKEWED, pose))
    torch.testing.assert_close(ray_depth_to_z_depth(ray_depth, pixels, SKEWED), z_depth)
    assert (ray_depth >= z_depth).all()
    assert z_depth_to_ray_depth(torch.zeros(6, 8), pixels, SKEWED).abs().max() == 0


@pytest.mark.parametrize(("scale_x", "scale_y"), [(0.5, 0.5), (1 / 3, 0.4), (2.0, 2.0)])
def test_resized_intrinsics_see_the_same_rays(scale_x: float, scale_y: float) -> None:
    resized = resize_intrinsics(SKEWED, scale_x, scale_y)
    points = torch.tensor([[0.3, -0.2, 1.5], [0.0, 0.4, 2.0]])
    before, _ = project_points(points, SKEWED, torch.eye(4))
    after, _ = project_points(points, resized, torch.eye(4))
    torch.testing.assert_close(after, before * torch.tensor([scale_x, scale_y]))


def test_look_at() -> None:
    eye, target = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([-1.0, 0.0, 0.0])
    pose = look_at(eye, target, torch.tensor([0.0, 0.0, 1.0]))
    assert rigid_error(pose) < 1e-6
    pixels, depth = project_points(target[None], SKEWED, pose)
    torch.testing.assert_close(depth, (target - eye).norm()[None])
    torch.testing.assert_close(pixels, SKEWED[:2, 2][None], atol=1e-4, rtol=0)
    above, _ = project_points(target[None] + torch.tensor([0.0, 0.0, 0.1]), SKEWED, pose)
    assert above[0, 1] < pixels[0, 1], "image rows grow downwards"


@pytest.mark.parametrize(
    ("target", "up"),
    [((0.0, 0.0, -1.0), (0.0, 0.0, 1.0)), ((0.3, -0.2, 0.9), (0.6, -0.4, 1.8)), ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
     ((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))],
)  # fmt: skip
def test_look_at_refuses_an_undetermined_roll(target: tuple[float, ...], up: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="up: expected a direction across the view from eye"):
        look_at(torch.zeros(3), torch.tensor(target), torch.tensor(up))


def test_look_at_takes_a_short_or_nearly_parallel_up() -> None:
    for up in ((0.0, 0.0, 1e-6), (0.001, 0.0, 1.0)):
        assert rigid_error(look_at(torch.zeros(3), torch.tensor([0.0, 1e-3, 1.0]), torch.tensor(up))) < 1e-6


@pytest.mark.parametrize(
    ("change", "least"), [("none", 0.0), ("scale", 0.01), ("mirror", 1.9), ("shear", 0.04), ("row", 0.5)]
)
def test_rigid_error(change: str, least: float) -> None:
    pose = pose_of(turn((1, 2, 3), 0.7), (4.0, -5.0, 6.0))
    if change == "scale":
        pose[:3, :3] *= 1.01
    elif change == "mirror":
        pose[:3, 0] *= -1
    elif change == "shear":
        pose[:3, 0] += 0.05 * pose[:3, 1]
    elif change == "row":
        pose[3, 0] = 0.5
    assert (rigid_error(pose) < 1e-12) if change == "none" else (rigid_error(pose) >= least)


def test_rigid_error_of_numbers_that_are_not_finite() -> None:
    pose = torch.eye(4)
    pose[1, 3] = float("nan")
    assert rigid_error(pose) == math.inf


def test_nearest_rotation() -> None:
    rotation = turn((0.2, -1.0, 0.5), 2.0)
    noise = 1e-3 * torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    near = nearest_rotation(rotation + noise)
    assert rigid_error(pose_of(near)) < 1e-12
    assert (near - rotation).abs().max() < 2e-3
    torch.testing.assert_close(nearest_rotation(3 * rotation), rotation)
    assert torch.linalg.det(nearest_rotation(-rotation)) > 0


@pytest.mark.parametrize("angle", [0.0, 1e-8, 0.5, 2.0, math.pi - 1e-6, math.pi])
def test_interpolated_rotation_turns_evenly(angle: float) -> None:
    first = pose_of(turn((1, 0, 1), 0.4), (0.0, 0.0, 0.0))
    last = pose_of(first[:3, :3] @ turn((0.3, 1.0, -0.2), angle), (1.0, 2.0, 3.0))
    path = interpolate_poses(torch.stack([first, last]), 5)
    assert path.shape == (5, 4, 4)
    assert max(rigid_error(pose) for pose in path) < 1e-6
    torch.testing.assert_close(path[0], first, atol=1e-6, rtol=0)
    torch.testing.assert_close(path[-1], last, atol=1e-5, rtol=0)
    torch.testing.assert_close(path[2, :3, 3], torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64))
    # Nearly half a turn may be taken either way round, but always in equal steps.
    cosines = [(torch.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2 for a, b in pairwise(path)]
    for cosine in cosines:
        assert float(cosine) == pytest.approx(math.cos(angle / 4), abs=1e-4)


def test_interpolate_one_pose_and_bad_arguments() -> None:
    pose = orbit(1)
    torch.testing.assert_close(interpolate_poses(pose, 3), pose.expand(3, 4, 4))
    assert interpolate_poses(orbit(3), 1).shape == (1, 4, 4)
    with pytest.raises(ValueError, match=r"poses: expected shape \[K, 4, 4\] with K >= 1, got \[4, 4\]"):
        interpolate_poses(torch.eye(4), 2)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        interpolate_poses(pose, 0)


@pytest.mark.parametrize(
    ("width", "tilt"), [(64, 30.0), (160, 0.0), (160, 60.0), (320, 30.0), (320, 60.0), (320, 72.0), (640, 60.0)]
)
def test_normals_of_planes_are_exact(width: int, tilt: float) -> None:
    height = width * 3 // 4
    intrinsics = camera(width, height).float()
    radians = math.radians(tilt)
    # Tilted about a slanted axis, so that both image directions matter.
    side = torch.tensor([0.6, 0.8, 0.0]) * math.sin(radians)
    normal = side + torch.tensor([0.0, 0.0, -math.cos(radians)])
    z_depth = plane_depth(normal, 2.0 * math.cos(radians), intrinsics, height, width)
    z_depth = torch.where(z_depth < 8, z_depth, 0.0)
    pose = orbit(5)[1]
    normals = normals_from_depth(z_depth, intrinsics, pose)
    known = normals.norm(dim=-1) > 0.5
    # At a grazing angle neighbouring pixels are decimetres apart and may rightly be called discontinuous.
    grazing = (z_depth > 5) | (z_depth == 0)
    assert known[~grazing].float().mean() > 0.9
    assert angles(normals[known], pose[:3, :3] @ normal).max() < 1.0


def test_normals_with_skew() -> None:
    normal = torch.nn.functional.normalize(torch.tensor([0.4, -0.3, -1.0]), dim=0)
    intrinsics = SKEWED + torch.tensor([[0.0, 15.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    z_depth = plane_depth(normal, 1.5, intrinsics, 90, 140)
    normals = normals_from_depth(z_depth, intrinsics, torch.eye(4))
    assert angles(normals, normal).max() < 1.0


@pytest.mark.parametrize("distance", [1.0, 2.0, 4.0])
def test_normals_survive_sensor_noise(distance: float) -> None:
    intrinsics = camera(320, 240).float()
    normal = torch.nn.functional.normalize(torch.tensor([0.5, 0.4, -1.0]), dim=0)
    z_depth = plane_depth(normal, distance, intrinsics, 240, 320)
    noise = 0.003 * torch.randn(240, 320, generator=torch.Generator().manual_seed(0))
    normals = normals_from_depth(z_depth + noise, intrinsics, torch.eye(4))
    known = normals.norm(dim=-1) > 0.5
    assert known.float().mean() > 0.98
    assert angles(normals[known], normal).median() < 10.0


def test_normals_do_not_mix_surfaces() -> None:
    intrinsics, pose = camera(320, 240), orbit(4)[0]
    z_depth, _, expected = render(pose, intrinsics, 240, 320)
    normals = normals_from_depth(z_depth, intrinsics.float(), pose)
    known = normals.norm(dim=-1) > 0.5
    error = angles(normals, expected)
    assert known.float().mean() > 0.97
    # Only creases, where two faces meet without a jump in depth, are rounded off.
    assert (error[known] < 1.0).float().mean() > 0.93
    jump = torch.zeros_like(known)
    jump[:, 1:] |= (z_depth[:, 1:] / z_depth[:, :-1] - 1).abs() > 0.15
    assert jump.sum() > 50
    assert error[known & jump].median() < 1.0


def test_normals_are_zero_where_unknown() -> None:
    intrinsics = camera(160, 120).float()
    z_depth = torch.full((120, 160), 2.0)
    z_depth[:, 80:] = 0
    z_depth[50, 100] = 2.0
    normals = normals_from_depth(z_depth, intrinsics, torch.eye(4))
    assert normals[:, 80:].abs().max() == 0, "missing pixels, and a single one amid missing ones"
    torch.testing.assert_close(normals[:, :80], torch.tensor([0.0, 0.0, -1.0]).expand(120, 80, 3))
    assert normals_from_depth(torch.zeros(4, 4), intrinsics, torch.eye(4)).abs().max() == 0


def test_normals_face_the_camera_and_batch() -> None:
    intrinsics, poses = camera(80, 60).float(), orbit(3)
    z_depth = torch.stack([render(pose, intrinsics, 60, 80)[0] for pose in poses])
    together = normals_from_depth(z_depth, intrinsics, poses)
    alone = torch.stack([normals_from_depth(z, intrinsics, pose) for z, pose in zip(z_depth, poses, strict=True)])
    assert torch.equal(together, alone)
    nested = normals_from_depth(z_depth[None], intrinsics.expand(1, 3, 3, 3), poses[None])
    assert torch.equal(nested[0], together)
    view = unproject_depth(z_depth, intrinsics, poses) - poses[:, None, None, :3, 3]
    assert ((together * view).sum(-1) <= 0).all()


def test_normal_window_covers_the_same_angle() -> None:
    assert window(320) == (3, 1)
    assert window(640) == (3, 2)
    assert window(160) == (2, 1)
    assert window(8) == (1, 1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (3, 3), (4, 4)), r"z_depth: expected shape \[..., H, W\], got \[4\]"),
        (((4, 4), (4, 4), (4, 4)), r"intrinsics: expected shape \[..., 3, 3\], got \[4, 4\]"),
        (((4, 4), (3, 3), (3, 4)), r"camera_to_world: expected shape \[..., 4, 4\], got \[3, 4\]"),
    ],
)
def test_normals_refuse_wrong_shapes(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normals_from_depth(*(torch.ones(shape) for shape in shapes))
