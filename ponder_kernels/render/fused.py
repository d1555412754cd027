"""Chunks of rays through the Triton kernels: what `render.chunk` does with torch operations, for one volume in float32.

A chunk's samples are rows of a state matrix (see sdf_field.kernels) that holds everything a head reads, a constant 1
among it. A layer of a head is therefore one matrix product, and one product per ray composites all of it. The state is
made again in the backward pass, so that nothing of it is kept between the passes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._tuning import family_of, parameters
from ponder_kernels.render.chunk import NORMAL, OUTPUTS, Field, Normalisation, RayBar, Rays, Settings
from ponder_kernels.render.heads import ACTIVATIONS, FEATURES, GRADIENT, HIDDEN, INPUT, Head
from ponder_kernels.render.ray_opacity import RaySamples, RayUpstream, opacity_backward, opacity_forward
from ponder_kernels.sdf_field.chain import Chain
from ponder_kernels.sdf_field.fused import FusedField, FusedGradient, Points, RayState
from ponder_kernels.sdf_field.packing import (
    DIRECTION_AT,
    DISTANCE_AT,
    GRADIENT_AT,
    ONE_AT,
    UNIT_AT,
    FieldSizes,
)

# Rays of a chunk are a multiple of this, so that slices of all per-sample tensors start on 16 bytes.
RAY_MULTIPLE = 16


class StateColumns(NamedTuple):
    """Where things are in a row of the state.

    Attributes:
        blocks: columns of the heads' blocks: gradient, last activation, input of the decoder, second channels.
        direction, one, distance, unit: ray direction, the constant 1, distance along the ray, unit gradient.
    """

    blocks: tuple[slice, slice, slice, slice]
    direction: slice
    one: int
    distance: int
    unit: slice


def state_columns(sizes: FieldSizes, last_hidden: int) -> StateColumns:
    """Columns without their padding; `last_hidden` is the width of the decoder's last activation."""

    def columns(start: int, width: int) -> slice:
        return slice(start, start + width)

    at = sizes.geometry_at
    blocks = [slice(0)] * 4
    blocks[GRADIENT] = columns(at + GRADIENT_AT, 3)
    blocks[FEATURES] = columns(sizes.inputs + sizes.hidden, sizes.second)
    blocks[HIDDEN] = columns(sizes.inputs, last_hidden)
    blocks[INPUT] = columns(0, sizes.first + 3 * sizes.points)
    direction, unit = columns(at + DIRECTION_AT, 3), columns(at + UNIT_AT, 3)
    return StateColumns((blocks[0], blocks[1], blocks[2], blocks[3]), direction, at + ONE_AT, at + DISTANCE_AT, unit)


def _pack_head(head: Head, columns: StateColumns, width: int) -> list[Tensor]:
    """[O, width] per layer: what multiplies a row of the state."""
    packed = []
    for layer in head:
        weight = layer.bias.new_zeros(layer.bias.shape[0], width)
        for block, at in zip(layer.blocks, columns.blocks, strict=True):
            weight[:, at] = block
        weight[:, columns.direction] = layer.direction
        weight[:, columns.one] = layer.bias
        packed.append(weight)
    return packed


def _add_unpacked(out: Head, packed: list[Tensor], columns: StateColumns) -> None:
    """Add derivatives in the form of `_pack_head` to those of a head."""
    for layer, weight in zip(out, packed, strict=True):
        for block, at in zip(layer.blocks, columns.blocks, strict=True):
            block.add_(weight[:, at])
        layer.direction.add_(weight[:, columns.direction])
        layer.bias.add_(weight[:, columns.one])


class FusedBar(NamedTuple):
    """Derivatives summed over chunks: volume, decoder, packed heads with their inner weights, sharpness (float64)."""

    volume: FusedGradient
    sdf: Chain
    heads: tuple[Head, ...]
    packed: list[list[Tensor]]
    sharpness: Tensor


class _Chunk(NamedTuple):
    """One chunk's rays and samples: state [M, state_width], sdf [R, S], gradient [R, S, 3]."""

    rays: Rays
    points: Points
    state: Tensor
    samples: RaySamples


class FusedRenderer:
    """Renders chunks of rays of one volume with the Triton kernels.

    Args:
        field: one volume, the decoders and the sharpness.
        rows: [B D H W, C] float32, contiguous.
        settings: options.
        normalise: map from points to the coordinates of the box.
        precision: of the field's matrix products.
        rays: all rays of the call.
    """

    def __init__(
        self, field: Field, rows: Tensor, settings: Settings, normalise: Normalisation, precision: str, rays: Rays
    ) -> None:
        volume = field.volumes[0]
        second = rows.shape[1] - volume.first.rows.shape[1]
        self.field, self.settings, self.rays = field, settings, rays
        self.fused = FusedField(rows, volume.geometry, field.sdf, second, settings.points, precision)
        last = field.sdf[-1].previous
        self.width = self.fused.sizes.composite_width
        self.columns = state_columns(self.fused.sizes, 0 if last is None else last.shape[1])
        self.heads = [_pack_head(head, self.columns, self.width) for head in field.heads]
        starts, ends = rays.edges[:, :-1], rays.edges[:, 1:]
        # Of all samples at once, 16 bytes each: a few small operations for every chunk would take longer than it does.
        self.position = ((starts + ends) / 2 if settings.middles else starts).contiguous()
        along = torch.addcmul(rays.origins.unsqueeze(1), rays.directions.unsqueeze(1), self.position.unsqueeze(-1))
        self.points = normalise(along.view(-1, 3)).contiguous()
        self.per_scene = self.points.shape[0] // max(1, volume.geometry.shape[0])

    def chunks(self, budget: int) -> list[slice]:
        """Which rays are rendered at once: those whose states fill `budget` bytes; 0: those of the launch table."""
        budget = budget or parameters("render_rays", family=family_of(self.position.device))["chunk_bytes"]
        rays, samples = self.position.shape
        size = budget // (4 * self.fused.sizes.state_width * samples) // RAY_MULTIPLE * RAY_MULTIPLE
        size = max(RAY_MULTIPLE, size)
        return [slice(start, min(start + size, rays)) for start in range(0, rays, size)]

    def _decode(self, part: slice, sdf: Tensor, gradient: Tensor, backward: bool) -> _Chunk:
        """Fill sdf [R, S] and gradient [R, S, 3] of the rays in `part`, and make their state."""
        rays, samples = self.rays.part(part), self.position.shape[1]
        rows = slice(part.start * samples, part.stop * samples)
        points = Points(self.points[rows], rows.start, self.per_scene)
        state = sdf.new_empty(sdf.numel(), self.fused.sizes.state_width)
        position = self.position[part].view(-1)
        along = RayState(rays.directions, position, samples, self.settings.normal_floor)
        self.fused.forward(points, sdf, gradient, state, along, backward)
        found = RaySamples(
            sdf, gradient, rays.directions, rays.edges, rays.hit, rays.ray_depth, rays.slope, self.field.sharpness
        )
        return _Chunk(rays, points, state, found)

    def _head(self, number: int, state: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Output [M, O] and hidden activations of a head."""
        hidden: list[Tensor] = []
        y = state
        for layer, packed in zip(self.field.heads[number], self.heads[number], strict=True):
            if layer.previous is not None:
                hidden.append(torch.relu_(y))
            y = torch.mm(state, packed.T)
            if layer.previous is not None:
                y.addmm_(hidden[-1], layer.previous.T)
        return ACTIVATIONS[self.settings.activations[number]].apply(y), hidden

    def forward(self, part: slice, sums: Tensor, sdf: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the per-ray sums, sdf and gradient of the rays in `part`; return loss sums [3] and weights [R, S]."""
        chunk = self._decode(part, sdf, gradient, backward=False)
        found = opacity_forward(self.settings, chunk.samples)
        weights = found.weights.unsqueeze(1)
        state = chunk.state.view(*sdf.shape, -1)[:, :, : self.width]
        # Without heads per ray only the geometry is summed.
        start = 0 if self.settings.carry else self.fused.sizes.geometry_at
        composited = torch.bmm(weights, state[:, :, start:]).squeeze(1)
        columns = self.columns
        values = [composited[:, at - start, None] for at in (columns.distance, columns.one)]
        values.append(composited[:, columns.unit.start - start : columns.unit.stop - start])
        for number in range(len(self.heads)):
            output, _ = self._head(number, chunk.state[:, : self.width])
            values.append(torch.bmm(weights, output.view(*sdf.shape, -1)).squeeze(1))
        if self.settings.carry:
            values += [composited[:, at] for at in columns.blocks]
        torch.cat(values, 1, out=sums)
        return found.losses.sum(0), found.weights

    def backward(self, part: slice, sdf: Tensor, gradient: Tensor, bar: RayBar, out: FusedBar) -> None:
        """Add the derivatives of the rays in `part`, whose sdf and gradient are those of the forward pass, to `out`."""
        # Written again, to buffers of their own: the saved ones stay untouched.
        chunk = self._decode(part, torch.empty_like(sdf), torch.empty_like(gradient), backward=True)
        chunk = chunk._replace(samples=chunk.samples._replace(sdf=sdf, gradient=gradient))
        found = opacity_forward(self.settings, chunk.samples)
        state = chunk.state[:, : self.width]
        composited_bar = self._composited_bar(bar.sums)
        weights_bar = torch.bmm(state.view(*sdf.shape, -1), composited_bar.unsqueeze(-1)).squeeze(-1)
        if bar.weights is not None:
            weights_bar += bar.weights
        state_bar = torch.empty_like(chunk.state)
        by_state = state_bar[:, : self.width]
        torch.mul(found.weights.unsqueeze(-1), composited_bar.unsqueeze(1), out=by_state.view(*sdf.shape, -1))
        start = OUTPUTS
        for number, packed in enumerate(self.heads):
            width = packed[-1].shape[0]
            output_bar = bar.sums[:, start : start + width]
            weights_bar += self._head_backward(number, state, found.weights, output_bar, by_state, out)
            start += width
        at = self.columns.blocks[GRADIENT]
        upstream = RayUpstream(
            weights_bar, bar.losses, bar.sums[:, NORMAL:OUTPUTS], by_state[:, at].view(*sdf.shape, 3), bar.sdf,
            bar.gradient,
        )  # fmt: skip
        geometry = opacity_backward(self.settings, chunk.samples, found.transmittance, upstream)
        out.sharpness.add_(geometry.sharpness)
        scene = chunk.rays.scene.repeat_interleave(sdf.shape[1])
        bars = (geometry.sdf.view(-1), geometry.gradient.view(-1, 3))
        self.fused.backward(chunk.points, scene, chunk.state, bars, state_bar, out.volume, out.sdf)

    def _composited_bar(self, sums_bar: Tensor) -> Tensor:
        """The upstream of the composited state [R, width]."""
        out = sums_bar.new_zeros(sums_bar.shape[0], self.width)
        columns = self.columns
        out[:, columns.distance], out[:, columns.one] = sums_bar[:, 0], sums_bar[:, 1]
        out[:, columns.unit] = sums_bar[:, NORMAL:OUTPUTS]
        if self.settings.carry:
            widths = [at.stop - at.start for at in columns.blocks]
            rest = sums_bar[:, sums_bar.shape[1] - sum(widths) :].split(widths, 1)
            for at, value in zip(columns.blocks, rest, strict=True):
                out[:, at] = value
        return out

    def _head_backward(
        self, number: int, state: Tensor, weights: Tensor, sums_bar: Tensor, state_bar: Tensor, out: FusedBar
    ) -> Tensor:
        """Add a head's derivatives by its weights and by the state; return those by the weights [R, S]."""
        output, hidden = self._head(number, state)
        shaped = output.view(*weights.shape, -1)
        weights_bar = torch.bmm(shaped, sums_bar.unsqueeze(-1)).squeeze(-1)
        y_bar = (weights.unsqueeze(-1) * sums_bar.unsqueeze(1)).view(output.shape)
        y_bar.mul_(ACTIVATIONS[self.settings.activations[number]].slope(output))
        head, head_out = self.field.heads[number], out.heads[number]
        for layer in reversed(range(len(head))):
            out.packed[number][layer].addmm_(y_bar.T, state)
            state_bar.addmm_(y_bar, self.heads[number][layer])
            previous, previous_out = head[layer].previous, head_out[layer].previous
            if previous is not None and previous_out is not None:
                before = hidden[layer - 1]
                previous_out.addmm_(y_bar.T, before)
                y_bar = torch.mm(y_bar, previous).mul_(before > 0)
        return weights_bar

    def sums(self, sdf: Chain, heads: tuple[Head, ...]) -> FusedBar:
        """Zeros to add derivatives to; those of the decoders are given."""
        packed = [[torch.zeros_like(weight) for weight in head] for head in self.heads]
        volume = FusedGradient(self.field.volumes[0], self.fused.rows)
        return FusedBar(volume, sdf, heads, packed, self.field.sharpness.new_zeros((), dtype=torch.float64))

    def finish(self, out: FusedBar) -> Tensor:
        """Bring the heads' derivatives into their layers; return the volume's, [B, C, D, H, W]."""
        for head, packed in zip(out.heads, out.packed, strict=True):
            _add_unpacked(head, packed, self.columns)
        return out.volume.as_volume()
