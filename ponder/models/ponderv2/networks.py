"""Backbones and projections under PonderV2's names: its constructor arguments, and its batch dictionary as input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ponder.models.dense_unet import DenseUNet
from ponder.models.pdnorm_unet import PDNormUNet
from ponder.models.ponderv2.unit_cube import scene_numbers
from ponder.models.sparse_unet import SparseUNet

Batch = Mapping[str, Any]


class Voxels(NamedTuple):
    """N voxels of B scenes: features [N, C], grid_coord [N, 3], scene of each [N]; B."""

    features: Tensor
    grid_coord: Tensor
    scenes: Tensor
    scene_count: int


def entry(batch: Batch, key: str) -> Any:
    """`batch[key]`.

    Raises:
        ValueError: there is none.
    """
    if key not in batch:
        raise ValueError(f"batch: lacks {key!r}; it has {', '.join(sorted(batch))}")
    return batch[key]


def voxels_of(batch: Batch, channels: int) -> Voxels:
    """What a backbone of `channels` input channels reads of a batch.

    Raises:
        ValueError: an entry is missing or has another shape than `grid_coord` [N, 3], `feat` [N, channels] and
            `offset` [B], which ends with N >= 1.
    """
    grid_coord, features, offset = (entry(batch, key) for key in ("grid_coord", "feat", "offset"))
    if features.dim() != 2 or features.shape[1] != channels or len(features) == 0:
        raise ValueError(f"feat: expected shape [N >= 1, {channels}], got {list(features.shape)}")
    if grid_coord.shape != (len(features), 3):
        raise ValueError(f"grid_coord: expected shape [{len(features)}, 3], got {list(grid_coord.shape)}")
    if offset.dim() != 1 or len(offset) == 0 or int(offset[-1]) != len(features):
        raise ValueError(f"offset: expected cumulative counts up to {len(features)} points, got {offset.tolist()}")
    return Voxels(features, grid_coord, scene_numbers(offset, len(features)), len(offset))


def dataset_of(batch: Batch) -> str | None:
    """The dataset that a batch comes from: `condition`, a name or one name per scene; None where there is none.

    Raises:
        ValueError: scenes of several datasets.
    """
    condition = batch.get("condition")
    if condition is None or isinstance(condition, str):
        return condition
    names = set(condition)
    if len(names) != 1:
        raise ValueError(f"condition: expected scenes of one dataset, got {', '.join(sorted(names)) or 'none'}")
    return names.pop()


class SpUNet(SparseUNet):
    """SpUNet-v1m1: a `SparseUNet` that reads `grid_coord`, `feat` and `offset` of a batch."""

    def forward(self, batch: Batch) -> Tensor:  # type: ignore[override]
        """[N, out_channels] features of the batch's voxels; [B, out_channels] in cls_mode."""
        return super().forward(*voxels_of(batch, self.in_channels))


class PromptedSpUNet(PDNormUNet):
    """SpUNet-v1m3: a `PDNormUNet` that reads `grid_coord`, `feat`, `offset`, `condition` and `context` of a batch."""

    def forward(self, batch: Batch) -> Tensor:  # type: ignore[override]
        """[N, out_channels] features of the batch's voxels; [B, out_channels] in cls_mode."""
        return super().forward(*voxels_of(batch, self.in_channels), dataset_of(batch), batch.get("context"))


class UNet3D(DenseUNet):
    """UNet3D-v1m1: two units per level, nearest upsampling, concatenated skips.

    Args:
        in_channels, out_channels: channels of the volumes.
        final_sigmoid: whether a segmentation ends with a sigmoid, else with a softmax.
        f_maps: width of the finest level, or of all levels.
        layer_order: layers of a unit, see `DenseUNet`.
        num_groups: groups of a group norm.
        num_levels: number of resolutions, unless `f_maps` says it.
        is_segmentation: whether there is such an end.
        testing: whether it is applied.
    """

    DOUBLE = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        final_sigmoid: bool = True,
        f_maps: int | Sequence[int] = 32,
        layer_order: str = "bcr",
        num_groups: int = 8,
        num_levels: int = 4,
        is_segmentation: bool = True,
        testing: bool = False,
    ) -> None:
        activation = None
        if is_segmentation and testing:
            activation = nn.Sigmoid() if final_sigmoid else nn.Softmax(dim=1)
        super().__init__(
            in_channels, out_channels, f_maps, num_levels, layer_order, num_groups, self.DOUBLE, activation
        )


class UNet3Dv1m2(UNet3D):
    """UNet3D-v1m2: one unit per level, transposed convolutions, added skips; arguments as in `UNet3D`."""

    DOUBLE = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        final_sigmoid: bool = False,
        f_maps: int | Sequence[int] = 32,
        layer_order: str = "bcr",
        num_groups: int = 1,
        num_levels: int = 4,
        is_segmentation: bool = False,
        testing: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, final_sigmoid, f_maps, layer_order, num_groups, num_levels, is_segmentation,
            testing,
        )  # fmt: skip
