"""PonderV2's transforms that move points, and the cameras that follow them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import convolve

from tests.ponder.ponderv2_samples import CAMERAS, Array, make_sample, run

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
