"""PonderV2's transforms: geometry, colours, sampling and what goes into a batch."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import convolve

from ponder.data.ponderv2.transforms import TRANSFORMS, build_step, build_transform
from ponder.data.ponderv2.transforms.sampling import fnv_hash, ravel_hash

Array = np.ndarray[Any, Any]
CAMERAS = dict(keys=["extrinsic"])


def make_sample(points: int = 200, seed: int = 0, dtype: type = np.float32) -> dict[str, Any]:
    """A scene with two views. Its arrays are read-only, so that a transform that writes into them fails."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(points, 3))
    turn = np.linalg.qr(rng.normal(size=(2, 3, 3)))[0]
    extrinsic = np.tile(np.eye(4), (2, 1, 1))
    extrinsic[:, :3, :3] = turn * np.linalg.det(turn)[:, None, None]
    extrinsic[:, :3, 3] = rng.normal(size=(2, 3))
    sample: dict[str, Any] = {
        "coord": (rng.random((points, 3)) * [4, 3, 2] + [1, -2, 0.5]).astype(dtype),
        "normal": (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(dtype),
        "color": rng.integers(0, 256, (points, 3)).astype(dtype),
        "segment": rng.integers(-1, 5, points),
        "instance": rng.integers(-1, 9, points),
        "extrinsic": extrinsic,
        "intrinsic": np.tile(np.array([[50.0, 0, 31], [0, 50, 23], [0, 0, 1]]), (2, 1, 1)),
        "rgb": rng.integers(0, 256, (2, 6, 8, 3)).astype(np.uint8),
        "depth": rng.integers(0, 4000, (2, 6, 8)).astype(np.float32),
        "depth_scale": 1 / 1000,
        "scene_id": "room",
    }
    for value in sample.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    return sample


def run(config: Any, sample: dict[str, Any], seed: int = 0) -> Any:
    step = build_transform(config) if isinstance(config, list) else build_step(config)
    return step(dict(sample), np.random.default_rng(seed))


# ------------------------------------------------------------------------------------------------ configurations


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"transform\[1\].type: .*'GridSampel'.*did you mean 'GridSample'"):
        build_transform([dict(type="ToTensor"), dict(type="GridSampel")])
    with pytest.raises(ValueError, match=r"GridSample\.grid_sise: .*did you mean 'grid_size'"):
        build_step(dict(type="GridSample", grid_sise=0.02))
    with pytest.raises(ValueError, match="expected a dict with 'type'"):
        build_step({"grid_size": 1})
    with pytest.raises(ValueError, match="Collect: expected a value for keys"):
        build_step(dict(type="Collect", feat_keys=("color",)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="RandomRotate", axis="w"), "axis: expected 'x', 'y' or 'z', got 'w'"),
        (dict(type="GridSample", mode="val"), "mode: expected 'train' or 'test', got 'val'"),
        (dict(type="GridSample", hash_type="md5"), "hash_type: expected 'fnv' or 'ravel'"),
        (dict(type="GridSample", grid_size=0.0), "grid_size: expected a positive length"),
        (dict(type="SphereCrop", mode="none"), "mode: expected 'random', 'center' or 'all'"),
        (dict(type="RandomDropout", dropout_ratio=1.0), "dropout_ratio: expected a share"),
        (dict(type="RandomJitter", clip=0), "clip: expected a positive length"),
    ],
)
def test_wrong_values_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_step(config)


def test_missing_entries_are_named() -> None:
    with pytest.raises(ValueError, match="RandomFlip: expected a sample with 'extrinsic', got"):
        run(dict(type="RandomFlip", **CAMERAS), {"coord": np.zeros((2, 3))})


# ------------------------------------------------------------------------------------------------ cameras follow

GEOMETRIC = {
    "CenterShift": [dict(apply_z=True), dict(apply_z=False)],
    "RandomShift": [dict(), dict(shift=(1.0, 0.0, 2.0))],
    "RandomRotate": [dict(axis=axis, p=p, center=c) for axis in "xyz" for p, c in ((1, None), (0.5, [0, 0, 0]))],
    "RandomRotateTargetAngle": [dict(p=1), dict(p=1, axis="x", center=[1, 2, 3])],
    "RandomScale": [dict(scale=[0.5, 2.0]), dict()],
    "RandomFlip": [dict(p=0.5), dict(p=1.0)],
}
STEPS = [dict(type=name, **CAMERAS, **options) for name, many in GEOMETRIC.items() for options in many]


def project(sample: dict[str, Any]) -> tuple[Array, Array]:
    """Pixels [V, N, 2] and z-depth [V, N] of the points, in units of the stored depth."""
    points = np.concatenate([sample["coord"], np.ones((len(sample["coord"]), 1))], axis=1)
    camera = points @ sample["extrinsic"][:, :3].transpose(0, 2, 1)
    image = camera @ sample["intrinsic"].transpose(0, 2, 1)
    return image[..., :2] / image[..., 2:], camera[..., 2]


@settings(max_examples=60, deadline=None)
@given(chain=st.lists(st.sampled_from(STEPS), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_points_keep_their_pixels(chain: list[dict[str, Any]], seed: int) -> None:
    """Of any chain of motions, and its scaling reaches depth images through depth_scale alone."""
    before = make_sample(30, seed % 7, np.float64)
    after = run(chain, before, seed)
    pixels, depth = project(before)
    moved_pixels, moved_depth = project(after)
    near = np.abs(depth) > 0.05
    np.testing.assert_allclose(moved_pixels[near], pixels[near], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(moved_depth, depth, atol=1e-8)
    ratio = np.linalg.norm(after["coord"][0] - after["coord"][1]) / np.linalg.norm(
        before["coord"][0] - before["coord"][1]
    )
    assert float(np.squeeze(after["depth_scale"])) == pytest.approx(ratio / 1000)


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s["type"])
def test_cameras_stay_behind_without_keys(step: dict[str, Any]) -> None:
    before = make_sample()
    after = run({k: v for k, v in step.items() if k != "keys"}, before)
    assert after["extrinsic"] is before["extrinsic"]


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s["type"])
def test_normals_turn_with_the_surface(step: dict[str, Any]) -> None:
    """A plane's points stay in the plane through one of them with the transformed normal."""
    sample = make_sample(50, dtype=np.float64)
    normal = np.array([0.6, 0.0, 0.8])
    coord = sample["coord"] - (sample["coord"] @ normal)[:, None] * normal
    after = run(step, sample | {"coord": coord, "normal": np.tile(normal, (50, 1))}, seed=3)
    np.testing.assert_allclose((after["coord"] - after["coord"][0]) @ after["normal"][0], 0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(after["normal"], axis=1), 1)


def test_single_precision_cameras_stay_single() -> None:
    sample = make_sample()
    sample["extrinsic"] = sample["extrinsic"].astype(np.float32)
    assert run(dict(type="CenterShift", **CAMERAS), sample)["extrinsic"].dtype == np.float32


# ------------------------------------------------------------------------------------------------ geometry


def test_center_shift() -> None:
    coord = make_sample()["coord"]
    for apply_z, height in ((True, 0.0), (False, coord[:, 2].min())):
        moved = run(dict(type="CenterShift", apply_z=apply_z), make_sample())["coord"]
        low, high = moved.min(axis=0), moved.max(axis=0)
        np.testing.assert_allclose((low + high)[:2], 0, atol=1e-6)
        assert low[2] == pytest.approx(height, abs=1e-6)


@pytest.mark.parametrize(("axis", "source", "target"), [("z", 0, 1), ("x", 1, 2), ("y", 2, 0)])
def test_rotations_are_right_handed(axis: str, source: int, target: int) -> None:
    unit = np.eye(3)
    step = dict(type="RandomRotateTargetAngle", angle=[1 / 2], axis=axis, center=[0, 0, 0], p=1)
    turned = run(step, {"coord": unit[[source]]})["coord"]
    np.testing.assert_allclose(turned, unit[[target]], atol=1e-12)


def test_rotation_angles_fill_their_range() -> None:
    step = dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], center=[0, 0, 0], p=1)
    turned = np.array([run(step, {"coord": np.array([[1.0, 0, 0]])}, seed)["coord"][0] for seed in range(200)])
    angle = np.arctan2(turned[:, 1], turned[:, 0]) * 64 / math.pi
    assert -1 <= angle.min() < -0.9 and 0.9 < angle.max() <= 1


@pytest.mark.parametrize(("name", "p"), [("RandomRotate", 0.3), ("RandomRotateTargetAngle", 0.75)])
def test_rotation_probability(name: str, p: float) -> None:
    sample = {"coord": np.array([[1.0, 0, 0], [0, 1, 0]])}
    changed = [run(dict(type=name, p=p), sample, seed)["coord"] is not sample["coord"] for seed in range(300)]
    assert np.mean(changed) == pytest.approx(p, abs=0.09)
    assert run(dict(type=name, p=0, always_apply=True), sample)["coord"] is not sample["coord"]


def test_flips_are_independent() -> None:
    sample = {"coord": np.array([[1.0, 1, 1]])}
    seen = {tuple(run(dict(type="RandomFlip"), sample, seed)["coord"][0]) for seed in range(40)}
    assert seen == {(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)}


def test_scale_range_and_anisotropy() -> None:
    sample = {"coord": np.ones((1, 3))}
    factors = np.array([run(dict(type="RandomScale", scale=[0.9, 1.1]), sample, s)["coord"][0] for s in range(200)])
    assert 0.9 <= factors.min() < 0.92 and 1.08 < factors.max() <= 1.1 and (factors[:, 0] == factors[:, 1]).all()
    assert len(set(run(dict(type="RandomScale", anisotropic=True), sample)["coord"][0])) == 3
    with pytest.raises(ValueError, match="needs anisotropic=False"):
        run(dict(type="RandomScale", anisotropic=True), make_sample())


def test_jitter_is_clipped_gaussian() -> None:
    sample = {"coord": np.zeros((20000, 3))}
    noise = np.abs(run(dict(type="RandomJitter", sigma=0.01, clip=0.02), sample)["coord"])
    assert noise.max() == pytest.approx(0.02) and np.mean(noise > 0.01999) == pytest.approx(0.0455, rel=0.05)
    assert np.median(noise) == pytest.approx(0.00674, rel=0.02)


def test_elastic_distortion_against_its_definition() -> None:
    """Blurred noise on a grid that begins one cell below the points, linear in between."""
    sample = make_sample(400, dtype=np.float64)
    moved = run(dict(type="ElasticDistortion", distortion_params=[[0.2, 0.4]], p=1.0), sample, seed=5)["coord"]
    rng = np.random.default_rng(5)
    rng.random()
    coord = sample["coord"]
    low = coord.min(axis=0)
    nodes = ((coord - low).max(axis=0) // 0.2).astype(int) + 3
    noise = rng.standard_normal((*nodes, 3), dtype=np.float32)
    for _ in range(2):
        for shape in ((3, 1, 1, 1), (1, 3, 1, 1), (1, 1, 3, 1)):
            noise = convolve(noise, np.full(shape, 1 / 3, dtype=np.float32), mode="constant", cval=0)
    axes = [np.linspace(a, b, n) for a, b, n in zip(low - 0.2, low + 0.2 * (nodes - 2), nodes, strict=True)]
    expected = coord + RegularGridInterpolator(axes, noise)(coord) * 0.4
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert np.abs(moved - coord).max() > 0.02


def test_elastic_distortion_probability() -> None:
    sample = make_sample(20)
    still = [run(dict(type="ElasticDistortion"), sample, s)["coord"] is sample["coord"] for s in range(200)]
    assert 0.01 < np.mean(still) < 0.12


# ------------------------------------------------------------------------------------------------ colours


def test_normalize_color() -> None:
    sample = make_sample()
    done = run(dict(type="NormalizeColor"), sample)
    np.testing.assert_allclose(done["color"], sample["color"] / 127.5 - 1, rtol=1e-6)
    assert np.array_equal(done["rgb"], (sample["rgb"] / 255).astype(np.float32))
    beyond = run(dict(type="NormalizeColor"), {"rgb": np.array([-5.0, 300.0])})["rgb"]
    assert beyond.tolist() == [0, 1]


def test_auto_contrast_stretches_points_and_images_by_the_points_range() -> None:
    colour = np.array([[50.0, 0, 7], [100, 255, 7], [75, 128, 7]])
    rgb = np.array([75.0, 20, 9]).reshape(1, 1, 1, 3)
    done = run(dict(type="ChromaticAutoContrast", p=1, blend_factor=0.5), {"color": colour, "rgb": rgb})
    np.testing.assert_allclose(done["color"][:, 0], 0.5 * colour[:, 0] + 0.5 * (colour[:, 0] - 50) * 255 / 50)
    np.testing.assert_allclose(done["color"][:, 1:], colour[:, 1:])
    np.testing.assert_allclose(done["rgb"].ravel(), [0.5 * 75 + 0.5 * 127.5, 20, 9])
    whole = run(dict(type="ChromaticAutoContrast", p=1), {"color": colour.astype(np.uint8)})
    assert whole["color"].dtype == np.uint8 and whole["color"][0, 0] < 50 and whole["color"][1, 0] > 100


def test_translation_moves_points_and_images_alike() -> None:
    sample = {"color": np.full((4, 3), 100.0), "rgb": np.full((1, 2, 2, 3), 100.0)}
    done = run(dict(type="ChromaticTranslation", p=1, ratio=0.05), sample)
    offset = done["color"][0] - 100
    assert len(set(offset)) == 3 and np.abs(offset).max() <= 0.05 * 255
    np.testing.assert_allclose(done["rgb"] - 100, np.broadcast_to(offset, (1, 2, 2, 3)))
    assert run(dict(type="ChromaticTranslation", p=1, ratio=2.0), sample)["color"].max() <= 255


def test_colour_jitter() -> None:
    sample = {"color": np.full((20000, 3), 128.0), "rgb": np.zeros((1, 1, 1, 3))}
    done = run(dict(type="ChromaticJitter", p=1, std=0.05), sample)
    assert (done["color"] - 128).std() == pytest.approx(0.05 * 255, rel=0.02) and done["rgb"] is sample["rgb"]
    bright = run(dict(type="ChromaticJitter", p=1, std=0.5), {"color": np.full((50, 3), 250, dtype=np.uint8)})
    assert bright["color"].dtype == np.uint8 and bright["color"].max() == 255


@pytest.mark.parametrize("name", ["ChromaticAutoContrast", "ChromaticTranslation", "ChromaticJitter"])
def test_colour_probability(name: str) -> None:
    sample = make_sample(5)
    same = [run(dict(type=name, p=0.4), sample, s)["color"] is sample["color"] for s in range(200)]
    assert np.mean(same) == pytest.approx(0.6, abs=0.1)


def test_hue_and_saturation_as_colorsys_has_them() -> None:
    colour = np.random.default_rng(1).integers(0, 256, (50, 3)).astype(float)
    colour[0] = 90
    done = run(dict(type="HueSaturationTranslation", hue_max=0.5, saturation_max=0.2), {"color": colour}, seed=2)
    rng = np.random.default_rng(2)
    turn, factor = (rng.random() - 0.5) * 2 * 0.5, 1 + (rng.random() - 0.5) * 2 * 0.2
    for before, after in zip(colour, done["color"], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before / 255)
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, min(saturation * factor, 1), value)
        np.testing.assert_allclose(after, np.array(expected) * 255, atol=1)


def test_colour_drop() -> None:
    assert not run(dict(type="RandomColorDrop", p=1.0), make_sample())["color"].any()
    assert run(dict(type="RandomColorDrop", p=0.0), make_sample())["color"].any()


# ------------------------------------------------------------------------------------------------ sampling


def rows(sample: dict[str, Any]) -> set[tuple[float, ...]]:
    """The points with what belongs to them, as a set."""
    parts = [sample["coord"], sample["color"], sample["normal"], sample["segment"][:, None]]
    return {tuple(row) for row in np.concatenate(parts, axis=1).tolist()}


def test_dropout_keeps_a_share_of_whole_points() -> None:
    sample = make_sample(101)
    done = run(dict(type="RandomDropout", dropout_ratio=0.8, dropout_application_ratio=1.0), sample)
    assert len(done["coord"]) == len(done["instance"]) == int(101 * (1 - 0.8)) and rows(done) < rows(sample)
    off = dict(type="RandomDropout", dropout_application_ratio=0.0)
    assert run(off, sample)["coord"] is sample["coord"]


@pytest.mark.parametrize(
    "step",
    [
        dict(type="RandomDropout", dropout_ratio=0.9, dropout_application_ratio=1.0),
        dict(type="GridSample", grid_size=1.5),
    ],
    ids=lambda s: s["type"],
)
def test_labelled_points_survive(step: dict[str, Any]) -> None:
    sample = make_sample(300) | {"sampled_index": np.array([5, 17, 200, 3])}
    done = run(step, sample)
    kept = done["coord"][done["sampled_index"]]
    assert {tuple(p) for p in kept} == {tuple(p) for p in sample["coord"][[3, 5, 17, 200]]}
    assert len(done["coord"]) < 100


def test_hashes_by_hand() -> None:
    grid = np.array([[0, 0, 0], [3, 1, 2], [70000, 5, 9]])
    for row, code in zip(grid, fnv_hash(grid).tolist(), strict=True):
        expected = 14695981039346656037
        for value in row.tolist():
            expected = (expected * 1099511628211) % 2**64 ^ value
        assert code == expected
    small = np.array([[0, 0, 0], [1, 2, 0], [1, 0, 3]])
    assert ravel_hash(small).tolist() == [0, (1 * 3 + 2) * 4, 3 * 4 + 3]


@pytest.mark.parametrize("hash_type", ["fnv", "ravel"])
def test_grid_sample_keeps_one_point_per_voxel(hash_type: str) -> None:
    sample = make_sample(500)
    step = dict(
        type="GridSample", grid_size=0.5, hash_type=hash_type, return_grid_coord=True, return_inverse=True,
        return_min_coord=True, return_displacement=True,
    )  # fmt: skip
    done = run(step, sample)
    voxel = np.floor(sample["coord"].astype(float) / 0.5).astype(int)
    low = voxel.min(axis=0)
    assert {tuple(v) for v in done["grid_coord"]} == {tuple(v) for v in voxel - low}
    assert len(done["grid_coord"]) == len(np.unique(voxel, axis=0)) and rows(done) < rows(sample)
    np.testing.assert_allclose(done["min_coord"], low[None] * 0.5)
    np.testing.assert_array_equal(done["grid_coord"][done["inverse"]], voxel - low)
    np.testing.assert_allclose((done["grid_coord"] + low + 0.5 + done["displacement"]) * 0.5, done["coord"], atol=1e-6)
    assert len(done["instance"]) == 500, "entries outside `keys` stay as they are"
    code = (fnv_hash if hash_type == "fnv" else ravel_hash)(done["grid_coord"])
    assert (np.diff(code.astype(object)) > 0).all()


def test_grid_sample_picks_any_point_of_a_voxel() -> None:
    sample = {"coord": np.random.default_rng(0).random((4, 3)), "name": np.arange(4)}
    step = dict(type="GridSample", grid_size=1.0, keys=("coord", "name"))
    assert {int(run(step, sample, seed)["name"][0]) for seed in range(60)} == {0, 1, 2, 3}


def test_test_fragments_cover_every_point() -> None:
    sample = make_sample(300)
    step = dict(type="GridSample", grid_size=0.5, mode="test", return_grid_coord=True, keys=("coord", "color"))
    parts = run(step, sample)
    voxel = np.floor(sample["coord"].astype(float) / 0.5).astype(int)
    counts = np.unique(voxel, axis=0, return_counts=True)[1]
    assert len(parts) == counts.max() and {len(part["coord"]) for part in parts} == {len(counts)}
    assert set(np.concatenate([part["index"] for part in parts])) == set(range(300))
    for part in parts:
        np.testing.assert_array_equal(part["coord"], sample["coord"][part["index"]])
        np.testing.assert_array_equal(part["grid_coord"], voxel[part["index"]] - voxel.min(axis=0))
        assert part["segment"] is sample["segment"]


@pytest.mark.parametrize("options", [dict(point_max=50), dict(sample_rate=0.25), dict(point_max=50, mode="center")])
def test_sphere_crop_keeps_the_nearest(options: dict[str, Any]) -> None:
    sample = make_sample(200)
    done = run(dict(type="SphereCrop", **options), sample | {"strength": np.arange(200)})
    assert len(done["coord"]) == len(done["instance"]) == 50 and rows(done) < rows(sample)
    kept = set(done["strength"].tolist())
    distance = np.linalg.norm(sample["coord"][:, None] - sample["coord"][None], axis=2)
    nearest = [set(order[:50].tolist()) for order in np.argsort(distance, axis=1)]
    centres = [centre for centre in range(200) if nearest[centre] == kept]
    assert centres and (options.get("mode") != "center" or 100 in centres)
    assert run(dict(type="SphereCrop", point_max=200), sample)["coord"] is sample["coord"]


def test_sphere_crops_cover_everything() -> None:
    sample = make_sample(200)
    crops = run(dict(type="SphereCrop", point_max=60, mode="all"), sample)
    assert len(crops) >= 4 and all(len(crop["coord"]) == 60 for crop in crops)
    assert set(np.concatenate([crop["index"] for crop in crops])) == set(range(200))
    np.testing.assert_array_equal(crops[1]["coord"], sample["coord"][crops[1]["index"]])
    (whole,) = run(dict(type="SphereCrop", point_max=500, mode="all"), sample)
    assert whole["weight"].tolist() == [0.0] * 200


def test_shuffle_moves_points_as_a_whole() -> None:
    sample = make_sample()
    done = run(dict(type="ShufflePoint"), sample)
    assert rows(done) == rows(sample) and not np.array_equal(done["coord"], sample["coord"])


# ------------------------------------------------------------------------------------------------ assembling


def test_to_tensor_and_collect() -> None:
    steps = [
        dict(type="Add", keys_dict={"condition": "ScanNet"}),
        dict(type="ToTensor"),
        dict(
            type="Collect",
            keys=("coord", "segment", "condition", "depth_scale", "rgb"),
            stack_keys=("rgb", "extrinsic"),
            feat_keys=("color", "normal"),
            offset_keys_dict=dict(offset="coord", views="rgb"),
        ),
    ]
    done = run(steps, make_sample(7))
    assert set(done) == {"coord", "segment", "condition", "depth_scale", "rgb", "extrinsic", "feat", "offset", "views"}
    assert done["coord"].dtype == torch.float32 and done["segment"].dtype == torch.int64
    assert done["rgb"].shape == (1, 2, 6, 8, 3) and done["extrinsic"].shape == (1, 2, 4, 4)
    assert done["depth_scale"].shape == (1,) and float(done["depth_scale"]) == pytest.approx(1e-3)
    assert done["feat"].shape == (7, 6) and done["offset"].tolist() == [7] and done["views"].tolist() == [2]
    assert done["condition"] == "ScanNet"
    with pytest.raises(ValueError, match="Collect: expected a sample with 'normal'"):
        run([dict(type="Collect", keys=("coord",), feat_keys=("normal",))], {"coord": np.zeros((1, 3))})


def test_to_tensor_of_other_values() -> None:
    done = run(dict(type="ToTensor"), {"n": 3, "b": np.array([True]), "nested": {"x": [1.5, "s"]}, "u": np.uint8(4)})
    assert done["n"].tolist() == [3] and done["b"].dtype == torch.bool and done["u"].dtype == torch.int64
    assert done["nested"]["x"][0].tolist() == [1.5] and done["nested"]["x"][1] == "s"
    with pytest.raises(TypeError, match="thing: expected numbers, arrays or strings, got object"):
        run(dict(type="ToTensor"), {"thing": object()})


def test_copy_keeps_the_original() -> None:
    steps = [dict(type="Copy"), dict(type="GridSample", grid_size=1.0)]
    done = run(steps, make_sample())
    assert len(done["origin_coord"]) == len(done["origin_segment"]) == 200 > len(done["coord"])


def test_instance_parser_against_a_loop() -> None:
    sample = make_sample(300, dtype=np.float64)
    done = run(dict(type="InstanceParser", segment_ignore_index=(-1, 0, 2)), sample)
    kept = ~np.isin(sample["segment"], (-1, 0, 2))
    names = sorted(set(sample["instance"][kept].tolist()))
    assert done["bbox"].shape == (len(names), 8) and (done["instance"][~kept] == -1).all()
    for number, name in enumerate(names):
        members = kept & (sample["instance"] == name)
        assert (done["instance"][members] == number).all()
        points = sample["coord"][members]
        np.testing.assert_allclose(done["instance_centroid"][members], np.tile(points.mean(axis=0), (len(points), 1)))
        low, high = points.min(axis=0), points.max(axis=0)
        label = sample["segment"][members][0]
        expected = [*(low + high) / 2, *(high - low), 0, label - (label > 0) - (label > 2)]
        np.testing.assert_allclose(done["bbox"][number], expected)
    assert (done["instance_centroid"][~kept] == -1).all()


def test_instance_parser_without_instances() -> None:
    done = run(dict(type="InstanceParser"), make_sample() | {"segment": np.zeros(200, dtype=np.int64)})
    assert done["bbox"].shape == (0, 8) and (done["instance"] == -1).all()


# ------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"Collect"}))
def test_the_same_generator_gives_the_same_sample(name: str) -> None:
    """And none writes into what it was given (the sample is read-only), nor uses NumPy's global numbers."""
    state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    first, second = (run(dict(type=name), make_sample(), seed=4) for _ in range(2))
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index, union-attr]
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert np.array_equal(np.asarray(value), np.asarray(second[key])), key
