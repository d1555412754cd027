"""Hand-held camera paths: a ring of eyes around the room, each looking across it and slightly down."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ponder.data.synthetic.room import Room
from ponder.geometry import look_at

# Space every camera keeps from all surfaces, and free distance wanted straight ahead, metres.
MIN_CLEARANCE = 0.35
_AHEAD = (0.5, 0.9, 1.3)
_ATTEMPTS = 400


def pinhole(width: int, height: int, horizontal_fov_degrees: float) -> Tensor:
    """Intrinsics [3, 3] float32 with square pixels and the principal point in the middle of the image."""
    focal = width / 2 / math.tan(math.radians(horizontal_fov_degrees) / 2)
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def _view_at(room: Room, angle: float, generator: np.random.Generator) -> Tensor:
    """One pose near `angle` on the ring with free space around the eye and ahead of it."""
    length_x, length_y, _ = room.size
    for attempt in range(_ATTEMPTS):
        # The search widens slowly, so that the pose stays near its place on the ring where it can.
        turn = angle + generator.normal() * (0.05 + 0.6 * attempt / _ATTEMPTS)
        radius = generator.uniform(max(0.72 - attempt / _ATTEMPTS, 0.1), 0.97)
        eye = np.array(
            [
                length_x / 2 + radius * (length_x / 2 - MIN_CLEARANCE - 0.03) * math.cos(turn),
                length_y / 2 + radius * (length_y / 2 - MIN_CLEARANCE - 0.03) * math.sin(turn),
                generator.uniform(1.15, 1.8),
            ]
        )
        across = turn + math.pi + generator.normal() * 0.22
        target = np.array(
            [
                length_x / 2 + 0.3 * length_x * math.cos(across),
                length_y / 2 + 0.3 * length_y * math.sin(across),
                generator.uniform(0.55, 0.95),
            ]
        )
        ahead = (target - eye) / np.linalg.norm(target - eye)
        probes = torch.as_tensor(np.stack([eye, *(eye + step * ahead for step in _AHEAD)]))
        clearance = room.sdf(probes)
        if float(clearance[0]) > MIN_CLEARANCE and float(clearance[1:].min()) > 0.12:
            up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
            return look_at(torch.as_tensor(eye), torch.as_tensor(target), up)
    raise RuntimeError(f"no free viewpoint found in a room of {room.size} m; use less furniture")


def viewpoints(room: Room, train: int, heldout: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Training poses around the room, and held-out poses between them.

    Args:
        room: where to look.
        train, heldout: how many poses of each; train >= 1.
        generator: draws the poses.

    Returns:
        camera_to_world [train, 4, 4] and [heldout, 4, 4], float32.

    Raises:
        RuntimeError: no viewpoint with enough free space was found.
    """
    start = generator.uniform(0, 2 * math.pi)
    step = 2 * math.pi / train
    gaps = [int((number + 0.5) * train / heldout) + 0.5 for number in range(heldout)]
    poses = [_view_at(room, start + step * k, generator) for k in [*range(train), *gaps]]
    stacked = torch.stack(poses).float() if poses else torch.zeros(0, 4, 4)
    return stacked[:train], stacked[train:]
