"""Images along a camera path, and an animation of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from rich.console import Console
from torch import Tensor

from ponder.data.scene import DataError
from ponder.geometry import interpolate_poses, nearest_rotation, resize_intrinsics, rigid_error
from ponder.render.image import render_image
from ponder.tasks.trained import Trained
from ponder.train.files import make_output_folder, write_bytes
from ponder.train.preview import depth_colours, normal_colours, save_png, to_bytes
from ponder.train.progress import Stage

# Poses read from text carry rounding; anything beyond this is not a rigid motion.
RIGID_TOLERANCE = 1e-2
MILLISECONDS_PER_FRAME = 100


def read_poses(path: Path) -> Tensor:
    """Camera-to-world matrices from a text file with 16 numbers each, in rows of 4 or of 16.

    Raises:
        DataError: missing, not numbers, a count that is not a multiple of 16, not finite or not rigid.
    """
    try:
        numbers = np.array(path.read_text(encoding="utf-8").split(), dtype=np.float64)
    except FileNotFoundError:
        raise DataError(f"pose file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, ValueError):
        raise DataError(f"pose file {path} is not a text file of numbers") from None
    if numbers.size == 0 or numbers.size % 16:
        raise DataError(f"pose file {path}: expected 16 numbers per pose, got {numbers.size} numbers")
    poses = torch.from_numpy(numbers.reshape(-1, 4, 4)).float()
    for index, pose in enumerate(poses):
        if not rigid_error(pose) < RIGID_TOLERANCE:
            raise DataError(f"pose file {path}: pose {index} is not a finite rigid 4x4 motion")
        pose[:3, :3] = nearest_rotation(pose[:3, :3])
    return poses


def render_path(
    trained: Trained, poses_file: Path | None, frames: int, width: int | None, folder: Path, console: Console
) -> None:
    """Write colour, depth and normal PNGs per pose, 16-bit depth in millimetres, and animation.gif."""
    held = trained.scene.heldout
    keys = held if len(held) > 1 else trained.scene.train
    poses = read_poses(poses_file) if poses_file else interpolate_poses(keys.camera_to_world, frames)
    height, own_width = held.size
    scale = 1.0 if width is None else width / own_width
    size = (max(1, round(height * scale)), max(1, round(own_width * scale)))
    intrinsics = resize_intrinsics(held.intrinsics[0], size[1] / own_width, size[0] / height)
    make_output_folder(folder)
    farthest = float(held.z_depth.max()) or trained.config.data.max_depth
    strips = []
    with Stage("rendering the path", console) as stage:
        for index, pose in enumerate(poses):
            stage(index, len(poses))
            image = render_image(
                trained.model.renderer, trained.volume.features, trained.volume.box, intrinsics, pose, size
            )
            depth = depth_colours(image.z_depth, farthest)
            normal = normal_colours(image.normal, pose)
            parts = {"colour": image.rgb, "depth-view": depth, "normal": normal}
            for kind, picture in parts.items():
                save_png(folder / f"{index:04d}.{kind}.png", to_bytes(picture))
            millimetres = (image.z_depth * 1000).round().clamp(0, 65534).numpy().astype(np.uint16)
            save_png(folder / f"{index:04d}.depth.png", millimetres)
            strips.append(np.concatenate([to_bytes(picture) for picture in parts.values()], 1))
        stage(len(poses), len(poses))
    _write_gif(folder / "animation.gif", strips)


def _write_gif(path: Path, pictures: list[np.ndarray]) -> None:
    buffer = io.BytesIO()
    first, *rest = [PillowImage.fromarray(picture) for picture in pictures]
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=MILLISECONDS_PER_FRAME, loop=0)
    write_bytes(path, buffer.getvalue())
