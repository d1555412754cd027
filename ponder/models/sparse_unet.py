"""Sparse residual U-Net with the topology and parameter names of PonderV2's SpUNet-v1m1."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ponder.models.sparse_engine import load_engine

# PonderV2 pads the index space by this much, so that strided convolutions never drop the last voxels.
SPATIAL_MARGIN = 96
NORM_EPS = 1e-3


def _norm_relu(x: Any, norm: nn.Module) -> Any:
    return x.replace_feature(torch.relu(norm(x.features)))


class ConvNorm(nn.Sequential):
    """Sparse convolution, batch norm, ReLU; children are named 0 and 1 as in PonderV2."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__(conv, norm)

    def forward(self, x: Any) -> Any:
        return _norm_relu(self[0](x), self[1])


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + proj(x)) on one set of voxels."""

    def __init__(self, spconv: ModuleType, in_channels: int, channels: int, key: str, momentum: float) -> None:
        super().__init__()
        options = {"kernel_size": 3, "padding": 1, "bias": False, "indice_key": key}
        if in_channels == channels:
            self.proj: nn.Module = nn.Identity()
        else:
            # spconv applies a 1x1x1 kernel by reinterpreting the (out, 1, 1, 1, in) buffer as (in, out); released
            # PonderV2 weights rely on that reading.
            self.proj = nn.Sequential(
                spconv.SubMConv3d(in_channels, channels, kernel_size=1, bias=False),
                nn.BatchNorm1d(channels, eps=NORM_EPS, momentum=momentum),
            )
        self.conv1 = spconv.SubMConv3d(in_channels, channels, **options)
        self.bn1 = nn.BatchNorm1d(channels, eps=NORM_EPS, momentum=momentum)
        self.conv2 = spconv.SubMConv3d(channels, channels, **options)
        self.bn2 = nn.BatchNorm1d(channels, eps=NORM_EPS, momentum=momentum)

    def forward(self, x: Any) -> Any:
        out = self.conv2(_norm_relu(self.conv1(x), self.bn1))
        return out.replace_feature(torch.relu(self.bn2(out.features) + self._shortcut(x)))

    def _shortcut(self, x: Any) -> Tensor:
        if isinstance(self.proj, nn.Sequential):
            return self.proj[1](self.proj[0](x).features)
        return x.features


class SparseUNet(nn.Module):
    """Encoder and decoder over voxels, after PonderV2's SpUNet-v1m1.

    Args:
        in_channels: features per voxel.
        num_classes: width of a final 1x1x1 layer; 0 returns the decoder's features.
        base_channels: width of the stem.
        channels: widths of the encoder stages, then of the decoder stages from the coarsest.
        layers: residual blocks per stage, in the same order.
        norm_momentum: batch-norm momentum; PonderV2 uses 0.01.
        engine: sparse-convolution engine, see `load_engine`.
        device: type of device the model will run on.

    Raises:
        ValueError: channels and layers differ in length or have an odd number of entries.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 0,
        base_channels: int = 32,
        channels: Sequence[int] = (32, 64, 128, 256, 256, 128, 96, 96),
        layers: Sequence[int] = (2, 3, 4, 6, 2, 2, 2, 2),
        norm_momentum: float = 0.01,
        engine: str = "auto",
        device: str = "cpu",
    ) -> None:
        super().__init__()
        if len(channels) != len(layers) or len(layers) % 2 or not layers:
            raise ValueError(
                f"channels, layers: expected the same even number of entries, got {len(channels)} and {len(layers)}"
            )
        self.spconv = load_engine(engine, device)
        self.in_channels, self.stages = in_channels, len(layers) // 2
        self.out_channels = num_classes or channels[-1]
        self._momentum = norm_momentum
        self.conv_input = self._conv_norm(
            self.spconv.SubMConv3d(in_channels, base_channels, 5, bias=False, indice_key="stem"),
            base_channels,
        )
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.enc, self.dec = nn.ModuleList(), nn.ModuleList()
        width = base_channels
        for s in range(self.stages):
            self._add_stage(s, width, list(channels), list(layers))
            width = channels[s]
        self.final: nn.Module = (
            self.spconv.SubMConv3d(channels[-1], num_classes, kernel_size=1, bias=True)
            if num_classes
            else nn.Identity()
        )
        self.apply(self._init)

    def _conv_norm(self, conv: nn.Module, channels: int) -> ConvNorm:
        return ConvNorm(conv, nn.BatchNorm1d(channels, eps=NORM_EPS, momentum=self._momentum))

    def _blocks(self, count: int, in_channels: int, channels: int, key: str) -> nn.Sequential:
        widths = [in_channels] + [channels] * (count - 1)
        blocks = [BasicBlock(self.spconv, width, channels, key, self._momentum) for width in widths]
        return nn.Sequential(OrderedDict((f"block{i}", block) for i, block in enumerate(blocks)))

    def _add_stage(self, s: int, width: int, channels: list[int], layers: list[int]) -> None:
        """Stage s: halve the resolution from `width` to channels[s], and the decoder stage that undoes it."""
        mirror = len(channels) - 1 - s
        below, out = channels[mirror - 1], channels[mirror]
        key = f"spconv{s + 1}"
        down = self.spconv.SparseConv3d(width, channels[s], 2, stride=2, bias=False, indice_key=key)
        up = self.spconv.SparseInverseConv3d(below, out, 2, bias=False, indice_key=key)
        self.down.append(self._conv_norm(down, channels[s]))
        self.enc.append(self._blocks(layers[s], channels[s], channels[s], f"subm{s + 1}"))
        self.up.append(self._conv_norm(up, out))
        self.dec.append(self._blocks(layers[mirror], out + width, out, f"subm{s}"))

    def _init(self, module: nn.Module) -> None:
        # The strided and the inverse convolutions keep the engine's Kaiming initialisation, as in PonderV2.
        if isinstance(module, self.spconv.SubMConv3d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor, grid_coord: Tensor, batch: Tensor, batch_size: int) -> Tensor:
        """Features of every voxel.

        Args:
            features: [N, in_channels].
            grid_coord: [N, 3] non-negative integer (x, y, z) voxel indices, distinct within a scene.
            batch: [N] scene number of each voxel.
            batch_size: number of scenes.

        Returns:
            [N, out_channels] in the order of the input.
        """
        indices = torch.cat([batch.unsqueeze(1), grid_coord], 1).int().contiguous()
        spatial = (grid_coord.amax(0) + SPATIAL_MARGIN).tolist()
        x = self.conv_input(self.spconv.SparseConvTensor(features, indices, spatial, batch_size))
        skips = []
        for s in range(self.stages):
            skips.append(x)
            x = self.enc[s](self.down[s](x))
        for s in reversed(range(self.stages)):
            x = self.up[s](x)
            x = x.replace_feature(torch.cat([x.features, skips.pop().features], 1))
            x = self.dec[s](x)
        x = self.final(x)
        return x.features
