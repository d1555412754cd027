"""All that is affine in what a sample has, as rows of one matrix: the SDF, then every layer of every head.

What a sample has comes in three matrices: features [R, S, F], the decoder's input with the second channels behind it;
hidden [R, S, K], minus the decoder's last activation (see sdf_field.chain); gradient [R, S, 3]. A product per ray with
n rows evaluates all decoders, one with their derivatives gives those by the three matrices, and one more those by the
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels.render.heads import FEATURES, GRADIENT, HIDDEN, INPUT, Head
from ponder_kernels.sdf_field.chain import Layer


class Blocks(NamedTuple):
    """What multiplies or belongs to features [*, F], hidden [*, K] and gradient [*, 3]."""

    features: Tensor
    hidden: Tensor
    gradient: Tensor


class Rows(NamedTuple):
    """n rows: weights on the blocks, on the ray's direction [n, 3], and bias [n]."""

    blocks: Blocks
    direction: Tensor
    bias: Tensor


def stack_rows(sdf: Layer, heads: Sequence[Head], second: int) -> Rows:
    """The last layer of the SDF chain, of one row, and the layers of the heads; `second` is C' of the features."""
    layers = [layer for head in heads for layer in head]
    inputs = torch.nn.functional.pad(sdf.inputs, (0, second))
    through = sdf.inputs[:, :0] if sdf.previous is None else sdf.previous
    nothing = sdf.inputs.new_zeros(1, 3)
    features = [torch.cat([layer.blocks[INPUT], layer.blocks[FEATURES]], 1) for layer in layers]
    blocks = Blocks(
        torch.cat([inputs, *features]),
        torch.cat([through, *(layer.blocks[HIDDEN] for layer in layers)]),
        torch.cat([nothing, *(layer.blocks[GRADIENT] for layer in layers)]),
    )
    direction = torch.cat([nothing, *(layer.direction for layer in layers)])
    return Rows(blocks, direction, torch.cat([sdf.bias, *(layer.bias for layer in layers)]))


def add_rows(rows: Rows, sdf: Layer, heads: Sequence[Head]) -> None:
    """Add derivatives in the form of `stack_rows` to those of the layers."""
    inputs, (features, hidden, gradient) = sdf.inputs.shape[1], rows.blocks
    sdf.inputs.add_(features[:1, :inputs])
    sdf.bias.add_(rows.bias[:1])
    if sdf.previous is not None:
        sdf.previous.add_(hidden[:1])
    start = 1
    for layer in (layer for head in heads for layer in head):
        part = slice(start, start + layer.bias.shape[0])
        layer.blocks[INPUT].add_(features[part, :inputs])
        layer.blocks[FEATURES].add_(features[part, inputs:])
        layer.blocks[HIDDEN].add_(hidden[part])
        layer.blocks[GRADIENT].add_(gradient[part])
        layer.direction.add_(rows.direction[part])
        layer.bias.add_(rows.bias[part])
        start = part.stop


def product(rows: Blocks, samples: Blocks) -> Tensor:
    """[R, n, S] for rows [R, n, *] or [n, *] and samples [R, S, *]."""
    features, hidden, gradient = (
        row.expand(sample.shape[0], *row.shape[-2:]) for row, sample in zip(rows, samples, strict=True)
    )
    out = torch.bmm(features, samples.features.transpose(1, 2))
    if samples.hidden.shape[2]:
        out.baddbmm_(hidden, samples.hidden.transpose(1, 2), alpha=-1)
    return out.baddbmm_(gradient, samples.gradient.transpose(1, 2))


def affine(rows: Rows, directions: Tensor, samples: Blocks) -> Tensor:
    """All rows [R, n, S] of rays of directions [R, 3]."""
    per_ray = torch.addmm(rows.bias, directions, rows.direction.T)
    return product(rows.blocks, samples).add_(per_ray.unsqueeze(-1))


def rows_backward(bar: Tensor, directions: Tensor, samples: Blocks) -> Rows:
    """Derivatives by the rows, given those by what they made, [R, n, S]."""
    per_ray = bar.sum(-1)
    blocks = Blocks(*(torch.bmm(bar, sample).sum(0) for sample in samples))
    blocks.hidden.neg_()
    return Rows(blocks, per_ray.T @ directions, per_ray.sum(0))
