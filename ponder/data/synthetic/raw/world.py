"""What the raw writers share: furnished rooms, rays cast into them, and their classes in the data sets' own terms."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ponder.data.synthetic.generate import RoomConfig, make_room
from ponder.data.synthetic.raytrace import trace
from ponder.data.synthetic.room import CLASS_NAMES, Room
from ponder.data.synthetic.viewpoints import viewpoints
from ponder.data.threads import one_thread


class ClassTerms(NamedTuple):
    """One of our classes in the terms of the data sets; None or 0 = not annotated."""

    scannet: str | None
    scannet_id: int
    nyu40: int
    s3dis: str


# Names and numbers of the data sets' published label tables.
CLASS_TERMS = {
    "wall": ClassTerms("wall", 1, 1, "wall"),
    "floor": ClassTerms("floor", 3, 2, "floor"),
    "ceiling": ClassTerms("ceiling", 41, 22, "ceiling"),
    "table": ClassTerms("table", 4, 7, "table"),
    "chair": ClassTerms("chair", 2, 5, "chair"),
    "shelf": ClassTerms("shelf", 8, 15, "bookcase"),
    "sofa": ClassTerms("couch", 6, 6, "sofa"),
    "bed": ClassTerms("bed", 11, 4, "clutter"),
    "cabinet": ClassTerms("cabinet", 7, 3, "clutter"),
    "lamp": ClassTerms("lamp", 28, 35, "clutter"),
    "plant": ClassTerms("plant", 40, 40, "clutter"),
    "picture": ClassTerms("picture", 15, 11, "board"),
    "window": ClassTerms("window", 16, 9, "window"),
    "door": ClassTerms("door", 5, 8, "door"),
    "rug": ClassTerms("rug", 61, 40, "clutter"),
    "book": ClassTerms("book", 22, 23, "clutter"),
    # Not one of the 13 classes of S3DIS, whose release has some objects of this name.
    "other": ClassTerms(None, 0, 0, "stairs"),
}
TERMS = tuple(CLASS_TERMS[name] for name in CLASS_NAMES)
# Objects are numbered from 0; the shell's surfaces become objects behind them.
_SHELL = {"wall": 0, "floor": 1, "ceiling": 2}


@dataclass(frozen=True)
class Hits:
    """What rays [...] see.

    Attributes:
        path: [...] float64 metres along the unit ray.
        colour: [..., 3] uint8.
        semantic: [...] index into CLASS_NAMES.
        instance: [...] object number, wall, floor and ceiling included.
    """

    path: NDArray[np.float64]
    colour: NDArray[np.uint8]
    semantic: NDArray[np.int64]
    instance: NDArray[np.int64]


def small_room(seed: int) -> Room:
    """A room with little furniture, quickly rendered."""
    return make_room(seed, RoomConfig(min_furniture=2, max_furniture=3))


def eyes(room: Room, count: int, seed: int) -> NDArray[np.float64]:
    """[count, 4, 4] camera-to-world poses in the free space of a room, OpenCV axes."""
    return viewpoints(room, count, 0, np.random.default_rng([seed, 7]))[0].double().numpy()


def cast(room: Room, origin: NDArray[np.float64], directions: NDArray[np.float64]) -> Hits:
    """Cast rays [..., 3] from one point.

    Args:
        room: the room.
        origin: [3] metres, in free space.
        directions: [..., 3] vectors of any length but 0.
    """
    shape = directions.shape[:-1]
    rays = torch.nn.functional.normalize(torch.as_tensor(directions).double().reshape(-1, 3), dim=1)
    eye = torch.as_tensor(origin).double()
    with one_thread():
        path, surface = trace(room.solids, eye.expand_as(rays), rays)
        points = eye + path[:, None] * rays
        colour = room.colour(points, room.solids.normal(points, surface), surface)
    semantic, instance = room.labels(surface)
    objects = int(room.solids.owner.max()) + 1
    shell = torch.tensor([_SHELL.get(name, 0) for name in CLASS_NAMES]) + objects
    instance = torch.where(instance >= 0, instance, shell[semantic])
    return Hits(
        path.numpy().reshape(shape),
        (colour * 255 + 0.5).to(torch.uint8).numpy().reshape(*shape, 3),
        semantic.numpy().reshape(shape),
        instance.numpy().reshape(shape),
    )


def class_column(name: str) -> NDArray[np.int64]:
    """[number of our classes] of a number of `ClassTerms`, to be indexed by a semantic map."""
    return np.array([getattr(terms, name) for terms in TERMS], dtype=np.int64)


def pixel_rays(matrix: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """[height, width, 3] directions with z = 1 of pixels whose centres have integer coordinates."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    x = (columns - matrix[0, 2]) / matrix[0, 0]
    y = (rows - matrix[1, 2]) / matrix[1, 1]
    return np.stack([x, y, np.ones_like(x)], -1)


def png(pixels: NDArray, palette: bool = False) -> bytes:
    """A PNG of [H, W] uint8 or uint16 or [H, W, 3] uint8; `palette` stores [H, W] uint8 as palette indices."""
    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("P")
        image.putpalette([value for index in range(256) for value in (index, 255 - index, index // 2)])
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG of [H, W, 3] RGB, hardly compressed."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()
