"""Batches of generated rooms for PonderV2's indoor model, and a small such model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.models.ponderv2.indoor import PonderIndoor
from ponder.models.ponderv2.point_losses import build_criteria
from ponder.models.ponderv2.text import TextTable
from ponder.render.ponderv2 import build_renderer

Size = tuple[float, float, float]

# Rows of the text table, of which two datasets name some.
CLASSES, WIDTH = 7, 12
CONDITIONS = ("A", "B")
VALID_INDEX = ((0, 1, 2, 3, 4, 5), (1, 3, 2, 6))
MILLIMETRE = 0.001


def look_at(eye: Tensor, target: Tensor) -> Tensor:
    """[4, 4] world to camera, OpenCV axes, z of the world up."""
    forward = F.normalize(target - eye, dim=0)
    right = F.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ eye
    return pose


def seen_walls(pose: Tensor, intrinsic: Tensor, size: Size, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the walls of a room from (0, 0, 0) to `size`: z-depth [H, W], which of 6 it is, where on it [H, W, 3]."""
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    camera = torch.stack([x, y, torch.ones_like(x)], -1).float() @ torch.linalg.inv(intrinsic).T
    inverse = torch.linalg.inv(pose)
    direction, eye = camera @ inverse[:3, :3].T, inverse[:3, 3]
    far = torch.where(direction > 0, torch.tensor(size) - eye, -eye) / direction
    depth, axis = far.min(-1)
    wall = 2 * axis + (direction.gather(-1, axis[..., None])[..., 0] > 0)
    return depth, wall, eye + depth[..., None] * direction


def points_on_walls(size: Size, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[N, 3] points and their walls [N]; among them both far corners, so that the extent is the room's."""
    points = torch.rand(count, 3, generator=generator)
    wall = torch.randint(6, (count,), generator=generator)
    points[torch.arange(count), wall // 2] = (wall % 2).float()
    points[0], points[-1] = 0.0, 1.0
    return points * torch.tensor(size), wall


def room_batch(
    sizes: Sequence[Size],
    *,
    views: int = 2,
    image: tuple[int, int] = (12, 16),
    points: int = 300,
    seed: int = 0,
    condition: str = "A",
    missing: float = 0.1,
) -> dict[str, Any]:
    """A batch of rooms of some sizes in metres, seen from cameras inside them.

    Args:
        sizes: of each room.
        views, image, points: per room; image is (H, W).
        seed: of everything random.
        condition: the dataset's name.
        missing: part of the pixels without depth.
    """
    g = torch.Generator().manual_seed(seed)
    height, width = image
    classes = len(VALID_INDEX[CONDITIONS.index(condition)])
    intrinsic = torch.tensor([[0.8 * width, 0, width * 0.47], [0, 0.85 * width, height * 0.55], [0, 0, 1]])
    clouds, poses, images = [], [], []
    for size in sizes:
        shift = torch.randn(3, generator=g)
        cloud, wall = points_on_walls(size, points, g)
        clouds.append((cloud + shift, wall))
        for _ in range(views):
            eye, target = (torch.rand(2, 3, generator=g) * 0.6 + 0.2) * torch.tensor(size)
            pose = look_at(eye, target)
            depth, seen, place = seen_walls(pose, intrinsic, size, height, width)
            depth[torch.rand(height, width, generator=g) < missing] = 0
            images.append((depth / MILLIMETRE, seen, (place / torch.tensor(size)).clamp(0, 1)))
            moved = pose.clone()
            moved[:3, 3] -= pose[:3, :3] @ shift
            poses.append(moved)
    depth, seen, rgb = (torch.stack(maps).unflatten(0, (len(sizes), views)) for maps in zip(*images, strict=True))
    coord, segment = (torch.cat(parts) for parts in zip(*clouds, strict=True))
    square = torch.eye(4)
    square[:3, :3] = intrinsic
    return {
        "coord": coord,
        "grid_coord": torch.cat([((c - c.amin(0)) / 0.02).long() for c, _ in clouds]),
        "feat": torch.rand(len(coord), 6, generator=g) * 2 - 1,
        "offset": torch.arange(1, len(sizes) + 1) * points,
        "segment": segment % classes,
        "condition": [condition] * len(sizes),
        "rgb": rgb,
        "depth": depth,
        "depth_scale": torch.full((len(sizes),), MILLIMETRE),
        "intrinsic": square.expand(len(sizes), views, 4, 4).clone(),
        "extrinsic": torch.stack(poses).unflatten(0, (len(sizes), views)),
        "semantic": seen % classes,
    }


class Points(nn.Module):
    """A backbone that sees every point by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.own, self.shared = nn.Linear(6, channels), nn.Linear(5, channels)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        context = self.shared(batch["context"]) if "context" in batch else 0
        return torch.tanh(self.own(batch["feat"]) + context)


def _decoder(inputs: int, outputs: int, blocks: int) -> dict[str, Any]:
    return {"in_dim": inputs, "out_dim": outputs, "hidden_size": 16, "n_blocks": blocks, "points_factor": 0.0}


def renderer_config(feature: int = 0) -> dict[str, Any]:
    """PonderV2's indoor renderer with volumes of 16 channels and few samples; `feature` adds a head of that width."""
    field = {
        "type": "SDFField",
        "sdf_decoder": _decoder(8, 9, 1),
        "rgb_decoder": _decoder(22, 3, 0),
        "semantic_decoder": _decoder(19, WIDTH, 0),
        "beta_init": 0.3,
        "share_volume": False,
        "norm_pts": True,
        "norm_padding": 0.1,
    }
    if feature:
        field["feature_decoder"] = _decoder(19, feature, 0)
    weights = {
        "eikonal_loss": 0.01,
        "free_space_loss": 1.0,
        "sdf_loss": 10.0,
        "depth_loss": 1.0,
        "rgb_loss": 10.0,
        "semantic_loss": 0.1,
    }
    return {
        "type": "NeuSModel",
        "field": field,
        "collider": {"type": "AABBBoxCollider", "near_plane": 0.01, "bbox": [-0.55] * 3 + [0.55] * 3},
        "sampler": {
            "type": "NeuSSampler",
            "initial_sampler": "UniformSampler",
            "num_samples": 12,
            "num_samples_importance": 6,
            "num_upsample_steps": 1,
            "single_jitter": False,
        },
        "loss": {"sensor_depth_truncation": 0.05, "temperature": 0.01, "val_ray_split": 8, "weights": weights},
    }


def text_table() -> TextTable:
    g = torch.Generator().manual_seed(7)
    return TextTable(F.normalize(torch.randn(CLASSES, WIDTH, generator=g), dim=1), 4.6052, "generated")


def indoor_model(
    backbone: nn.Module | None = None, projection: nn.Module | None = None, feature: int = 0, **settings: Any
) -> PonderIndoor:
    """A small model from seed 1; settings as in PonderIndoor."""
    torch.manual_seed(1)
    given: dict[str, Any] = {
        "text": text_table(),
        "grid_shape": (12, 12, 8),
        "ray_nsample": 8,
        "backbone_out_channels": 10,
        "context_channels": 5,
        "render_semantic": True,
        "conditions": CONDITIONS,
        "valid_index": VALID_INDEX,
        "point_loss": build_criteria([{"type": "CrossEntropyLoss"}]),
    }
    return PonderIndoor(
        backbone or Points(10),
        projection or nn.Conv3d(10, 16, 3, padding=1),
        build_renderer(renderer_config(feature), settings.get("parity")),
        **(given | settings),
    )
