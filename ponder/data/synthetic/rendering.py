"""Views of a room: exact depth, normals and labels of every pixel centre, and its colour."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder.data.scene import Frames
from ponder.data.synthetic.raytrace import trace
from ponder.data.synthetic.room import Room
from ponder.data.synthetic.solids import CHUNK
from ponder.data.threads import one_thread
from ponder.geometry import pixel_grid
from ponder.geometry.cameras import camera_directions


def _render_rays(room: Room, camera: Tensor, pose: Tensor) -> dict[str, Tensor]:
    """Pixels of one view, given their [N, 3] directions in camera axes (z = 1): tensors [N, ...]."""
    stretch = camera.norm(dim=1)
    # A float32 rotation is orthogonal to 1e-7 only: normalise after it, but keep the camera's own scale for
    # z-depth.
    direction = torch.nn.functional.normalize(camera @ pose[:3, :3].T, dim=1)
    eye = pose[:3, 3]
    path, surface = trace(room.solids, eye.expand_as(direction), direction)
    points = eye + path[:, None] * direction
    normal = room.solids.normal(points, surface)
    semantic, instance = room.labels(surface)
    return {
        "rgb": (room.colour(points, normal, surface) * 255 + 0.5).to(torch.uint8),
        "z_depth": (path / stretch).float(),
        "normal": normal.float(),
        "semantic": semantic,
        "instance": instance,
    }


def _render_view(room: Room, intrinsics: Tensor, pose: Tensor, width: int, height: int) -> dict[str, Tensor]:
    """One view; all tensors [H, W, ...]."""
    camera = camera_directions(pixel_grid(height, width).double().reshape(-1, 2), intrinsics.double())
    tiles = [_render_rays(room, tile, pose.double()) for tile in camera.split(CHUNK)]
    return {key: torch.cat([t[key] for t in tiles]).unflatten(0, (height, width)) for key in tiles[0]}


def render_room(room: Room, intrinsics: Tensor, camera_to_world: Tensor, width: int, height: int) -> Frames:
    """Ray-trace V views.

    Args:
        room: the room.
        intrinsics: [3, 3] pixels, shared by all views.
        camera_to_world: [V, 4, 4] rigid poses with the eye in free space.
        width, height: image size in pixels.

    Returns:
        V frames with every field filled; instance -1 = walls, floor, ceiling.

    Raises:
        ValueError: wrong shapes, or an eye inside a solid or outside the room.
        RuntimeError: a ray that did not converge.
    """
    if intrinsics.shape != (3, 3):
        raise ValueError(f"intrinsics: expected shape [3, 3], got {list(intrinsics.shape)}")
    if camera_to_world.ndim != 3 or camera_to_world.shape[1:] != (4, 4) or camera_to_world.shape[0] < 1:
        raise ValueError(f"camera_to_world: expected shape [V, 4, 4] with V >= 1, got {list(camera_to_world.shape)}")
    if min(width, height) < 1:
        raise ValueError(f"width, height: expected at least 1 pixel, got {width} x {height}")
    clearance = room.sdf(camera_to_world[:, :3, 3])
    if bool((clearance <= 0).any()):
        raise ValueError(f"camera_to_world: view {int(clearance.argmin())} has its eye outside the free space")
    with one_thread():
        views = [_render_view(room, intrinsics, pose, width, height) for pose in camera_to_world]
    stacked = {key: torch.stack([view[key] for view in views]) for key in views[0]}
    return Frames(
        names=tuple(f"{number:06d}" for number in range(len(views))),
        intrinsics=intrinsics.float().expand(len(views), 3, 3).clone(),
        camera_to_world=camera_to_world.float().clone(),
        **stacked,
    )
