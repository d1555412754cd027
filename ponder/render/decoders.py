"""Decoders of the neural field with PonderV2's parameter names, and their collapse to the form the kernels take."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ponder_kernels import ColourWeights, SdfWeights


def _chain(outer: nn.Linear, inner: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of outer(inner(x)) as one affine map."""
    assert isinstance(inner, nn.Linear)
    return outer.weight @ inner.weight, outer.weight @ inner.bias + outer.bias


class SDFDecoder(nn.Module):
    """features -> [sdf, geometry features]: lin1(softplus(lin0(fc_c.0 f)) + fc_c.1 f).

    Args:
        in_channels: Cs features.
        hidden: K hidden units.
        geometry_channels: G geometry features passed on to the colour decoder.
    """

    def __init__(self, in_channels: int, hidden: int, geometry_channels: int) -> None:
        super().__init__()
        self.lin0 = nn.Linear(hidden, hidden)
        self.lin1 = nn.Linear(hidden, 1 + geometry_channels)
        self.fc_c = nn.ModuleList(nn.Linear(in_channels, hidden) for _ in range(2))

    def collapse(self) -> tuple[SdfWeights, Tensor, Tensor, Tensor]:
        """Multiply out the affine chains.

        Returns:
            the SDF row, and the geometry rows as (hidden [G, K], features [G, Cs], bias [G]).
        """
        hidden_weight, hidden_bias = _chain(self.lin0, self.fc_c[0])
        linear, bias = _chain(self.lin1, self.fc_c[1])
        rows = SdfWeights(hidden_weight, hidden_bias, self.lin1.weight[0], linear[0], bias[0])
        return rows, self.lin1.weight[1:], linear[1:], bias[1:]


class RGBDecoder(nn.Module):
    """[sdf gradient, features, geometry features, direction] -> colour logits: lin0(fc_c.0 x).

    Args:
        feature_channels: Cr features of the volume's second half.
        geometry_channels: G.
        hidden: width between the two layers.
    """

    def __init__(self, feature_channels: int, geometry_channels: int, hidden: int) -> None:
        super().__init__()
        self.splits = (3, feature_channels, geometry_channels, 3)
        self.lin0 = nn.Linear(hidden, 3)
        self.fc_c = nn.ModuleList([nn.Linear(sum(self.splits), hidden)])

    def collapse(self, geometry: tuple[Tensor, Tensor, Tensor]) -> ColourWeights:
        """Multiply out this decoder and the geometry rows of the SDF decoder."""
        chain, bias = _chain(self.lin0, self.fc_c[0])
        gradient, features, through, direction = chain.split(self.splits, dim=1)
        geometry_hidden, geometry_linear, geometry_bias = geometry
        return ColourWeights(
            hidden=through @ geometry_hidden,
            sdf_features=through @ geometry_linear,
            features=features,
            gradient=gradient,
            direction=direction,
            bias=bias + through @ geometry_bias,
        )


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
        self.sdf_decoder = SDFDecoder(sdf_channels, hidden, geometry_channels)
        self.rgb_decoder = RGBDecoder(colour_channels, geometry_channels, hidden)
        self.deviation_network = DeviationNetwork(initial_variance)


class DeviationNetwork(nn.Module):
    """The learned sharpness of NeuS, inv_s = exp(10 v)."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.full((1,), initial))

    def forward(self) -> Tensor:
        """[] inverse standard deviation, 1/m."""
        return torch.exp(self.variance[0] * 10)
