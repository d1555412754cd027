"""Building blocks of furniture: convex shapes with a texture, in the frame of the object they belong to.

Lengths are metres, z is up. Shapes are plain numbers; `primitives.py` turns lists of them into tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ponder.data.synthetic.textures import Texture

Vec3 = tuple[float, float, float]


@dataclass(frozen=True)
class Box:
    """A box turned by `yaw` (radians, about z) with edges rounded by `rounding`; `half` is the outer size."""

    centre: Vec3
    half: Vec3
    rounding: float = 0.0
    yaw: float = 0.0

    def __post_init__(self) -> None:
        if min(self.half) <= 0:
            raise ValueError(f"Box.half: expected positive extents, got {self.half}")
        if not 0 <= self.rounding <= min(self.half):
            raise ValueError(f"Box.rounding: expected 0 to {min(self.half)}, got {self.rounding}")


@dataclass(frozen=True)
class Frustum:
    """An upright truncated cone swept by a ball of radius `rounding` (a cylinder when both radii are equal).

    `half_height` and the radii are those of the core: the outer surface lies `rounding` further out.
    """

    centre: Vec3
    half_height: float
    bottom: float
    top: float
    rounding: float = 0.0

    def __post_init__(self) -> None:
        if self.half_height <= 0:
            raise ValueError(f"Frustum.half_height: expected a positive length, got {self.half_height}")
        if min(self.bottom, self.top, self.rounding) < 0:
            raise ValueError(f"Frustum: expected radii of at least 0, got {self.bottom, self.top, self.rounding}")


@dataclass(frozen=True)
class Capsule:
    """All points within `radius` of the segment from `start` to `end`; a sphere when both ends are equal."""

    start: Vec3
    end: Vec3
    radius: float

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ValueError(f"Capsule.radius: expected a positive length, got {self.radius}")


Shape: TypeAlias = Box | Frustum | Capsule


@dataclass(frozen=True)
class Part:
    """One shape and what it looks like."""

    shape: Shape
    texture: Texture


@dataclass(frozen=True)
class Furniture:
    """One object (one instance): its class name and its parts."""

    semantic: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Placed:
    """Furniture turned by `yaw` about its origin's vertical axis, then moved to `position` in the room."""

    furniture: Furniture
    position: Vec3
    yaw: float = 0.0


def sphere(centre: Vec3, radius: float) -> Capsule:
    """A ball."""
    return Capsule(centre, centre, radius)


def block(lower: Vec3, upper: Vec3, rounding: float = 0.0) -> Box:
    """The axis-aligned box between two corners; `rounding` is cut down where the box is too thin for it."""
    centre = (lower[0] + upper[0]) / 2, (lower[1] + upper[1]) / 2, (lower[2] + upper[2]) / 2
    half = (upper[0] - lower[0]) / 2, (upper[1] - lower[1]) / 2, (upper[2] - lower[2]) / 2
    return Box(centre, half, min(rounding, 0.99 * min(half)))


def tube(x: float, y: float, low: float, high: float, bottom: float, top: float | None = None) -> Frustum:
    """An upright cylinder (or cone frustum) standing on z = low and ending at z = high."""
    return Frustum((x, y, (low + high) / 2), (high - low) / 2, bottom, bottom if top is None else top)
