"""Dense 3D U-Net with the topology and parameter names of PonderV2's UNet3D-v1m2."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

# torch hands single-image 3-D convolutions whose first four sizes multiply to no more than this to im2col.
IM2COL_BOUND = 20480


def _for_onednn(x: Tensor) -> Tensor:
    """On the CPU, move a float32 tensor to oneDNN's layout, which makes torch take oneDNN's convolution.

    By itself torch takes im2col for small and for transposed single-image 3-D convolutions, which is 3 to 6 times
    slower there than oneDNN, forwards and backwards.
    """
    suits = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return x.to_mkldnn() if suits and not x.is_mkldnn else x


def _plain(x: Tensor) -> Tensor:
    return x.to_dense() if x.is_mkldnn else x


class _Conv3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:4].numel() > IM2COL_BOUND:
            return super().forward(x)
        return _plain(super().forward(_for_onednn(x)))


class _ConvTranspose3d(nn.ConvTranspose3d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _plain(super().forward(_for_onednn(x), output_size))


def _unit(in_channels: int, out_channels: int) -> nn.Sequential:
    """Batch norm, 3x3x3 convolution without bias, ReLU."""
    conv = _Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
    parts = [("batchnorm", nn.BatchNorm3d(in_channels)), ("conv", conv), ("ReLU", nn.ReLU(inplace=True))]
    return nn.Sequential(OrderedDict(parts))


class _Encoder(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, pool: bool) -> None:
        super().__init__()
        self.pooling = nn.MaxPool3d(2) if pool else None
        self.basic_module = _unit(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x if self.pooling is None else self.pooling(x))


class _Upsampling(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = _ConvTranspose3d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.upsample(x, output_size=list(size))


class _Decoder(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsampling = _Upsampling(in_channels, out_channels)
        self.basic_module = _unit(out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.basic_module(skip + self.upsampling(x, skip.shape[2:]))


class DenseUNet(nn.Module):
    """Encoder-decoder on a dense volume; every level is one norm-convolution-ReLU unit, skips are added.

    Args:
        in_channels: channels of the input volume.
        out_channels: channels of the output volume.
        base_channels: width of the finest level; PonderV2 uses 32.
        levels: number of resolutions, each twice as wide and half as fine as the one above.
    """

    def __init__(self, in_channels: int, out_channels: int, base_channels: int = 32, levels: int = 4) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels: expected at least 2, got {levels}")
        widths = [base_channels * 2**level for level in range(levels)]
        inputs = [in_channels, *widths[:-1]]
        self.levels = levels
        self.encoders = nn.ModuleList(
            _Encoder(i, o, level > 0) for level, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.decoders = nn.ModuleList(_Decoder(high, low) for high, low in pairs)
        self.final_conv = nn.Conv3d(widths[0], out_channels, 1)

    def forward(self, volume: Tensor) -> Tensor:
        """[B, in_channels, D, H, W] -> [B, out_channels, D, H, W]; sizes are multiples of 2^(levels - 1)."""
        multiple = 2 ** (self.levels - 1)
        if any(size == 0 or size % multiple for size in volume.shape[2:]):
            raise ValueError(
                f"volume: expected multiples of {multiple} voxels per axis, got shape {list(volume.shape)}"
            )
        skips: list[Tensor] = []
        x = volume
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        skips.pop()
        for decoder in self.decoders:
            x = decoder(x, skips.pop())
        return self.final_conv(x)
