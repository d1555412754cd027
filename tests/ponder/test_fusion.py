"""Fusing views into a cloud, and the rule that holds frames out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ponder.data.fusion import fuse_frames
from ponder.data.scene import DataError, Frames
from ponder.data.split import split_by_order
from tests.ponder.rgbd_writer import camera, orbit, paint, render, surface_distance


def exact_frames(count: int = 4, width: int = 160, height: int = 120) -> Frames:
    """Views of the generated room without any rounding of the depth."""
    intrinsics, poses = camera(width, height), orbit(count)
    views = [render(pose, intrinsics, height, width) for pose in poses]
    return Frames(
        names=tuple(str(k) for k in range(count)),
        rgb=torch.stack([(colour * 255).round().to(torch.uint8) for _, colour, _ in views]),
        z_depth=torch.stack([z for z, _, _ in views]),
        normal=torch.stack([normal for _, _, normal in views]),
        intrinsics=intrinsics.float().repeat(count, 1, 1),
        camera_to_world=poses,
    )


def flat_frame(z: float = 1.0, colour: int = 128) -> Frames:
    """One 4x4 view along +z of a wall, all its pixels within one 20 cm voxel."""
    z_depth = torch.full((1, 4, 4), z)
    normal = torch.tensor([0.0, 0.0, -1.0]).expand(1, 4, 4, 3)
    pose = torch.eye(4)[None]
    pose[0, :3, 3] = 0.01
    intrinsics = torch.tensor([[[100.0, 0, 0], [0, 100.0, 0], [0, 0, 1]]])
    rgb = torch.full((1, 4, 4, 3), colour, dtype=torch.uint8)
    return Frames(("only",), rgb, z_depth, normal, intrinsics, pose)


def test_cloud_lies_on_the_analytic_surface() -> None:
    cloud = fuse_frames(exact_frames(), voxel_size=0.03)
    assert len(cloud) > 3000
    distance = surface_distance(cloud.coord)
    # A voxel on an edge of the block averages over two faces; all others lie on their face.
    assert distance.quantile(0.98) < 1e-4
    assert distance.max() < 0.03
    assert cloud.coord.dtype == cloud.colour.dtype == cloud.normal.dtype == torch.float32


def test_cloud_carries_colour_and_normals() -> None:
    cloud = fuse_frames(exact_frames(), voxel_size=0.03)
    assert (cloud.colour - paint(cloud.coord)).abs().median() < 2 / 255
    length = cloud.normal.norm(dim=1)
    torch.testing.assert_close(length, torch.ones_like(length))
    axis_aligned = cloud.normal.abs().amax(1) > 0.999
    assert axis_aligned.float().mean() > 0.95


def test_voxel_averages_by_hand() -> None:
    frame = flat_frame()
    cloud = fuse_frames(frame, voxel_size=0.2)
    assert len(cloud) == 1
    # Pixel centres 0.5 .. 3.5 at focal length 100 and depth 1 average to 0.02, plus the camera at 0.01.
    torch.testing.assert_close(cloud.coord, torch.tensor([[0.03, 0.03, 1.01]]))
    torch.testing.assert_close(cloud.colour, torch.full((1, 3), 128 / 255))
    torch.testing.assert_close(cloud.normal, torch.tensor([[0.0, 0.0, -1.0]]))


def test_unknown_normals_do_not_dilute_the_known_ones() -> None:
    frame = flat_frame()
    normal = frame.normal.clone()
    normal.flatten(0, 2)[1:] = 0
    cloud = fuse_frames(replace(frame, normal=normal), voxel_size=0.2)
    torch.testing.assert_close(cloud.normal, torch.tensor([[0.0, 0.0, -1.0]]))


@pytest.mark.parametrize("case", ["none known", "cancelling"])
def test_meaningless_normal_is_zero(case: str) -> None:
    frame = flat_frame()
    normal = frame.normal.clone()
    if case == "cancelling":
        normal[0, :2] *= -1
    else:
        normal[:] = 0
    cloud = fuse_frames(replace(frame, normal=normal), voxel_size=0.2)
    assert cloud.normal.abs().max() == 0


def test_isolated_voxels_are_dropped() -> None:
    frame = flat_frame()
    z_depth = frame.z_depth.clone()
    z_depth[0, 0, 0] = 2.0
    frame = replace(frame, z_depth=z_depth)
    assert len(fuse_frames(frame, voxel_size=0.2, min_points=1)) == 2
    kept = fuse_frames(frame, voxel_size=0.2, min_points=2)
    assert len(kept) == 1
    assert kept.coord[0, 2] < 1.1


def test_max_depth_drops_far_pixels() -> None:
    frame = flat_frame()
    z_depth = frame.z_depth.clone()
    z_depth[0, 0] = 3.0
    cloud = fuse_frames(replace(frame, z_depth=z_depth), voxel_size=0.2, max_depth=2.0, min_points=1)
    assert cloud.coord[:, 2].max() < 1.1


def test_result_is_repeatable_and_sorted() -> None:
    frames = exact_frames(3, 80, 60)
    first, second = fuse_frames(frames, voxel_size=0.05), fuse_frames(frames, voxel_size=0.05)
    for name in ("coord", "colour", "normal"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    cells = (first.coord.double() / 0.05).floor().long().tolist()
    assert cells == sorted(cells)
    assert len({tuple(cell) for cell in cells}) == len(cells)


def test_order_of_views_changes_rounding_only() -> None:
    frames = exact_frames(3, 80, 60)
    first = fuse_frames(frames, voxel_size=0.05)
    second = fuse_frames(frames.select([2, 0, 1]), voxel_size=0.05)
    torch.testing.assert_close(first.coord, second.coord)
    torch.testing.assert_close(first.colour, second.colour)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_size": 0.0}, "voxel_size: expected a positive number of metres, got 0.0"),
        ({"voxel_size": float("nan")}, "voxel_size: expected a positive"),
        ({"max_depth": -1.0}, "max_depth: expected a positive number of metres, got -1.0"),
        ({"min_points": 0}, "min_points: expected at least 1, got 0"),
        ({"max_depth": 0.5}, "frames: expected a voxel of .* nearer than 0.5 m, got none among 1 views"),
        ({"min_points": 17, "voxel_size": 0.2}, "seen by at least 17 pixels"),
        ({"voxel_size": 1e-8}, "frames: expected points within .* of the world origin"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fuse_frames(flat_frame(), **options)


def test_no_views_and_not_finite_points() -> None:
    frame = flat_frame()
    with pytest.raises(DataError, match="frames: expected at least one view to fuse, got none"):
        fuse_frames(frame.select([]))
    pose = frame.camera_to_world.clone()
    pose[0, 0, 3] = float("nan")
    with pytest.raises(DataError, match="frames: expected points within"):
        fuse_frames(replace(frame, camera_to_world=pose))


@pytest.mark.parametrize(
    ("count", "every", "heldout"),
    [(50, 10, [5, 15, 25, 35, 45]), (10, 4, [2, 6]), (4, 2, [1, 3]), (3, 2, [1]), (3, 10, [1]), (5, 10, [2])],
)
def test_split_rule(count: int, every: int, heldout: list[int]) -> None:
    train, kept_out = split_by_order(count, every)
    assert kept_out == heldout
    assert sorted(train + kept_out) == list(range(count))
    assert train == sorted(train)


def test_split_leaves_neither_side_empty() -> None:
    for count in range(3, 40):
        for every in (2, 3, 7, 10, 100):
            train, heldout = split_by_order(count, every)
            assert len(train) >= 2, (count, every)
            assert len(heldout) >= 1, (count, every)


def test_split_refuses() -> None:
    with pytest.raises(DataError, match="holdout_every: expected at least 2, got 1"):
        split_by_order(50, 1)
    with pytest.raises(DataError, match="too few frames: expected at least 3 to split, got 2"):
        split_by_order(2, 10)
