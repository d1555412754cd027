"""Networks: PonderV2's topology and names, the shared grid, finite losses."""

from __future__ import annotations

import os

import pytest
import torch

from ponder.data.scene import PointCloud
from ponder.models.dense_unet import DenseUNet
from ponder.models.grid import Grid, fit_grid, scatter_mean
from ponder.models.pretrainer import ModelConfig, voxelise
from ponder.models.sparse_engine import SparseEngineError, load_engine
from ponder.models.sparse_unet import SparseUNet
from ponder_kernels.volume_sample import volume_sample


def test_sparse_unet_has_ponderv2s_parameters() -> None:
    model = SparseUNet(6)
    state = model.state_dict()
    assert len(state) == 354
    assert sum(p.numel() for p in model.parameters()) == 39_155_904
    shapes = {
        "conv_input.0.weight": (32, 5, 5, 5, 6),
        "down.3.0.weight": (256, 2, 2, 2, 128),
        "enc.2.block3.conv2.weight": (128, 3, 3, 3, 128),
        "up.0.0.weight": (96, 2, 2, 2, 96),
        "up.3.0.weight": (256, 2, 2, 2, 256),
        "dec.0.block0.conv1.weight": (96, 3, 3, 3, 128),
        "dec.2.block0.proj.0.weight": (128, 1, 1, 1, 192),
        "dec.3.block0.proj.1.running_var": (256,),
        "dec.3.block1.bn2.weight": (256,),
    }
    for name, shape in shapes.items():
        assert tuple(state[name].shape) == shape, name


def test_dense_unet_has_ponderv2s_parameters() -> None:
    model = DenseUNet(96, 128)
    state = model.state_dict()
    assert len(state) == 50
    assert sum(p.numel() for p in model.parameters()) == 2_991_520
    assert tuple(state["encoders.3.basic_module.conv.weight"].shape) == (256, 128, 3, 3, 3)
    assert tuple(state["decoders.0.upsampling.upsample.weight"].shape) == (256, 128, 3, 3, 3)
    assert tuple(state["final_conv.weight"].shape) == (128, 32, 1, 1, 1)
    small = DenseUNet(3, 5, base_channels=4, levels=3)
    assert small(torch.randn(2, 3, 4, 8, 12)).shape == (2, 5, 4, 8, 12)
    with pytest.raises(ValueError, match="volume: expected multiples of 4 voxels per axis, got shape"):
        small(torch.randn(2, 3, 4, 8, 13))


def dense_reference(features, coords, weight, stride):
    """A sparse convolution written out as a dense one: [N, C] at [N, 3] -> dense [K, X, Y, Z]."""
    size = coords.amax(0) + 1
    dense = features.new_zeros(features.shape[1], *size.tolist())
    dense[:, coords[:, 0], coords[:, 1], coords[:, 2]] = features.T
    kernel = weight.permute(0, 4, 1, 2, 3)
    padding = 0 if stride == 2 else kernel.shape[-1] // 2
    pad = [p for s in size.flip(0).tolist() for p in (0, s % 2)] if stride == 2 else [0] * 6
    dense = torch.nn.functional.pad(dense, pad)
    return torch.nn.functional.conv3d(dense[None], kernel, stride=stride, padding=padding)[0]


@pytest.mark.parametrize("layer", ["submanifold", "strided"])
def test_sparse_convolutions_follow_the_convention(layer: str) -> None:
    spconv = load_engine("spconv")
    coords = torch.unique(torch.randint(6, (60, 3), generator=torch.Generator().manual_seed(0)), dim=0)
    features = torch.randn(len(coords), 4, requires_grad=True)
    indices = torch.cat([torch.zeros(len(coords), 1, dtype=torch.long), coords], 1).int()
    x = spconv.SparseConvTensor(features, indices, [10, 10, 10], 1)
    if layer == "strided":
        conv = spconv.SparseConv3d(4, 5, 2, stride=2, bias=False)
    else:
        conv = spconv.SubMConv3d(4, 5, 3, padding=1, bias=False)
    out = conv(x)
    truth = dense_reference(features, coords, conv.weight, 2 if layer == "strided" else 1)
    at = out.indices[:, 1:].long()
    expected = truth[:, at[:, 0], at[:, 1], at[:, 2]].T
    torch.testing.assert_close(out.features, expected, rtol=1e-4, atol=1e-5)
    cotangent = torch.randn_like(expected)
    got = torch.autograd.grad((out.features * cotangent).sum(), [features, conv.weight])
    want = torch.autograd.grad((expected * cotangent).sum(), [features, conv.weight])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", ["submanifold", "strided"])
def test_sparse_convolutions_do_not_race(layer: str) -> None:
    """spconv's own CPU path returns wrong sums now and then when it has several threads."""
    spconv = load_engine("spconv")
    assert torch.get_num_threads() > 1 or (os.cpu_count() or 1) == 1
    torch.manual_seed(0)
    coords = torch.unique(torch.randint(12, (500, 3)), dim=0)
    features = torch.randn(len(coords), 4, requires_grad=True)
    indices = torch.cat([torch.zeros(len(coords), 1, dtype=torch.long), coords], 1).int().contiguous()
    if layer == "strided":
        conv = spconv.SparseConv3d(4, 4, 2, stride=2, bias=False)
    else:
        conv = spconv.SubMConv3d(4, 4, 3, padding=1, bias=False)

    def run() -> list[torch.Tensor]:
        out = conv(spconv.SparseConvTensor(features, indices, [108, 108, 108], 1)).features
        return [out, *torch.autograd.grad(out.square().sum(), [features, conv.weight])]

    first = run()
    for _ in range(40):
        for one, other in zip(first, run(), strict=True):
            assert torch.equal(one, other)


def small_unet() -> SparseUNet:
    torch.manual_seed(0)
    return SparseUNet(3, base_channels=4, channels=(4, 8, 8, 4), layers=(1, 1, 1, 1))


def test_sparse_unet_scenes_do_not_mix() -> None:
    model = small_unet().eval()
    coords = [torch.unique(torch.randint(9, (80, 3)), dim=0) for _ in range(2)]
    features = [torch.randn(len(c), 3) for c in coords]
    batch = torch.arange(2).repeat_interleave(torch.tensor([len(c) for c in coords]))
    together = model(torch.cat(features), torch.cat(coords), batch, 2)
    alone = model(features[1], coords[1], torch.zeros(len(coords[1]), dtype=torch.long), 1)
    torch.testing.assert_close(together[len(coords[0]) :], alone, rtol=1e-4, atol=1e-5)


def test_sparse_unet_trains_on_the_cpu() -> None:
    model = small_unet()
    coords = torch.unique(torch.randint(9, (80, 3)), dim=0)
    out = model(torch.randn(len(coords), 3), coords, torch.zeros(len(coords), dtype=torch.long), 1)
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith("bias"), name


def test_sparse_unet_rejects_uneven_stages() -> None:
    with pytest.raises(ValueError, match="same even number of entries, got 3 and 3"):
        SparseUNet(3, channels=(4, 4, 4), layers=(1, 1, 1))


def test_engine_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="engine: expected one of auto, spconv, spconv-triton, got 'minkowski'"):
        load_engine("minkowski")
    monkeypatch.setattr("ponder.models.sparse_engine.installed_engines", lambda: [])
    with pytest.raises(SparseEngineError, match=r"pip install \"ponder\[cpu\]\""):
        load_engine("auto", "cpu")
    monkeypatch.setattr("ponder.models.sparse_engine.installed_engines", lambda: ["spconv-triton"])
    with pytest.raises(SparseEngineError, match="no sparse-convolution library for cpu"):
        load_engine("auto", "cpu")
    with pytest.raises(SparseEngineError, match="runs on GPUs only"):
        load_engine("spconv-triton", "cpu")


def test_scattered_points_are_read_back_where_they_lie() -> None:
    """The grid of the scatter and the grid of the sampler coincide: a cell's centre gives back the cell's mean."""
    grid = Grid(torch.tensor([-1.0, 2.0, 0.5]), 0.25, (8, 6, 4))
    coord = grid.origin + torch.rand(200, 3) * torch.tensor(grid.shape) * grid.cell
    features = torch.randn(200, 5)
    cells = grid.cells_of(coord)
    volume = scatter_mean(features, cells, torch.zeros(200, dtype=torch.long), 1, grid.shape)
    centres = grid.origin + (cells + 0.5) * grid.cell
    low, high = grid.box
    sampled = volume_sample(
        volume, (2 * (centres - low) / (high - low) - 1)[None], padding="border", align_corners=False
    )
    for index in range(200):
        same = (cells == cells[index]).all(1)
        torch.testing.assert_close(sampled[0, index], features[same].mean(0), rtol=1e-3, atol=1e-4)


def test_scatter_mean_counts_scenes_apart_and_is_differentiable() -> None:
    features = torch.tensor([[1.0], [3.0], [10.0]], requires_grad=True)
    cells = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 0, 0]])
    volume = scatter_mean(features, cells, torch.tensor([0, 0, 1]), 2, (2, 1, 1))
    assert volume.shape == (2, 1, 1, 1, 2)
    assert volume[:, 0, 0, 0].tolist() == [[0.0, 2.0], [0.0, 10.0]]
    volume.sum().backward()
    assert features.grad.flatten().tolist() == [0.5, 0.5, 1.0]


def test_fit_grid_covers_the_cloud_and_respects_the_bound() -> None:
    coord = torch.rand(100, 3) * torch.tensor([4.0, 2.0, 1.0])
    free = fit_grid(coord, 0.1, 0.2, 10**9, multiple=8)
    assert free.cell == 0.1 and all(n % 8 == 0 for n in free.shape)
    bound = fit_grid(coord, 0.1, 0.2, 5000, multiple=8)
    for grid in (free, bound):
        assert (grid.box[0] <= coord.amin(0) - 0.2 + 1e-4).all() and (grid.box[1] >= coord.amax(0) + 0.2 - 1e-4).all()
    assert bound.cell > 0.1 and bound.shape[0] * bound.shape[1] * bound.shape[2] <= 5000
    point = fit_grid(torch.zeros(1, 3), 0.1, 0.0, 1, multiple=8)
    assert point.shape == (8, 8, 8)


def test_voxelise() -> None:
    coord = torch.tensor([[0.0, 0.0, 0.0], [0.04, 0.0, 0.0], [0.9, 0.5, 0.2]])
    colour = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    cloud = PointCloud(coord, colour, torch.tensor([[0.0, 0.0, 1.0]] * 3))
    found = voxelise(cloud, ModelConfig(voxel=0.1, cell=0.1))
    assert len(found.features) == 2
    torch.testing.assert_close(found.coord[0], torch.tensor([0.02, 0.0, 0.0]))
    torch.testing.assert_close(found.features[0, :3], torch.tensor([0.0, -1.0, -1.0]))
    torch.testing.assert_close(found.features[0, 6:], torch.tensor([-0.3, -0.5, -0.5]))
    with pytest.raises(ValueError, match="cloud: expected at least one point, got none"):
        voxelise(cloud.select(torch.zeros(3, dtype=torch.bool)), ModelConfig())


def test_dense_unet_equals_plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout that makes torch take oneDNN changes speed, not results."""
    torch.manual_seed(0)
    model = DenseUNet(3, 5, base_channels=4, levels=3)
    volume = torch.randn(1, 3, 8, 12, 16, requires_grad=True)
    cotangent = torch.randn(1, 5, 8, 12, 16)
    leaves = [volume, *model.parameters()]
    fast = torch.autograd.grad((model(volume) * cotangent).sum(), leaves)
    monkeypatch.setattr("ponder.models.dense_unet._for_onednn", lambda x: x)
    plain = torch.autograd.grad((model(volume) * cotangent).sum(), leaves)
    for got, want in zip(fast, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_flying_points_do_not_size_the_grid() -> None:
    coord = torch.cat([torch.rand(4000, 3), torch.tensor([[50.0, 0.5, 0.5], [0.5, -40.0, 0.5]])])
    cloud = PointCloud(coord, torch.zeros_like(coord), torch.zeros_like(coord))
    found = voxelise(cloud, ModelConfig(voxel=0.1, cell=0.1, margin=0.1, outliers=0.001))
    assert max(found.grid.shape) <= 16
    assert found.coord.max() < 1.3 and found.coord.min() > -0.3
    assert max(voxelise(cloud, ModelConfig(voxel=0.1, cell=0.1, outliers=0.0)).grid.shape) > 100
