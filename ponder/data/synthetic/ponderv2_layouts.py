"""Generated rooms written as PonderV2's processed ScanNet, S3DIS and Structured3D, to train and test without downloads.

    write_scannet(root)        # root/scannet/{train,val,test}/*.pth, root/scannet/rgbd/SCENE/{color,depth,pose,label}/
    write_s3dis(root)          # root/s3dis/Area_K/ROOM.pth and ROOM_rgbd/*.pth
    write_structured3d(root)   # root/structured3d/{train,val,test}/SCENE/room_R.pth and room_R_rgbd/*.pth

Keys, dtypes and units are those of PonderV2's own preprocessing. Labels go to the nearest class of each dataset, -1
where it has none. Intrinsics count pixels from the first pixel's centre, as these datasets do.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ponder.data.scene import Frames, Scene
from ponder.data.synthetic.generate import RoomConfig, room_scene
from ponder.data.synthetic.room import CLASS_NAMES
from ponder.geometry import unproject_depth

Array = NDArray[Any]

# What the rooms' classes are called in each dataset: NYU40 ids, S3DIS labels, places in ScanNet's list of 200.
NYU40_IDS = dict(
    wall=1, floor=2, ceiling=22, table=7, chair=5, shelf=10, sofa=6, bed=4, cabinet=3, lamp=35, plant=40,
    picture=11, window=9, door=8, rug=20, book=23, other=39,
)  # fmt: skip
S3DIS_LABELS = dict(
    wall=2, floor=1, ceiling=0, table=7, chair=8, shelf=10, sofa=9, bed=12, cabinet=12, lamp=12, plant=12,
    picture=11, window=5, door=6, rug=12, book=12, other=12,
)  # fmt: skip
SCANNET200_LABELS = dict(
    wall=0, floor=2, ceiling=35, table=3, chair=1, shelf=16, sofa=5, bed=10, cabinet=6, lamp=24, plant=34,
    picture=13, window=14, door=4, rug=109, book=19, other=-1,
)  # fmt: skip
SCANNET20_NYU40 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
STRUCTURED3D_NYU40 = (*range(1, 10), 11, *range(14, 20), 22, 24, 25, 32, 34, 35, 38, 39, 40)
# ScanNet's colour and label images are larger than its depth images by these factors of height and width.
_COLOUR_OVER_DEPTH = (968 / 480, 1296 / 640)
# Frames that ScanNet's loader leaves out at the start and the end of a recording, and the step between those it uses.
_SCANNET_HEAD, _SCANNET_TAIL, _SCANNET_STEP = 40, 60, 10
_MISSING_SHARE = 0.03
_CODE_MISSING = 65535


class _World(NamedTuple):
    """One room: its views and P sampled points (positions in the views' pixels, flattened)."""

    scene: Scene
    sampled: Array
    missing: Array


@lru_cache(maxsize=16)
def _world(seed: int, size: tuple[int, int], frames: int, points: int) -> _World:
    config = RoomConfig(
        train_views=frames, heldout_views=0, height=size[0], width=size[1], min_furniture=2, max_furniture=4
    )
    scene = room_scene(seed, config)
    generator = np.random.default_rng([seed, points])
    pixels = frames * size[0] * size[1]
    sampled = generator.permutation(pixels)[:points]
    return _World(scene, np.sort(sampled), generator.random((frames, *size)) < _MISSING_SHARE)


def _check(scenes: int, size: tuple[int, int], frames: int, points: int) -> None:
    counts = {"scenes": scenes, "height of size": size[0], "width of size": size[1], "frames": frames}
    for name, value in {**counts, "points": points}.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def _relabel(ids: torch.Tensor, names: dict[str, int], order: tuple[int, ...] | None = None) -> Array:
    """The rooms' class ids [...] as int64 labels of a dataset: `names` gives codes, `order` turns them into labels."""
    codes = np.array([names[name] for name in CLASS_NAMES])
    if order is not None:
        codes = np.array([order.index(code) if code in order else -1 for code in codes])
    return codes[ids.numpy()]


def _cloud(world: _World) -> dict[str, Array]:
    """The sampled points: coord, color (0..255), normal [P, 3] and the rooms' semantic, instance [P]."""
    views = world.scene.train
    coord = unproject_depth(views.z_depth, views.intrinsics, views.camera_to_world).reshape(-1, 3).numpy()
    columns = {
        "coord": coord,
        "color": views.rgb.reshape(-1, 3).numpy(),
        "normal": views.normal.reshape(-1, 3).numpy(),
        "semantic": _some(views.semantic).reshape(-1).numpy(),
        "instance": _some(views.instance).reshape(-1).numpy(),
    }
    return {name: column[world.sampled] for name, column in columns.items()}


def _some(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise RuntimeError("generated frames have labels")
    return tensor


def _pixel_matrix(views: Frames) -> Array:
    """[3, 3] float64 intrinsics with the first pixel's centre at 0."""
    matrix = views.intrinsics[0].double().numpy().copy()
    matrix[:2, 2] -= 0.5
    return matrix


def _depth_codes(world: _World, per_metre: float, missing_code: int) -> Array:
    """[V, H, W] uint16 depth images, with a few pixels missing."""
    codes = np.clip(np.round(world.scene.train.z_depth.numpy() * per_metre), 1, _CODE_MISSING - 1)
    return np.where(world.missing, missing_code, codes).astype(np.uint16)


def _encoded(pixels: Array, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _matrix_text(matrix: Array) -> bytes:
    return "\n".join(" ".join(f"{value:.8f}" for value in row) for row in matrix).encode() + b"\n"


def _enlarged(pixels: Array, method: Image.Resampling) -> Array:
    height, width = (round(n * factor) for n, factor in zip(pixels.shape[:2], _COLOUR_OVER_DEPTH, strict=True))
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))


def _scannet_recording(folder: Path, world: _World, thinning: int, frame_step: int) -> None:
    """One scene's rgbd folder: every view lasts for the frames between two that the loader uses."""
    views = world.scene.train
    depth = _depth_codes(world, 1000.0, 0)
    labels = _relabel(_some(views.semantic), NYU40_IDS).astype(np.uint8)
    contents = [
        {
            "color": _encoded(_enlarged(views.rgb[v].numpy(), Image.Resampling.BICUBIC), "JPEG"),
            "depth": _encoded(depth[v], "PNG"),
            "pose": _matrix_text(views.camera_to_world[v].double().numpy()),
            "label": _encoded(_enlarged(labels[v], Image.Resampling.NEAREST), "PNG"),
        }
        for v in range(len(views))
    ]
    endings = {"color": "jpg", "depth": "png", "pose": "txt", "label": "png"}
    for kind in endings:
        (folder / kind).mkdir(parents=True)
    step = _SCANNET_STEP * thinning
    for number in range(0, _SCANNET_HEAD * thinning + step * len(views) + _SCANNET_TAIL * thinning, frame_step):
        content = contents[(number // step - _SCANNET_HEAD // _SCANNET_STEP) % len(views)]
        for kind, ending in endings.items():
            (folder / kind / f"{number}.{ending}").write_bytes(content[kind])
    intrinsic = np.eye(4)
    intrinsic[:3, :3] = _pixel_matrix(views)
    (folder / "intrinsic").mkdir()
    (folder / "intrinsic" / "intrinsic_depth.txt").write_bytes(_matrix_text(intrinsic))
    alignment = " ".join(f"{value:.6f}" for value in np.eye(4).ravel())
    (folder / f"{folder.name}.txt").write_text(f"axisAlignment = {alignment}\n", encoding="utf-8")


def write_scannet(
    root: Path | str,
    scenes: int = 2,
    seed: int = 0,
    size: tuple[int, int] = (48, 64),
    frames: int = 4,
    points: int = 6000,
    frame_step: int = 1,
) -> Path:
    """Rooms as PonderV2's ScanNet: point clouds, and RGB-D recordings beside them.

    Args:
        root: the folder that is to hold `scannet/`.
        scenes: training scenes, at least 1; one validation and one test scene (without labels) come on top.
        seed: of the first room.
        size: (height, width) of depth images in pixels; colour and label images are about twice as large.
        frames: different views per scene, all of them in the pool that the loader draws from.
        points: points per cloud, at most frames * height * width.
        frame_step: export every so many frames of the training recordings (those of the other splits, which need ten
            times as many frames, are always exported at every tenth).

    Returns:
        root / "scannet".

    Raises:
        ValueError: a count below 1.
    """
    _check(scenes, size, frames, points)
    if frame_step < 1:
        raise ValueError(f"frame_step: expected at least 1, got {frame_step}")
    base = Path(root) / "scannet"
    # Validation and test show one more room; making a room takes longer than writing it.
    plan = [*(("train", number) for number in range(scenes)), ("val", scenes), ("test", scenes)]
    for place, (split, number) in enumerate(plan):
        world = _world(seed + number, size, frames, points)
        cloud = _cloud(world)
        semantic = torch.from_numpy(cloud["semantic"])
        name = f"scene{place:04d}_00"
        data: dict[str, Any] = {key: cloud[key].astype(np.float32) for key in ("coord", "color", "normal")}
        data["scene_id"] = name
        if split != "test":
            data["semantic_gt20"] = _relabel(semantic, NYU40_IDS, SCANNET20_NYU40)
            data["semantic_gt200"] = _relabel(semantic, SCANNET200_LABELS)
            data["instance_gt"] = cloud["instance"].astype(np.int64)
        (base / split).mkdir(parents=True, exist_ok=True)
        torch.save(data, base / split / f"{name}.pth")
        thinning, step = (1, frame_step) if split == "train" else (10, 10)
        _scannet_recording(base / "rgbd" / name, world, thinning, step)
    return base


def _rgbd_views(world: _World, depth: Array, semantic: Array) -> list[dict[str, Array]]:
    """The views as S3DIS's and Structured3D's image files hold them."""
    views = world.scene.train
    return [
        {
            "intrinsic": _pixel_matrix(views),
            "extrinsic": views.camera_to_world[v].double().numpy(),
            "rgb": views.rgb[v].numpy(),
            "depth": depth[v],
            "depth_mask": ~world.missing[v],
            "semantic_map": np.where(world.missing[v], -1, semantic[v]),
        }
        for v in range(len(views))
    ]


def write_s3dis(
    root: Path | str,
    scenes: int = 2,
    seed: int = 0,
    size: tuple[int, int] = (48, 64),
    frames: int = 4,
    points: int = 6000,
) -> Path:
    """Rooms as PonderV2's S3DIS: rooms in turn in areas 1, 2, 3, 4 and 6, and one more in area 5.

    Args:
        root: the folder that is to hold `s3dis/`.
        scenes: rooms to train with, at least 1.
        seed, size, frames, points: as for `write_scannet`.

    Returns:
        root / "s3dis".

    Raises:
        ValueError: a count below 1.
    """
    _check(scenes, size, frames, points)
    base = Path(root) / "s3dis"
    for area in range(1, 7):
        (base / f"Area_{area}").mkdir(parents=True)
    training = (1, 2, 3, 4, 6)
    plan = [*((training[n % 5], n // 5, n) for n in range(scenes)), (5, 0, scenes)]
    for area, place, number in plan:
        world = _world(seed + number, size, frames, points)
        cloud = _cloud(world)
        labels = _relabel(torch.from_numpy(cloud["semantic"]), S3DIS_LABELS)
        # Every point belongs to an object there; each kind of wall, floor or ceiling is one.
        furniture = cloud["instance"].max() + 1
        instance = np.where(cloud["instance"] < 0, furniture + labels, cloud["instance"])
        data: dict[str, Array] = {key: cloud[key].astype(np.float64) for key in ("coord", "color", "normal")}
        data["semantic_gt"] = labels[:, None]
        data["instance_gt"] = instance.astype(np.int64)[:, None]
        data["room_center"] = (data["coord"].max(axis=0) + data["coord"].min(axis=0)) / 2
        room = base / f"Area_{area}" / f"office_{place + 1}"
        torch.save(data, room.with_suffix(".pth"))
        images = room.with_name(f"{room.name}_rgbd")
        images.mkdir()
        depth = _depth_codes(world, 4000.0, _CODE_MISSING)
        semantic = _relabel(_some(world.scene.train.semantic), S3DIS_LABELS)
        for v, view in enumerate(_rgbd_views(world, depth, semantic)):
            torch.save(view, images / f"{number:08x}{v:024x}_{v % 3}_{v // 3}.pth")
    return base


def write_structured3d(
    root: Path | str,
    scenes: int = 2,
    seed: int = 0,
    size: tuple[int, int] = (48, 64),
    frames: int = 4,
    points: int = 6000,
) -> Path:
    """Rooms as PonderV2's Structured3D: scenes of one room each, numbered so that they fall into their splits.

    Args:
        root: the folder that is to hold `structured3d/`.
        scenes: training scenes, at least 1; one validation and one test scene come on top.
        seed, size, frames, points: as for `write_scannet`.

    Returns:
        root / "structured3d".

    Raises:
        ValueError: a count below 1.
    """
    _check(scenes, size, frames, points)
    base = Path(root) / "structured3d"
    plan = [*(("train", n, n) for n in range(scenes)), ("val", 3000, scenes), ("test", 3250, scenes)]
    for split, scene_number, number in plan:
        world = _world(seed + number, size, frames, points)
        cloud = _cloud(world)
        labels = _relabel(torch.from_numpy(cloud["semantic"]), NYU40_IDS, STRUCTURED3D_NYU40)
        data = {
            "coord": cloud["coord"].astype(np.float32),
            "color": cloud["color"].astype(np.uint8),
            "normal": cloud["normal"].astype(np.float32),
            "semantic_gt": labels[:, None].astype(np.int16),
        }
        folder = base / split / f"scene_{scene_number:05d}"
        images = folder / "room_0_rgbd"
        images.mkdir(parents=True)
        torch.save(data, folder / "room_0.pth")
        depth = _depth_codes(world, 1000.0, _CODE_MISSING)
        semantic = _relabel(_some(world.scene.train.semantic), NYU40_IDS, STRUCTURED3D_NYU40)
        for v, view in enumerate(_rgbd_views(world, depth, semantic)):
            torch.save(view, images / f"frame_{v}.pth")
    return base
