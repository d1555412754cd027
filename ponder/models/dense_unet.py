"""Dense 3D U-Nets with the topology and parameter names of PonderV2's UNet3D-v1m1 and UNet3D-v1m2."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ponder.models.volume_norm import VolumeBatchNorm

# torch hands single-image 3-D convolutions whose first four sizes multiply to no more than this to im2col.
IM2COL_BOUND = 20480


def _for_onednn(x: Tensor) -> Tensor:
    """On the CPU, move a float32 tensor to oneDNN's layout, which makes torch take oneDNN's convolution.

    By itself torch takes im2col for small and for transposed single-image 3-D convolutions, which is 3 to 6 times
    slower there than oneDNN, forwards and backwards.
    """
    suits = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    # Autocast cannot cast that layout.
    suits = suits and not torch.is_autocast_enabled("cpu")
    return x.to_mkldnn() if suits and not x.is_mkldnn else x


def _plain(x: Tensor) -> Tensor:
    return x.to_dense() if x.is_mkldnn else x


class _Conv3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        if self._is_thin_and_half(x):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))
        if x.shape[:4].numel() > IM2COL_BOUND:
            return super().forward(x)
        return _plain(super().forward(_for_onednn(x)))

    def _is_thin_and_half(self, x: Tensor) -> bool:
        """Whether oneDNN's gradient by the weights would be made of memory that was never written.

        torch 2.13 gives such gradients under autocast on a CPU for volumes thinner than the kernel.
        """
        thin = min(x.shape[2:]) < max(self.kernel_size)
        return thin and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class _ConvTranspose3d(nn.ConvTranspose3d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _plain(super().forward(_for_onednn(x), output_size))


@dataclass(frozen=True)
class _Units:
    """How convolutions, norms and non-linearities are put together.

    Attributes:
        order: a letter per layer: c 3x3x3 convolution, b batch norm, g group norm, r ReLU, l leaky ReLU, e ELU.
        groups: groups of a group norm; 1 where it has fewer channels than that.
        double: two units per level, the decoder's on [skip, nearest upsampling]; else one, on skip + transposed
            convolution.
    """

    order: str
    groups: int
    double: bool

    def __post_init__(self) -> None:
        known = set(self.order) <= set("cbgrle") and len(set(self.order)) == len(self.order)
        if not known or "c" not in self.order or self.order[0] in "rle":
            raise ValueError(
                "order: expected distinct letters of c, b, g, r, l, e with c among them and none of r, l, e first,"
                f" got {self.order!r}"
            )

    def single(self, in_channels: int, out_channels: int) -> nn.Sequential:
        """One convolution with its norm and non-linearity; it has a bias only where there is no norm."""
        before = self.order.index("c")
        bias = not set("bg") & set(self.order)
        parts: list[tuple[str, nn.Module]] = []
        for place, letter in enumerate(self.order):
            channels = in_channels if place < before else out_channels
            if letter == "c":
                parts.append(("conv", _Conv3d(in_channels, out_channels, 3, padding=1, bias=bias)))
            elif letter == "b":
                parts.append(("batchnorm", VolumeBatchNorm(channels)))
            elif letter == "g":
                parts.append(("groupnorm", self._group_norm(channels)))
            else:
                parts.append(_NONLINEAR[letter]())
        return nn.Sequential(OrderedDict(parts))

    def _group_norm(self, channels: int) -> nn.GroupNorm:
        groups = self.groups if channels >= self.groups else 1
        if channels % groups:
            raise ValueError(f"groups: expected a divisor of the {channels} channels, got {groups}")
        return nn.GroupNorm(groups, channels)

    def level(self, in_channels: int, out_channels: int, encoder: bool) -> nn.Sequential:
        """The units of one level."""
        if not self.double:
            return self.single(in_channels, out_channels)
        middle = max(in_channels, out_channels // 2) if encoder else out_channels
        first, second = self.single(in_channels, middle), self.single(middle, out_channels)
        return nn.Sequential(OrderedDict([("SingleConv1", first), ("SingleConv2", second)]))


_NONLINEAR: dict[str, Callable[[], tuple[str, nn.Module]]] = {
    "r": lambda: ("ReLU", nn.ReLU(inplace=True)),
    "l": lambda: ("LeakyReLU", nn.LeakyReLU(0.1, inplace=True)),
    "e": lambda: ("ELU", nn.ELU(inplace=True)),
}


class _Encoder(nn.Module):
    def __init__(self, units: _Units, in_channels: int, out_channels: int, pool: bool) -> None:
        super().__init__()
        self.pooling = nn.MaxPool3d(2) if pool else None
        self.basic_module = units.level(in_channels, out_channels, encoder=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x if self.pooling is None else self.pooling(x))


class _Upsampling(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsample = _ConvTranspose3d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.upsample(x, output_size=list(size))


class _Decoder(nn.Module):
    def __init__(self, units: _Units, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.upsampling = None if units.double else _Upsampling(in_channels, out_channels)
        joined = in_channels + out_channels if units.double else out_channels
        self.basic_module = units.level(joined, out_channels, encoder=False)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        size = skip.shape[2:]
        if self.upsampling is None:
            return self.basic_module(torch.cat([skip, nn.functional.interpolate(x, list(size))], 1))
        return self.basic_module(skip + self.upsampling(x, size))


class DenseUNet(nn.Module):
    """Encoder-decoder on a dense volume, each level half as fine as the one above.

    Args:
        in_channels: channels of the input volume.
        out_channels: channels of the output volume.
        base_channels: width of the finest level, each further one twice as wide; or the widths of all levels.
        levels: number of resolutions; not read where the widths of all levels are given.
        order: layers of a unit, a letter each: c 3x3x3 convolution, b batch norm, g group norm, r ReLU, l leaky ReLU,
            e ELU.
        groups: groups of a group norm.
        double: False, as in UNet3D-v1m2: one unit per level, transposed convolutions, added skips. True, as in
            UNet3D-v1m1: two units per level, nearest upsampling, concatenated skips.
        activation: applied to the output.

    Raises:
        ValueError: no level, an unknown order, or groups that do not divide a width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_channels: int | Sequence[int] = 32,
        levels: int = 4,
        order: str = "bcr",
        groups: int = 1,
        double: bool = False,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if isinstance(base_channels, int):
            widths = [base_channels * 2**level for level in range(levels)]
        else:
            widths = list(base_channels)
        if not widths:
            raise ValueError("levels: expected at least 1, got 0")
        units = _Units(order, groups, double)
        inputs = [in_channels, *widths[:-1]]
        self._any_size, self.levels = double, len(widths)
        self.encoders = nn.ModuleList(
            _Encoder(units, i, o, level > 0) for level, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.decoders = nn.ModuleList(_Decoder(units, high, low) for high, low in pairs)
        self.final_conv = nn.Conv3d(widths[0], out_channels, 1)
        self.final_activation = activation

    def forward(self, volume: Tensor) -> Tensor:
        """[B, in_channels, D, H, W] -> [B, out_channels, D, H, W].

        Raises:
            ValueError: sizes that the levels do not fit: without `double` they are multiples of 2^(levels - 1), which
                the transposed convolutions need; with it they are at least that.
        """
        self._check(volume)
        skips: list[Tensor] = []
        x = volume
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        skips.pop()
        for decoder in self.decoders:
            x = decoder(x, skips.pop())
        x = self.final_conv(x)
        return x if self.final_activation is None else self.final_activation(x)

    def _check(self, volume: Tensor) -> None:
        multiple = 2 ** (self.levels - 1)
        fits = (size >= multiple and (self._any_size or size % multiple == 0) for size in volume.shape[2:])
        if not all(fits):
            wanted = f"at least {multiple}" if self._any_size else f"multiples of {multiple}"
            raise ValueError(f"volume: expected {wanted} voxels per axis, got shape {list(volume.shape)}")


class SimpleConv3D(nn.Module):
    """3D convolution, batch norm and ReLU, after PonderV2's SimpleConv3D-v1m1.

    Args:
        in_channels, out_channels: channels of the volumes.
        kernel_size, padding, stride: of the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, padding: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride, padding)
        self.conv = nn.Sequential(conv, VolumeBatchNorm(out_channels), nn.ReLU(inplace=True))

    def forward(self, volume: Tensor) -> Tensor:
        """[B, in_channels, D, H, W] -> [B, out_channels, D', H', W']."""
        return self.conv(volume)
