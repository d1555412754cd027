"""Colour brought into the depth view: resampling, the estimate of its ratio, and the reader's use of both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ponder.data.config import DataConfig
from ponder.data.registration import estimate_colour_ratio, register_colour
from ponder.data.rgbd_folder import read_rgbd_frames, read_rgbd_scene
from ponder.data.scene import DataError, Frames
from ponder.data.sources import load_scene, load_views
from ponder.geometry import pixel_grid
from ponder.train.config import ConfigError, TrainConfig, apply_overrides
from tests.ponder.rgbd_writer import camera, orbit, paint_finely, write_folder, write_matrix, zoom_out

RATIO = 0.9
# Neighbours about 22 degrees apart: far enough for colour to move, near enough to overlap.
POSES = orbit(16)[:7]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 frames, 160x120, of a colour camera with 0.9 of the depth camera's focal length; not to be changed."""
    folder = tmp_path_factory.mktemp("registration") / "wide"
    return write_folder(folder, poses=POSES, colour_ratio=RATIO, texture=paint_finely)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same frames with registered colour; not to be changed."""
    folder = tmp_path_factory.mktemp("registration") / "registered"
    return write_folder(folder, poses=POSES, texture=paint_finely)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """3 frames, 40x30, for a test to change."""
    return write_folder(tmp_path / "small", count=3, width=40, height=30, colour_ratio=RATIO)


def gradient(points: Tensor) -> Tensor:
    """Grey levels [..., 3] affine in the pixel (u, v), whole at pixel centres."""
    u, v = points.unbind(-1)
    return torch.stack([9.5 + u, 229 - 2 * v, 20 + u + v], -1)


# ---- resampling


@pytest.mark.parametrize("ratio", [0.51, 0.8, 525 / 585, 0.999])
@pytest.mark.parametrize("centre", [None, (70.3, 41.9)])
def test_gradient_is_resampled_exactly(ratio: float, centre: tuple[float, float] | None) -> None:
    height, width = 90, 130
    pixels = pixel_grid(height, width)
    rgb = gradient(pixels).to(torch.uint8)
    point = torch.tensor(centre or (width / 2, height / 2))
    expected = gradient(point + ratio * (pixels - point))
    error = register_colour(rgb, ratio, centre).float() - expected
    assert error.abs().max() < 0.501, "rounding to whole levels and nothing else"


def test_frames_are_resampled_alone_or_together() -> None:
    rgb = torch.randint(0, 256, (3, 20, 30, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    together = register_colour(rgb, 0.8)
    assert (together.shape, together.dtype) == (rgb.shape, torch.uint8)
    assert torch.equal(together, torch.stack([register_colour(image, 0.8) for image in rgb]))
    assert torch.equal(register_colour(rgb.transpose(1, 2), 0.8), together.transpose(1, 2)), "both axes alike"
    assert torch.equal(register_colour(rgb, 1.0), rgb)


def test_a_principal_point_outside_continues_the_edge() -> None:
    rgb = torch.zeros(10, 10, 3, dtype=torch.uint8)
    rgb[:, 0] = 200
    shifted = register_colour(rgb, 0.6, (-5.0, 5.0))
    assert (shifted[:, :2] == 200).all()
    assert (shifted[:, 8:] == 0).all()


@pytest.mark.parametrize("ratio", [0.5, 0.0, -1.0, 1.001, float("nan")])
def test_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(DataError, match=r"ratio: expected a focal ratio above 0\.5 and at most 1, got "):
        register_colour(torch.zeros(4, 4, 3, dtype=torch.uint8), ratio)


@pytest.mark.parametrize("rgb", [torch.zeros(4, 4, 3), torch.zeros(4, 4, 4, dtype=torch.uint8), torch.zeros(4, 3)])
def test_what_is_no_colour_image_is_refused(rgb: Tensor) -> None:
    with pytest.raises(ValueError, match=r"rgb: expected uint8 \[V, H, W, 3\] or \[H, W, 3\], got torch"):
        register_colour(rgb, 0.9)


# ---- the estimate


@pytest.mark.parametrize("ratio", [0.82, 0.9, 0.96])
def test_ratio_is_found(tmp_path: Path, ratio: float) -> None:
    folder = write_folder(tmp_path / "wide", poses=POSES, colour_ratio=ratio, texture=paint_finely)
    frames = read_rgbd_frames(folder)
    found = estimate_colour_ratio(frames)
    assert found == pytest.approx(ratio, abs=0.005)
    assert estimate_colour_ratio(frames) == found


@pytest.mark.parametrize("noise", [0, 3, 20])
def test_registered_colour_is_left_alone(registered: Path, noise: int) -> None:
    """Noise too: interpolation averages it, by which a ratio below 1 could seem to agree better."""
    frames = read_rgbd_frames(registered)
    generator = torch.Generator().manual_seed(0)
    grain = noise * torch.randn(frames.rgb.shape, generator=generator)
    noisy = Frames(**{**vars(frames), "rgb": (frames.rgb + grain).clamp(0, 255).to(torch.uint8)})
    assert estimate_colour_ratio(noisy) == 1.0


def test_exposure_of_single_frames_does_not_matter(wide: Path) -> None:
    frames = read_rgbd_frames(wide)
    gain = torch.tensor([1.0, 0.7, 0.9, 0.6, 0.8, 1.0, 0.75]).view(-1, 1, 1, 1)
    dimmed = Frames(**{**vars(frames), "rgb": (frames.rgb * gain).to(torch.uint8)})
    assert estimate_colour_ratio(dimmed) == pytest.approx(RATIO, abs=0.01)


@pytest.mark.parametrize("chosen", [[], [0], [0, 0]])
def test_too_little_to_compare_counts_as_registered(wide: Path, chosen: list[int]) -> None:
    """No frame, one frame, and two of which nothing moves between."""
    assert estimate_colour_ratio(read_rgbd_frames(wide).select(chosen)) == 1.0


def test_frames_that_do_not_overlap_count_as_registered(wide: Path) -> None:
    frames = read_rgbd_frames(wide).select([0, 1])
    frames.camera_to_world[1, :3, 3] += 20
    assert estimate_colour_ratio(frames) == 1.0


def test_colour_that_says_nothing_counts_as_registered(wide: Path) -> None:
    frames = read_rgbd_frames(wide)
    generator = torch.Generator().manual_seed(0)
    plain = torch.full_like(frames.rgb, 90)
    noise = torch.randint(0, 256, frames.rgb.shape, generator=generator).to(torch.uint8)
    for rgb in (plain, noise):
        assert estimate_colour_ratio(Frames(**{**vars(frames), "rgb": rgb})) == 1.0


# ---- the reader


def test_scene_is_registered_by_the_estimate(wide: Path, registered: Path) -> None:
    scene = read_rgbd_scene(wide, holdout_every=4)
    expected = read_rgbd_scene(registered, holdout_every=4)
    assert scene.colour_ratio == pytest.approx(RATIO, abs=0.005)
    assert expected.colour_ratio == 1.0
    for ours, theirs in ((scene.train, expected.train), (scene.heldout, expected.heldout)):
        assert ours.names == theirs.names
        assert torch.equal(ours.z_depth, theirs.z_depth)
        # An edge of the block is a pixel off here and there, since the zoom interpolates over it.
        assert (ours.rgb.float() - theirs.rgb.float()).abs().mean() < 2.5
    assert (scene.cloud.colour - expected.cloud.colour).abs().mean() * 255 < 2.5
    unregistered = read_rgbd_scene(wide, holdout_every=4, colour_ratio=1.0)
    assert unregistered.colour_ratio == 1.0
    assert (unregistered.cloud.colour - expected.cloud.colour).abs().mean() * 255 > 10


@pytest.mark.parametrize("width", [160, 80, 61])
def test_registration_before_reduction_is_sharp(wide: Path, registered: Path, width: int) -> None:
    error = (
        read_rgbd_frames(wide, max_width=width, colour_ratio=RATIO).rgb.float()
        - read_rgbd_frames(registered, max_width=width).rgb.float()
    )
    assert error.abs().median() < 2
    assert error.abs().mean() < 2.5
    assert error.mean().abs() < 0.1


def test_a_given_ratio_reads_as_the_estimated_one(wide: Path) -> None:
    estimated = read_rgbd_scene(wide, max_width=80, holdout_every=4)
    given = read_rgbd_scene(wide, max_width=80, holdout_every=4, colour_ratio=estimated.colour_ratio)
    assert given.colour_ratio == estimated.colour_ratio
    difference = given.train.rgb.int() - estimated.train.rgb.int()
    assert difference.abs().max() <= 1, "one reading or two: the same but for rounding"
    assert (difference != 0).float().mean() < 1e-3


def test_heldout_colour_does_not_decide_the_ratio(wide: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wide, tmp_path / "copy"))
    before = read_rgbd_scene(folder, holdout_every=4)
    for name in before.heldout.names:
        Image.new("RGB", (160, 120), (250, 10, 10)).save(folder / f"{name}.color.png")
    after = read_rgbd_scene(folder, holdout_every=4)
    assert after.colour_ratio == before.colour_ratio
    assert torch.equal(after.cloud.colour, before.cloud.colour)


def test_views_get_the_ratio_of_the_recording(wide: Path, tmp_path: Path) -> None:
    """Views alone, too few and too small here, would be taken as registered."""
    views, expected = (
        write_folder(
            tmp_path / str(ratio), width=80, height=60, poses=POSES[2:3], colour_ratio=ratio, texture=paint_finely
        )
        for ratio in (RATIO, 1.0)
    )
    for ratio in (None, RATIO):
        scene = read_rgbd_scene(wide, views=views, colour_ratio=ratio)
        assert scene.colour_ratio == pytest.approx(RATIO, abs=0.005)
        error = scene.heldout.rgb.float() - read_rgbd_frames(expected).rgb.float()
        assert error.abs().median() < 4
        assert error.abs().mean() < 6


def test_the_colour_cameras_own_file_goes_first(small: Path) -> None:
    assert read_rgbd_scene(small, voxel_size=0.1, colour_ratio=0.8).colour_ratio == 0.8
    write_matrix(small / "color-intrinsics.txt", zoom_out(camera(40, 30), 0.85))
    for ratio in (None, 0.8):
        assert read_rgbd_scene(small, voxel_size=0.1, colour_ratio=ratio).colour_ratio == pytest.approx(0.85)
    assert torch.equal(
        read_rgbd_scene(small, voxel_size=0.1).heldout.rgb,
        read_rgbd_frames(small, names=["frame-000010"], colour_ratio=0.85).rgb,
    )


def test_the_colour_cameras_file_is_for_the_stored_colour_size(small: Path) -> None:
    for path in small.glob("*.color.png"):
        Image.open(path).resize((80, 60)).save(path)
    write_matrix(small / "color-intrinsics.txt", zoom_out(camera(80, 60), RATIO))
    assert read_rgbd_scene(small, voxel_size=0.1).colour_ratio == pytest.approx(RATIO)
    # Equal focal lengths, printed with few digits.
    write_matrix(small / "color-intrinsics.txt", zoom_out(camera(80, 60), 1.0004))
    assert read_rgbd_scene(small, voxel_size=0.1).colour_ratio == 1.0


def _matrix(change: Callable[[np.ndarray], object], ratio: float = RATIO) -> str:
    """The text of a colour camera's file with `change` applied to the matrix."""
    matrix = zoom_out(camera(40, 30), ratio).numpy()
    change(matrix)
    return "\n".join(" ".join(f"{x:g}" for x in row) for row in matrix)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"expected a 3x3 matrix, got 0 rows with columns: nothing"),
        ("a b c\n" * 3, r"expected 9 numbers, but could not convert string to float: 'a'"),
        (_matrix(lambda m: m.__setitem__((0, 0), np.nan)), r"expected finite numbers, got nan"),
        (_matrix(lambda m: m.__setitem__((1, 1), -3.0)), r"expected positive focal lengths, got fx = 25\.704, fy = -3"),
        (_matrix(lambda m: m.__setitem__((2, 2), 2.0)), r"expected a pinhole matrix"),
        (_matrix(lambda m: m.__setitem__((0, 2), 90.0)), r"principal point inside the 40x30 colour image, got \(90, "),
        (_matrix(lambda m: m.__setitem__((0, 0), 20.0)), r"one focal ratio to the depth camera for both axes, got"),
        (_matrix(lambda m: None, 1.2), r"expected a focal ratio above 0\.5 and at most 1, got 1\.2"),
        (_matrix(lambda m: None, 0.45), r"expected a focal ratio above 0\.5 and at most 1, got 0\.45"),
    ],
)
def test_bad_file_of_the_colour_camera_is_refused_in_one_sentence(small: Path, content: str, message: str) -> None:
    (small / "color-intrinsics.txt").write_text(content)
    with pytest.raises(DataError, match=r"color-intrinsics\.txt: .*" + message) as caught:
        read_rgbd_scene(small)
    assert "\n" not in str(caught.value)


def test_faults_beside_the_colour_cameras_file_are_named(small: Path) -> None:
    (small / "color-intrinsics.txt").mkdir()
    with pytest.raises(DataError, match=r"color-intrinsics\.txt: expected a text file with a 3x3 matrix, got"):
        read_rgbd_scene(small)
    (small / "frame-000000.depth.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"frame-000000\.depth\.png: expected a readable image, got"):
        read_rgbd_scene(small)


def test_bad_ratio_is_refused(small: Path) -> None:
    message = r"colour_ratio: expected a focal ratio above 0\.5 and at most 1, got 1\.5"
    with pytest.raises(DataError, match=message):
        read_rgbd_frames(small, colour_ratio=1.5)
    with pytest.raises(DataError, match=message):
        read_rgbd_scene(small, colour_ratio=1.5)


def test_sources_pass_the_ratio_on(wide: Path) -> None:
    estimated = load_scene(str(wide), DataConfig(source="rgbd"))
    assert estimated.colour_ratio == pytest.approx(RATIO, abs=0.005)
    assert load_scene(str(wide), DataConfig(source="rgbd", colour_ratio=0.8)).colour_ratio == 0.8
    views = load_views(wide, DataConfig(source="rgbd"), estimated.colour_ratio).select([5])
    assert views.names == estimated.heldout.names
    assert torch.equal(views.rgb, estimated.heldout.rgb)


def test_ratio_setting_is_checked() -> None:
    for text in ("0", "0.6", "1"):
        assert apply_overrides(TrainConfig(), [f"data.colour_ratio={text}"]).data.colour_ratio == float(text)
    for text in ("0.5", "1.01", "-1", "NaN"):
        with pytest.raises(ConfigError, match=r"data\.colour_ratio: expected 0 \(estimate it\) or above 0\.5"):
            apply_overrides(TrainConfig(), [f"data.colour_ratio={text}"])


# ---- the real sample


@pytest.mark.data
def test_ratio_of_a_real_recording() -> None:
    root = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("PONDER_TEST_DATA", root)) / "redkitchen"
    if not folder.is_dir():
        pytest.skip(f"no real RGB-D sample at {folder}; set PONDER_TEST_DATA to the folder that has redkitchen/")
    frames = read_rgbd_frames(folder, max_width=160)
    ratio = estimate_colour_ratio(frames)
    assert 0.87 < ratio < 0.92
    corrected = read_rgbd_frames(folder, max_width=160, colour_ratio=ratio)
    assert estimate_colour_ratio(corrected) == 1.0, "nothing is left to correct"
