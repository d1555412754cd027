"""How the Triton kernels of the SDF field see a decoder: sizes padded to powers of two, weights in one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._launch import cdiv, next_power_of_two
from ponder_kernels.sdf_field.chain import Chain, Layer

# Columns of the state that hold the gradient, the direction, 1, the distance along the ray and the unit gradient.
GEOMETRY = 16
GRADIENT_AT, DIRECTION_AT, ONE_AT, DISTANCE_AT, UNIT_AT = 0, 3, 6, 7, 8
# Smallest side of a matrix product on tensor cores.
SMALLEST = 16
# Most columns of the decoder's input, and most hidden units of all its layers, that a tile keeps in registers.
MOST_INPUTS = 128
MOST_HIDDEN = 128


class FieldSizes(NamedTuple):
    """Constants of the compiled kernels; see sdf_field.kernels.

    Attributes:
        channels: C of the volume.
        first: channels that the decoder reads.
        second: channels behind them that only heads read; 0 in a shared volume.
        points: whether the decoder sees the points.
        inputs: padded columns of its input.
        hidden: padded units of each hidden layer.
        layers: number of hidden layers.
    """

    channels: int
    first: int
    second: int
    points: bool
    inputs: int
    hidden: int
    layers: int

    @property
    def second_width(self) -> int:
        """Padded columns of the second channels."""
        return cdiv(self.second, SMALLEST) * SMALLEST

    @property
    def composite_width(self) -> int:
        """Columns of the state that sums along a ray are made of."""
        return self.inputs + self.hidden + self.second_width + GEOMETRY

    @property
    def geometry_at(self) -> int:
        """First of the geometry columns."""
        return self.composite_width - GEOMETRY

    @property
    def state_width(self) -> int:
        """All columns of the state."""
        return self.composite_width + max(self.layers - 1, 0) * self.hidden + self.inputs

    def hidden_at(self, layer: int) -> int:
        """First state column of the activation of a layer."""
        return self.inputs if layer == self.layers - 1 else self.composite_width + layer * self.hidden


def field_sizes(chain: Sequence[Layer], channels: int, second: int, points: bool) -> FieldSizes:
    """Sizes for a decoder on the first channels of a volume."""
    inputs = chain[0].inputs.shape[1]
    widest = max((layer.bias.shape[0] for layer in chain[:-1]), default=1)
    hidden, padded = (max(SMALLEST, next_power_of_two(n)) for n in (widest, inputs))
    return FieldSizes(channels, inputs - 3 * points, second, points, padded, hidden, len(chain) - 1)


def unsupported(chain: Sequence[Layer], n_volumes: int) -> str | None:
    """Why the Triton kernels cannot take a decoder; None if they can."""
    if n_volumes != 1:
        return f"one volume, got {n_volumes}"
    inputs = chain[0].inputs.shape[1]
    if inputs > MOST_INPUTS:
        return f"at most {MOST_INPUTS} decoder inputs, got {inputs}"
    hidden = [max(SMALLEST, next_power_of_two(layer.bias.shape[0])) for layer in chain[:-1]]
    if hidden and max(hidden) * len(hidden) > MOST_HIDDEN:
        return f"at most {MOST_HIDDEN} hidden units (powers of two) in all layers, got {len(hidden)} x {max(hidden)}"
    return None


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, columns - x.shape[1], 0, rows - x.shape[0])).reshape(-1)


def pack_chain(chain: Chain, sizes: FieldSizes) -> Tensor:
    """[*] float32: inputs of the hidden layers, their biases, weights between them, row of the SDF and its bias."""
    inputs, hidden = sizes.inputs, sizes.hidden
    *layers, last = chain
    parts = [_padded(layer.inputs, hidden, inputs) for layer in layers]
    parts += [_padded(layer.bias.unsqueeze(0), 1, hidden) for layer in layers]
    parts += [_padded(layer.previous, hidden, hidden) for layer in layers if layer.previous is not None]
    on_hidden = last.bias.new_zeros(1, hidden) if last.previous is None else last.previous[:1]
    parts += [_padded(last.inputs[:1], 1, inputs), _padded(on_hidden, 1, hidden), last.bias[:1]]
    return torch.cat(parts).float()


class ChainFactors(NamedTuple):
    """What the backward kernel leaves of M points for the decoder's derivatives: [2, M, *] twice, and [M, L K]."""

    left: Tensor
    right: Tensor
    v_bar: Tensor


def chain_factors(sizes: FieldSizes, count: int, like: Tensor) -> ChainFactors:
    """Buffers for `count` points."""
    units = sizes.layers * sizes.hidden
    return ChainFactors(
        like.new_empty(2, count, units + GEOMETRY),
        like.new_empty(2, count, sizes.inputs + GEOMETRY),
        like.new_empty(count, units),
    )


def add_chain_gradient(out: Chain, factors: ChainFactors, state: Tensor, sizes: FieldSizes) -> None:
    """Add the decoder's derivatives of M points with state [M, *] to `out`.

    One product gives those by everything that multiplies the input, one more those by each weight between layers.
    """
    left, right, v_bar = factors
    hidden, inputs, layers = sizes.hidden, sizes.inputs, sizes.layers
    product = left.flatten(0, 1).T @ right.flatten(0, 1)
    for number, layer in enumerate(out):
        rows = slice(number * hidden, number * hidden + layer.bias.shape[0])
        layer.inputs.add_(product[rows, : layer.inputs.shape[1]])
        layer.bias.add_(product[rows, inputs])
        if layer.previous is None:
            continue
        width = layer.previous.shape[1]
        before = slice((number - 1) * hidden, (number - 1) * hidden + width)
        at = sizes.hidden_at(number - 1)
        activation = state[:, at : at + width]
        if number == layers:
            layer.previous[0].add_(v_bar[:, before].sum(0)).addmv_(activation.T, left[1, :, layers * hidden])
        else:
            layer.previous.addmm_(left[0, :, rows].T, v_bar[:, before]).addmm_(left[1, :, rows].T, activation)
