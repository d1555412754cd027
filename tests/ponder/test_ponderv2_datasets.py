"""PonderV2's datasets on generated rooms in PonderV2's folders: samples, draws, frames and the test protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ponder.data.ponderv2 import ConcatDataset, SampleKey, build_dataset
from ponder.data.ponderv2.files import load_dict, read_image, resize_colour, resize_labels
from ponder.data.ponderv2.scannet import frame_pool
from ponder.data.ponderv2.skips import (
    LISTED,
)
from ponder.data.scene import DataError
from ponder.data.synthetic.ponderv2_layouts import write_scannet
from tests.ponder.ponderv2_data import (
    S3DIS,
    SCANNET,
    STRUCTURED3D,
    UNITS,
    WITH_VIEWS,
    build,
    equal,
    frame_files,
    rewrite,
)

# ------------------------------------------------------------------------------------------------ what samples hold


@pytest.mark.parametrize("name", WITH_VIEWS)
def test_views_see_the_points(world: Path, name: str) -> None:
    """Points project onto pixels of their depth, colour and class: units, axes, poses, intrinsics, label maps agree."""
    sample = build(WITH_VIEWS[name], world, num_cameras=4, keep_class_zero=True)[0]
    assert sample["depth_scale"] == UNITS[name] and sample["extrinsic"].shape == (4, 4, 4)
    assert sample["rgb"].dtype == np.uint8 and sample["rgb"].shape == (4, 48, 64, 3)
    assert sample["depth"].dtype == np.float32 and sample["semantic"].dtype == np.int16
    points = np.concatenate([sample["coord"], np.ones((len(sample["coord"]), 1))], axis=1)
    agreeing = 0
    for view in range(4):
        camera = points @ sample["extrinsic"][view, :3].T
        pixel = camera @ sample["intrinsic"][view, :3, :3].T
        ahead = camera[:, 2] > 0.1
        place = np.round(pixel[ahead, :2] / pixel[ahead, 2:]).astype(int)
        inside = ((place >= 0) & (place < [64, 48])).all(axis=1)
        x, y = place[inside].T
        depth = sample["depth"][view, y, x] * sample["depth_scale"]
        seen = np.abs(depth - camera[ahead][inside][:, 2]) < 2e-3
        colour = np.abs(sample["rgb"][view, y, x].astype(float) - sample["color"][ahead][inside]).max(axis=1)
        semantic, segment = sample["semantic"][view, y, x], sample["segment"][ahead][inside]
        assert seen.sum() > 500
        # Other pixels of the same depth may differ, and more at borders in ScanNet's enlarged and compressed images.
        assert np.mean(colour[seen] < 40) > 0.9
        assert np.mean(semantic[seen] == segment[seen]) > (0.87 if name == "ScanNet" else 0.97)
        assert len(set(segment[seen].tolist())) >= 3
        agreeing += seen.sum()
    assert agreeing > 2500, "almost every point is a pixel of some view"


@pytest.mark.parametrize(
    ("config", "keys", "classes"),
    [
        (dict(type="ScanNetDataset", split="train", data_root="data/scannet"), "instance scene_id", 20),
        (dict(type="ScanNet200Dataset", split="val", data_root="data/scannet"), "instance scene_id", 200),
        (dict(type="S3DISDataset", split="Area_5", data_root="data/s3dis"), "instance scene_id name", 13),
        (dict(type="Structured3DDataset", split="test", data_root="data/structured3d"), "", 25),
        (dict(type="DefaultDataset", split="train/scene_00000", data_root="data/structured3d"), "", 25),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else "",
)
def test_point_datasets(world: Path, config: dict[str, Any], keys: str, classes: int) -> None:
    sample = build(config, world)[0]
    assert set(sample) == {"coord", "color", "normal", "segment", *keys.split()}
    assert sample["coord"].shape == sample["normal"].shape == sample["color"].shape == (3000, 3)
    assert sample["segment"].shape == (3000,) and -1 <= sample["segment"].min() < sample["segment"].max() < classes
    assert 0 <= sample["color"].min() < 50 < 200 < sample["color"].max() <= 255
    np.testing.assert_allclose(np.linalg.norm(sample["normal"], axis=1), 1, atol=1e-5)


def test_test_scenes_of_scannet_have_no_labels(world: Path) -> None:
    sample = build(dict(type="ScanNetDataset", split="test", data_root="data/scannet"), world)[0]
    assert (sample["segment"] == -1).all() and (sample["instance"] == -1).all()


def test_names_and_splits(world: Path) -> None:
    both = build(dict(type="ScanNetDataset", data_root="data/scannet"), world, split=("train", "val"))
    assert [both.get_data_name(i) for i in range(len(both))] == ["scene0000_00", "scene0001_00", "scene0002_00"]
    assert build(STRUCTURED3D, world).get_data_name(1) == "scene_00001_room_0"
    assert build(S3DIS, world)[0]["name"] == "office"
    views = build(SCANNET, world, split=("train", "val"))
    assert len(views) == 3 and views[2]["id"].startswith("scene0002_00/")


def test_labels_of_images_without_semantics(world: Path) -> None:
    for config in WITH_VIEWS.values():
        assert "semantic" not in build(config, world, render_semantic=False)[0]


@pytest.mark.parametrize("name", ["S3DIS", "Structured3D"])
def test_class_zero_of_images(own: Path, name: str) -> None:
    for path in frame_files(own, name):
        semantic = load_dict(path)["semantic_map"].copy()
        semantic[:3] = 0
        rewrite(path, semantic_map=semantic)
    usual, kept = (build(WITH_VIEWS[name], own, keep_class_zero=keep)[0]["semantic"] for keep in (False, True))
    assert (kept == 0).any() and not (usual == 0).any()
    np.testing.assert_array_equal(usual, np.where(kept == 0, -1, kept))


def test_six_fold_hides_image_labels(world: Path) -> None:
    assert (build(S3DIS, world, six_fold=True)[0]["semantic"] == -1).all()


def test_depth_outside_the_mask_is_missing(world: Path) -> None:
    for name in ("S3DIS", "Structured3D"):
        sample = build(WITH_VIEWS[name], world)[0]
        stored = load_dict(frame_files(world, name)[0])
        assert (stored["depth"] == 65535).any() and sample["depth"].max() < 65535
        assert ((sample["depth"] == 0) <= (sample["semantic"] == -1)).all()


# ------------------------------------------------------------------------------------------------ draws


def test_draws_depend_on_seed_epoch_and_index_alone(world: Path) -> None:
    chain = [dict(type="RandomRotate", p=1, keys=["extrinsic"]), dict(type="ShufflePoint")]
    one, two = (build(SCANNET, world, transform=chain, loop=2) for _ in range(2))
    two.set_epoch(3)
    _ = two[1], two[3]
    assert equal(one[SampleKey(3, 0, 2)], two[2]), "other draws before change nothing"
    assert not equal(one[2], two[2]) and not equal(one[2], one[SampleKey(0, 1, 2)])
    assert not equal(one[0], one[2]), "repetitions of a scene draw anew"
    other = build_dataset(SCANNET | dict(transform=chain, loop=2), world, seed=1)
    assert not equal(one[2], other[2])


def test_frames_of_a_sample_differ_and_all_occur(world: Path) -> None:
    dataset = build(S3DIS, world)
    seen = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        poses = {tuple(pose.ravel()) for pose in dataset[0]["extrinsic"]}
        assert len(poses) == 3
        seen |= poses
    assert len(seen) == 4
    many = build(S3DIS, world, num_cameras=9)[0]["extrinsic"]
    assert many.shape[0] == 9 and len({tuple(pose.ravel()) for pose in many}) > 1


def test_loop_and_bounds(world: Path) -> None:
    dataset = build(dict(type="ScanNetDataset", data_root="data/scannet"), world, loop=3)
    assert len(dataset) == 6 and dataset[5]["scene_id"] == "scene0001_00"
    with pytest.raises(IndexError, match="expected 0 to 5, got 6"):
        dataset[6]


def test_cached_scenes_stay_as_they_are(world: Path) -> None:
    config = dict(type="ScanNetDataset", data_root="data/scannet", cache=True)
    dataset, fresh = build(config, world), build(config, world, cache=False)
    first = dataset[0]
    with pytest.raises(ValueError, match="read-only"):
        first["coord"] += 1
    assert dataset[0]["coord"] is first["coord"] and equal(dataset[0], fresh[0])
    assert fresh[0]["coord"] is not fresh[0]["coord"]


def test_concatenation(world: Path) -> None:
    parts = [dict(type="ScanNetDataset", data_root="data/scannet"), dict(type="S3DISDataset", data_root="data/s3dis")]
    chain = [dict(type="RandomShift")]
    both = build_dataset(
        dict(type="ConcatDataset", datasets=[part | dict(transform=chain) for part in parts], loop=2), world
    )
    assert isinstance(both, ConcatDataset) and len(both) == 8
    assert both.get_data_name(3) == both.get_data_name(7) == "office_1" and "name" in both[3]
    plain = [build(part, world)[0]["coord"] for part in parts]
    shifts = [both[place]["coord"][0] - coord[0] for place, coord in zip((0, 2), plain, strict=True)]
    assert np.abs(shifts[0] - shifts[1]).max() > 1e-3, "datasets draw independently"
    assert not equal(both[0], both[4]), "repetitions draw anew"
    with pytest.raises(IndexError, match="expected 0 to 7, got 8"):
        both[8]


# ------------------------------------------------------------------------------------------------ ScanNet's frames


@pytest.mark.parametrize("count", [60, 100, 101, 137, 1000, 1001, 1634])
@pytest.mark.parametrize("thinning", [1, 10])
def test_frame_pool_with_all_frames(count: int, thinning: int) -> None:
    numbers = list(range(count))
    assert frame_pool(numbers, 40, 60, 10, thinning) == numbers[::thinning][40:-60:10]


def test_frame_pool_by_number() -> None:
    assert frame_pool(range(0, 300, 10), 40, 60, 10) == list(range(40, 231, 10))
    assert frame_pool(range(0, 300, 20), 40, 60, 10) == list(range(40, 221, 20))
    gap = [n for n in range(200) if not 48 <= n <= 52]
    assert frame_pool(gap, 40, 60, 10) == [40, 53, *range(60, 140, 10)]
    assert frame_pool([], 40, 60, 10) == [] and frame_pool(range(5), 0, 0, 2) == [0, 2, 4]


@pytest.mark.parametrize("step", [1, 5, 10])
def test_frames_are_found_whatever_was_exported(tmp_path: Path, step: int) -> None:
    """Frame 70 is the same image whether 71 or 8 files come before it."""
    write_scannet(tmp_path, scenes=1, frames=4, points=3000, frame_step=step)
    dataset = build(SCANNET, tmp_path, num_cameras=1)
    numbers = set()
    for epoch in range(40):
        sample = dataset[SampleKey(epoch, 0, 0)]
        number = int(sample["id"].split("/")[1])
        numbers.add(number)
        folder = tmp_path / "scannet/rgbd/scene0000_00"
        stored = read_image(folder / "depth" / f"{number}.png")
        np.testing.assert_array_equal(sample["depth"][0], stored)
        pose = np.loadtxt(folder / "pose" / f"{number}.txt")
        np.testing.assert_allclose(np.linalg.inv(sample["extrinsic"][0]), pose, atol=1e-6)
    assert numbers == {40, 50, 60, 70}


def test_validation_frames_are_ten_times_as_far_apart(world: Path) -> None:
    dataset = build(SCANNET, world, split="val", num_cameras=1)
    numbers = {int(dataset[SampleKey(epoch, 0, 0)]["id"].split("/")[1]) for epoch in range(40)}
    assert numbers == {400, 500, 600, 700}


def test_skip_list(own: Path) -> None:
    (own / "scannet/skip.lst").write_text("scene0000_00 40\nscene0000_00 60\nscene0007_00 50\n\n")
    dataset = build(SCANNET, own, num_cameras=1)
    assert {int(dataset[SampleKey(e, 0, 0)]["id"].split("/")[1]) for e in range(40)} == {50, 70}
    assert dataset.skipped == {LISTED: 2}
    (own / "scannet/skip.lst").write_text("scene0000_00 forty\n")
    with pytest.raises(DataError, match=r"skip\.lst: expected lines of a scene and a frame number"):
        build(SCANNET, own)


def test_align_axis(own: Path) -> None:
    turn = np.array([[0, -1.0, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    scene = own / "scannet/rgbd/scene0000_00"
    text = " ".join(str(value) for value in turn.ravel())
    (scene / "scene0000_00.txt").write_text(f"numColorFrames = 5\naxisAlignment = {text} \n")
    plain, aligned = (build(SCANNET, own, align_axis=align)[0]["extrinsic"] for align in (False, True))
    np.testing.assert_allclose(aligned @ turn, plain, atol=1e-12)


def test_images_are_resized_to_the_depth() -> None:
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(40, axis=0)
    halved = resize_colour(ramp, 20, 50)
    np.testing.assert_array_equal(halved[..., 0], np.tile(np.arange(1, 200, 4), (20, 1)))
    numbers = np.arange(7 * 9).reshape(7, 9)
    np.testing.assert_array_equal(resize_labels(numbers, 3, 4), numbers[[0, 2, 4]][:, [0, 2, 4, 6]])


# ------------------------------------------------------------------------------------------------ few labels


@pytest.mark.parametrize("kind", ["ScanNetDataset", "ScanNet200Dataset", "ScanNetRGBDDataset"])
def test_few_labels(own: Path, kind: str) -> None:
    index = {"scene0000_00": np.array([7, 3, 2999])}
    torch.save(index, own / "scannet/points.pth")
    full = build(dict(type=kind, data_root="data/scannet"), own)[0]["segment"]
    chain = [dict(type="RandomDropout", dropout_ratio=0.99, dropout_application_ratio=1.0)]
    config = dict(type=kind, data_root="data/scannet", la_file="data/scannet/points.pth", ignore_index=-1)
    sample = build(config, own)[0]
    others = np.setdiff1d(np.arange(3000), index["scene0000_00"])
    assert (sample["segment"][others] == -1).all()
    np.testing.assert_array_equal(sample["segment"][[7, 3, 2999]], full[[7, 3, 2999]])
    assert "semantic" not in sample or (sample["semantic"] == -1).all()
    thinned = build(config, own, transform=chain)[0]
    np.testing.assert_array_equal(thinned["segment"][thinned["sampled_index"]], full[[3, 7, 2999]])
    torch.save({"scene0000_00": [3000]}, own / "scannet/points.pth")
    with pytest.raises(DataError, match="expected points 0 to 2999 of 'scene0000_00', got 3000"):
        build(config, own)[0]


def test_few_scenes(world: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("scene0001_00\n")
    for kind in ("ScanNetDataset", "ScanNetRGBDDataset"):
        dataset = build(dict(type=kind, data_root="data/scannet", lr_file=str(tmp_path / "few.txt")), world)
        assert len(dataset) == 1 and dataset[0]["scene_id"] == "scene0001_00"
    (tmp_path / "few.txt").write_text("scene0009_00\n")
    with pytest.raises(DataError, match=r"scene0009_00\.pth: expected the scene that"):
        build(dict(type="ScanNetDataset", data_root="data/scannet", lr_file=str(tmp_path / "few.txt")), world)


# ------------------------------------------------------------------------------------------------ the test protocol

VOXELS = dict(type="GridSample", grid_size=0.1, mode="test", return_grid_coord=True, keys=("coord", "color", "normal"))
FINISH = [dict(type="ToTensor"), dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("normal",))]
TURNS = [[dict(type="RandomRotateTargetAngle", angle=[a], center=[0, 0, 0], p=1)] for a in (0, 1 / 2)]


@pytest.mark.parametrize("kind", ["ScanNetDataset", "ScanNetRGBDDataset"])
def test_fragments(world: Path, kind: str) -> None:
    config = dict(type=kind, data_root="data/scannet", split="val", test_mode=True, loop=5)
    config["test_cfg"] = dict(voxelize=VOXELS, crop=None, post_transform=FINISH, aug_transform=TURNS)
    dataset = build(config, world, transform=[dict(type="CenterShift")])
    assert len(dataset) == 1
    sample = dataset[0]
    assert set(sample) == {"segment", "name", "fragment_list"} and sample["name"] == "scene0002_00"
    half = len(sample["fragment_list"]) // 2
    first, second = sample["fragment_list"][:half], sample["fragment_list"][half:]
    for parts in (first, second):
        assert set(torch.cat([part["index"] for part in parts]).tolist()) == set(range(3000))
    cloud = torch.zeros(3000, 3)
    for part in first:
        cloud[part["index"]] = part["coord"]
    turned = torch.stack([-cloud[:, 1], cloud[:, 0], cloud[:, 2]], dim=1)
    for part in second:
        torch.testing.assert_close(part["coord"], turned[part["index"]])
    np.testing.assert_array_equal(sample["segment"], build(config, world, test_mode=False)[0]["segment"])


def test_fragments_without_voxels_and_with_origins(world: Path) -> None:
    chain = [
        dict(type="Copy", keys_dict={"segment": "origin_segment"}),
        dict(type="GridSample", grid_size=0.2, return_inverse=True),
    ]
    config = dict(type="Structured3DDataset", data_root="data/structured3d", test_mode=True, transform=chain)
    sample = build(config, world, test_cfg=dict(crop=dict(type="SphereCrop", point_max=100, mode="all")))[0]
    assert len(sample["origin_segment"]) == len(sample["inverse"]) == 3000
    count = len(sample["segment"])
    assert count == sample["inverse"].max() + 1 < 3000
    seen = np.concatenate([part["index"] for part in sample["fragment_list"]])
    assert set(seen.tolist()) == set(range(count))
    with pytest.raises(ValueError, match="test_cfg: unknown key 'voxelise'; did you mean 'voxelize'"):
        build(config, world, test_cfg=dict(voxelise=None))
    with pytest.raises(ValueError, match="test_cfg: expected a dict with test_mode=True, got None"):
        build(config, world)
