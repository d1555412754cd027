"""Trilinear sampling on a CPU: values and the first two derivatives as gathers and scatters of rows of channels.

The numbers are those of `reference`, which autograd differentiates at the memory of every corner's values. Here the
eight corners of a point are a bag of row numbers with weights: bags are summed without their values being stored, and
derivatives by the points need the products of each corner's row with one vector only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels._branches import branched
from ponder_kernels._register import recomputed_gradients
from ponder_kernels.sdf_field.gather import Corners, gather_rows, row_type, volume_rows
from ponder_kernels.volume_sample.layout import Options, gradient_from
from ponder_kernels.volume_sample.reference import (
    axis_position,
    axis_weights,
    double_backward_reference,
    volume_sample_reference,
)


class _Axes(NamedTuple):
    """Factors of the corners' weights, [2, 3, M] each: lower and upper neighbour along x, y, z; 0 for one outside.

    Attributes:
        number: within the volume: that of a neighbour outside is its inner neighbour's.
        weight, slope, bend: the factor, and its first and second derivative by the coordinate; bend is None where it
            is 0.
        still: [3, M] no corner's factor changes with the coordinate.
        outside: [M] none of the corners is inside.
    """

    number: Tensor
    weight: Tensor
    slope: Tensor
    bend: Tensor | None
    still: Tensor
    outside: Tensor


def _axes(points: Tensor, extent: Sequence[int], options: Options, kind: torch.dtype) -> _Axes:
    """For points [M, 3], the volume's (D, H, W) and a dtype of numbers."""
    size = points.new_tensor(extent[::-1])[:, None]
    coordinate = points.T.contiguous()
    position = axis_position(coordinate, size, padding=options.padding, align_corners=options.align_corners)
    lower, below, above = axis_weights(position, options.smoothstep)
    number = torch.stack([lower.to(kind), (lower + 1).to(kind)])
    voxels = size.to(kind)
    inside = (number >= 0) & (number < voxels)
    speed = _speed(coordinate, position, size, options)
    first, second = speed, None
    if options.smoothstep:
        fraction = position - lower
        first, second = 6 * fraction * (1 - fraction) * speed, (6 - 12 * fraction) * speed.square()
    return _Axes(
        torch.minimum(number.clamp_(min=0), voxels - 1),
        torch.stack([below, above]).mul_(inside),
        torch.stack([-first, first]).mul_(inside),
        None if second is None else torch.stack([-second, second]).mul_(inside),
        speed == 0,
        ~inside.any(0).all(0),
    )


def _speed(coordinate: Tensor, position: Tensor, size: Tensor, options: Options) -> Tensor:
    """Derivative of `axis_position` by the coordinate."""
    speed = ((size - 1) if options.align_corners else size) / 2
    if options.padding == "zeros":
        return speed * (position >= -1)
    speed = speed * ((position > 0) & (position < size - 1))
    if options.padding == "reflection":
        mirrored = ((coordinate + 1) / 2).floor().remainder(2) == 1
        speed = torch.where(mirrored, -speed, speed)
    return speed


class _Bags:
    """The corners of points [B, N, 3] in a volume [B, C, D, H, W]; what is asked for is computed once and kept."""

    def __init__(self, volume: Tensor, points: Tensor, options: Options) -> None:
        batch, _, *extent = volume.shape
        cells = extent[0] * extent[1] * extent[2]
        self._rows = batch * cells
        # Of rows and of the bags' entries.
        kind = row_type(max(self._rows, 8 * points.shape[0] * points.shape[1]))
        self._axes = axes = _axes(points.reshape(-1, 3), extent, options, kind)
        scene = torch.arange(0, self._rows, cells, dtype=kind).repeat_interleave(points.shape[1])
        self._corners = Corners(axes.number, axes.weight, axes.slope, scene, (extent[0], extent[1], extent[2]))

    @functools.cached_property
    def _some_outside(self) -> bool:
        return bool(self._axes.outside.any())

    @functools.cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """[8 M] the order of the bags' entries by row, and [rows of the volume] where each row's begin."""
        entries = self._corners.rows.view(-1)
        ordered, order = entries.sort(stable=True)
        counts = torch.bincount(ordered, minlength=self._rows)
        return order, (counts.cumsum(0) - counts).to(entries.dtype)

    def gather(self, volume: Tensor, along: Tensor | None = None) -> Tensor:
        """[M, C] values, or their derivatives along a direction per point [M, 3]."""
        found = gather_rows(volume_rows(volume), self._corners.rows, self._weight(along))
        return self._of_the_inside(found)

    def scatter(self, values: Tensor, volume: Tensor, along: Tensor | None = None) -> Tensor:
        """The transpose: values [M, C] to a gradient like the volume."""
        order, begins = self._sorted
        weight = self._weight(along).view(-1).index_select(0, order)
        # Shifted by 3 an entry's number is its point's.
        rows = torch.nn.functional.embedding_bag(
            order.to(begins.dtype) >> 3, self._of_the_inside(values), begins, per_sample_weights=weight, mode="sum"
        )
        batch, channels, *extent = volume.shape
        return gradient_from(rows.view(batch, *extent, channels).permute(0, 4, 1, 2, 3), volume)

    def products(self, volume: Tensor, values: Tensor) -> Tensor:
        """[2, 2, 2, M] of values [M, C] with the rows of the corners; along z, y, x."""
        bags, values = self._corners.rows, self._of_the_inside(values).contiguous()
        offsets = torch.arange(0, bags.numel(), 8, dtype=bags.dtype)
        points = torch.arange(len(bags), dtype=bags.dtype).repeat_interleave(8)
        # The derivative of an embedding bag by its weights.
        found = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            values, volume_rows(volume), bags.view(-1), offsets, points, 0
        )
        return self._of_the_inside(found.view(-1, 8)).T.reshape(2, 2, 2, -1)

    def slopes(self, products: Tensor) -> Tensor:
        """[M, 3] derivatives by the points of the products summed with the corners' weights."""
        weight, slope = self._axes.weight, self._axes.slope
        by_axis = [slope if axis == k else weight for axis in range(3) for k in range(3)]
        found = torch.stack([_contract(products, *by_axis[3 * axis : 3 * axis + 3]) for axis in range(3)])
        # Not by a factor of 0: what the corners hold may be NaN.
        return found.masked_fill_(self._axes.still, 0).T

    def bends(self, products: Tensor, along: Tensor) -> Tensor:
        """[M, 3] derivatives by the points of ``slopes(products) . along``."""
        weight, slope, bend = self._axes.weight, self._axes.slope, self._axes.bend
        along = along.T
        out = torch.zeros_like(along)
        for one in range(3):
            for other in range(one + 1, 3):
                mixed = _contract(products, *(slope if k in (one, other) else weight for k in range(3)))
                out[one].addcmul_(mixed, along[other])
                out[other].addcmul_(mixed, along[one])
            if bend is not None:
                own = _contract(products, *(bend if k == one else weight for k in range(3)))
                out[one].addcmul_(own, along[one])
        return out.masked_fill_(self._axes.still, 0).T

    def _weight(self, along: Tensor | None) -> Tensor:
        return self._corners.weight if along is None else self._corners.along(along)

    def _of_the_inside(self, values: Tensor) -> Tensor:
        """Zeros for points without a corner inside: a weight of 0 would let NaN through."""
        return values.masked_fill(self._axes.outside[:, None], 0) if self._some_outside else values


def _contract(products: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """[M] products [2, 2, 2, M] times a factor per axis (of [2, 3, M] the axis' own), summed over the corners."""
    for axis, factor in ((2, z), (1, y), (0, x)):
        products = torch.addcmul(products[0] * factor[0, axis], products[1], factor[1, axis])
    return products


def _flat(x: Tensor) -> Tensor:
    """[B, N, K] -> [B N, K]."""
    return x.reshape(-1, x.shape[-1])


class _Sampling(NamedTuple):
    """Sampling with some options, and all of its derivatives; of volumes V, points p, directions d and upstream g.

    One is the derivative of another: by V or g, in which all are linear, and by d; those by p go one order up. The
    derivatives of the last, `bends`, are the formula's.
    """

    options: Options

    def _bags(self, volume: Tensor, points: Tensor) -> _Bags:
        return _Bags(volume, points, self.options)

    def values(self, volume: Tensor, points: Tensor) -> Tensor:
        """[B, N, C]."""
        return branched(
            lambda v, p: self._bags(v, p).gather(v).view(*p.shape[:2], -1),
            (lambda g, v, p: self.scattered(g, v, p), lambda g, v, p: self.slopes(g, v, p)),
            volume,
            points,
        )

    def scattered(self, upstream: Tensor, like: Tensor, points: Tensor) -> Tensor:
        """[B, C, D, H, W] derivative of <g, values> by the volume; `like` says how it lies in memory."""
        like = like.detach()
        return branched(
            lambda g, p: self._bags(like, p).scatter(_flat(g), like),
            (lambda v, g, p: self.values(v, p), lambda v, g, p: self.slopes(g, v, p)),
            upstream,
            points,
        )

    def slopes(self, upstream: Tensor, volume: Tensor, points: Tensor) -> Tensor:
        """[B, N, 3] derivative of <g, values> by the points."""

        def compute(g: Tensor, v: Tensor, p: Tensor) -> Tensor:
            bags = self._bags(v, p)
            return bags.slopes(bags.products(v, _flat(g))).view(p.shape)

        gradients = (
            lambda d, g, v, p: self.along(v, p, d),
            lambda d, g, v, p: self.scattered_along(g, v, p, d),
            lambda d, g, v, p: self.bends(g, v, p, d),
        )
        return branched(compute, gradients, upstream, volume, points)

    def along(self, volume: Tensor, points: Tensor, direction: Tensor) -> Tensor:
        """[B, N, C] derivative of the values along a direction [B, N, 3] of the points."""
        return branched(
            lambda v, p, d: self._bags(v, p).gather(v, _flat(d)).view(*p.shape[:2], -1),
            (
                lambda g, v, p, d: self.scattered_along(g, v, p, d),
                lambda g, v, p, d: self.bends(g, v, p, d),
                lambda g, v, p, d: self.slopes(g, v, p),
            ),
            volume,
            points,
            direction,
        )

    def scattered_along(self, upstream: Tensor, like: Tensor, points: Tensor, direction: Tensor) -> Tensor:
        """[B, C, D, H, W] derivative of <g, along> by the volume."""
        like = like.detach()
        return branched(
            lambda g, p, d: self._bags(like, p).scatter(_flat(g), like, _flat(d)),
            (
                lambda v, g, p, d: self.along(v, p, d),
                lambda v, g, p, d: self.bends(g, v, p, d),
                lambda v, g, p, d: self.slopes(g, v, p),
            ),
            upstream,
            points,
            direction,
        )

    def bends(self, upstream: Tensor, volume: Tensor, points: Tensor, direction: Tensor) -> Tensor:
        """[B, N, 3] derivative of <g, along> by the points."""

        def compute(g: Tensor, v: Tensor, p: Tensor, d: Tensor) -> Tensor:
            bags = self._bags(v, p)
            return bags.bends(bags.products(v, _flat(g)), _flat(d)).view(p.shape)

        gradients = [functools.partial(self._bends_gradient, number) for number in range(4)]
        return branched(compute, gradients, upstream, volume, points, direction)

    def _bends_gradient(self, number: int, upstream: Tensor, *arguments: Tensor) -> Tensor:
        """Derivative of <upstream, bends> by one of its arguments."""

        def formula(g: Tensor, v: Tensor, p: Tensor, d: Tensor) -> Tensor:
            _, _, found = double_backward_reference(None, d, g, v, p, *self.options)
            return found

        wanted = [k == number for k in range(4)]
        found = recomputed_gradients(formula, arguments, wanted, (upstream,))[number]
        return torch.zeros_like(arguments[number]) if found is None else found


def volume_sample_rows(volume: Tensor, points: Tensor, padding: str, align_corners: bool, smoothstep: bool) -> Tensor:
    """`reference.volume_sample_reference` for CPU tensors of one dtype; each derivative is made only if asked for."""
    if not volume.numel() or not points.numel():
        return volume_sample_reference(volume, points, padding, align_corners, smoothstep)
    return _Sampling(Options(padding, align_corners, smoothstep)).values(volume, points)
