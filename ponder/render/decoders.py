"""Decoders of the neural field with PonderV2's parameter names, and their layers in the form the kernels take."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ponder_kernels import Layer, PlainDecoder
from ponder_kernels._constants import INV_S_MAX, INV_S_MIN

# Far above log(INV_S_MAX), and float32 still holds its exponential.
_LARGEST_EXPONENT = 80.0


class Decoder(nn.Module):
    """h = points_factor fc_p(points); for every l: h = act(lin_l(h + fc_c.l(x))), without activation after the last.

    Three maps a layer look like much, but no activation separates `lin_l` from `fc_c.l`: `layers` multiplies them out.

    Args:
        in_channels: width of x.
        out_channels: width of the last layer.
        hidden: width of the others.
        n_blocks: further hidden layers; 0 makes the decoder affine.
        points_factor: weight of the points' layer; 0 leaves them out.
        keep_points_layer: create `fc_p` even where its weight is 0, as PonderV2 does; its gradient is zeros then, not
            None, so that an optimiser's weight decay acts on it.
        points_layer_first: create `fc_p` before `fc_c`: PonderV2 does in its colour and semantic decoders, and random
            initialisation and the order of an optimiser's state follow.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        n_blocks: int,
        points_factor: float = 0.0,
        keep_points_layer: bool = False,
        points_layer_first: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.n_blocks, self.points_factor = n_blocks, points_factor
        widths = [hidden] * (n_blocks + 1) + [out_channels]
        for number in range(n_blocks + 1):
            setattr(self, f"lin{number}", nn.Linear(widths[number], widths[number + 1]))
        needs_points_layer = bool(points_factor) or keep_points_layer
        if needs_points_layer and points_layer_first:
            self.fc_p = nn.Linear(3, hidden)
        self.fc_c = nn.ModuleList(nn.Linear(in_channels, hidden) for _ in range(n_blocks + 1))
        if needs_points_layer and not points_layer_first:
            self.fc_p = nn.Linear(3, hidden)

    def layers(self, points: bool = False) -> tuple[Layer, ...]:
        """Affine layers on [x, points]; `points` appends the columns of the points, zeros where they have no weight.

        The products of weights stay in their own precision under autocast: rounding them to half shifts the surface.
        """
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return tuple(self._layer(number, points) for number in range(self.n_blocks + 1))

    def plain(self) -> PlainDecoder:
        """The layers as they are."""
        numbers = range(self.n_blocks + 1)

        def affine(name: str) -> tuple[Tensor, Tensor]:
            return self.get_parameter(f"{name}.weight"), self.get_parameter(f"{name}.bias")

        inner = tuple(affine(f"fc_c.{number}") for number in numbers)
        outer = tuple(affine(f"lin{number}") for number in numbers)
        return PlainDecoder(inner, outer, affine("fc_p") if self.points_factor else None, self.points_factor)

    def _layer(self, number: int, points: bool) -> Layer:
        """`lin` after `fc_c`, multiplied out."""
        outer: nn.Linear = getattr(self, f"lin{number}")
        inner = self.fc_c[number]
        assert isinstance(inner, nn.Linear)
        inputs: Tensor = inner.weight
        bias: Tensor = inner.bias
        if number == 0 and not self.points_factor and hasattr(self, "fc_p"):
            bias = bias + 0.0 * (self.fc_p.weight.sum(1) + self.fc_p.bias)
        if points:
            own = inputs.new_zeros(inputs.shape[0], 3)
            if number == 0 and self.points_factor:
                own, bias = self.fc_p.weight * self.points_factor, bias + self.fc_p.bias * self.points_factor
            inputs = torch.cat([inputs, own], 1)
        previous = None if number == 0 else outer.weight
        return Layer(previous, outer.weight @ inputs, outer.weight @ bias + outer.bias)


class Field(nn.Module):
    """The decoders of one neural field and its learned sharpness, under PonderV2's names.

    Args:
        sdf_channels, colour_channels: features of the two halves of the volume.
        hidden: width of the decoders.
        geometry_channels: features handed from the SDF decoder to the colour decoder.
        initial_variance: v of the sharpness exp(10 v).
    """

    def __init__(
        self, sdf_channels: int, colour_channels: int, hidden: int, geometry_channels: int, initial_variance: float
    ) -> None:
        super().__init__()
        self.sdf_decoder = Decoder(sdf_channels, 1 + geometry_channels, hidden, n_blocks=1)
        # It sees the gradient, the second half, the geometry features and the ray's direction.
        self.rgb_decoder = Decoder(3 + colour_channels + geometry_channels + 3, 3, hidden, n_blocks=0)
        self.deviation_network = DeviationNetwork(initial_variance)


class DeviationNetwork(nn.Module):
    """The learned sharpness of NeuS, inv_s = exp(10 v) within [INV_S_MIN, INV_S_MAX]."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.full((1,), initial))

    def forward(self) -> Tensor:
        """[] inverse standard deviation, 1/m."""
        # An infinite exponential would make NaN of the zero derivative beyond the limit.
        return torch.exp((self.variance[0] * 10).clamp(max=_LARGEST_EXPONENT)).clip(INV_S_MIN, INV_S_MAX)
