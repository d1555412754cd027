"""Features of users' clouds: they follow the points, and blocks change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ponder.data.cloud_files import RawCloud
from ponder.data.point_normals import estimate_normals
from ponder.data.scene import DataError, PointCloud
from ponder.models.pretrainer import ModelConfig, voxelise
from ponder.models.sparse_unet import SparseUNet
from ponder.tasks.features import (
    BlockError,
    FeatureModel,
    FeatureOptions,
    extract_features,
    find_voxels,
    network_inputs,
    prepare_cloud,
    voxel_features,
)
from ponder.tasks.features.blocks import plan_blocks
from ponder.tasks.features.files import principal_colours
from tests.ponder.feature_toys import SIZES, VOXEL, lively, room, select


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    return FeatureModel(lively(SparseUNet(6, **SIZES)), ("colour", "normal"), VOXEL, True, 4)


def test_features_follow_the_points(model: FeatureModel) -> None:
    cloud = room()
    found = extract_features(model, cloud)
    assert found.shape == (1500, 4) and found.std(0).min() > 1e-3
    order = torch.randperm(len(cloud))
    torch.testing.assert_close(extract_features(model, select(cloud, order)), found[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", ["nothing", "colour", "normal", "both"])
def test_points_of_one_voxel_have_the_same_features(missing: str, model: FeatureModel) -> None:
    cloud = room(400)
    colour = None if missing in ("colour", "both") else cloud.colour
    normal = None if missing in ("normal", "both") else cloud.normal
    cloud = RawCloud(cloud.coord, colour, normal)
    twice = select(cloud, torch.arange(400).repeat(2))
    found = extract_features(model, twice)
    assert torch.equal(found[:400], found[400:])
    torch.testing.assert_close(found[:400], extract_features(model, cloud), rtol=1e-4, atol=1e-5)


def test_missing_parts_are_replaced_and_named(model: FeatureModel) -> None:
    cloud = room()
    prepared = prepare_cloud(model, RawCloud(cloud.coord), FeatureOptions())
    assert ["colours" in note for note in prepared.notes] == [True, False] and "normals" in prepared.notes[1]
    assert torch.equal(prepared.inputs[:, :3], torch.zeros(len(prepared.inputs), 3))
    grey = RawCloud(cloud.coord, torch.full((1500, 3), 0.5), cloud.normal)
    plain = RawCloud(cloud.coord, None, cloud.normal)
    assert torch.equal(extract_features(model, plain), extract_features(model, grey))
    assert not torch.equal(extract_features(model, plain), extract_features(model, cloud))


def test_features_are_those_of_the_network_run_directly(model: FeatureModel) -> None:
    """One point a voxel, fed by hand in PonderV2's units, in the order of the cloud."""
    cells = torch.randint(12, (90, 3))
    cells = torch.cat([cells, torch.tensor([[0, 0, 0], [11, 11, 0]])]).unique(dim=0)
    colour, normal = torch.rand(len(cells), 3), torch.nn.functional.normalize(torch.randn(len(cells), 3))
    # Of an even number of voxels the middle is a boundary of the grid, as the lowest point is in z.
    coord = (cells.double() + 0.5) * VOXEL
    coord[cells[:, 2] == 0, 2] -= VOXEL / 4
    with torch.no_grad():
        fed = torch.cat([colour * 255 / 127.5 - 1, normal], 1)
        want = model.network(fed, cells, torch.zeros(len(cells), dtype=torch.long), 1)
    order = torch.randperm(len(cells))
    far = torch.tensor([465_123.0, 5_423_456.0, 312.0], dtype=torch.float64)
    cloud = select(RawCloud(coord + far, colour, normal), order)
    torch.testing.assert_close(extract_features(model, cloud), want[order], rtol=1e-4, atol=1e-5)


def test_voxels_are_ponderv2s() -> None:
    """CenterShift, then GridSample, written out as PonderV2 has them."""
    cloud = room(seed=3)
    coord = cloud.coord.numpy()
    low, high = coord.min(0), coord.max(0)
    shifted = coord - [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
    grid = np.floor(shifted / 0.07).astype(int)
    grid -= grid.min(0)
    voxels = find_voxels(cloud, 0.07, centred=True)
    assert np.array_equal(voxels.cells[voxels.of_point].numpy(), grid)
    assert len(voxels.cells) == len(np.unique(grid, axis=0))
    inside = (voxels.coord - voxels.phase) / 0.07 - voxels.cells
    assert inside.min() >= -1e-9 and inside.max() <= 1 + 1e-9


def test_voxel_means_and_nearest_points() -> None:
    coord = torch.tensor([[0.0, 0, 0], [0.04, 0.06, 0.04], [0.99, 0.5, 0.5]], dtype=torch.float64)
    colour = torch.tensor([[0.0, 0, 0], [1.0, 0.5, 0], [0.25, 0.25, 0.25]])
    normal = torch.tensor([[0.0, 0, 1], [0, 1.0, 0], [1.0, 0, 0]])
    cloud = RawCloud(coord, colour, normal)
    mean = find_voxels(cloud, 0.1, centred=False)
    assert mean.of_point.tolist() == [0, 0, 1] and mean.colour[0].tolist() == [0.5, 0.25, 0]
    torch.testing.assert_close(mean.coord[0], torch.tensor([0.02, 0.03, 0.02], dtype=torch.float64))
    inputs, _ = network_inputs(mean, ("normal", "mean_normal", "coord"))
    torch.testing.assert_close(inputs[0, :6], torch.tensor([0, 0.5**0.5, 0.5**0.5, 0, 0.5, 0.5]))
    torch.testing.assert_close(inputs[:, 6:].amax(0), torch.tensor([0.485, 0.235, 0.48]))
    nearest = find_voxels(cloud, 0.1, centred=False, reduction="point")
    assert nearest.colour[0].tolist() == [1, 0.5, 0] and torch.equal(nearest.cells, mean.cells)
    with pytest.raises(ValueError, match="size: expected a positive number of metres, got 0"):
        find_voxels(cloud, 0, centred=False)
    with pytest.raises(ValueError, match="reduction: expected one of mean, point, got 'max'"):
        find_voxels(cloud, 0.1, centred=False, reduction="max")
    with pytest.raises(ValueError, match=r"inputs: expected colour, normal, .* got 'strength'"):
        network_inputs(mean, ("strength",))


def test_our_recipes_inputs_are_those_of_training() -> None:
    cloud = room(seed=5)
    trained = voxelise(
        PointCloud(cloud.coord.float(), cloud.colour.float(), cloud.normal.float()), ModelConfig(voxel=0.13, outliers=0)
    )
    voxels = find_voxels(cloud, 0.13, centred=False)
    inputs, notes = network_inputs(voxels, ("colour", "mean_normal", "offset"))
    assert torch.equal(voxels.cells, trained.grid_coord) and not notes
    torch.testing.assert_close(inputs, trained.features, rtol=1e-4, atol=1e-5)


# What a network of one stage sees: 2 voxels by the stem, 4 + 2 by its blocks, 1 by pooling.
REACH = 9


@pytest.mark.parametrize("options", [{"block": 0.5}, {"chunk": 1200}], ids=str)
def test_blocks_agree_with_the_whole(options: dict) -> None:
    """With all the context that the network can see every feature agrees; without, those inside a block do."""
    network = lively(SparseUNet(6, base_channels=4, channels=[4, 4], layers=[1, 1]))
    model = FeatureModel(network, ("colour", "normal"), VOXEL, True, 2)
    cloud = room(3000)
    whole = prepare_cloud(model, cloud, FeatureOptions())
    want = voxel_features(model, whole)
    exact = prepare_cloud(model, cloud, FeatureOptions(overlap=REACH * VOXEL, **options))
    assert len(whole.blocks) == 1 and len(exact.blocks) > 3
    torch.testing.assert_close(voxel_features(model, exact), want, rtol=1e-4, atol=1e-5)
    cut = prepare_cloud(model, cloud, FeatureOptions(overlap=0, **options))
    wrong = (voxel_features(model, cut) - want).abs().amax(1) > 1e-4
    assert 0.05 < wrong.float().mean() < 0.95
    inside = 0
    for block in cut.blocks:
        cells = cut.voxels.cells[block.core]
        others = torch.ones(len(want), dtype=torch.bool).index_fill(0, block.core, False)
        far = torch.cdist(cells.double(), cut.voxels.cells[others].double(), p=torch.inf).amin(1) > REACH
        assert not wrong[block.core][far].any()
        inside += int(far.sum())
    assert inside > 0


@pytest.mark.parametrize(("limit", "overlap", "edge"), [(50, 0, None), (200, 3, 16), (150, 2, 9), (10**9, 5, None)])
def test_blocks_cover_every_voxel_once_within_the_bound(limit: int, overlap: int, edge: int | None) -> None:
    cells = torch.unique(torch.randint(60, (1000, 3)) // torch.tensor([1, 2, 6]), dim=0)
    cells -= cells.amin(0)
    blocks = plan_blocks(cells, limit, overlap, edge, 8)
    assert (len(blocks) == 1) == (limit == 10**9)
    cores = torch.cat([block.core for block in blocks])
    assert torch.equal(cores.sort().values, torch.arange(len(cells)))
    for block in blocks:
        assert len(block.window) <= limit and torch.equal(block.window[block.core_in_window], block.core)
        assert (block.origin % 8 == 0).all() and (cells[block.window] >= block.origin).all()
        low, high = cells[block.core].amin(0), cells[block.core].amax(0)
        assert edge is None or int((high - low).max()) < edge
        near = ((cells >= low - overlap) & (cells <= high + overlap)).all(1)
        assert torch.equal(near.nonzero().flatten(), block.window)


def test_blocks_that_cannot_be(model: FeatureModel) -> None:
    cells = torch.unique(torch.randint(40, (3000, 3)), dim=0)
    with pytest.raises(BlockError, match="the context of 20 voxels around a block of 8 already holds"):
        plan_blocks(cells, 100, 20, None, 8)
    with pytest.raises(ValueError, match="edge: expected at least the network's coarsest voxel, 8, got 7"):
        plan_blocks(cells, 100, 0, 7, 8)
    # Two points in different towns: an engine's index space ends long before.
    far = RawCloud(torch.tensor([[0.0, 0, 0], [3e4, 4e4, 1e3]], dtype=torch.float64))
    assert len(prepare_cloud(model, far, FeatureOptions()).blocks) == 2
    assert extract_features(model, far).shape == (2, 4)
    lost = RawCloud(torch.tensor([[0.0, 0, 0], [1e30, 0, 0]], dtype=torch.float64))
    with pytest.raises(DataError, match=r"the cloud spans 1e\+30 x 0 x 0 m, too much for voxels of 0.02 m"):
        extract_features(model, lost)


def test_one_point_and_one_place(model: FeatureModel) -> None:
    far = torch.tensor([[5e5, 5.4e6, 300.0]], dtype=torch.float64)
    one = extract_features(model, RawCloud(far))
    assert one.shape == (1, 4) and torch.isfinite(one).all()
    assert torch.equal(extract_features(model, RawCloud(far.repeat(9, 1))), one.repeat(9, 1))


def test_progress_and_mode(model: FeatureModel) -> None:
    calls: list[tuple[int, int]] = []
    cloud = room(3000)
    model.network.train()
    prepared = prepare_cloud(model, cloud, FeatureOptions(overlap=0.1, chunk=1000))
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    found = voxel_features(model, prepared, lambda done, total: calls.append((done, total)))
    assert model.network.training and all(torch.equal(t, before[n]) for n, t in model.network.state_dict().items())
    model.network.eval()
    assert torch.equal(found, voxel_features(model, prepared)) and not found.requires_grad
    assert calls[0] == (0, len(found)) and calls[-1] == (len(found), len(found))
    seen: list[tuple[int, int]] = []
    prepare_cloud(model, RawCloud(cloud.coord), FeatureOptions(), lambda done, total: seen.append((done, total)))
    assert seen == [(len(found), len(found))]
    assert len(calls) == len(prepared.blocks) + 1 > 2


def test_estimated_normals_point_to_the_viewpoint() -> None:
    random = torch.Generator().manual_seed(0)
    flat = torch.rand(3, 400, 3, generator=random, dtype=torch.float64)
    walls = torch.cat(
        [side.index_fill(1, torch.tensor([axis]), height) for axis, side in enumerate(flat) for height in (0, 1)]
    )
    truth = torch.eye(3).repeat_interleave(2, 0) * torch.tensor([1, -1] * 3).unsqueeze(1)
    truth = truth.repeat_interleave(400, 0)
    found = estimate_normals(walls, torch.full((3,), 0.5, dtype=torch.float64))
    inner = (walls - 0.5).abs().sort(1).values[:, 1] < 0.3
    torch.testing.assert_close(found[inner], truth[inner], rtol=0, atol=1e-5)
    upwards = estimate_normals(walls)
    level = inner & (truth[:, 2] != 0)
    torch.testing.assert_close(upwards[level], truth[level].abs(), rtol=0, atol=1e-5)
    noisy = estimate_normals(walls + 0.003 * torch.randn(walls.shape, generator=random), torch.full((3,), 0.5).double())
    assert ((noisy * truth).sum(1)[inner] > 0.9).float().mean() > 0.95


def test_normals_that_nothing_determines() -> None:
    line = torch.linspace(0, 1, 20, dtype=torch.float64).unsqueeze(1) * torch.tensor([1.0, 2.0, 3.0])
    for coord in (line, line[:2], line[:1], line[:1].repeat(30, 1)):
        assert torch.equal(estimate_normals(coord), torch.zeros(len(coord), 3))
    side = torch.zeros(25, 3, dtype=torch.float64)
    side[:, 1:] = torch.cartesian_prod(*[torch.arange(5.0)] * 2)
    assert estimate_normals(side).unique(dim=0).tolist() == [[1, 0, 0]]
    with pytest.raises(ValueError, match="neighbours: expected at least 3, got 2"):
        estimate_normals(line, neighbours=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel": 0}, "voxel: expected a positive number of metres, got 0"),
        ({"voxel": float("inf")}, "voxel: expected a positive number of metres, got inf"),
        ({"block": -1.0}, "block: expected a positive number of metres, got -1.0"),
        ({"overlap": float("nan")}, "overlap: expected 0 metres or more, got nan"),
        ({"chunk": 0}, "chunk: expected at least 1 voxel, got 0"),
        ({"reduction": "max"}, "reduction: expected one of mean, point, got 'max'"),
        ({"viewpoint": "down"}, "viewpoint: expected centre, up or 3 numbers, got 'down'"),
        ({"viewpoint": (1.0, 2.0)}, "viewpoint: expected centre, up or 3 numbers, got"),
    ],
    ids=str,
)
def test_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureOptions(**options)


def test_the_viewpoint_is_in_the_clouds_own_coordinates(model: FeatureModel) -> None:
    far = torch.tensor([5e5, 5.4e6, 300.0], dtype=torch.float64)
    floor = torch.cartesian_prod(*[torch.arange(12.0)] * 2, torch.zeros(1)).double() * 0.05 + far
    for height, side in ((1.0, 1), (-1.0, -1)):
        place = tuple((far + torch.tensor([0.3, 0.3, height])).tolist())
        found = prepare_cloud(model, RawCloud(floor), FeatureOptions(viewpoint=place))
        assert torch.equal(found.inputs[:, 3:], torch.tensor([0.0, 0, side]).expand(len(floor), 3))
        assert "point to the viewpoint" in found.notes[-1]


def test_principal_colours() -> None:
    strong = torch.linspace(0, 1, 101)
    features = torch.stack([strong * 3, torch.zeros(101), (strong * 6.3).sin(), torch.ones(101)], 1)
    colours = principal_colours(features)
    assert colours.dtype == torch.uint8 and colours.shape == (101, 3)
    red = colours[:, 0].float()
    assert abs(float(torch.corrcoef(torch.stack([red, strong]))[0, 1])) > 0.9
    assert red.min() == 0 and red.max() == 255 and (colours[:, 2] == 128).all()
    assert torch.equal(principal_colours(features + 5), colours)
    assert principal_colours(torch.ones(1, 2)).tolist() == [[128, 128, 128]]
