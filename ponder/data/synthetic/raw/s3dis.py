"""Raw downloads of S3DIS (Stanford3dDataset_v1.2) and of 2D-3D-S, whose images and meshes belong to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ponder.data.synthetic.raw.world import TERMS, cast, eyes, jpeg, pixel_rays, png, small_room
from ponder.data.synthetic.room import CLASS_NAMES, Room

_CLASSES = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
)  # fmt: skip
# The second half of area 5 is scanned in another frame: from it to the first, axes of the clouds.
_HALF_B = np.array([[0, 1, 0, -4.09703582], [-1, 0, 0, 6.22617759], [0, 0, 1, 0], [0, 0, 0, 1]])
_SPACING = 0.2


@dataclass(frozen=True)
class RawRoom:
    """What one room was made of: N points, V frames.

    Attributes:
        name: Area_<k>/<room>.
        angle: alignment angle, degrees.
        files: names of the object files, in order.
        coord: [N, 3] float64 metres, three decimals, in the order of the object files.
        colour: [N, 3] uint8.
        semantic: [N] index into the 13 classes.
        instance: [N] position of the object's file.
        shell: [N] bool, points of walls, floor and ceiling, whose normals are those of the mesh.
        normal: [N, 3] of the room's shell, towards its inside, where `shell`.
        frames: names of the images' poses, "<camera>_<pitch>_<yaw>".
        depth: [V, H, W] uint16, 1/4000 m, of pinhole cameras without distortion.
        rgb: [V, H, W, 3] uint8 of these.
        pixel_semantic: [V, H, W] index into the 13 classes.
        intrinsic: [3, 3].
        pose: [V, 4, 4] camera to room, as scanned (in area 5 in the frame of its first half).
    """

    name: str
    angle: int
    files: tuple[str, ...]
    coord: NDArray[np.float64]
    colour: NDArray[np.uint8]
    semantic: NDArray[np.int64]
    instance: NDArray[np.int64]
    shell: NDArray[np.bool_]
    normal: NDArray[np.float64]
    frames: tuple[str, ...]
    depth: NDArray[np.uint16]
    rgb: NDArray[np.uint8]
    pixel_semantic: NDArray[np.int64]
    intrinsic: NDArray[np.float64]
    pose: NDArray[np.float64]


def write_raw_s3dis(
    root: Path,
    areas: tuple[int, ...] = (1, 5),
    seed: int = 0,
    size: tuple[int, int] = (24, 32),
    views: int = 2,
    distortion: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0),
) -> list[RawRoom]:
    """Write Stanford3dDataset_v1.2/ and 2D-3D-S/ below `root`, one room per area.

    Args:
        root: an existing folder.
        areas, seed: which areas, and which rooms.
        size: (height, width) of the images.
        views: images of each room; in area 5 the first belongs to its first half and the others to the second.
        distortion: k1 k2 p1 p2 k3 of the lens.
    """
    rooms = []
    for number, area in enumerate(areas):
        geometry = small_room(seed + number)
        room = _room(geometry, area, seed + number, size, views)
        _write_points(root / "Stanford3dDataset_v1.2" / room.name, room)
        listing = root / "Stanford3dDataset_v1.2" / f"Area_{area}" / f"Area_{area}_alignmentAngle.txt"
        title = f"## Global alignment angle per disjoint space in Area_{area} ##"
        listing.write_text(f"{title}\n{room.name.split('/')[1]} {room.angle}\n", encoding="utf-8")
        _write_images(root / "2D-3D-S", area, room, geometry, distortion)
        rooms.append(room)
    return rooms


def _class_of(semantic: NDArray[np.int64]) -> NDArray[np.int64]:
    names = [terms.s3dis for terms in TERMS]
    return np.array([_CLASSES.index(name if name in _CLASSES else "clutter") for name in names])[semantic]


def _room(geometry: Room, area: int, seed: int, size: tuple[int, int], views: int) -> RawRoom:
    height, width = size
    matrix = np.array([[0.55 * width, 0, width / 2 - 0.8], [0, 0.55 * width, height / 2 - 0.2], [0, 0, 1]])
    poses = eyes(geometry, views, seed)
    rays = pixel_rays(matrix, height, width)
    hits = [cast(geometry, pose[:3, 3], rays @ pose[:3, :3].T) for pose in poses]
    path = np.stack([hit.path for hit in hits])
    semantic, instance = (np.stack([getattr(hit, name) for hit in hits]) for name in ("semantic", "instance"))
    colour = np.stack([hit.colour for hit in hits])
    depth = path / np.linalg.norm(rays, axis=-1)
    points = np.einsum("vij,hwj->vhwi", poses[:, :3, :3], rays) * depth[..., None] + poses[:, None, None, :3, 3]
    points = np.rint(points * 1000) / 1000
    # File by file, as the release stores them.
    flat_semantic, flat_instance = semantic.reshape(-1), instance.reshape(-1)
    names = {i: f"{TERMS[flat_semantic[flat_instance == i][0]].s3dis}_{i}.txt" for i in np.unique(flat_instance)}
    sequence = sorted(names, key=lambda i: names[i])
    rank = np.zeros(flat_instance.max() + 1, dtype=np.int64)
    rank[sequence] = np.arange(len(sequence))
    order = np.argsort(rank[flat_instance], kind="stable")
    coord = points.reshape(-1, 3)[order]
    shell = np.isin(flat_semantic[order], [CLASS_NAMES.index(name) for name in ("wall", "floor", "ceiling")])
    return RawRoom(
        name=f"Area_{area}/office_{area}",
        angle=90 * (area % 4),
        files=tuple(names[i] for i in sequence),
        coord=coord,
        colour=colour.reshape(-1, 3)[order],
        semantic=_class_of(flat_semantic[order]),
        instance=rank[flat_instance[order]],
        shell=shell,
        normal=_shell_normal(geometry, coord),
        frames=tuple(f"cam{seed}v{view}_0_{view}" for view in range(views)),
        depth=np.rint(depth * 4000).astype(np.uint16),
        rgb=colour,
        pixel_semantic=_class_of(semantic),
        intrinsic=matrix,
        pose=poses,
    )


def _shell_normal(geometry: Room, coord: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.array(geometry.size)
    gaps = np.concatenate([np.abs(coord), np.abs(size - coord)], 1)
    return np.concatenate([np.eye(3), -np.eye(3)])[gaps.argmin(1)]


def _write_points(folder: Path, room: RawRoom) -> None:
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(room.files):
        own = room.instance == number
        lines = [
            f"{x:.3f} {y:.3f} {z:.3f} {r} {g} {b}\n"
            for (x, y, z), (r, g, b) in zip(room.coord[own], room.colour[own], strict=True)
        ]
        (folder / "Annotations" / name).write_text("".join(lines), encoding="utf-8")


def _write_images(root: Path, area: int, room: RawRoom, geometry: Room, distortion: tuple[float, ...]) -> None:
    halves = [f"area_{area}"] if area != 5 else ["area_5a", "area_5b"]
    vertices, faces = _shell_mesh(geometry)
    for half, name in enumerate(halves):
        folder = root / name
        (folder / "raw").mkdir(parents=True, exist_ok=True)
        (folder / "3d").mkdir(exist_ok=True)
        back = np.linalg.inv(_HALF_B) if half else np.eye(4)
        own = faces[half :: len(halves)]
        _write_obj(folder / "3d" / "rgb.obj", vertices @ back[:3, :3].T + back[:3, 3], own)
        views = range(len(room.frames)) if len(halves) == 1 else range(half, len(room.frames) if half else 1)
        cameras = {room.frames[view].split("_")[0]: f"{room.name.split('/')[1]}_{area}" for view in views}
        (folder / "3d" / "camera_to_room.json").write_text(json.dumps(cameras), encoding="utf-8")
        for view in views:
            _write_view(folder / "raw", room, geometry, view, back, distortion)


def _write_view(
    raw: Path, room: RawRoom, geometry: Room, view: int, back: NDArray[np.float64], distortion: tuple[float, ...]
) -> None:
    camera, pitch, yaw = room.frames[view].split("_")
    height, width = room.depth.shape[1:]
    matrix, pose = room.intrinsic, room.pose[view]
    numbers = [height, width, matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], *distortion]
    (raw / f"{camera}_intrinsics_{pitch}.txt").write_text(" ".join(map(repr, map(float, numbers))), encoding="utf-8")
    rows = "\n".join(" ".join(repr(float(value)) for value in row) for row in back @ pose)
    (raw / f"{camera}_pose_{pitch}_{yaw}.txt").write_text(rows + "\n", encoding="utf-8")
    rgb, depth = room.rgb[view], room.depth[view]
    if any(distortion):
        rays = _straightened(pixel_rays(matrix, height, width), distortion)
        hits = cast(geometry, pose[:3, 3], rays @ pose[:3, :3].T)
        rgb, depth = hits.colour, np.rint(hits.path / np.linalg.norm(rays, axis=-1) * 4000).astype(np.uint16)
    (raw / f"{camera}_i{pitch}_{yaw}.jpg").write_bytes(jpeg(rgb))
    (raw / f"{camera}_d{pitch}_{yaw}.png").write_bytes(png(depth))


def _straightened(rays: NDArray[np.float64], distortion: tuple[float, ...]) -> NDArray[np.float64]:
    """Directions (x, y, 1) that a lens with k1 k2 p1 p2 k3 bends into the given ones, by fixed-point iteration."""
    k1, k2, p1, p2, k3 = distortion
    bent, straight = rays[..., :2], rays[..., :2].copy()
    for _ in range(50):
        x, y = straight[..., 0], straight[..., 1]
        r2 = x * x + y * y
        shift = np.stack([2 * p1 * x * y + p2 * (r2 + 2 * x * x), p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1)
        straight = (bent - shift) / (1 + r2 * (k1 + r2 * (k2 + r2 * k3)))[..., None]
    return np.concatenate([straight, np.ones_like(straight[..., :1])], -1)


def _shell_mesh(geometry: Room) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Walls, floor and ceiling as small triangles that face inwards: vertices [V, 3], faces [T, 3]."""
    size = np.array(geometry.size)
    vertices, faces, count = [], [], 0
    for axis in range(3):
        first, second = [other for other in range(3) if other != axis]
        ticks = [np.linspace(0, size[other], int(size[other] / _SPACING) + 2) for other in (first, second)]
        for side in (0.0, 1.0):
            grid = np.stack(np.meshgrid(*ticks, indexing="ij"), -1)
            points = np.full((*grid.shape[:2], 3), side * size[axis])
            points[..., first], points[..., second] = grid[..., 0], grid[..., 1]
            number = np.arange(points[..., 0].size).reshape(points.shape[:2]) + count
            corners = [number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]]
            # Counter-clockwise seen along -axis for axes 0 and 2, along +axis for axis 1.
            inward = (side == 0.0) == (axis != 1)
            for a, b, c in ((0, 1, 2), (0, 2, 3)) if inward else ((0, 2, 1), (0, 3, 2)):
                faces.append(np.stack([corners[a], corners[b], corners[c]], -1).reshape(-1, 3))
            vertices.append(points.reshape(-1, 3))
            count += len(vertices[-1])
    return np.concatenate(vertices), np.concatenate(faces)


def _write_obj(path: Path, vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> None:
    """Write a Wavefront file in the axes of the release's meshes, y up."""
    lines = ["mtllib rgb.mtl", *(f"v {x:.17g} {z:.17g} {-y:.17g}" for x, y, z in vertices), "vt 0.5 0.5"]
    lines += ["f " + " ".join(f"{corner + 1}/1" for corner in face) for face in faces]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
