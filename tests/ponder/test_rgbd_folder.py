"""Reading RGB-D folders: values, resizing, splitting, every refusal, and the real sample if present."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ponder.data.rgbd_files import resize_depth
from ponder.data.rgbd_folder import read_rgbd_frames, read_rgbd_scene
from ponder.data.scene import DataError, Frames, Scene
from ponder.geometry import project_points, rigid_error, unproject_depth
from tests.ponder.rgbd_writer import (
    DAMAGES,
    POSE,
    camera,
    orbit,
    paint,
    render,
    surface_distance,
    write_colour,
    write_depth,
    write_folder,
    write_frame,
    write_matrix,
)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good recording of 4 frames, 160x120; not to be changed."""
    return write_folder(tmp_path_factory.mktemp("rgbd") / "room")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A good recording of 3 frames, 40x30, for a test to damage."""
    return write_folder(tmp_path / "small", count=3, width=40, height=30)


def test_values_survive_the_round_trip(room: Path) -> None:
    frames = read_rgbd_frames(room)
    assert frames.names == ("frame-000000", "frame-000010", "frame-000020", "frame-000030")
    assert frames.size == (120, 160)
    torch.testing.assert_close(frames.camera_to_world, orbit(4))
    torch.testing.assert_close(frames.intrinsics, camera().float().expand(4, 3, 3))
    for index, pose in enumerate(orbit(4)):
        z_depth, colour, normal = render(pose, camera(), 120, 160)
        assert (frames.z_depth[index] - z_depth).abs().max() <= 0.00051, "half a millimetre of rounding"
        assert torch.equal(frames.rgb[index], (colour * 255).round().to(torch.uint8))
        known = frames.normal[index].norm(dim=-1) > 0.5
        cosine = (frames.normal[index] * normal).sum(-1)[known]
        assert known.float().mean() > 0.95
        assert cosine.quantile(0.9) > 0.999
    assert (frames.rgb.dtype, frames.z_depth.dtype) == (torch.uint8, torch.float32)
    assert (frames.normal.dtype, frames.intrinsics.dtype) == (torch.float32, torch.float32)
    assert frames.semantic is None


@pytest.mark.parametrize("width", [80, 61, 53, 40])
def test_resizing_keeps_the_geometry_exact(room: Path, width: int) -> None:
    frames = read_rgbd_frames(room, max_width=width)
    height = round(120 * width / 160)
    assert frames.size == (height, width)
    scale = torch.tensor([width / 160, height / 120, 1.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(frames.intrinsics[0], (camera() * scale).float())
    # The reduced depth must be that of a camera with the reduced intrinsics, with no half-pixel shift.
    for index, pose in enumerate(frames.camera_to_world):
        exact, colour, _ = render(pose, frames.intrinsics[index], height, width)
        error = (frames.z_depth[index] - exact).abs()
        assert error.median() < 0.0006
        assert error.quantile(0.95) < 0.004
        assert (frames.rgb[index] / 255 - colour).abs().median() < 1.5 / 255
    points = unproject_depth(frames.z_depth, frames.intrinsics, frames.camera_to_world).reshape(-1, 3)
    assert surface_distance(points).quantile(0.97) < 0.002


def test_width_at_or_below_the_limit_is_untouched(room: Path) -> None:
    full = read_rgbd_frames(room)
    for limit in (160, 1000):
        assert torch.equal(read_rgbd_frames(room, max_width=limit).z_depth, full.z_depth)


def test_depth_is_never_mixed_across_an_edge() -> None:
    z_depth = torch.full((8, 12), 1.0)
    z_depth[:, 5:] = 3.0
    for width, height in ((6, 4), (5, 3), (4, 8), (7, 5)):
        reduced = resize_depth(z_depth, height, width, max_step=0.05)
        off = torch.minimum((reduced - 1).abs(), (reduced - 3).abs())
        assert off.max() < 1e-6


def test_missing_depth_is_not_averaged_in() -> None:
    z_depth = torch.zeros(4, 4)
    z_depth[0, 0], z_depth[2:, 2:] = 2.0, 5.0
    reduced = resize_depth(z_depth, 2, 2, max_step=0.05)
    torch.testing.assert_close(reduced, torch.tensor([[2.0, 0.0], [0.0, 5.0]]))


def test_missing_and_far_depth(small: Path) -> None:
    stored = np.array(Image.open(small / "frame-000000.depth.png"))
    stored[0, 0], stored[0, 1], stored[0, 2], stored[0, 3] = 0, 65535, 9000, 65534
    Image.fromarray(stored).save(small / "frame-000000.depth.png")
    frames = read_rgbd_frames(small)
    assert frames.z_depth[0, 0, :4].tolist() == [0, 0, 0, 0]
    assert frames.normal[0, 0, :4].abs().max() == 0
    assert read_rgbd_frames(small, max_depth=70.0).z_depth[0, 0, :4].tolist() == pytest.approx([0, 0, 9.0, 65.534])


def test_colour_of_another_size_is_brought_to_the_depth_size(small: Path) -> None:
    exact = read_rgbd_frames(small)
    for name in exact.names:
        pose = exact.camera_to_world[exact.names.index(name)]
        _, colour, _ = render(pose, camera(40, 30) * torch.tensor([[4.0], [4.0], [1.0]]), 120, 160)
        write_colour(small / f"{name}.color.png", colour)
    frames = read_rgbd_frames(small)
    assert frames.size == (30, 40)
    assert (frames.rgb.int() - exact.rgb.int()).abs().float().median() <= 1
    # Colour still matches at a third size, which neither file has.
    reduced = read_rgbd_frames(small, max_width=20)
    _, colour, _ = render(reduced.camera_to_world[0], reduced.intrinsics[0], 15, 20)
    assert (reduced.rgb[0] / 255 - colour).abs().median() < 2 / 255


def test_jpeg_grey_and_transparent_colour(small: Path) -> None:
    exact = read_rgbd_frames(small)
    image = Image.open(small / "frame-000000.color.png")
    image.save(small / "frame-000000.color.jpg", quality=95)
    (small / "frame-000000.color.png").unlink()
    Image.open(small / "frame-000010.color.png").convert("L").save(small / "frame-000010.color.png")
    Image.open(small / "frame-000020.color.png").convert("RGBA").save(small / "frame-000020.color.png")
    frames = read_rgbd_frames(small)
    assert (frames.rgb[0].int() - exact.rgb[0].int()).abs().float().mean() < 6
    assert torch.equal(frames.rgb[1, ..., 0], frames.rgb[1, ..., 2])
    assert torch.equal(frames.rgb[2], exact.rgb[2])


def test_nearly_rigid_pose_is_made_rigid(small: Path) -> None:
    pose = orbit(3)[1].double()
    pose[:3, :3] += 3e-4 * torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    write_matrix(small / "frame-000010.pose.txt", pose)
    frames = read_rgbd_frames(small)
    assert rigid_error(frames.camera_to_world[1].double()) < 1e-6
    assert (frames.camera_to_world[1] - orbit(3)[1]).abs().max() < 2e-3


def test_frames_come_by_number_or_as_named(small: Path) -> None:
    write_frame(small, "frame-2", orbit(3)[2], camera(40, 30), 30, 40)
    (small / "notes.txt").write_text("other files are left alone")
    assert read_rgbd_frames(small).names == ("frame-000000", "frame-2", "frame-000010", "frame-000020")
    chosen = read_rgbd_frames(small, names=["frame-000020", "frame-000000"])
    assert chosen.names == ("frame-000020", "frame-000000")
    torch.testing.assert_close(chosen.camera_to_world, orbit(3)[[2, 0]])


def test_scene_splits_by_order_and_fuses_only_train(room: Path) -> None:
    scene = read_rgbd_scene(room, holdout_every=4)
    assert scene.name == "room"
    assert scene.heldout.names == ("frame-000020",)
    assert scene.train.names == ("frame-000000", "frame-000010", "frame-000030")
    assert scene.train.size == (120, 160)
    distance = surface_distance(scene.cloud.coord)
    assert distance.quantile(0.97) < 0.002
    # Only voxels that straddle an edge of the block average over two faces.
    assert distance.quantile(0.99) < 0.005
    assert distance.max() < 0.02
    assert (scene.cloud.colour - paint(scene.cloud.coord)).abs().median() < 2 / 255
    again = read_rgbd_scene(room, holdout_every=4)
    assert torch.equal(scene.cloud.coord, again.cloud.coord)
    assert torch.equal(scene.cloud.normal, again.cloud.normal)


def test_heldout_frame_does_not_touch_the_cloud(small: Path) -> None:
    before = read_rgbd_scene(small, holdout_every=3, voxel_size=0.1)
    assert before.heldout.names == ("frame-000010",)
    write_depth(small / "frame-000010.depth.png", torch.full((30, 40), 0.5))
    after = read_rgbd_scene(small, holdout_every=3, voxel_size=0.1)
    assert torch.equal(before.cloud.coord, after.cloud.coord)
    assert not torch.equal(before.heldout.z_depth, after.heldout.z_depth)


def test_views_come_from_another_folder(small: Path, tmp_path: Path) -> None:
    views = write_folder(tmp_path / "views", width=40, height=30, poses=orbit(7)[2:4])
    scene = read_rgbd_scene(small, views=views, voxel_size=0.1)
    assert scene.train.names == ("frame-000000", "frame-000010", "frame-000020")
    torch.testing.assert_close(scene.heldout.camera_to_world, orbit(7)[2:4])


def test_views_repeated_in_the_recording_are_not_trained_on(small: Path, tmp_path: Path) -> None:
    views = tmp_path / "views"
    views.mkdir()
    for name in ("frame-000010.color.png", "frame-000010.depth.png", "frame-000010.pose.txt"):
        shutil.copy(small / name, views / name)
    shutil.copy(small / "camera-intrinsics.txt", views)
    scene = read_rgbd_scene(small, views=views, voxel_size=0.1)
    assert scene.train.names == ("frame-000000", "frame-000020")
    assert scene.heldout.names == ("frame-000010",)
    with pytest.raises(DataError, match=r"expected frames besides those of the views folder .*small, got none"):
        read_rgbd_scene(small, views=small)


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_folder_is_refused_in_one_sentence(small: Path, damage: str) -> None:
    spoil, message = DAMAGES[damage]
    spoil(small)
    with pytest.raises(DataError, match=message) as caught:
        read_rgbd_scene(small)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_width": 7}, "max_width: expected at least 8 pixels, got 7"),
        ({"max_depth": 0.0}, "max_depth: expected a positive number of metres, got 0.0"),
        ({"max_depth": float("nan")}, "max_depth: expected a positive"),
        ({"names": []}, "names: expected at least one frame name, got none"),
        ({"names": ["frame-7"]}, "names: expected frames of .*small, got 'frame-7', which it does not have"),
        ({"names": ["frame-000010"] * 2}, "names: expected each frame once, got 'frame-000010' 2 times"),
    ],
)
def test_bad_arguments_of_frames(small: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rgbd_frames(small, **options)


def test_bad_arguments_of_scene(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holdout_every: expected at least 2, got 1"):
        read_rgbd_scene(small, holdout_every=1)
    with pytest.raises(DataError, match="nowhere: expected a folder of RGB-D frames, but it does not exist"):
        read_rgbd_scene(small, views=tmp_path / "nowhere")
    for path in small.glob("frame-000010.*"):
        path.unlink()
    with pytest.raises(DataError, match="small: too few frames: expected at least 3 to split, got 2"):
        read_rgbd_scene(small)


def test_a_frame_that_is_not_asked_for_need_not_be_good(small: Path) -> None:
    (small / POSE).unlink()
    assert read_rgbd_frames(small, names=["frame-000000"]).names == ("frame-000000",)


def test_reading_leaves_the_number_of_threads_alone(small: Path) -> None:
    before = torch.get_num_threads()
    read_rgbd_scene(small, voxel_size=0.1)
    assert torch.get_num_threads() == before
    (small / POSE).write_text("")
    with pytest.raises(DataError):
        read_rgbd_scene(small)
    assert torch.get_num_threads() == before


# ---- the real sample
# --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kitchen() -> Scene:
    """The red kitchen of 7-Scenes, every 20th frame, split as by default."""
    root = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("PONDER_TEST_DATA", root)) / "redkitchen"
    if not folder.is_dir():
        pytest.skip(f"no real RGB-D sample at {folder}; set PONDER_TEST_DATA to the folder that has redkitchen/")
    return read_rgbd_scene(folder)


def _depth_errors(cloud: Tensor, frames: Frames, index: int) -> Tensor:
    """Signed metres between the cloud and a view's depth, at the pixels the visible cloud points fall on."""
    height, width = frames.size
    pixels, depth = project_points(cloud, frames.intrinsics[index], frames.camera_to_world[index])
    column, row = pixels.floor().long().unbind(-1)
    seen = (depth > 0.1) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    flat, depth = (row * width + column)[seen], depth[seen]
    front = torch.full((height * width,), torch.inf).scatter_reduce(0, flat, depth, "amin")
    measured = frames.z_depth[index].flatten()
    both = torch.isfinite(front) & (measured > 0)
    return (front - measured)[both]


@pytest.mark.data
def test_real_recording_is_read_whole(kitchen: Scene) -> None:
    assert kitchen.name == "redkitchen"
    assert len(kitchen.train) == 45
    assert kitchen.heldout.names == tuple(f"frame-{k:06d}" for k in (100, 300, 500, 700, 900))
    assert kitchen.train.size == (240, 320)
    valid = kitchen.train.z_depth > 0
    known = kitchen.train.normal.norm(dim=-1) > 0.5
    assert 0.8 < valid.float().mean() < 1
    assert known[valid].float().mean() > 0.9
    assert not known[~valid].any()
    assert max(rigid_error(pose) for pose in kitchen.train.camera_to_world) < 1e-5


@pytest.mark.data
def test_real_cloud_predicts_the_heldout_depth(kitchen: Scene) -> None:
    errors = [_depth_errors(kitchen.cloud.coord, kitchen.heldout, i) for i in range(len(kitchen.heldout))]
    assert min(e.numel() for e in errors) > 10_000
    # Poses drift and the sensor's noise at 3 m is centimetres: single frames come close to the bound on the whole.
    assert torch.cat(errors).abs().median() < 0.03
    assert max(float(e.abs().median()) for e in errors) < 0.04
    assert max(float(e.median().abs()) for e in errors) < 0.015


@pytest.mark.data
def test_real_cloud_is_a_room(kitchen: Scene) -> None:
    cloud = kitchen.cloud
    low, high = cloud.coord.quantile(0.01, 0), cloud.coord.quantile(0.99, 0)
    assert ((high - low) > 1.0).all()
    assert ((high - low) < 8.0).all()
    assert (cloud.normal.norm(dim=1) > 0.5).float().mean() > 0.9
    assert 0.15 < cloud.colour.mean() < 0.6
