"""The lens and mesh arithmetic behind the conversion of S3DIS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from trimesh.triangles import closest_point

from ponder.data.convert.nearest_triangles import TriangleIndex
from ponder.data.convert.s3dis_mesh import read_obj
from ponder.data.convert.undistort import Lens, UndistortMap

BENT = (0.05, -0.02, 0.001, -0.0005, 0.003)


@pytest.mark.parametrize("bent", [(0.0,) * 5, BENT, (-0.3, 0.2, 0.004, 0.003, -0.05), (3.0, 2.0, 0.1, 0.1, 5.0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_undistortion_is_linear_interpolation(bent: tuple[float, ...], dtype: type) -> None:
    """Against SciPy's, at positions rounded to 1/32 pixel, with zeros outside."""
    lens = Lens(23, 31, 25.0, 24.0, 15.7, 10.9, *bent)
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(dtype).max + 1, (23, 31, 3), dtype=dtype)
    x, y = np.meshgrid((np.arange(31) - lens.cx) / lens.fx, (np.arange(23) - lens.cy) / lens.fy)
    k1, k2, p1, p2, k3 = bent
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    v = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    place = np.rint(np.stack([v * lens.fy + lens.cy, u * lens.fx + lens.cx]) * 32) / 32
    padded = np.pad(image.astype(float), [(1, 1), (1, 1), (0, 0)])
    expected = np.stack([map_coordinates(padded[..., c], place + 1, order=1, cval=0.0) for c in range(3)], -1)
    result = UndistortMap(lens).apply(image)
    assert result.dtype == dtype and np.abs(result - expected).max() <= 0.5 + 1e-2
    if not any(bent):
        assert np.array_equal(result, image)
    grey = UndistortMap(lens).apply(image[..., 1])
    assert np.array_equal(grey, result[..., 1])
    with pytest.raises(ValueError, match=r"image: expected uint8 or uint16 of 23 x 31 pixels, got uint8 \[31, 23\]"):
        UndistortMap(lens).apply(np.zeros((31, 23), np.uint8))


def test_nearest_triangles() -> None:
    """Against all triangles: sizes from millimetres to metres, points on and off them, some without area."""
    rng = np.random.default_rng(0)
    centre = rng.uniform(-2, 2, (300, 1, 3))
    triangles = centre + rng.normal(size=(300, 3, 3)) * 10 ** rng.uniform(-3, 0.3, (300, 1, 1))
    triangles[:5, 2] = triangles[:5, 1]
    points = np.concatenate([rng.uniform(-3, 3, (150, 3)), triangles[100:150].mean(1)])
    found = TriangleIndex(triangles).nearest(points)
    assert found.min() >= 5
    for point, own in zip(points, found, strict=True):
        offset = closest_point(triangles[5:], np.broadcast_to(point, (295, 3))) - point
        distance = np.linalg.norm(offset, axis=1)
        assert np.linalg.norm(closest_point(triangles[[own]], point[None])[0] - point) <= distance.min() + 1e-6
    with pytest.raises(ValueError, match="triangles: expected some with an area, got none among 5"):
        TriangleIndex(triangles[:5])
    assert TriangleIndex(triangles).nearest(np.zeros((0, 3))).shape == (0,)


def test_points_off_an_edge_take_the_triangle_that_faces_them() -> None:
    """Two walls of a fold: a point beyond the fold's edge belongs to the one it is more in front of."""
    fold = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, -1]]], dtype=float)
    index = TriangleIndex(fold)
    points = np.array([[-0.1, 0.5, 0.3], [-0.3, 0.5, 0.1]])
    assert index.normals[index.nearest(points)].tolist() == [[0, 0, 1], [-1, 0, 0]]


def test_polygons_become_triangles(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0 1 1 1\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1/1/1 2//2 3 4/2\n", encoding="utf-8")
    mesh = read_obj(tmp_path / "a.obj")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]] and mesh.vertices[2].tolist() == [1, 1, 0]
