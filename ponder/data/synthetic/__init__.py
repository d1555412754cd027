"""Procedural furnished rooms with exact colour, depth, normals, labels, boxes and poses; needs no download.

    scene = room_scene(seed=3)

Everything is a function of the seed and the config; global random state is neither read nor changed.
"""

from ponder.data.synthetic.generate import RoomConfig, make_room, room_scene
from ponder.data.synthetic.rendering import render_room
from ponder.data.synthetic.room import CLASS_NAMES, Room, assemble_room, surface_distance
from ponder.data.synthetic.viewpoints import pinhole, viewpoints

__all__ = [
    "CLASS_NAMES",
    "Room",
    "RoomConfig",
    "assemble_room",
    "make_room",
    "pinhole",
    "render_room",
    "room_scene",
    "surface_distance",
    "viewpoints",
]
