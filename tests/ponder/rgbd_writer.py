"""A generated RGB-D recording, whole or damaged: a painted room with a block, ray-cast in closed form."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ponder.geometry import look_at, pixel_grid
from ponder.geometry.cameras import camera_directions

ROOM = torch.tensor([[-2.0, -1.6, -1.2], [2.0, 1.6, 1.2]])
BLOCK = torch.tensor([[-0.5, -0.4, -1.2], [0.3, 0.4, -0.3]])


def camera(width: int = 160, height: int = 120) -> Tensor:
    """[3, 3] float64 intrinsics with a 70 degree view and an off-centre principal point."""
    focal = 0.714 * width
    matrix = [[focal, 0.0, 0.5 * width + 1.3], [0.0, focal, 0.5 * height - 0.7], [0.0, 0.0, 1.0]]
    return torch.tensor(matrix, dtype=torch.float64)


def orbit(count: int) -> Tensor:
    """[count, 4, 4] float32 poses on a circle above the block, all looking at it."""
    up = torch.tensor([0.0, 0.0, 1.0])
    poses = []
    for k in range(count):
        angle = torch.tensor(2 * torch.pi * k / count + 0.3)
        eye = torch.stack([1.4 * angle.cos(), 1.1 * angle.sin(), torch.tensor(0.5)])
        poses.append(look_at(eye, torch.tensor([0.0, 0.0, -0.5]), up))
    return torch.stack(poses)


def paint(points: Tensor) -> Tensor:
    """Colour 0..1 of points [..., 3]: slow waves, so that neighbouring pixels hardly differ."""
    phase = torch.tensor([0.0, 1.0, 2.0])
    return 0.5 + 0.4 * torch.sin(1.5 * points + points.roll(1, -1) + phase)


def paint_finely(points: Tensor) -> Tensor:
    """Colour 0..1 of points [..., 3] with a pattern of decimetres, by which places can be told apart."""
    waves = torch.tensor([[11.0, 5.0, -7.0], [-6.0, 9.0, 8.0], [7.0, -8.0, 12.0]])
    return 0.5 + 0.2 * torch.sin(points @ waves.T) + 0.2 * torch.sin(2.3 * points @ waves + 1.0)


def surface_distance(points: Tensor) -> Tensor:
    """Distance [N] of points [N, 3] to the closest face of the room or the block."""
    to_room = torch.minimum(points - ROOM[0], ROOM[1] - points).abs().amin(-1)
    q = (points - BLOCK.mean(0)).abs() - (BLOCK[1] - BLOCK[0]) / 2
    to_block = q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)
    return torch.minimum(to_room, to_block.abs())


def render(
    pose: Tensor, intrinsics: Tensor, height: int, width: int, texture: Callable[[Tensor], Tensor] = paint
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact view of the room, coloured by `texture` at its points.

    Returns:
        z_depth [H, W] metres, colour [H, W, 3] in 0..1 and world normals [H, W, 3] towards the free space;
        float32.
    """
    pose = pose.double()
    directions = camera_directions(pixel_grid(height, width).double(), intrinsics.double()) @ pose[:3, :3].T
    origin = pose[:3, 3]
    room, block = ROOM.double(), BLOCK.double()
    # Directions have z = 1 in camera axes, so the ray parameter is the z-depth.
    leave, room_axis = (torch.where(directions > 0, room[1] - origin, room[0] - origin) / directions).min(-1)
    near = torch.where(directions > 0, block[0] - origin, block[1] - origin) / directions
    far = torch.where(directions > 0, block[1] - origin, block[0] - origin) / directions
    enter, block_axis = near.max(-1)
    on_block = (enter < far.amin(-1)) & (enter > 0)
    z_depth = torch.where(on_block, enter, leave)
    axis = torch.where(on_block, block_axis, room_axis)
    against = -torch.sign(directions.gather(-1, axis[..., None]))
    normal = torch.nn.functional.one_hot(axis, 3) * against
    colour = texture((origin + z_depth[..., None] * directions).float())
    return z_depth.float(), colour, normal.float()


def write_matrix(path: Path, matrix: Tensor) -> None:
    """A matrix as text, one row per line."""
    path.write_text("\n".join(" ".join(f"{x:.9g}" for x in row) for row in matrix.double().tolist()) + "\n")


def write_depth(path: Path, z_depth: Tensor) -> None:
    """Metres [H, W] as 16-bit millimetres."""
    Image.fromarray((z_depth * 1000).round().numpy().astype(np.uint16)).save(path)


def write_colour(path: Path, colour: Tensor) -> None:
    """Colour [H, W, 3] in 0..1 as 8 bits."""
    Image.fromarray((colour * 255).round().to(torch.uint8).numpy()).save(path)


def zoom_out(intrinsics: Tensor, ratio: float) -> Tensor:
    """Intrinsics with the focal lengths multiplied by `ratio`, hence a wider view for a ratio below 1."""
    return intrinsics * torch.tensor([[ratio, ratio, 1.0], [1.0, ratio, 1.0], [1.0, 1.0, 1.0]], dtype=intrinsics.dtype)


def write_frame(
    folder: Path,
    name: str,
    pose: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    colour_ratio: float = 1.0,
    texture: Callable[[Tensor], Tensor] = paint,
) -> None:
    """One frame's colour, depth and pose files; the colour camera's focal length is `colour_ratio` of the other's."""
    z_depth, _, _ = render(pose, intrinsics, height, width)
    _, colour, _ = render(pose, zoom_out(intrinsics, colour_ratio), height, width, texture)
    write_colour(folder / f"{name}.color.png", colour)
    write_depth(folder / f"{name}.depth.png", z_depth)
    write_matrix(folder / f"{name}.pose.txt", pose)


def write_folder(
    folder: Path,
    count: int = 4,
    width: int = 160,
    height: int = 120,
    poses: Tensor | None = None,
    colour_ratio: float = 1.0,
    texture: Callable[[Tensor], Tensor] = paint,
) -> Path:
    """A recording of `count` frames named frame-000000, frame-000010, ... in `folder`, which is created."""
    folder.mkdir(parents=True)
    intrinsics = camera(width, height)
    write_matrix(folder / "camera-intrinsics.txt", intrinsics)
    for k, pose in enumerate(orbit(count) if poses is None else poses):
        write_frame(folder, f"frame-{10 * k:06d}", pose, intrinsics, height, width, colour_ratio, texture)
    return folder


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write_pose(change: Callable[[Tensor], None]) -> Callable[[Path], None]:
    """A damage: frame 10's pose with `change` applied to it."""

    def damage(folder: Path) -> None:
        pose = orbit(3)[1].double()
        change(pose)
        write_matrix(folder / "frame-000010.pose.txt", pose)

    return damage


def _write_intrinsics(row: int, column: int, value: float) -> Callable[[Path], None]:
    """A damage: the intrinsics with one entry replaced."""

    def damage(folder: Path) -> None:
        matrix = camera(40, 30)
        matrix[row, column] = value
        write_matrix(folder / "camera-intrinsics.txt", matrix)

    return damage


def _resize(name: str, width: int, height: int) -> Callable[[Path], None]:
    """A damage: an image stored with another size."""

    def damage(folder: Path) -> None:
        image = Image.open(folder / name)
        image.resize((width, height), Image.Resampling.NEAREST).save(folder / name)

    return damage


def _colour_camera(folder: Path) -> None:
    for path in folder.glob("*.color.png"):
        Image.open(path).resize((80, 60)).save(path)
    write_matrix(folder / "camera-intrinsics.txt", camera(80, 60))


DEPTH, COLOUR, POSE = "frame-000010.depth.png", "frame-000010.color.png", "frame-000010.pose.txt"
INTRINSICS = "camera-intrinsics.txt"
# What is done to a good 40x30 recording of 3 frames, and the sentence that must come of it.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"small: expected a folder of RGB-D frames, but it does not exist"),
    "file": (
        lambda f: (shutil.rmtree(f), f.write_text("x")),
        r"small: expected a folder of RGB-D frames, got a file",
    ),
    "no frames": (
        lambda f: [p.unlink() for p in f.glob("frame-*")],
        r"small: expected files such as frame-000000\.color\.jpg.*, got none",
    ),
    "no pose": (
        lambda f: (f / POSE).unlink(),
        r"frame-000010: expected a file frame-000010\.pose\.txt, got none",
    ),
    "no depth": (
        lambda f: (f / DEPTH).unlink(),
        r"frame-000010: expected a file frame-000010\.depth\.png, got none",
    ),
    "no colour": (
        lambda f: (f / COLOUR).unlink(),
        r"frame-000010: expected a file frame-000010\.color\.jpg or \.color\.png, got none",
    ),
    "two colours": (
        lambda f: Image.open(f / COLOUR).save(f / "frame-000010.color.jpg"),
        r"frame-000010\.color\.png: expected one color file per frame, got frame-000010\.color\.jpg besides",
    ),
    "truncated colour": (
        lambda f: _truncate(f / COLOUR),
        r"frame-000010\.color\.png: expected a readable image, got .+",
    ),
    "truncated depth": (
        lambda f: _truncate(f / DEPTH),
        r"frame-000010\.depth\.png: expected a readable image, got .+",
    ),
    "empty image": (
        lambda f: (f / DEPTH).write_bytes(b""),
        r"frame-000010\.depth\.png: expected a readable image, got .+",
    ),
    "not an image": (
        lambda f: (f / COLOUR).write_text("hello"),
        r"frame-000010\.color\.png: expected a readable image, got .+",
    ),
    "folder for an image": (
        lambda f: ((f / COLOUR).unlink(), (f / COLOUR).mkdir()),
        r"frame-000010\.color\.png: expected a readable image, got .+",
    ),
    "depth of another size": (
        _resize(DEPTH, 20, 15),
        r"frame-000010\.depth\.png: expected 40x30 pixels as in frame-000000, got 20x15",
    ),
    "colour of another size": (
        _resize(COLOUR, 80, 60),
        r"frame-000010\.color\.png: expected 40x30 pixels as in frame-000000, got 80x60",
    ),
    "colour of another aspect": (
        lambda f: [_resize(p.name, 40, 40)(f) for p in f.glob("*.color.png")],
        r"frame-000000\.color\.png: expected the aspect of its 40x30 depth image, got 40x40",
    ),
    "8-bit depth": (
        lambda f: Image.open(f / COLOUR).convert("L").save(f / DEPTH),
        r"frame-000010\.depth\.png: expected a 16-bit one-channel depth image, got 8-bit greyscale",
    ),
    "colour depth": (
        lambda f: shutil.copy(f / COLOUR, f / DEPTH),
        r"frame-000010\.depth\.png: expected a 16-bit one-channel depth image, got 8-bit RGB",
    ),
    "16-bit colour": (
        lambda f: shutil.copy(f / DEPTH, f / COLOUR),
        r"frame-000010\.color\.png: expected an 8-bit colour image, got 16-bit greyscale",
    ),
    "depth all zero": (
        lambda f: write_depth(f / DEPTH, torch.zeros(30, 40)),
        r"frame-000010\.depth\.png: expected some valid depth up to 8 m, got only missing pixels",
    ),
    "depth all missing": (
        lambda f: write_depth(f / DEPTH, torch.full((30, 40), 65.535)),
        r"frame-000010\.depth\.png: expected some valid depth up to 8 m, got only missing pixels",
    ),
    "depth all far": (
        lambda f: write_depth(f / DEPTH, torch.full((30, 40), 9.0)),
        r"frame-000010\.depth\.png: expected some valid depth up to 8 m, got nothing nearer than 9 m",
    ),
    "pose 3x4": (
        lambda f: (f / POSE).write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n"),
        r"frame-000010\.pose\.txt: expected a 4x4 matrix, got 3 rows with columns: 4, 4, 4",
    ),
    "pose empty": (
        lambda f: (f / POSE).write_text(""),
        r"frame-000010\.pose\.txt: expected a 4x4 matrix, got 0 rows",
    ),
    "pose of words": (
        lambda f: (f / POSE).write_text("a b c d\n" * 4),
        r"frame-000010\.pose\.txt: expected 16 numbers, but could not convert string to float: 'a'",
    ),
    "pose not text": (
        lambda f: (f / POSE).write_bytes(bytes(range(128, 256))),
        r"frame-000010\.pose\.txt: expected a text file with a 4x4 matrix, got .+",
    ),
    "pose infinite": (
        _write_pose(lambda pose: pose[:3, 3].fill_(float("-inf"))),
        r"frame-000010\.pose\.txt: expected finite numbers, got -inf",
    ),
    "pose scaled": (
        _write_pose(lambda pose: pose[:3, :3].mul_(1.1)),
        r"frame-000010\.pose\.txt: expected a rigid camera-to-world pose .* deviates by 0\.33",
    ),
    "pose mirrored": (
        _write_pose(lambda pose: pose[:3, 0].neg_()),
        r"frame-000010\.pose\.txt: expected a rigid camera-to-world pose .* deviates by 2",
    ),
    "pose transposed": (
        _write_pose(lambda pose: pose.copy_(pose.T.clone())),
        r"frame-000010\.pose\.txt: expected a rigid camera-to-world pose .* deviates by",
    ),
    "no intrinsics": (
        lambda f: (f / INTRINSICS).unlink(),
        r"camera-intrinsics\.txt: expected a file with the 3x3 camera intrinsics, got none",
    ),
    "intrinsics 4x4": (
        lambda f: write_matrix(f / INTRINSICS, torch.eye(4)),
        r"camera-intrinsics\.txt: expected a 3x3 matrix, got 4 rows with columns: 4, 4, 4, 4",
    ),
    "intrinsics nan": (
        _write_intrinsics(0, 0, float("nan")),
        r"camera-intrinsics\.txt: expected finite numbers, got nan",
    ),
    "focal zero": (
        _write_intrinsics(1, 1, 0.0),
        r"camera-intrinsics\.txt: expected positive focal lengths, got fx = 28\.56, fy = 0",
    ),
    "focal negative": (
        _write_intrinsics(0, 0, -28.0),
        r"camera-intrinsics\.txt: expected positive focal lengths, got fx = -28, fy",
    ),
    "last row": (_write_intrinsics(2, 2, 2.0), r"camera-intrinsics\.txt: expected a pinhole matrix"),
    "principal point": (
        _write_intrinsics(0, 2, 320.0),
        r"expected a principal point inside the 40x30 depth image, got \(320, 14\.3\)",
    ),
    "intrinsics of the colour image": (
        _colour_camera,
        r"expected a principal point inside the 40x30 depth image, got \(41\.3, 29\.3\)",
    ),
}
