"""Decoders on top of the SDF: colour, semantics, any per-pixel feature.

Such a head sees, per sample, the SDF gradient n, the volume's second channel half f2, the geometry features of the SDF
decoder and the ray's direction d. The geometry features are affine in the SDF decoder's last activation h and its input
z, so they are never computed: every layer acts on the blocks (n, h, z, f2) directly. The last layer of a head without
activation at its end commutes with the weighted sum along the ray: what it reads, the blocks and the last hidden
activation q, is composited, and it is applied once per ray. Nothing as wide as its output is made per sample then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels.sdf_field.chain import Chain, Layer

# Order of the per-sample blocks.
GRADIENT, HIDDEN, INPUT, FEATURES = range(4)


class HeadLayer(NamedTuple):
    """One collapsed layer: previous q + sum of blocks + direction d + bias; O outputs.

    Attributes:
        previous: [O, P] on the activation of the layer before; None on the first.
        blocks: [O, 3], [O, K], [O, I], [O, Cr]: on n, h (scaled, see sdf_field.chain), z and f2.
        direction: [O, 3], zeros where the head does not see it.
        bias: [O].
    """

    previous: Tensor | None
    blocks: tuple[Tensor, ...]
    direction: Tensor
    bias: Tensor


Head = tuple[HeadLayer, ...]


class Activation(NamedTuple):
    """What follows the last layer that is evaluated per sample: in place, and its derivative from its output."""

    apply: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


# A head without activation at its end is handed over without its last layer, so there is always one.
ACTIVATIONS = {
    "relu": Activation(torch.relu_, lambda y: y > 0),
    "sigmoid": Activation(torch.sigmoid_, lambda y: y * (1 - y)),
}


class SplitHead(NamedTuple):
    """A head in two parts: layers evaluated per sample (maybe none), and the affine one after compositing, if any."""

    per_sample: Head
    per_ray: HeadLayer | None

    @property
    def activation(self) -> str:
        """What follows the layers per sample, one of ACTIVATIONS."""
        return "sigmoid" if self.per_ray is None else "relu"


def split_head(head: Head, sigmoid: bool) -> SplitHead:
    """Set the last layer of a head apart where no activation follows it."""
    return SplitHead(head, None) if sigmoid else SplitHead(head[:-1], head[-1])


def collapse_head(
    chain: Sequence[Layer], sdf: Chain, features: int, directed: bool, points: bool, shared: bool
) -> Head:
    """Multiply the geometry rows of a scaled SDF chain into a head; differentiable.

    Args:
        chain: the head's layers on [gradient 3 | features Cr | geometry G | direction 3 | points 3]; the last two only
            where the head sees them.
        sdf: scaled SDF chain whose last layer has 1 + G rows.
        features: Cr.
        directed: whether the head sees the direction.
        points: whether it sees the points, which are the last three columns of z then.
        shared: whether its features are the channels of z, so that it has none of its own.
    """
    last = sdf[-1]
    geometry = last.bias.shape[0] - 1
    width = last.inputs.shape[1]
    layers = []
    for layer in chain:
        parts = layer.inputs.split([3, features, geometry, *([3] if directed else []), *([3] if points else [])], dim=1)
        through = parts[2]
        inputs = through @ last.inputs[1:]
        if points:
            inputs = torch.cat([inputs[:, : width - 3], inputs[:, width - 3 :] + parts[-1]], 1)
        own = parts[1]
        if shared:
            inputs = torch.cat([inputs[:, :features] + own, inputs[:, features:]], 1)
            own = own[:, :0]
        hidden = inputs[:, :0] if last.previous is None else through @ last.previous[1:]
        direction = parts[3] if directed else torch.zeros_like(parts[0])
        bias = layer.bias + through @ last.bias[1:]
        layers.append(HeadLayer(layer.previous, (parts[0], hidden, inputs, own), direction, bias))
    return tuple(layers)


def heads_forward(
    heads: Sequence[Head], activations: Sequence[str], rows: Tensor
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Output [R, O, S] of every head and the activations of its hidden layers.

    `rows` [R, n, S] holds, head after head and layer after layer, what the layers make of the blocks; overwritten.
    """
    outputs: list[Tensor] = []
    hidden: list[list[Tensor]] = []
    parts = rows.split([layer.bias.shape[0] for head in heads for layer in head], 1)
    start = 0
    for head, activation in zip(heads, activations, strict=True):
        inner: list[Tensor] = []
        for layer, y in zip(head, parts[start : start + len(head)], strict=True):
            if layer.previous is not None:
                inner.append(ACTIVATIONS["relu"].apply(outputs.pop()))
                y.add_(layer.previous @ inner[-1])
            outputs.append(y)
        ACTIVATIONS[activation].apply(outputs[-1])
        hidden.append(inner)
        start += len(head)
    return outputs, hidden


def heads_backward(
    heads: Sequence[Head],
    activations: Sequence[str],
    forward: tuple[list[Tensor], list[list[Tensor]]],
    bars: Sequence[Tensor],
    out: Sequence[Head],
    rows_bar: Tensor,
) -> None:
    """Fill `rows_bar` [R, n, S], the derivative by the rows given to `heads_forward`, and add those by `previous`.

    `forward` is what `heads_forward` gave; `bars` [R, O, S] are the derivatives by the outputs.
    """
    parts = rows_bar.split([layer.bias.shape[0] for head in heads for layer in head], 1)
    stop = len(parts)
    for number in reversed(range(len(heads))):
        head, inner = heads[number], forward[1][number]
        slope = ACTIVATIONS[activations[number]].slope(forward[0][number])
        y_bar = torch.mul(bars[number], slope, out=parts[stop - 1])
        for at in reversed(range(1, len(head))):
            previous, previous_out, before = head[at].previous, out[number][at].previous, inner[at - 1]
            assert previous is not None and previous_out is not None
            previous_out.add_(torch.bmm(y_bar, before.transpose(1, 2)).sum(0))
            y_bar = torch.mul(previous.T @ y_bar, before > 0, out=parts[stop - len(head) + at - 1])
        stop -= len(head)


def apply_per_ray(layer: HeadLayer, hidden: Tensor, blocks: Tensor, directions: Tensor, opacity: Tensor) -> Tensor:
    """A head's last layer after compositing.

    sum_i w_i (P q_i + W x_i + D d + b) = P sum_i w_i q_i + W sum_i w_i x_i + (D d + b) sum_i w_i.

    Args:
        layer: the layer.
        hidden: weighted sum [..., P] of the last hidden activation q; not read where the layer is the only one.
        blocks: weighted sums [..., *] of the blocks x, side by side.
        directions: [..., 3].
        opacity: [...] sum of the weights.

    Returns:
        [..., O].
    """
    # Products of per-ray numbers, so that autograd keeps no tensor as wide as the output; of views where they are wide,
    # and added in place, so that there is one such tensor at a time.
    total = opacity.unsqueeze(-1)
    constant = torch.cat([total, directions * total], -1).flatten(0, -2)
    out = constant @ torch.cat([layer.bias.unsqueeze(1), layer.direction], 1).T
    if layer.previous is not None:
        out = out.addmm_(hidden.flatten(0, -2), layer.previous.T)
    out = out.addmm_(blocks.flatten(0, -2), torch.cat(layer.blocks, 1).T)
    return out.view(*opacity.shape, out.shape[1])
