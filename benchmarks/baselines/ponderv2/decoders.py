"""The small networks that turn volume features into SDF, colour and semantics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SOFTPLUS_BETA = 100.0


class Decoder(nn.Module):
    """Perceptron that is given the features again at every layer.

    ``h_0 = factor (P x + p)``; for l = 0..n_blocks: ``h <- act(W_l (h + C_l f + c_l) + w_l)``, without `act` in the
    last layer. The points term is evaluated even where the factor is 0, so `fc_p` has a gradient (of zeros) and an
    optimiser's weight decay still acts on it.

    Args:
        in_dim: channels of the features f.
        out_dim: channels of the result.
        hidden_size: width of all hidden layers.
        n_blocks: hidden layers between the first and the last linear layer.
        points_factor: weight of the points.
    """

    # PonderV2 creates the two kinds of input layers in an order of its own per decoder. Random initialisation and the
    # optimiser's parameter order follow it.
    points_layer_first = True

    def __init__(
        self, in_dim: int, out_dim: int, hidden_size: int = 256, n_blocks: int = 5, points_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.n_layers = n_blocks + 1
        self.points_factor = points_factor
        for layer in range(self.n_layers):
            width = out_dim if layer == n_blocks else hidden_size
            self.add_module(f"lin{layer}", nn.Linear(hidden_size, width))
        if self.points_layer_first:
            self.fc_p = nn.Linear(3, hidden_size)
        self.fc_c = nn.ModuleList([nn.Linear(in_dim, hidden_size) for _ in range(self.n_layers)])
        if not self.points_layer_first:
            self.fc_p = nn.Linear(3, hidden_size)

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        """points [..., 3] and features [..., in_dim] to [..., out_dim]."""
        hidden = self.fc_p(points) * self.points_factor
        for layer, features_layer in enumerate(self.fc_c):
            hidden = self.get_submodule(f"lin{layer}")(hidden + features_layer(features))
            if layer < self.n_layers - 1:
                hidden = self.activate(hidden)
        return hidden

    def activate(self, hidden: Tensor) -> Tensor:
        """Non-linearity between the layers."""
        return torch.relu(hidden)


class SDFDecoder(Decoder):
    """Signed distance in channel 0, geometry features in the others."""

    points_layer_first = False

    def activate(self, hidden: Tensor) -> Tensor:
        """Softplus of sharpness 100: nearly a ReLU, but twice differentiable."""
        return nn.functional.softplus(hidden, beta=SOFTPLUS_BETA)


class RGBDecoder(Decoder):
    """Colour in (0, 1)."""

    def __init__(
        self, in_dim: int, out_dim: int = 3, hidden_size: int = 256, n_blocks: int = 5, points_factor: float = 1.0
    ) -> None:
        super().__init__(in_dim, out_dim, hidden_size, n_blocks, points_factor)

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(points, features))


class SemanticDecoder(Decoder):
    """Embedding in the space of the text encoder."""
