"""PonderV2's transforms: configurations, colours, sampling and what goes into a batch."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch

from ponder.data.ponderv2.transforms import TRANSFORMS, build_step, build_transform
from ponder.data.ponderv2.transforms.sampling import fnv_hash, ravel_hash
from tests.ponder.ponderv2_samples import CAMERAS, make_sample, run

# ------------------------------------------------------------------------------------------------ configurations


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"transform\[1\]: type is 'GridSampel'; did you mean 'GridSample'"):
        build_transform([dict(type="ToTensor"), dict(type="GridSampel")])
    with pytest.raises(ValueError, match="GridSample: unknown key 'grid_sise'; did you mean 'grid_size'"):
        build_step(dict(type="GridSample", grid_sise=0.02))
    with pytest.raises(ValueError, match="lacks a type; known: Add, "):
        build_step({"grid_size": 1})
    with pytest.raises(ValueError, match="Collect: lacks keys"):
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
