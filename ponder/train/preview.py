"""Preview images: truth above, rendering below; colour, depth and normals side by side."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from ponder.data.scene import Frames
from ponder.render.image import Image
from ponder.train.files import write_bytes

# Anchors of a perceptually ordered dark-blue to yellow map (values of matplotlib's viridis at 0, 1/4, ... 1).
_DEPTH_COLOURS = np.array(
    [
        [0.267, 0.005, 0.329],
        [0.229, 0.322, 0.546],
        [0.128, 0.567, 0.551],
        [0.369, 0.789, 0.383],
        [0.993, 0.906, 0.144],
    ]
)


def depth_colours(z_depth: Tensor, farthest: float) -> Tensor:
    """[H, W] metres -> [H, W, 3] in 0..1, near bright and far dark; missing pixels (0) are black."""
    position = 1 - (z_depth / max(farthest, 1e-6)).clamp(0, 1)
    anchors = np.linspace(0, 1, len(_DEPTH_COLOURS))
    channels = [np.interp(position.numpy(), anchors, _DEPTH_COLOURS[:, c]) for c in range(3)]
    colours = torch.from_numpy(np.stack(channels, -1)).float()
    return colours * (z_depth > 0).unsqueeze(-1)


def normal_colours(normal: Tensor, camera_to_world: Tensor) -> Tensor:
    """World normals [H, W, 3] -> camera-frame colours in 0..1; missing normals (0) are black."""
    known = (normal.abs().sum(-1, keepdim=True) > 1e-3).float()
    unit = torch.nn.functional.normalize(normal, dim=-1) @ camera_to_world[:3, :3]
    flipped = unit * torch.tensor([1.0, -1.0, -1.0])
    return (flipped + 1) / 2 * known


def to_bytes(image: Tensor) -> np.ndarray:
    """[H, W, 3] in 0..1 -> uint8."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG atomically."""
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def panel(frames: Frames, index: int, image: Image) -> np.ndarray:
    """Truth (top row) and rendering (bottom row) of one view: colour, depth, normal."""
    pose = frames.camera_to_world[index]
    truth_depth = frames.z_depth[index]
    farthest = float(truth_depth.max())
    truth = [
        frames.rgb[index].float() / 255,
        depth_colours(truth_depth, farthest),
        normal_colours(frames.normal[index], pose),
    ]
    rendered = [image.rgb, depth_colours(image.z_depth, farthest), normal_colours(image.normal, pose)]
    rows = [np.concatenate([to_bytes(part) for part in row], 1) for row in (truth, rendered)]
    gap = np.full((2, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([rows[0], gap, rows[1]], 0)
