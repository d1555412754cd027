"""A generated room of realistic size and PonderV2's indoor model at its shipped sizes, with any renderer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.ponderv2 import configs
from benchmarks.cases import RENDER_CASES
from benchmarks.competitors import COMPETITORS, OURS
from benchmarks.contenders import Renderer
from ponder.data.synthetic import RoomConfig, room_scene
from ponder.models.ponderv2 import build_model
from ponder.models.ponderv2.indoor import PonderIndoor

CASE = RENDER_CASES["indoor"]
BACKBONES = ("SpUNet-v1m1", "SpUNet-v1m3")
RENDERERS = tuple(name for name, competitor in COMPETITORS.items() if competitor.exact)
CLASSES = 20
VOXEL = 0.02


@dataclass(frozen=True)
class Setting:
    """One step.

    Attributes:
        backbone: one of BACKBONES.
        points: voxels of the room; PonderV2 drops 80 % of a scan's points, which leaves about as many.
        views, rays: images, and rays in each.
        width, height: of the images.
        grid: cells of the volume along x, y and z.
        channels: widths of the sparse network's stages.
        device: "cpu" or "cuda".
        amp: half precision in the networks.
    """

    backbone: str = "SpUNet-v1m3"
    points: int = 30_000
    views: int = 5
    rays: int = 256
    width: int = 640
    height: int = 480
    grid: tuple[int, int, int] = (128, 128, 32)
    channels: tuple[int, ...] = (32, 64, 128, 256, 256, 128, 96, 96)
    device: str = "cpu"
    amp: bool = False


def model_config(setting: Setting) -> dict[str, Any]:
    """PonderV2's `model` dictionary for ScanNet, with classes of no meaning."""
    backbone = {
        "type": setting.backbone,
        "in_channels": 6,
        "num_classes": 0,
        "channels": setting.channels,
        "layers": (2, 3, 4, 6, 2, 2, 2, 2),
    }
    if setting.backbone == "SpUNet-v1m3":
        backbone |= {"conditions": ("ScanNet",), "context_channels": 256}
    width = setting.channels[-1]
    return {
        "type": "PonderIndoor-v2",
        "backbone": backbone,
        "projection": {"type": "UNet3D-v1m2", "in_channels": width, "out_channels": 128},
        "renderer": configs.indoor(),
        "grid_shape": setting.grid,
        "ray_nsample": setting.rays,
        "backbone_out_channels": width,
        "render_semantic": True,
        "conditions": ("ScanNet",),
        "template": "a [x]",
        "class_name": [f"class {number}" for number in range(CLASSES)],
        "valid_index": (tuple(range(CLASSES)),),
        "ppt_criteria": [{"type": "CrossEntropyLoss", "loss_weight": 1.0, "ignore_index": -1}],
    }


def make_batch(setting: Setting, seed: int = 0) -> dict[str, Any]:
    """One room: some of the voxels that its views see, and the views."""
    config = RoomConfig(train_views=setting.views, heldout_views=0, width=setting.width, height=setting.height)
    scene = room_scene(seed, config)
    cloud, frames = scene.cloud, scene.train
    low = cloud.coord.amin(0)
    voxels = ((cloud.coord - low) / VOXEL).long()
    distinct, inverse = voxels.unique(dim=0, return_inverse=True)
    first = torch.zeros(len(distinct), dtype=torch.long).scatter_(0, inverse, torch.arange(len(voxels)))
    g = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(distinct), generator=g)[: setting.points]
    cloud, count = cloud.select(first[chosen]), len(chosen)
    assert frames.semantic is not None
    square = torch.eye(4).repeat(setting.views, 1, 1)
    square[:, :3, :3] = frames.intrinsics
    batch = {
        "coord": cloud.coord,
        "grid_coord": distinct[chosen],
        "feat": torch.cat([cloud.colour * 2 - 1, cloud.normal], 1),
        "offset": torch.tensor([count]),
        "segment": torch.randint(CLASSES, (count,), generator=g),
        "condition": ["ScanNet"],
        "rgb": frames.rgb[None].float() / 255,
        "depth": frames.z_depth[None] * 1000,
        "depth_scale": torch.tensor([0.001]),
        "intrinsic": square[None],
        "extrinsic": torch.linalg.inv(frames.camera_to_world)[None],
        "semantic": frames.semantic[None] % CLASSES,
    }
    return {key: value.to(setting.device) if isinstance(value, Tensor) else value for key, value in batch.items()}


class Swapped(nn.Module):
    """Another renderer in the place of ours."""

    def __init__(self, renderer: Renderer) -> None:
        super().__init__()
        self.model, self.bundle = renderer.model, renderer.bundle
        self.loss = self.model.loss

    def forward(self, rays: Any, volumes: list[Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.model(self.bundle(rays.origins, rays.directions), volumes)
        return found

    def get_loss(self, preds: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With an embedding of every ray, as PonderV2 wants them."""
        labels, table = targets["semantic_class"], targets["semantic_table"]
        rows = torch.where((labels >= 0)[:, None], table[labels.clamp_min(0)], 0.0)
        losses: dict[str, Tensor] = self.model.get_loss(preds, {**targets, "semantic": rows})
        return losses


def build(name: str, setting: Setting) -> PonderIndoor:
    """The model with a renderer; the same weights whichever it is."""
    torch.manual_seed(0)
    model = build_model(model_config(setting), text="offline", device=setting.device)
    assert isinstance(model, PonderIndoor)
    if name != OURS:
        other = COMPETITORS[name].build(CASE)
        other.model.load_state_dict(model.renderer.state_dict())
        model.renderer = Swapped(other).to(setting.device)  # type: ignore[assignment]
    return model.train()
