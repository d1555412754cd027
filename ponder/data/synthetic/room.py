"""A furnished room: geometry, paint, labels and boxes; hand-made ones come from `assemble_room`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.data.scene import Boxes3D
from ponder.data.synthetic.shading import light
from ponder.data.synthetic.shapes import Box, Capsule, Placed, Shape, Vec3
from ponder.data.synthetic.solids import SHELL_FACES, Solids, build_solids
from ponder.data.synthetic.textures import Texture, TextureTable, texture_table

CLASS_NAMES = (
    "wall",
    "floor",
    "ceiling",
    "table",
    "chair",
    "shelf",
    "sofa",
    "bed",
    "cabinet",
    "lamp",
    "plant",
    "picture",
    "window",
    "door",
    "rug",
    "book",
    "other",
)
_SHELL_CLASSES = (0, 0, 0, 0, 1, 2)


@dataclass(frozen=True)
class Room:
    """An analytic room spanning (0, 0, 0) to `size`, z up, floor at z = 0, metres.

    Attributes:
        size: extents along x, y, z.
        boxes: exact axis-aligned boxes; box i is instance i. Walls, floor and ceiling have no instance (-1).
        class_names: name of each semantic id.
        solids: the geometry in float64; `solids.nearest` also tells which surface is nearest.
        light_solids: the same in float32, enough for light and shadow and twice as fast.
        textures: one paint per surface.
        semantic: [6 + P] class of each surface.
    """

    size: tuple[float, float, float]
    boxes: Boxes3D
    class_names: tuple[str, ...]
    solids: Solids
    light_solids: Solids
    textures: TextureTable
    semantic: Tensor

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distance to the nearest surface, positive in free space.

        Args:
            points: [..., 3] metres.

        Returns:
            [...] metres in the points' dtype (computed in float64).
        """
        distance, _ = self.solids.nearest(points.reshape(-1, 3).double())
        return distance.to(points.dtype).reshape(points.shape[:-1])

    def nearest_surface(self, points: Tensor) -> Tensor:
        """Number of the surface nearest to each point, [...] from [..., 3]."""
        return self.solids.nearest(points.reshape(-1, 3).double())[1].reshape(points.shape[:-1])

    def labels(self, surface: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic class and instance (-1 = shell) of surface numbers."""
        return self.semantic[surface], self.solids.owner[surface]

    def albedo(self, points: Tensor, surface: Tensor) -> Tensor:
        """Paint at points [N, 3] of the given surfaces [N]: [N, 3] float64, 0..1."""
        return self.textures.albedo(points.double(), surface)

    def colour(self, points: Tensor, normal: Tensor, surface: Tensor) -> Tensor:
        """Paint under the room's light, the same from every view.

        Args:
            points, normal: [N, 3] surface points and unit normals.
            surface: [N] surface numbers.

        Returns:
            [N, 3] float64, 0..1.
        """
        brightness = light(self.light_solids, points.float(), normal.float(), self.textures.glow[surface])
        return (self.albedo(points, surface) * brightness).clamp(0, 1)


def surface_distance(room: Room, points: Tensor) -> Tensor:
    """Unsigned distance of points [..., 3] to the nearest surface of the room, [...] metres."""
    return room.sdf(points).abs()


def move(shape: Shape, position: Vec3, yaw: float) -> Shape:
    """A shape turned by `yaw` about the origin's vertical axis, then moved to `position`."""
    cosine, sine = math.cos(yaw), math.sin(yaw)

    def place(point: Vec3) -> Vec3:
        x, y, z = point
        return position[0] + cosine * x - sine * y, position[1] + sine * x + cosine * y, position[2] + z

    if isinstance(shape, Capsule):
        return replace(shape, start=place(shape.start), end=place(shape.end))
    if isinstance(shape, Box):
        return replace(shape, centre=place(shape.centre), yaw=shape.yaw + yaw)
    return replace(shape, centre=place(shape.centre))


def _rotation(yaw: float) -> list[list[float]]:
    return [[math.cos(yaw), -math.sin(yaw), 0.0], [math.sin(yaw), math.cos(yaw), 0.0], [0.0, 0.0, 1.0]]


def assemble_room(size: Vec3, shell: Sequence[Texture], objects: Sequence[Placed]) -> Room:
    """Build a room from its parts.

    Args:
        size: extents (x, y, z), metres.
        shell: six paints, for the walls x = 0, x = size, y = 0, y = size, the floor and the ceiling.
        objects: the furniture; object i becomes instance i.

    Raises:
        ValueError: a size that is not positive, not six shell paints, an object without parts or of unknown
        class.
    """
    if min(size) <= 0:
        raise ValueError(f"size: expected positive extents, got {size}")
    if len(shell) != SHELL_FACES:
        raise ValueError(f"shell: expected {SHELL_FACES} textures, got {len(shell)}")
    for number, item in enumerate(objects):
        if item.furniture.semantic not in CLASS_NAMES or not item.furniture.parts:
            raise ValueError(f"objects[{number}]: expected parts and a known class, got {item.furniture.semantic!r}")
    moved = [[move(part.shape, o.position, o.yaw) for part in o.furniture.parts] for o in objects]
    solids, origin = build_solids(size, moved)
    textures = [*shell, *(objects[o].furniture.parts[p].texture for o, p in origin)]
    rotations = [_rotation(0.0)] * SHELL_FACES + [_rotation(objects[o].yaw) for o, _ in origin]
    positions = [(0.0, 0.0, 0.0)] * SHELL_FACES + [objects[o].position for o, _ in origin]
    classes = torch.tensor([CLASS_NAMES.index(o.furniture.semantic) for o in objects], dtype=torch.long)
    shell_classes = torch.tensor(_SHELL_CLASSES)
    boxes = Boxes3D(
        centre=((solids.object_lower + solids.object_upper) / 2).float(),
        size=(solids.object_upper - solids.object_lower).float(),
        semantic=classes,
        instance=torch.arange(len(objects)),
    )
    return Room(
        size=size,
        boxes=boxes,
        class_names=CLASS_NAMES,
        solids=solids,
        light_solids=solids.to(torch.float32),
        textures=texture_table(
            textures,
            torch.tensor(rotations, dtype=torch.float64),
            torch.tensor(positions, dtype=torch.float64),
        ),
        semantic=torch.cat([shell_classes, classes[solids.owner[SHELL_FACES:]]]),
    )
