"""The scene as a function of position: PonderV2's decoders and learned sharpness, as the kernels take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ponder.render.decoders import Decoder, DeviationNetwork
from ponder.render.ponderv2.opacity import LaplaceDensity
from ponder.render.ponderv2.plain_sdf import PlainSDF
from ponder_kernels import FieldWeights, HeadWeights, Layer, Normalisation, PlainDecoder, sdf_field

# PonderV2 divides by 1 + padding + this, so that the padded cube stays strictly inside [0, 1).
NORMALISE_MARGIN = 10e-4

# Points at 1 or beyond are moved here.
NORMALISED_MAX = 1 - 10e-4


class SDFField(nn.Module):
    """Signed distance, colour and semantics read from feature volumes; names and shapes of the parameters PonderV2's.

    Args:
        sdf_decoder: its row 0 is the distance, the others are geometry features.
        beta_init: initial value of both the Laplace and the NeuS sharpness.
        use_gradient: give the SDF gradient to the other decoders.
        share_volume: all decoders read all channels; else the first half of the channels feeds the SDF, the second half
            the others.
        rgb_decoder, semantic_decoder: None leaves that output out.
        norm_pts: map points from the padded cube to [0, 1] before reading; else they must be in [0, 1] already.
        norm_padding: how much larger than the unit cube the padded one is.
        raw_sampler_points: see `Parity.raw_sampler_points`.
        feature_decoder: renders further features, which PonderV2 does not have.
    """

    def __init__(
        self,
        sdf_decoder: Decoder,
        beta_init: float,
        use_gradient: bool = True,
        share_volume: bool = True,
        rgb_decoder: Decoder | None = None,
        semantic_decoder: Decoder | None = None,
        norm_pts: bool = False,
        norm_padding: float = 0.1,
        raw_sampler_points: bool = True,
        feature_decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.use_gradient, self.share_volume = use_gradient, share_volume
        self.norm_pts, self.norm_padding = norm_pts, norm_padding
        self.raw_sampler_points = raw_sampler_points
        self.sdf_decoder = sdf_decoder
        self.rgb_decoder = rgb_decoder
        self.semantic_decoder = semantic_decoder
        self.feature_decoder = feature_decoder
        self.laplace_density = LaplaceDensity(beta_init)
        self.deviation_network = DeviationNetwork(beta_init)

    def inv_s(self) -> Tensor:
        """[] inverse standard deviation of NeuS."""
        return self.deviation_network()

    def normalisation(self) -> Normalisation:
        """From points on rays to the points that volumes are read at."""
        if not self.norm_pts:
            return _UNCHANGED
        return Normalisation(1 / (1 + self.norm_padding + NORMALISE_MARGIN), 0.5, 0.0, NORMALISED_MAX, snap=True)

    def weights(self, volumes: int) -> FieldWeights:
        """The decoders multiplied out, for features of that many volumes; gradients flow to the parameters."""
        points = any(d.points_factor for d in self._decoders())
        heads = []
        if self.rgb_decoder is not None:
            layers = self._head_layers(self.rgb_decoder, volumes, points)
            heads.append(HeadWeights(layers, directed=True, sigmoid=True))
        for decoder in (self.semantic_decoder, self.feature_decoder):
            if decoder is not None:
                heads.append(HeadWeights(self._head_layers(decoder, volumes, points)))
        sdf = self._ordered(self.sdf_decoder.layers(points), volumes, start=0)
        return FieldWeights(sdf, tuple(heads), self.share_volume, points)

    def sdf(self, points: Tensor, volumes: Sequence[Tensor], weights: FieldWeights) -> Tensor:
        """Distances [...] at points [..., 3] on rays.

        As in PonderV2 the points are not normalised here, unless `raw_sampler_points` is off.

        Args:
            points: where to look.
            volumes: from `prepare`.
            weights: from `weights`.
        """
        move = _UNCHANGED if self.raw_sampler_points else self.normalisation()
        found = sdf_field(
            volumes, weights.sdf, move(points.reshape(1, -1, 3)), unit_box(points), gradient=False,
            with_points=weights.points, align_corners=True, padding="zeros",
        )  # fmt: skip
        return found.sdf.view(points.shape[:-1])

    def plain_sdf(self, volumes: Sequence[Tensor]) -> PlainSDF:
        """As `sdf` with PonderV2's operations and roundings, without gradients."""
        # What `snap` rounds here is rounded in grid_sample's range there.
        move = (_UNCHANGED if self.raw_sampler_points else self.normalisation())._replace(snap=False)
        return PlainSDF(self.plain_decoder(len(volumes)), volumes, self.share_volume, move)

    def plain_decoder(self, volumes: int) -> PlainDecoder:
        """What the SDF's layers in `weights` were multiplied out from."""
        columns = self._columns(volumes)
        return self.sdf_decoder.plain()._replace(columns=None if columns is None else columns.argsort())

    def prepare(self, volume_feature: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Volumes [C, D, H, W] as [1, C, D, H, W] of a dtype, channels last, so that no later step copies them.

        Raises:
            TypeError, ValueError: not a list of floating tensors of that rank and of the decoders' channels.
        """
        if isinstance(volume_feature, Tensor) or not isinstance(volume_feature, Sequence):
            found = type(volume_feature).__name__
            raise TypeError(f"volume_feature: expected a list of tensors [C, D, H, W], got a {found}")
        if not volume_feature:
            raise ValueError("volume_feature: expected at least one volume, got none")
        for volume in volume_feature:
            if not isinstance(volume, Tensor) or not volume.is_floating_point():
                raise TypeError("volume_feature: expected floating tensors [C, D, H, W]")
            if volume.dim() != 4 or volume.shape[0] != volume_feature[0].shape[0]:
                shapes = [list(v.shape) for v in volume_feature]
                raise ValueError(f"volume_feature: expected shapes [C, D, H, W] with the same C, got {shapes}")
        channels, count = volume_feature[0].shape[0], len(volume_feature)
        read = channels * count if self.share_volume else channels // 2 * count
        if read != self.sdf_decoder.in_channels or (not self.share_volume and channels % 2):
            part = "all" if self.share_volume else "half"
            raise ValueError(
                f"volume_feature: expected {count} volumes of which the SDF decoder reads {part} of the channels,"
                f" {self.sdf_decoder.in_channels} together, got {channels} channels each"
            )
        return [v.to(dtype)[None].contiguous(memory_format=torch.channels_last_3d) for v in volume_feature]

    def _decoders(self) -> list[Decoder]:
        known = (self.sdf_decoder, self.rgb_decoder, self.semantic_decoder, self.feature_decoder)
        return [decoder for decoder in known if decoder is not None]

    def _head_layers(self, decoder: Decoder, volumes: int, points: bool) -> tuple[Layer, ...]:
        layers = decoder.layers(points)
        if not self.use_gradient:
            # The renderer always hands over the gradient; zeros make the decoder blind to it.
            layers = tuple(
                layer._replace(inputs=torch.cat([layer.inputs.new_zeros(len(layer.inputs), 3), layer.inputs], 1))
                for layer in layers
            )
        return self._ordered(layers, volumes, start=3)

    def _ordered(self, layers: tuple[Layer, ...], volumes: int, start: int) -> tuple[Layer, ...]:
        """Columns of the features, from `start` on, in the order of the volumes."""
        order = self._columns(volumes)
        if order is None:
            return layers
        columns = torch.arange(layers[0].inputs.shape[1], device=order.device)
        columns[start : start + len(order)] = order + start
        return tuple(layer._replace(inputs=layer.inputs[:, columns]) for layer in layers)

    def _columns(self, volumes: int) -> Tensor | None:
        """[I] which of PonderV2's features is the next one, volume by volume; None if in the same order.

        PonderV2 puts the first channel halves of all volumes before all second halves; the renderer goes volume by
        volume. With split channels, or one volume, both orders are the same.
        """
        if volumes == 1 or not self.share_volume:
            return None
        width = self.sdf_decoder.in_channels
        half = width // volumes // 2
        theirs = torch.arange(width, device=next(self.parameters()).device)
        first, second = theirs[: half * volumes].view(volumes, -1), theirs[half * volumes :].view(volumes, -1)
        return torch.cat([first, second], 1).reshape(-1)


_UNCHANGED = Normalisation(1.0, 0.0, -float("inf"), float("inf"), snap=True)


def unit_box(like: Tensor) -> Tensor:
    """[1, 2, 3] the cube [0, 1]."""
    return torch.stack([like.new_zeros(3), like.new_ones(3)])[None]
