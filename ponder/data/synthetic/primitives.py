"""Exact signed distances and gradients of many convex shapes at once, in float64 unless converted.

Each set holds N shapes as [N, ...] tensors; points of shape [..., 3] broadcast against the leading dims, so
`shapes.take((slice(None), None))`, [N, 1, ...], gives the distances [N, P] of all shapes to points [P, 3],
and `shapes.take(index)` with as many points pairs them up. Coordinates are handled one by one: a trailing dim
of 3 makes every elementwise operation several times slower.
Every shape is convex, hence so is its distance along any line: the ray tracer relies on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from ponder.data.synthetic.shapes import Box, Capsule, Frustum

# Distance below which a point counts as lying on a flat face, where "towards the nearest
# point" is no direction.
_ON_SURFACE = 1e-12

Index: TypeAlias = Tensor | slice | tuple[slice, None]
S = TypeVar("S", bound="ShapeSet")


def _offsets(points: Tensor, origin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """points - origin, coordinate by coordinate."""
    px, py, pz = points.unbind(-1)
    ox, oy, oz = origin.unbind(-1)
    return px - ox, py - oy, pz - oz


def _length(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x * x + y * y + z * z).sqrt()


class ShapeSet(Protocol):
    """What the union and the ray tracer need from N shapes of one kind."""

    def __len__(self) -> int: ...

    def take(self: S, index: Index) -> S:
        """Some of the shapes."""

    def to(self: S, dtype: torch.dtype) -> S:
        """The same shapes in another precision."""

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance in metres, negative inside; [..., 3] -> [...]."""

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [...] and its gradient [..., 3] of length 1."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The tight axis-aligned boxes, lower and upper corners [N, 3]."""


class _Stacked:
    """Shared by the sets below: all fields are tensors with the shapes along dim 0."""

    def __len__(self) -> int:
        return next(iter(vars(self).values())).shape[0]

    def to(self, dtype):
        return type(self)(**{name: value.to(dtype) for name, value in vars(self).items()})

    def take(self, index):
        return type(self)(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Boxes(_Stacked):
    """Boxes turned about z: centre, core half extents [N, 3]; cosine and sine of the yaw, rounding [N]."""

    centre: Tensor
    half: Tensor
    cosine: Tensor
    sine: Tensor
    rounding: Tensor

    @classmethod
    def stack(cls, shapes: Sequence[Box]) -> Boxes:
        """N box descriptions as tensors."""
        rounding = torch.tensor([s.rounding for s in shapes], dtype=torch.float64)
        half = torch.tensor([s.half for s in shapes], dtype=torch.float64).reshape(-1, 3)
        yaw = torch.tensor([s.yaw for s in shapes], dtype=torch.float64)
        centre = torch.tensor([s.centre for s in shapes], dtype=torch.float64).reshape(-1, 3)
        return cls(centre, half - rounding[:, None], torch.cos(yaw), torch.sin(yaw), rounding)

    def _local(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, z = _offsets(points, self.centre)
        return self.cosine * x + self.sine * y, self.cosine * y - self.sine * x, z

    def distance(self, points: Tensor) -> Tensor:
        """See `ShapeSet.distance`."""
        hx, hy, hz = self.half.unbind(-1)
        x, y, z = self._local(points)
        x, y, z = x.abs() - hx, y.abs() - hy, z.abs() - hz
        outside = _length(x.clamp(min=0), y.clamp(min=0), z.clamp(min=0))
        return outside + torch.maximum(torch.maximum(x, y), z).clamp(max=0) - self.rounding

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `ShapeSet.distance_and_gradient`."""
        local = torch.stack(self._local(points), -1)
        excess = local.abs() - self.half
        outer = excess.clamp(min=0)
        outside = outer.norm(dim=-1)
        deepest, axis = excess.max(-1)
        face = torch.nn.functional.one_hot(axis, 3).to(excess.dtype)
        is_outside = outside > _ON_SURFACE
        direction = torch.where(is_outside[..., None], outer / outside.clamp(min=_ON_SURFACE)[..., None], face)
        # A point exactly on a mid-plane has sign 0; the face direction must keep its length there.
        gx, gy, gz = (direction * torch.where(local < 0, -1.0, 1.0)).unbind(-1)
        gradient = torch.stack([self.cosine * gx - self.sine * gy, self.sine * gx + self.cosine * gy, gz], -1)
        return outside + deepest.clamp(max=0) - self.rounding, gradient

    def bounds(self) -> tuple[Tensor, Tensor]:
        """See `ShapeSet.bounds`."""
        c, s = self.cosine.abs(), self.sine.abs()
        hx, hy, hz = self.half.unbind(-1)
        reach = torch.stack([c * hx + s * hy, s * hx + c * hy, hz], -1) + self.rounding[:, None]
        return self.centre - reach, self.centre + reach


@dataclass(frozen=True)
class Frustums(_Stacked):
    """Upright cone frustums: centre [N, 3]; half height, bottom and top radius of the core, rounding [N]."""

    centre: Tensor
    half_height: Tensor
    bottom: Tensor
    top: Tensor
    rounding: Tensor

    @classmethod
    def stack(cls, shapes: Sequence[Frustum]) -> Frustums:
        """N frustum descriptions as tensors."""
        centre = torch.tensor([s.centre for s in shapes], dtype=torch.float64).reshape(-1, 3)
        rest = [[s.half_height, s.bottom, s.top, s.rounding] for s in shapes]
        return cls(centre, *torch.tensor(rest, dtype=torch.float64).reshape(-1, 4).unbind(1))

    def _profile(self, rho: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distance to the core and its gradient in the half plane (distance from the axis, height)."""
        h = self.half_height
        slope, length = self.top - self.bottom, torch.hypot(self.top - self.bottom, 2 * h)
        normal_rho, normal_z = 2 * h / length, -slope / length
        from_rho, from_z = rho - self.bottom, z + h
        side = from_rho * normal_rho + from_z * normal_z
        cap = z.abs() - h
        along = ((from_rho * slope + from_z * 2 * h) / length.square()).clamp(0, 1)
        side_rho, side_z = from_rho - along * slope, from_z - along * 2 * h
        up = torch.where(z < 0, -1.0, 1.0).to(z.dtype)
        cap_rho, cap_z = (rho - torch.where(z < 0, self.bottom, self.top)).clamp(min=0), cap * up
        by_side = side_rho.square() + side_z.square() < cap_rho.square() + cap_z.square()
        out_rho, out_z = torch.where(by_side, side_rho, cap_rho), torch.where(by_side, side_z, cap_z)
        outside = (out_rho * out_rho + out_z * out_z).sqrt()
        flat = ((side <= 0) & (cap <= 0)) | (outside < _ON_SURFACE)
        on_side = side > cap
        safe = outside.clamp(min=_ON_SURFACE)
        gradient_rho = torch.where(flat, torch.where(on_side, normal_rho, 0.0), out_rho / safe)
        gradient_z = torch.where(flat, torch.where(on_side, normal_z, up), out_z / safe)
        return torch.where(flat, torch.maximum(side, cap), outside), gradient_rho, gradient_z

    def distance(self, points: Tensor) -> Tensor:
        """See `ShapeSet.distance`."""
        x, y, z = _offsets(points, self.centre)
        return self._profile((x * x + y * y).sqrt(), z)[0] - self.rounding

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `ShapeSet.distance_and_gradient`."""
        x, y, z = _offsets(points, self.centre)
        rho = (x * x + y * y).sqrt()
        distance, gradient_rho, gradient_z = self._profile(rho, z)
        radial = gradient_rho / rho.clamp(min=_ON_SURFACE)
        return distance - self.rounding, torch.stack([x * radial, y * radial, gradient_z], -1)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """See `ShapeSet.bounds`."""
        wide = torch.maximum(self.bottom, self.top)
        reach = torch.stack([wide, wide, self.half_height], -1) + self.rounding[:, None]
        return self.centre - reach, self.centre + reach


@dataclass(frozen=True)
class Capsules(_Stacked):
    """Capsules and spheres: segment start [N, 3], start-to-end [N, 3], radius [N]."""

    start: Tensor
    span: Tensor
    radius: Tensor

    @classmethod
    def stack(cls, shapes: Sequence[Capsule]) -> Capsules:
        """N capsule descriptions as tensors."""
        start = torch.tensor([s.start for s in shapes], dtype=torch.float64).reshape(-1, 3)
        end = torch.tensor([s.end for s in shapes], dtype=torch.float64).reshape(-1, 3)
        return cls(start, end - start, torch.tensor([s.radius for s in shapes], dtype=torch.float64))

    def _offset(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the nearest point of the segment to the point."""
        x, y, z = _offsets(points, self.start)
        sx, sy, sz = self.span.unbind(-1)
        # A sphere's span is zero: any positive divisor gives the segment parameter 0.
        along = ((x * sx + y * sy + z * sz) / (sx * sx + sy * sy + sz * sz).clamp(min=_ON_SURFACE)).clamp(0, 1)
        return x - along * sx, y - along * sy, z - along * sz

    def distance(self, points: Tensor) -> Tensor:
        """See `ShapeSet.distance`."""
        return _length(*self._offset(points)) - self.radius

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `ShapeSet.distance_and_gradient`."""
        offset = self._offset(points)
        length = _length(*offset)
        return length - self.radius, torch.stack(offset, -1) / length.clamp(min=_ON_SURFACE)[..., None]

    def bounds(self) -> tuple[Tensor, Tensor]:
        """See `ShapeSet.bounds`."""
        end = self.start + self.span
        reach = self.radius[:, None]
        return torch.minimum(self.start, end) - reach, torch.maximum(self.start, end) + reach
