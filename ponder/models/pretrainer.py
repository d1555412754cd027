"""The pre-training model: point cloud -> sparse U-Net -> dense volume -> dense U-Net -> renderer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ponder.data.scene import PointCloud
from ponder.models.dense_unet import DenseUNet
from ponder.models.grid import Grid, fit_grid, scatter_mean
from ponder.models.sparse_unet import SparseUNet
from ponder.render.renderer import NeusRenderer, RendererConfig

# Colour, normal, and where in its voxel the mean point lies.
POINT_FEATURES = 9


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks and of the grid.

    Attributes:
        voxel: edge of the sparse encoder's voxels, metres.
        cell: edge of the dense grid's cells, metres.
        margin: empty space around the cloud that the grid includes, metres.
        outliers: fraction of points per axis and side that may lie outside the grid; they are dropped.
        max_cells: bound on the dense grid's cells; the cells of larger scenes grow.
        sparse_base, sparse_channels, sparse_layers: widths and depths of the sparse U-Net.
        dense_base, dense_levels: width and depth of the dense U-Net.
        norm_momentum: batch-norm momentum of the sparse U-Net.
        engine: sparse-convolution engine.
        renderer: the renderer's settings.
    """

    voxel: float = 0.05
    cell: float = 0.08
    margin: float = 0.16
    outliers: float = 0.001
    max_cells: int = 400_000
    sparse_base: int = 16
    sparse_channels: tuple[int, ...] = (16, 32, 48, 64, 64, 48, 32, 32)
    sparse_layers: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 1, 1)
    dense_base: int = 16
    dense_levels: int = 4
    norm_momentum: float = 0.1
    engine: str = "auto"
    renderer: RendererConfig = field(default_factory=RendererConfig)


class EncodedCloud(NamedTuple):
    """A cloud reduced to voxels, ready for the network: features [N, 9], grid_coord [N, 3], and its dense grid."""

    features: Tensor
    grid_coord: Tensor
    coord: Tensor
    grid: Grid

    def to(self, device: torch.device) -> EncodedCloud:
        """The same on another device."""
        grid = Grid(self.grid.origin.to(device), self.grid.cell, self.grid.shape)
        return EncodedCloud(self.features.to(device), self.grid_coord.to(device), self.coord.to(device), grid)


def voxelise(cloud: PointCloud, config: ModelConfig) -> EncodedCloud:
    """Average a cloud over voxels and lay the dense grid around it.

    Features per voxel: colour * 2 - 1, normal, and the mean point's offset from the voxel centre in voxels.
    """
    if len(cloud) == 0:
        raise ValueError("cloud: expected at least one point, got none")
    grid = fit_grid(
        _without_outliers(cloud.coord, config.outliers),
        config.cell,
        config.margin,
        config.max_cells,
        2 ** (config.dense_levels - 1),
    )
    cloud = cloud.select(((cloud.coord >= grid.box[0]) & (cloud.coord < grid.box[1])).all(1))
    low = cloud.coord.amin(0)
    cells = ((cloud.coord - low) / config.voxel).floor().long()
    unique, inverse = torch.unique(cells, dim=0, return_inverse=True)
    counts = torch.bincount(inverse).unsqueeze(1)
    stacked = torch.cat([cloud.coord, cloud.colour * 2 - 1, cloud.normal], 1)
    means = stacked.new_zeros(len(unique), 9).index_add_(0, inverse, stacked) / counts
    offset = (means[:, :3] - low) / config.voxel - unique - 0.5
    return EncodedCloud(torch.cat([means[:, 3:], offset], 1), unique, means[:, :3].contiguous(), grid)


def _without_outliers(coord: Tensor, fraction: float) -> Tensor:
    """The points [N, 3] between the two extreme quantiles of every axis: a few flying pixels must not size the grid."""
    dropped = int(fraction * len(coord))
    if dropped == 0:
        return coord
    ordered = coord.sort(0).values
    inside = (coord >= ordered[dropped]) & (coord <= ordered[-1 - dropped])
    return coord[inside.all(1)]


class Volume(NamedTuple):
    """features [B, C, D, H, W] and the box [B, 2, 3] (metres) that each spans."""

    features: Tensor
    box: Tensor


class PonderModel(nn.Module):
    """Encoder and renderer; `backbone` is what pre-training is for."""

    def __init__(self, config: ModelConfig, device: str = "cpu") -> None:
        super().__init__()
        self.config = config
        self.backbone = SparseUNet(
            POINT_FEATURES,
            base_channels=config.sparse_base,
            channels=config.sparse_channels,
            layers=config.sparse_layers,
            norm_momentum=config.norm_momentum,
            engine=config.engine,
            device=device,
        )
        self.proj_net = DenseUNet(
            self.backbone.out_channels,
            config.renderer.volume_channels,
            config.dense_base,
            config.dense_levels,
        )
        self.renderer = NeusRenderer(config.renderer)

    def encode(self, clouds: Sequence[EncodedCloud]) -> Volume:
        """Volumes of B scenes; smaller grids are extended to the largest shape of the batch."""
        sizes = [len(cloud.features) for cloud in clouds]
        device = clouds[0].features.device
        batch = torch.arange(len(clouds), device=device).repeat_interleave(torch.tensor(sizes, device=device))
        features = torch.cat([cloud.features for cloud in clouds])
        grid_coord = torch.cat([cloud.grid_coord for cloud in clouds])
        points = self.backbone(features, grid_coord, batch, len(clouds))
        x, y, z = (max(cloud.grid.shape[axis] for cloud in clouds) for axis in range(3))
        shape = (x, y, z)
        grids = [Grid(cloud.grid.origin, cloud.grid.cell, shape) for cloud in clouds]
        cells = torch.cat([grid.cells_of(cloud.coord) for grid, cloud in zip(grids, clouds, strict=True)])
        dense = scatter_mean(points, cells, batch, len(clouds), shape)
        return Volume(self.proj_net(dense), torch.stack([grid.box for grid in grids]))
