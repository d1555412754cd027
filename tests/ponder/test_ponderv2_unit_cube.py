"""Scenes in the unit cube and their dense volumes, against plain loops written from the description of PonderV2."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.models.ponderv2.dense_volume import nearest_cells, points_to_volume, voxel_cells
from ponder.models.ponderv2.unit_cube import UnitCube, scene_extremes, scene_numbers, to_unit_cube
from tests.ponder.ponderv2_rooms import room_batch

EPS = 1e-5
VOXEL = 0.02
SIZES = [(4.0, 3.0, 2.5), (2.2, 2.0, 2.4)]
SMALL = [(0.12, 0.1, 0.11), (3.0, 2.0, 2.4), (0.1, 0.13, 0.08)]


def cube_of(batch: dict[str, Any]) -> UnitCube:
    return to_unit_cube(batch["coord"], batch["offset"], batch["extrinsic"], batch["depth_scale"], VOXEL)


def spans(offset: Tensor) -> list[range]:
    ends = offset.tolist()
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def same(found: float | Tensor, wanted: float | Tensor, rel: float = 2e-6, floor: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found).double(), torch.as_tensor(wanted).double(), rtol=rel, atol=floor, check_dtype=False
    )


@pytest.mark.parametrize("sizes", [SIZES, SMALL], ids=["rooms", "below 0.6 m"])
def test_normalisation(sizes: list[tuple[float, float, float]]) -> None:
    """Scene by scene and in double precision: S = T(0, 0, -zmin - 0.5) Scale(1 / L) T(-c), E' = E S^-1."""
    batch = room_batch(sizes)
    cube = cube_of(batch)
    for scene, span in enumerate(spans(batch["offset"])):
        points = [[float(v) for v in batch["coord"][i]] for i in span]
        low = [min(p[k] for p in points) - EPS for k in range(3)]
        high = [max(p[k] for p in points) + EPS for k in range(3)]
        centre = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        extent = max(b - a for a, b in zip(low, high, strict=True))
        zmin = min((p[2] - centre[2]) / extent for p in points)
        to_cube = torch.eye(4).double()
        for k in range(3):
            to_cube[k, k], to_cube[k, 3] = 1 / extent, -centre[k] / extent
        to_cube[2, 3] += -zmin - 0.5
        moved = [[float(to_cube[k, k]) * p[k] + float(to_cube[k, 3]) for k in range(3)] for p in points]
        clipped = [[min(max(v, -0.5 + EPS), 0.5 - EPS) for v in p] for p in moved]
        box = [
            [min(p[k] for p in clipped) - EPS for k in range(3)],
            [max(p[k] for p in clipped) + EPS for k in range(3)],
        ]
        # Moving a point far from the origin to a small cube magnifies its rounding; the margins are 1e-5.
        same(cube.unit[span.start : span.stop], torch.tensor(clipped), floor=4e-6)
        same(cube.coord[span.start : span.stop], (torch.tensor(clipped) + 0.5) * extent)
        same(cube.bbox[scene], (torch.tensor(box) + 0.5) * extent)
        same(cube.pc_scale[scene], extent)
        same(cube.depth_scale[scene], float(batch["depth_scale"][scene]) / extent, floor=0)
        for view, camera in enumerate(batch["extrinsic"][scene]):
            same(cube.extrinsic[scene, view], camera.double() @ torch.linalg.inv(to_cube), floor=1e-5)
        # The box in voxels, and its longest side counting both ends.
        voxels = [[math.floor(float(v) / VOXEL) for v in corner] for corner in cube.bbox[scene]]
        assert int(cube.resolution[scene]) == max(b - a for a, b in zip(*voxels, strict=True)) + 1


@pytest.mark.parametrize("length, resolution", [(3.0, 151), (4.0, 201), (6.123, 307), (0.4, 21)])
def test_resolution(length: float, resolution: int) -> None:
    batch = room_batch([(length, length / 2, length / 3)])
    shifted = batch | {"coord": batch["coord"] - batch["coord"].amin(0)}
    cube = cube_of(shifted)
    assert cube.resolution.tolist() == [resolution]
    assert float(cube.bbox[0, 0, 2] // VOXEL) == 0


def test_the_floor_lies_on_the_lower_face() -> None:
    cube = cube_of(room_batch(SIZES))
    for scene in range(2):
        own = cube.unit[cube.batch == scene]
        same(own[:, 2].min(), -0.5, floor=2e-5)
        same(own.amax(0)[:2] + own.amin(0)[:2], torch.zeros(2), floor=2e-5)
        same((own.amax(0) - own.amin(0)).max(), 1, floor=4e-5)


def test_cameras_move_with_the_points() -> None:
    """A camera sees a point in the same direction, before and after, and at the same distance in its own metres."""
    batch = room_batch(SIZES)
    cube = cube_of(batch)
    inside = (cube.unit.abs() < 0.49).all(1)
    for view in range(2):
        before = batch["extrinsic"][cube.batch, view]
        after = cube.extrinsic[cube.batch, view]
        here = (before[:, :3, :3] @ batch["coord"][..., None])[..., 0] + before[:, :3, 3]
        there = (after[:, :3, :3] @ cube.unit[..., None])[..., 0] + after[:, :3, 3]
        same(there[inside], here[inside], floor=1e-5)


def test_nothing_is_changed() -> None:
    batch = room_batch(SIZES)
    batch["extrinsic"][:, :, 3, 3] = 2
    before = {key: value.clone() for key, value in batch.items() if isinstance(value, Tensor)}
    cube = cube_of(batch)
    assert all(torch.equal(batch[key], value) for key, value in before.items())
    assert bool((cube.extrinsic[:, :, 3, 3] == 1).all())


def test_extremes_of_scenes() -> None:
    coord = torch.randn(11, 3)
    offset = torch.tensor([4, 4, 10, 11])
    low, high = scene_extremes(coord, offset)
    for scene, span in enumerate(spans(offset)):
        own = coord[span.start : span.stop]
        wanted = (own.amin(0), own.amax(0)) if len(own) else (torch.full((3,), math.inf), torch.full((3,), -math.inf))
        assert torch.equal(low[scene], wanted[0]) and torch.equal(high[scene], wanted[1])
    assert scene_numbers(offset, 11).tolist() == [0] * 4 + [2] * 6 + [3]


@pytest.mark.parametrize(
    "points",
    [
        torch.zeros(0, 3),
        torch.tensor([[1.5, -2.0, 0.3]]),
        torch.tensor([[1.0, 2.0, 3.0]] * 4),
        torch.tensor([[1e4, 1e4, 1e4]] * 3),
        torch.rand(20, 3) * torch.tensor([3.0, 2.0, 0.0]),
    ],
    ids=["none", "one", "the same", "the same, far away", "flat"],
)
def test_degenerate_scenes(points: Tensor) -> None:
    """Beside an ordinary scene, which they leave as it is."""
    room = room_batch([(4.0, 3.0, 2.5)])
    batch = room | {
        "coord": torch.cat([points, room["coord"]]),
        "offset": torch.tensor([len(points), len(points) + len(room["coord"])]),
        "extrinsic": room["extrinsic"].expand(2, -1, -1, -1),
        "depth_scale": room["depth_scale"].expand(2),
    }
    cube, alone = cube_of(batch), cube_of(room)
    for name, value in cube._asdict().items():
        assert bool(torch.isfinite(value).all()), name
    assert cube.empty.tolist() == [len(points) == 0, False]
    assert bool((cube.unit.abs() <= 0.5).all() and (cube.pc_scale > 0).all() and (cube.resolution >= 1).all())
    assert torch.equal(cube.coord[len(points) :], alone.coord) and torch.equal(cube.extrinsic[1], alone.extrinsic[0])
    for read_at in (None, to_places):
        volume = points_to_volume(torch.ones(len(cube.coord), 2), cube, (12, 10, 8), VOXEL, read_at)
        assert bool(torch.isfinite(volume).all())
        assert bool(volume[0].any()) == (len(points) > 0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"coord": torch.zeros(5, 2)}, r"coord: expected shape \[N, 3\], got \[5, 2\]"),
        ({"offset": torch.zeros(0, dtype=torch.long)}, "offset: expected shape .* at least one scene"),
        ({"extrinsic": torch.zeros(2, 4, 4)}, r"extrinsic: expected shape \[B=2, V, 4, 4\], got \[2, 4, 4\]"),
        ({"depth_scale": torch.zeros(3)}, r"depth_scale: expected shape \[B=2\], got \[3\]"),
    ],
)
def test_wrong_shapes(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cube_of(room_batch(SIZES) | changes)


# ---- dense volumes


def to_places(points: Tensor) -> Tensor:
    """Where the renderer reads points of the cube, 0 to 1 from the first voxel's centre to the last one's."""
    return points / 1.101 + 0.5


def exact(value: Any) -> Fraction:
    """The very number that float32 holds."""
    return Fraction(float(torch.as_tensor(value, dtype=torch.float32)))


def cells_by_the_text(cube: UnitCube, shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """vox = floor(coord / grid_size); cell = floor(vox / (cur / G)), with float32 quotients cur / G."""
    cells = []
    for i, scene in enumerate(cube.batch.tolist()):
        cur = torch.tensor(float(cube.resolution[scene]) + 1)
        voxel = [math.floor(exact(v) / exact(VOXEL)) for v in cube.coord[i]]
        cells.append(tuple(math.floor(v / exact(cur / g)) for v, g in zip(voxel, shape, strict=True)))
    return cells


@pytest.mark.parametrize("shape", [(16, 16, 8), (128, 64, 32)], ids=str)
def test_cells(shape: tuple[int, int, int]) -> None:
    cube = cube_of(room_batch(SIZES))
    cells = voxel_cells(cube, shape, VOXEL)
    assert [tuple(cell) for cell in cells.tolist()] == cells_by_the_text(cube, shape)
    assert bool((cells >= 0).all() and (cells < torch.tensor(shape)).all())


def test_volume_holds_means() -> None:
    """Cells of a long scene, cell by cell; where nothing falls there are zeros."""
    cube, shape = cube_of(room_batch(SIZES)), (9, 7, 6)
    features = torch.randn(len(cube.coord), 3)
    volume = points_to_volume(features, cube, shape, VOXEL)
    members: dict[tuple[int, ...], list[int]] = {}
    for i, cell in enumerate(cells_by_the_text(cube, shape)):
        members.setdefault((int(cube.batch[i]), *cell), []).append(i)
    wanted = torch.zeros(2, 3, 6, 7, 9)
    for (scene, x, y, z), points in members.items():
        wanted[scene, :, z, y, x] = sum(features[i] for i in points) / len(points)
    assert max(map(len, members.values())) > 3
    same(volume, wanted)
    assert torch.equal(volume.any(1), wanted.any(1))
    assert volume.is_contiguous(memory_format=torch.channels_last_3d)


def test_small_scenes_are_resized() -> None:
    """Fewer voxels along the longest axis than cells along the shortest: averaged in voxels, then enlarged."""
    cube, shape = cube_of(room_batch(SMALL)), (12, 11, 10)
    features = torch.randn(len(cube.coord), 2)
    volume = points_to_volume(features, cube, shape, VOXEL)
    assert [int(r) + 1 < 10 for r in cube.resolution] == [True, False, True]
    for scene in (0, 2):
        size = int(cube.resolution[scene]) + 1
        sums, counts = torch.zeros(2, size, size, size), torch.zeros(size, size, size)
        for i in (cube.batch == scene).nonzero()[:, 0].tolist():
            x, y, z = (math.floor(exact(v) / exact(VOXEL)) for v in cube.coord[i])
            sums[:, z, y, x] += features[i]
            counts[z, y, x] += 1
        means = (sums / counts.clamp_min(1))[None]
        same(volume[scene], F.interpolate(means, size=(10, 11, 12), mode="trilinear", align_corners=False)[0])
    by_the_text = {
        cell for cell, scene in zip(cells_by_the_text(cube, shape), cube.batch.tolist(), strict=True) if scene == 1
    }
    assert {(x, y, z) for z, y, x in volume[1].any(0).nonzero().tolist()} == by_the_text
    assert volume.is_contiguous(memory_format=torch.channels_last_3d)


def test_as_many_voxels_as_cells_are_not_resized() -> None:
    """Whether or not another scene of the batch is."""
    cube = cube_of(room_batch([(0.2, 0.15, 0.1), (0.05, 0.04, 0.04)]))
    size = int(cube.resolution[0]) + 1
    shape = (size + 3, size + 2, size)
    assert int(cube.resolution[1]) + 1 < size
    volume = points_to_volume(torch.ones(len(cube.coord), 1), cube, shape, VOXEL)
    by_the_text = {
        cell for cell, scene in zip(cells_by_the_text(cube, shape), cube.batch.tolist(), strict=True) if scene == 0
    }
    assert {(x, y, z) for z, y, x in volume[0, 0].nonzero().tolist()} == by_the_text


def test_gradient_of_the_means() -> None:
    cube = cube_of(room_batch(SIZES))
    features = torch.randn(len(cube.coord), 2, requires_grad=True)
    seen = torch.randn(2, 2, 8, 7, 9)
    (points_to_volume(features, cube, (9, 7, 8), VOXEL) * seen).sum().backward()
    found = features.grad
    features.grad = None
    cells = voxel_cells(cube, (9, 7, 8), VOXEL)
    flat = ((cube.batch * 8 + cells[:, 2]) * 7 + cells[:, 1]) * 9 + cells[:, 0]
    one_hot = F.one_hot(flat, 2 * 8 * 7 * 9).float()
    means = (one_hot.T @ features) / one_hot.sum(0).clamp_min(1)[:, None]
    (means.view(2, 8, 7, 9, 2).permute(0, 4, 1, 2, 3) * seen).sum().backward()
    assert found is not None and features.grad is not None
    same(found, features.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sizes", [SIZES, SMALL], ids=["rooms", "below 0.6 m"])
def test_half_precision(dtype: torch.dtype, sizes: list[tuple[float, float, float]]) -> None:
    """Means come in the dtype of the features; their sums, which float16 could not hold, do not."""
    cube = cube_of(room_batch(sizes))
    features = torch.full((len(cube.coord), 2), 30000.0, dtype=dtype, requires_grad=True)
    volume = points_to_volume(features, cube, (4, 4, 4), VOXEL)
    assert volume.dtype == dtype
    assert volume.max() == features[0, 0]
    volume.float().sum().backward()
    assert features.grad is not None and features.grad.dtype == dtype
    assert bool(torch.isfinite(features.grad).all())


def test_features_of_other_points() -> None:
    with pytest.raises(ValueError, match=r"features: expected shape \[N=600, C\], got \[5, 2\]"):
        points_to_volume(torch.zeros(5, 2), cube_of(room_batch(SIZES)), (8, 8, 8), VOXEL)


def read(volume: Tensor, cube: UnitCube) -> Tensor:
    """[N, C] what the renderer finds at every point."""
    places = to_places(cube.unit) * 2 - 1
    rows = [
        F.grid_sample(volume[scene : scene + 1], places[cube.batch == scene].view(1, -1, 1, 1, 3), align_corners=True)
        for scene in range(len(volume))
    ]
    return torch.cat([row[0, :, :, 0, 0].T for row in rows])


def test_points_are_found_where_they_were_put() -> None:
    """On a grid so fine that hardly two points meet: with matched grids each finds its own feature at the nearest
    voxel, so at least an eighth of it comes back; with PonderV2's, points far from the middle find nothing."""
    cube, shape = cube_of(room_batch(SIZES, points=40)), (48, 48, 48)
    features = torch.ones(len(cube.coord), 1)
    matched = read(points_to_volume(features, cube, shape, VOXEL, to_places), cube)
    theirs = read(points_to_volume(features, cube, shape, VOXEL), cube)
    assert matched.min() > 0.12
    assert (theirs == 0).float().mean() > 0.5


def test_nearest_voxels() -> None:
    places = torch.tensor([[0.0, 0.5, 1.0], [0.24, 0.26, 0.99], [-1.0, 2.0, 0.1]])
    assert nearest_cells(places, (5, 3, 11)).tolist() == [[0, 1, 10], [1, 1, 10], [0, 2, 1]]
