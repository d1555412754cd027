"""Where things stand: rejection sampling of groups of furniture in a room, natural places first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ponder.data.synthetic.furniture import (
    Group,
    bed,
    cabinet,
    dining_set,
    floor_lamp,
    plant,
    pouf,
    shelf,
    sofa,
)
from ponder.data.synthetic.palette import Palette
from ponder.data.synthetic.primitives import Boxes, Capsules, Frustums
from ponder.data.synthetic.room import move
from ponder.data.synthetic.shapes import Box, Capsule, Frustum, Furniture, Placed, Vec3
from ponder.data.synthetic.smallthings import door, pendant, picture, rug, window

Extent = tuple[np.ndarray, np.ndarray]
# Attempts to find a free place for a group before the room goes without it.
_ATTEMPTS = 60
# Free floor between pieces of furniture, and from furniture to the wall it stands against, metres.
_GAP, _WALL_GAP = 0.06, 0.02
_WALL_GROUPS = (bed, sofa, shelf, cabinet)


def extent(items: Sequence[Placed]) -> Extent:
    """Tight axis-aligned box (lower [3], upper [3]) around placed furniture."""
    shapes = [move(part.shape, item.position, item.yaw) for item in items for part in item.furniture.parts]
    bounds = [
        Boxes.stack([s for s in shapes if isinstance(s, Box)]).bounds(),
        Frustums.stack([s for s in shapes if isinstance(s, Frustum)]).bounds(),
        Capsules.stack([s for s in shapes if isinstance(s, Capsule)]).bounds(),
    ]
    lower = np.concatenate([b[0].numpy() for b in bounds])
    upper = np.concatenate([b[1].numpy() for b in bounds])
    return lower.min(0), upper.max(0)


def overlaps(first: Extent, second: Extent, margin: float) -> bool:
    """Whether two boxes come closer than `margin` along every axis."""
    return bool(np.all(first[0] - margin < second[1]) and np.all(second[0] - margin < first[1]))


def place_group(group: Group, position: Vec3, yaw: float) -> Group:
    """A group moved as a whole."""
    cosine, sine = math.cos(yaw), math.sin(yaw)

    def placed(item: Placed) -> Placed:
        x, y, z = item.position
        turned = position[0] + cosine * x - sine * y, position[1] + sine * x + cosine * y, position[2] + z
        return Placed(item.furniture, turned, item.yaw + yaw)

    return tuple(placed(item) for item in group)


class Layout:
    """The room being furnished: what was placed, and which space is taken.

    Args:
        size: room extents, metres.
        paint: the palette, whose generator also draws the places.
    """

    def __init__(self, size: Vec3, paint: Palette) -> None:
        self.size, self.paint = size, paint
        self.items: list[Placed] = []
        self.taken: list[Extent] = []

    def wall_place(self, wall: int, along: float, height: float = 0.0, gap: float = 0.0) -> tuple[Vec3, float]:
        """Position and yaw at a fraction `along` of a wall (0 to 3 as the shell's faces); +y inwards."""
        length_x, length_y, _ = self.size
        places = (
            ((gap, along * length_y, height), -math.pi / 2),
            ((length_x - gap, along * length_y, height), math.pi / 2),
            ((along * length_x, gap, height), 0.0),
            ((along * length_x, length_y - gap, height), math.pi),
        )
        return places[wall]

    def fits(self, box: Extent, margin: float) -> bool:
        """Whether a box lies inside the room and keeps clear of everything placed."""
        inside = bool(np.all(box[0] >= -1e-9) and np.all(box[1] <= np.asarray(self.size) + 1e-9))
        return inside and not any(overlaps(box, other, margin) for other in self.taken)

    def add(self, group: Group, blocks: bool = True) -> None:
        """Put a group where it is; `blocks` = nothing else may stand there."""
        self.items.extend(group)
        if blocks:
            self.taken.append(extent(group))

    def _proposal(self, make: Callable[[Palette], Group]) -> Group:
        paint, (length_x, length_y, _) = self.paint, self.size
        group = make(paint)
        if make in _WALL_GROUPS:
            wall = int(paint.generator.integers(4))
            return place_group(group, *self.wall_place(wall, paint.between(0.08, 0.92), gap=_WALL_GAP))
        if make is dining_set:
            position = (length_x * paint.between(0.35, 0.65), length_y * paint.between(0.35, 0.65), 0.0)
            return place_group(group, position, math.pi / 2 * int(paint.generator.integers(2)))
        if make is pouf:
            position = (length_x * paint.between(0.15, 0.85), length_y * paint.between(0.15, 0.85), 0.0)
            return place_group(group, position, paint.between(0, math.pi))
        reach = paint.between(0.28, 0.40)
        corner = (
            reach if paint.generator.uniform() < 0.5 else length_x - reach,
            reach if paint.generator.uniform() < 0.5 else length_y - reach,
            0.0,
        )
        return place_group(group, corner, paint.between(0, math.pi))

    def try_group(self, make: Callable[[Palette], Group]) -> bool:
        """Place a new group at a free spot; False if none was found."""
        for _ in range(_ATTEMPTS):
            group = self._proposal(make)
            if self.fits(extent(group), _GAP):
                self.add(group)
                return True
        return False

    def add_openings(self) -> None:
        """A door with free floor in front of it, and one or two windows on other walls."""
        paint, generator = self.paint, self.paint.generator
        walls = [int(w) for w in generator.permutation(4)]
        along = paint.between(0.25, 0.75)
        leaf = place_group((Placed(door(paint, 0.42, 2.02), (0.0, 0.0, 0.0)),), *self.wall_place(walls[0], along))
        self.add(leaf)
        swing, _ = self.wall_place(walls[0], along, gap=0.4)
        reach = np.array([0.4, 0.4, 1.0])
        self.taken.append((np.asarray(swing) - reach + [0, 0, 1.0], np.asarray(swing) + reach))
        for wall in walls[1 : 2 + int(generator.integers(2))]:
            half, low = paint.between(0.45, 0.7), paint.between(0.95, 1.05)
            pane = Placed(window(paint, half, low, self.size[2] - 0.38), (0.0, 0.0, 0.0))
            self.add(place_group((pane,), *self.wall_place(wall, paint.between(0.42, 0.58))))

    def add_pictures(self, count: int) -> None:
        """Pictures on free wall space, not behind furniture."""
        paint = self.paint
        for _ in range(count):
            for _ in range(_ATTEMPTS):
                half_x, half_z = paint.between(0.2, 0.42), paint.between(0.2, 0.36)
                place = self.wall_place(int(paint.generator.integers(4)), paint.between(0.1, 0.9), 1.6)
                art = place_group((Placed(picture(paint, half_x, half_z), (0.0, 0.0, 0.0)),), *place)
                if self.fits(extent(art), 0.1):
                    self.add(art)
                    break

    def add_rug(self) -> Placed:
        """A carpet in the middle of the room; furniture may stand on it."""
        paint, (length_x, length_y, _) = self.paint, self.size
        half_x, half_y = length_x * paint.between(0.24, 0.32), length_y * paint.between(0.24, 0.3)
        flat = rug(paint, half_x, half_y, paint.generator.uniform() < 0.3)
        spot = Placed(flat, (length_x * paint.between(0.46, 0.54), length_y * paint.between(0.46, 0.54), 0.0))
        self.add((spot,), blocks=False)
        return spot


def furnish(size: Vec3, paint: Palette, groups: int) -> list[Placed]:
    """Furnish a room.

    Args:
        size: room extents, metres.
        paint: palette and generator of the room.
        groups: how many groups of furniture to try to place (a crowded room may end up with fewer).

    Returns:
        the placed pieces; none overlaps another except that furniture stands on the rug.
    """
    layout = Layout(size, paint)
    layout.add_openings()
    layout.add_rug()
    large = (bed, sofa) if paint.generator.uniform() < 0.5 else (sofa, bed)
    rest = [large[1], plant, cabinet, shelf, pouf, floor_lamp, plant, pouf]
    first = [large[0], dining_set, shelf, cabinet, floor_lamp, plant]
    for make in [*first, *(rest[int(i)] for i in paint.generator.permutation(len(rest)))][:groups]:
        layout.try_group(make)
    hanging: Furniture = pendant(paint, paint.between(0.45, 0.6))
    middle = (size[0] * paint.between(0.42, 0.58), size[1] * paint.between(0.42, 0.58), size[2])
    if layout.fits(extent((Placed(hanging, middle),)), 0.1):
        layout.add((Placed(hanging, middle),))
    layout.add_pictures(int(paint.generator.integers(2, 5)))
    return layout.items
