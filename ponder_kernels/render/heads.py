"""Decoders on top of the SDF: colour, semantics, any per-pixel feature.

Such a head sees, per sample, the SDF gradient n, the volume's second channel half f2, the geometry features of the SDF
decoder and the ray's direction d. The geometry features are affine in the SDF decoder's last activation h and its input
z, so they are never computed: every layer acts on the blocks (n, f2, h, z) directly. The last layer of a head without
activation at its end commutes with the weighted sum along the ray: what it reads, the blocks and the last hidden
activation q, is composited, and it is applied once per ray. Nothing as wide as its output is made per sample then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels.sdf_field.chain import Chain, Layer, Workspace

# Order of the per-sample blocks.
GRADIENT, FEATURES, HIDDEN, INPUT = range(4)


class HeadLayer(NamedTuple):
    """One collapsed layer: previous q + sum of blocks + direction d + bias; O outputs.

    Attributes:
        previous: [O, P] on the activation of the layer before; None on the first.
        blocks: [O, 3], [O, Cr], [O, K], [O, I]: on n, f2, h (scaled, see sdf_field.chain) and z.
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
        layers.append(HeadLayer(layer.previous, (parts[0], own, hidden, inputs), direction, bias))
    return tuple(layers)


def head_forward(
    head: Head, activation: str, blocks: Sequence[Tensor], directions: Tensor, samples: int, work: Workspace, name: str
) -> tuple[Tensor, list[Tensor]]:
    """Output [M, O] of a head and the activations of its hidden layers, for blocks [M, ...] and directions [R, 3]."""
    rows = blocks[0].shape[0]
    activations: list[Tensor] = []
    y = blocks[0]
    for number, layer in enumerate(head):
        width = layer.bias.shape[0]
        y = work(f"{name} y{number}", rows, width)
        per_ray = torch.addmm(layer.bias, directions, layer.direction.T)
        y.view(-1, samples, width).copy_(per_ray.unsqueeze(1).expand(-1, samples, -1))
        for block, weight in zip(blocks, layer.blocks, strict=True):
            if weight.shape[1]:
                y.addmm_(block, weight.T)
        if layer.previous is not None:
            y.addmm_(activations[-1], layer.previous.T)
        if number < len(head) - 1:
            activations.append(y.relu_())
    return ACTIVATIONS[activation].apply(y), activations


def head_backward(
    head: Head,
    activation: str,
    blocks: Sequence[Tensor],
    directions: Tensor,
    forward: tuple[Tensor, list[Tensor]],
    output_bar: Tensor,
    blocks_bar: Sequence[Tensor | None],
    out: Head,
) -> None:
    """Add the derivatives by every weight to `out` and by every block to `blocks_bar`.

    `forward` is what `head_forward` gave; `output_bar` [M, O], the derivative by the output, is overwritten.
    """
    rays = directions.shape[0]
    output, activations = forward
    y_bar = output_bar.mul_(ACTIVATIONS[activation].slope(output))
    for number in reversed(range(len(head))):
        layer, layer_out = head[number], out[number]
        per_ray = y_bar.view(rays, -1, y_bar.shape[1]).sum(1)
        layer_out.bias.add_(per_ray.sum(0))
        layer_out.direction.addmm_(per_ray.T, directions)
        for block, weight, weight_out, bar in zip(blocks, layer.blocks, layer_out.blocks, blocks_bar, strict=True):
            if weight.shape[1]:
                weight_out.addmm_(y_bar.T, block)
                if bar is not None:
                    bar.addmm_(y_bar, weight)
        if layer.previous is not None and layer_out.previous is not None:
            before = activations[number - 1]
            layer_out.previous.addmm_(y_bar.T, before)
            y_bar = torch.mm(y_bar, layer.previous).mul_(before > 0)


def apply_per_ray(
    layer: HeadLayer, hidden: Tensor, blocks: Sequence[Tensor], directions: Tensor, opacity: Tensor
) -> Tensor:
    """A head's last layer after compositing.

    sum_i w_i (P q_i + W x_i + D d + b) = P sum_i w_i q_i + W sum_i w_i x_i + (D d + b) sum_i w_i.

    Args:
        layer: the layer.
        hidden: weighted sum [..., P] of the last hidden activation q; not read where the layer is the only one.
        blocks: weighted sums [..., *] of the blocks x.
        directions: [..., 3].
        opacity: [...] sum of the weights.

    Returns:
        [..., O].
    """
    # Products of per-ray numbers, so that autograd keeps no tensor as wide as the output.
    total = opacity.unsqueeze(-1)
    out = total * layer.bias + (directions * total) @ layer.direction.T
    if layer.previous is not None:
        out = out + hidden @ layer.previous.T
    for block, weight in zip(blocks, layer.blocks, strict=True):
        if weight.shape[1]:
            out = out + block @ weight.T
    return out
