"""Sparse U-Net whose norms depend on the dataset, after PonderV2's SpUNet-v1m3 (Point Prompt Training, 2308.09718)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from ponder.models.sparse_engine import load_engine
from ponder.models.sparse_unet import CHANNELS, LAYERS, NORM_EPS, NORM_MOMENTUM, LayerKit, SparseUNetBase, VoxelNorm

CONDITIONS = ("ScanNet", "S3DIS", "Structured3D")


class PDNorm(nn.Module):
    """Prompt-driven norm: y = BN_k(x) * (1 + scale) + shift, with (shift, scale) = Linear(SiLU(context)).

    Args:
        channels: features per voxel, C.
        conditions: number of datasets; each has its own statistics if decoupled.
        context_channels: width of the context.
        decouple: one batch norm per dataset, else one for all.
        adaptive: scale and shift by what the context says.
        affine: give the batch norms weights of their own.
    """

    def __init__(
        self, channels: int, conditions: int, context_channels: int, decouple: bool, adaptive: bool, affine: bool
    ) -> None:
        super().__init__()
        self.decouple, self.adaptive = decouple, adaptive
        norm = partial(VoxelNorm, channels, eps=NORM_EPS, momentum=NORM_MOMENTUM, affine=affine)
        if decouple:
            self.bns = nn.ModuleList(norm() for _ in range(conditions))
        else:
            self.bn = norm()
        if adaptive:
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(context_channels, 2 * channels))

    def ignore_context(self) -> None:
        """Set scale 1 and shift 0 whatever the context."""
        for parameter in self.modulation.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: int, context: Tensor | None) -> Tensor:
        """[N, C] -> [N, C] for the dataset's number and its context [1, context_channels]."""
        x = self.bns[condition](x) if self.decouple else self.bn(x)
        if not self.adaptive:
            return x
        shift, scale = self.modulation(context).chunk(2, dim=1)
        return x * (1.0 + scale) + shift


class PDNormUNet(SparseUNetBase):
    """Encoder and decoder over voxels of one of several datasets, after PonderV2's SpUNet-v1m3.

    Args:
        in_channels, num_classes, base_channels, channels, layers, cls_mode: as in `SparseUNet`.
        context_channels: width of the context vector.
        conditions: names of the datasets, in the order of their norms.
        zero_init: start with scale 1 and shift 0 whatever the context.
        norm_decouple, norm_adaptive, norm_affine: see `PDNorm`.
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
        context_channels: int = 256,
        channels: Sequence[int] = CHANNELS,
        layers: Sequence[int] = LAYERS,
        cls_mode: bool = False,
        conditions: Sequence[str] = CONDITIONS,
        zero_init: bool = True,
        norm_decouple: bool = True,
        norm_adaptive: bool = True,
        norm_affine: bool = False,
        engine: str = "auto",
        device: str = "cpu",
        reinterpreted_kernels: bool = True,
    ) -> None:
        norm = partial(
            PDNorm,
            conditions=len(conditions),
            context_channels=context_channels,
            decouple=norm_decouple,
            adaptive=norm_adaptive,
            affine=norm_affine,
        )
        spconv = load_engine(engine, device)
        kit = LayerKit(spconv, norm, ("conv", "bn"), ("proj_conv", "proj_norm"), reinterpreted_kernels)
        super().__init__(kit, in_channels, num_classes, base_channels, channels, layers, cls_mode)
        self.conditions, self.context_channels = tuple(conditions), context_channels
        self.norm_decouple, self.norm_adaptive = norm_decouple, norm_adaptive
        if zero_init and norm_adaptive:
            for module in self.modules():
                if isinstance(module, PDNorm):
                    module.ignore_context()

    def forward(
        self,
        features: Tensor,
        grid_coord: Tensor,
        batch: Tensor,
        batch_size: int,
        condition: str | None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Features of every voxel.

        Args:
            features: [N, in_channels].
            grid_coord: [N, 3] non-negative integer (x, y, z) voxel indices, distinct within a scene.
            batch: [N] scene number of each voxel.
            batch_size: number of scenes, B, all of one dataset.
            condition: the dataset's name; None only where norms are not decoupled.
            context: [1, context_channels], which only adaptive norms need.

        Returns:
            [N, out_channels] in the order of the input; [B, out_channels] in cls_mode.

        Raises:
            ValueError: a dataset that the network has no norms for, or no context or one of another shape.
        """
        number = 0
        if self.norm_decouple:
            if condition not in self.conditions:
                raise ValueError(f"condition: expected one of {', '.join(self.conditions)}, got {condition!r}")
            number = self.conditions.index(condition)
        if self.norm_adaptive and (context is None or context.shape != (1, self.context_channels)):
            got = "none" if context is None else f"shape {list(context.shape)}"
            raise ValueError(f"context: expected shape [1, {self.context_channels}], got {got}")
        return self._run(features, grid_coord, batch, batch_size, (number, context))
