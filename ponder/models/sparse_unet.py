"""Sparse residual U-Net with the topology and parameter names of PonderV2's SpUNet-v1m1.

The parts are shared with `pdnorm_unet`: a `LayerKit` says which norm a network has and what its children are called.
Norms that need to know the dataset get it as extra arguments, the `prompt`, which is empty here.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ponder.models.sparse_engine import load_engine

# PonderV2 pads the index space by this much, so that strided convolutions never drop the last voxels.
SPATIAL_MARGIN = 96
NORM_EPS = 1e-3
NORM_MOMENTUM = 0.01
INIT_STD = 0.02
CHANNELS = (32, 64, 128, 256, 256, 128, 96, 96)
LAYERS = (2, 3, 4, 6, 2, 2, 2, 2)

Prompt = tuple[Any, ...]


class VoxelNorm(nn.BatchNorm1d):
    """Batch norm of voxels [N, C]; a single one, which has no variance, is normalised by the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 or not self.training:
            return super().forward(x)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class PointwiseConv(nn.Module):
    """1x1x1 sparse convolution: a linear map of every voxel's features.

    The weight is stored as spconv stores it, [out, 1, 1, 1, in], but spconv reads the buffer as if it were [in, out].

    Args:
        in_channels, out_channels: features per voxel.
        bias: whether to add one.
        reinterpreted: True reads the buffer as spconv does, which released PonderV2 weights rely on; False transposes.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool, reinterpreted: bool) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.reinterpreted = in_channels, out_channels, reinterpreted
        bound = 1 / math.sqrt(in_channels)
        self.weight = nn.Parameter(torch.empty(out_channels, 1, 1, 1, in_channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Any) -> Any:
        if self.reinterpreted:
            matrix = self.weight.view(self.in_channels, self.out_channels).T
        else:
            matrix = self.weight.view(self.out_channels, self.in_channels)
        return x.replace_feature(nn.functional.linear(x.features, matrix, self.bias))


class ConvNorm(nn.Module):
    """Convolution, norm, ReLU.

    Args:
        conv, norm: the parts.
        names: what they are called.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module, names: tuple[str, str]) -> None:
        super().__init__()
        self._names = names
        for name, part in zip(names, (conv, norm), strict=True):
            self.add_module(name, part)

    def forward(self, x: Any, *prompt: Any) -> Any:
        conv, norm = (self.get_submodule(name) for name in self._names)
        return _norm_relu(conv(x), norm, prompt)


def _norm_relu(x: Any, norm: nn.Module, prompt: Prompt) -> Any:
    return x.replace_feature(torch.relu(norm(x.features, *prompt)))


@dataclass(frozen=True)
class LayerKit:
    """What the layers of a network are made of.

    Attributes:
        spconv: the sparse-convolution library.
        norm: makes the norm of a width.
        pair: names of convolution and norm in a `ConvNorm`.
        shortcut: names of convolution and norm in a block's projection; the part before a dot is a module around both.
        reinterpreted: see `PointwiseConv`.
    """

    spconv: ModuleType
    norm: Callable[[int], nn.Module]
    pair: tuple[str, str]
    shortcut: tuple[str, str]
    reinterpreted: bool

    def conv_norm(self, conv: nn.Module, channels: int) -> ConvNorm:
        """A convolution of `channels` outputs with its norm and ReLU."""
        return ConvNorm(conv, self.norm(channels), self.pair)

    def pointwise(self, in_channels: int, out_channels: int, bias: bool = False) -> PointwiseConv:
        """A 1x1x1 convolution."""
        return PointwiseConv(in_channels, out_channels, bias, self.reinterpreted)

    def blocks(self, count: int, in_channels: int, channels: int, key: str) -> nn.Sequential:
        """`count` residual blocks on the voxels that `key` names."""
        widths = [in_channels] + [channels] * (count - 1)
        blocks = [BasicBlock(self, width, channels, key) for width in widths]
        return nn.Sequential(OrderedDict((f"block{i}", block) for i, block in enumerate(blocks)))


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut(x)) on one set of voxels.

    The shortcut is x itself where widths agree, else a pointwise convolution and a norm.
    """

    def __init__(self, kit: LayerKit, in_channels: int, channels: int, key: str) -> None:
        super().__init__()
        self._shortcut_names = kit.shortcut if in_channels != channels else None
        if self._shortcut_names is not None:
            parts = (kit.pointwise(in_channels, channels), kit.norm(channels))
            for path, part in zip(kit.shortcut, parts, strict=True):
                parent, _, name = path.rpartition(".")
                if parent and not hasattr(self, parent):
                    self.add_module(parent, nn.Module())
                self.get_submodule(parent).add_module(name, part)
        options = {"kernel_size": 3, "padding": 1, "bias": False, "indice_key": key}
        self.conv1 = kit.spconv.SubMConv3d(in_channels, channels, **options)
        self.bn1 = kit.norm(channels)
        self.conv2 = kit.spconv.SubMConv3d(channels, channels, **options)
        self.bn2 = kit.norm(channels)

    def forward(self, x: Any, *prompt: Any) -> Any:
        out = self.conv2(_norm_relu(self.conv1(x), self.bn1, prompt))
        return out.replace_feature(torch.relu(self.bn2(out.features, *prompt) + self._shortcut(x, prompt)))

    def _shortcut(self, x: Any, prompt: Prompt) -> Tensor:
        if self._shortcut_names is None:
            return x.features
        conv, norm = (self.get_submodule(path) for path in self._shortcut_names)
        return norm(conv(x).features, *prompt)


class SparseUNetBase(nn.Module):
    """Encoder, decoder and final layer over voxels, for any norm.

    Args:
        kit: norm and names of the layers.
        in_channels: features per voxel.
        num_classes: width of a final 1x1x1 layer; 0 returns the features before it.
        base_channels: width of the stem.
        channels: widths of the encoder stages, then of the decoder stages from the coarsest.
        layers: residual blocks per stage, in the same order.
        cls_mode: no decoder; one vector per scene, the mean over the coarsest voxels.

    Raises:
        ValueError: channels and layers differ in length or have an odd number of entries.
    """

    def __init__(
        self,
        kit: LayerKit,
        in_channels: int,
        num_classes: int,
        base_channels: int,
        channels: Sequence[int],
        layers: Sequence[int],
        cls_mode: bool,
    ) -> None:
        super().__init__()
        if len(channels) != len(layers) or len(layers) % 2 or not layers:
            raise ValueError(
                f"channels, layers: expected the same even number of entries, got {len(channels)} and {len(layers)}"
            )
        self.in_channels, self.stages, self.cls_mode = in_channels, len(layers) // 2, cls_mode
        width = channels[self.stages - 1] if cls_mode else channels[-1]
        self.out_channels = num_classes or width
        self._spconv = kit.spconv
        stem = kit.spconv.SubMConv3d(in_channels, base_channels, 5, bias=False, indice_key="stem")
        self.conv_input = kit.conv_norm(stem, base_channels)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.enc, self.dec = nn.ModuleList(), nn.ModuleList()
        above = [base_channels, *channels[: self.stages - 1]]
        for s in range(self.stages):
            self._add_stage(kit, s, above[s], list(channels), list(layers))
        self.final: nn.Module = kit.pointwise(width, num_classes, bias=True) if num_classes else nn.Identity()
        self.apply(self._init)

    def _add_stage(self, kit: LayerKit, s: int, width: int, channels: list[int], layers: list[int]) -> None:
        """Stage s: halve the resolution from `width` to channels[s], and the decoder stage that undoes it."""
        key = f"spconv{s + 1}"
        down = kit.spconv.SparseConv3d(width, channels[s], 2, stride=2, bias=False, indice_key=key)
        self.down.append(kit.conv_norm(down, channels[s]))
        self.enc.append(kit.blocks(layers[s], channels[s], channels[s], f"subm{s + 1}"))
        if self.cls_mode:
            return
        mirror = len(channels) - 1 - s
        below, out = channels[mirror - 1], channels[mirror]
        up = kit.spconv.SparseInverseConv3d(below, out, 2, bias=False, indice_key=key)
        self.up.append(kit.conv_norm(up, out))
        self.dec.append(kit.blocks(layers[mirror], out + width, out, f"subm{s}"))

    def _init(self, module: nn.Module) -> None:
        # The strided and the inverse convolutions keep the engine's Kaiming initialisation, as in PonderV2.
        if isinstance(module, self._spconv.SubMConv3d | PointwiseConv | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def _run(self, features: Tensor, grid_coord: Tensor, batch: Tensor, batch_size: int, prompt: Prompt) -> Tensor:
        indices = torch.cat([batch.unsqueeze(1), grid_coord], 1).int().contiguous()
        spatial = (grid_coord.amax(0) + SPATIAL_MARGIN).tolist()
        x = self.conv_input(self._spconv.SparseConvTensor(features, indices, spatial, batch_size), *prompt)
        skips = []
        for s in range(self.stages):
            skips.append(x)
            x = _through(self.enc[s], self.down[s](x, *prompt), prompt)
        for s in reversed(range(len(self.up))):
            x = self.up[s](x, *prompt)
            x = x.replace_feature(torch.cat([x.features, skips.pop().features], 1))
            x = _through(self.dec[s], x, prompt)
        x = self.final(x)
        return _scene_means(x.features, x.indices[:, 0].long(), batch_size) if self.cls_mode else x.features


def _through(blocks: nn.Module, x: Any, prompt: Prompt) -> Any:
    for block in blocks.children():
        x = block(x, *prompt)
    return x


def _scene_means(features: Tensor, scenes: Tensor, count: int) -> Tensor:
    """[count, C] means of the rows of [M, C] that belong to each scene."""
    sums = features.new_zeros(count, features.shape[1]).index_add(0, scenes, features)
    return sums / torch.bincount(scenes, minlength=count).clamp_min(1).to(features.dtype).unsqueeze(1)


class SparseUNet(SparseUNetBase):
    """Encoder and decoder over voxels, after PonderV2's SpUNet-v1m1.

    Args:
        in_channels: features per voxel.
        num_classes: width of a final 1x1x1 layer; 0 returns the decoder's features.
        base_channels: width of the stem.
        channels: widths of the encoder stages, then of the decoder stages from the coarsest.
        layers: residual blocks per stage, in the same order.
        cls_mode: no decoder; one vector per scene, the mean over the coarsest voxels.
        norm_momentum: batch-norm momentum.
        engine: sparse-convolution engine, see `load_engine`.
        device: type of device the model will run on.
        reinterpreted_kernels: how 1x1x1 kernels are read, see `PointwiseConv`.

    Raises:
        ValueError: channels and layers differ in length or have an odd number of entries.
        SparseEngineError: no engine for the device.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 0,
        base_channels: int = 32,
        channels: Sequence[int] = CHANNELS,
        layers: Sequence[int] = LAYERS,
        cls_mode: bool = False,
        norm_momentum: float = NORM_MOMENTUM,
        engine: str = "auto",
        device: str = "cpu",
        reinterpreted_kernels: bool = True,
    ) -> None:
        norm = partial(VoxelNorm, eps=NORM_EPS, momentum=norm_momentum)
        kit = LayerKit(load_engine(engine, device), norm, ("0", "1"), ("proj.0", "proj.1"), reinterpreted_kernels)
        super().__init__(kit, in_channels, num_classes, base_channels, channels, layers, cls_mode)

    def forward(self, features: Tensor, grid_coord: Tensor, batch: Tensor, batch_size: int) -> Tensor:
        """Features of every voxel.

        Args:
            features: [N, in_channels].
            grid_coord: [N, 3] non-negative integer (x, y, z) voxel indices, distinct within a scene.
            batch: [N] scene number of each voxel.
            batch_size: number of scenes, B.

        Returns:
            [N, out_channels] in the order of the input; [B, out_channels] in cls_mode.
        """
        return self._run(features, grid_coord, batch, batch_size, ())
