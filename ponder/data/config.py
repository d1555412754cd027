"""Where scenes come from."""

from __future__ import annotations

from dataclasses import dataclass

SOURCES = ("rooms", "rgbd")


@dataclass(frozen=True)
class DataConfig:
    """Where scenes come from.

    Attributes:
        source: "rooms" (procedural) or "rgbd" (a folder).
        path: folder of an RGB-D sequence; rooms need none.
        rooms: number of procedural rooms.
        first_seed: seed of the first room; the others follow.
        train_views, heldout_views: views per procedural room.
        width, height: image size of procedural views, pixels.
        max_width: RGB-D images are reduced to at most this width, pixels.
        holdout_every: every n-th frame of an RGB-D folder is kept out of training.
        max_depth: measured depths beyond this count as missing, metres.
        colour_ratio: focal length of the colour camera over that of the depth camera; 0 estimates it from the
            training frames, 1 takes colour as registered.
        fuse_voxel: the fused cloud keeps one mean point per cube of this edge, metres.
    """

    source: str = "rooms"
    path: str = ""
    rooms: int = 4
    first_seed: int = 0
    train_views: int = 12
    heldout_views: int = 2
    width: int = 160
    height: int = 120
    max_width: int = 320
    holdout_every: int = 10
    max_depth: float = 8.0
    colour_ratio: float = 0.0
    fuse_voxel: float = 0.02
