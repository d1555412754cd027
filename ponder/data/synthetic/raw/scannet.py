"""A raw ScanNet download: scans/<scene>/ with recording, meshes, segments, objects and 2D labels."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ponder.data.synthetic.raw.world import TERMS, Hits, cast, class_column, eyes, jpeg, pixel_rays, png, small_room

_TABLE_COLUMNS = ("id", "raw_category", "category", "count", "nyu40id", "nyu40class")


@dataclass(frozen=True)
class RawScan:
    """What one scene was made of: P vertices, V distinct views, F frames.

    Attributes:
        name: scene name.
        split: train, val or test.
        coord: [P, 3] float32 metres.
        colour: [P, 3] uint8.
        faces: [T, 3] vertex numbers.
        nyu40: [P] NYU40 id, 0 = not annotated.
        label: [P] id of ScanNet's label table, 0 = not annotated.
        instance: [P] object number, -1 = not annotated.
        view: [F] view of each frame.
        depth: [V, H, W] uint16 millimetres.
        jpegs: V encoded colour images of twice the depth's size.
        label_image: [V, 2H, 2W] uint16 ids of the label table.
        pose: [V, 4, 4] float32 camera-to-world.
        intrinsic: [4, 4] float32 of the depth images.
    """

    name: str
    split: str
    coord: NDArray[np.float32]
    colour: NDArray[np.uint8]
    faces: NDArray[np.int32]
    nyu40: NDArray[np.int64]
    label: NDArray[np.int64]
    instance: NDArray[np.int64]
    view: tuple[int, ...]
    depth: NDArray[np.uint16]
    jpegs: tuple[bytes, ...]
    label_image: NDArray[np.uint16]
    pose: NDArray[np.float32]
    intrinsic: NDArray[np.float32]


def write_raw_scannet(
    root: Path, scenes: int = 2, seed: int = 0, size: tuple[int, int] = (24, 32), views: int = 2, frames: int = 3
) -> list[RawScan]:
    """Write scans/, the label table and splits/ below `root`.

    The first scene is in the train split, the next in val, the third in test (scans_test/, without labels), and so on.

    Args:
        root: an existing folder.
        scenes, seed: how many rooms, and which.
        size: (height, width) of the depth images.
        views: distinct views of each room.
        frames: frames of each recording, which repeat the views.
    """
    scans = [_scan(number, seed, size, views, frames) for number in range(scenes)]
    for scan in scans:
        _write_scan(root / ("scans_test" if scan.split == "test" else "scans") / scan.name, scan)
    rows = [(t.scannet_id, t.scannet, t.scannet, 1, t.nyu40, t.scannet) for t in TERMS if t.scannet]
    lines = ["\t".join(map(str, row)) for row in [_TABLE_COLUMNS, *rows]]
    (root / "scannetv2-labels.combined.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "splits").mkdir(exist_ok=True)
    for split in ("train", "val", "test"):
        names = [scan.name for scan in scans if scan.split == split]
        (root / "splits" / f"scannetv2_{split}.txt").write_text("".join(f"{n}\n" for n in names), encoding="utf-8")
    return scans


def _scan(number: int, seed: int, size: tuple[int, int], views: int, frames: int) -> RawScan:
    height, width = size
    room = small_room(seed + number)
    poses = eyes(room, views, seed + number).astype(np.float32)
    focal = 0.6 * width
    matrix = np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]], dtype=np.float32)
    rays = pixel_rays(matrix.astype(np.float64), height, width)
    hits = [cast(room, pose[:3, 3], rays @ pose[:3, :3].astype(np.float64).T) for pose in poses]
    depth = np.stack([hit.path / np.linalg.norm(rays, axis=-1) for hit in hits])
    millimetres = np.rint(depth * 1000).astype(np.uint16)
    points = np.einsum("vij,hwj->vhwi", poses[:, :3, :3], rays) * depth[..., None] + poses[:, None, None, :3, 3]
    intrinsic = np.eye(4, dtype=np.float32)
    intrinsic[:3, :3] = matrix
    semantic = np.stack([hit.semantic for hit in hits])
    label = class_column("scannet_id")[semantic].reshape(-1)
    return RawScan(
        name=f"scene{number:04d}_00",
        split=("train", "val", "test")[number % 3],
        coord=points.reshape(-1, 3).astype(np.float32),
        colour=np.stack([hit.colour for hit in hits]).reshape(-1, 3),
        faces=_grid_faces(hits),
        nyu40=class_column("nyu40")[semantic].reshape(-1),
        label=label,
        instance=np.where(label > 0, np.stack([hit.instance for hit in hits]).reshape(-1), -1),
        view=tuple(frame % views for frame in range(frames)),
        depth=millimetres,
        jpegs=tuple(jpeg(_doubled(hit.colour)) for hit in hits),
        label_image=np.stack([_doubled(class_column("scannet_id")[hit.semantic]).astype(np.uint16) for hit in hits]),
        pose=poses,
        intrinsic=intrinsic,
    )


def _doubled(image: NDArray) -> NDArray:
    return image.repeat(2, axis=0).repeat(2, axis=1)


def _grid_faces(hits: list[Hits]) -> NDArray[np.int32]:
    """Two triangles between every four neighbouring pixels of one object; vertices are all pixels of all views."""
    faces = []
    for view, hit in enumerate(hits):
        height, width = hit.path.shape
        number = np.arange(height * width).reshape(height, width) + view * height * width
        corner, owner = _corners(number), _corners(hit.instance)
        inside = (owner[0] == owner[1]) & (owner[0] == owner[2]) & (owner[0] == owner[3])
        for second, third in ((1, 2), (2, 3)):
            faces.append(np.stack([corner[0][inside], corner[second][inside], corner[third][inside]], 1))
    return np.concatenate(faces).astype(np.int32)


def _corners(grid: NDArray) -> list[NDArray]:
    """The four corners of every cell of a grid, around it."""
    return [grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]]


def _write_scan(folder: Path, scan: RawScan) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = scan.name
    (folder / f"{name}.sens").write_bytes(sens_bytes(scan))
    (folder / f"{name}.txt").write_text(
        "axisAlignment = 0.8 0.6 0.0 -1.5 -0.6 0.8 0.0 0.5 0.0 0.0 1.0 -0.1 0.0 0.0 0.0 1.0\n"
        f"colorHeight = {2 * scan.depth.shape[1]}\nnumDepthFrames = {len(scan.view)}\n",
        encoding="utf-8",
    )
    (folder / f"{name}_vh_clean_2.ply").write_bytes(ply_bytes(scan, labelled=False))
    if scan.split == "test":
        return
    (folder / f"{name}_vh_clean_2.labels.ply").write_bytes(ply_bytes(scan, labelled=True))
    # Two segments per object, so that an object is more than one of them.
    half = np.arange(len(scan.coord)) % 2
    segment = 10 + 2 * (scan.instance + 1) + half
    segments = {"params": {"kThresh": "0.0001"}, "sceneId": name, "segIndices": segment.tolist()}
    (folder / f"{name}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(segments), encoding="utf-8")
    groups = []
    for instance in np.unique(scan.instance[scan.instance >= 0]).tolist():
        label = scan.label[scan.instance == instance][0]
        word = next(terms.scannet for terms in TERMS if terms.scannet_id == label)
        members = [10 + 2 * (instance + 1), 11 + 2 * (instance + 1)]
        groups.append({"id": instance, "objectId": instance, "segments": members, "label": word})
    aggregation = {"sceneId": f"scannet.{name}", "appId": "Aggregator.v2", "segGroups": groups}
    (folder / f"{name}.aggregation.json").write_text(json.dumps(aggregation), encoding="utf-8")
    with zipfile.ZipFile(folder / f"{name}_2d-label-filt.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, view in enumerate(scan.view):
            archive.writestr(f"label-filt/{number}.png", png(scan.label_image[view]))


def sens_bytes(scan: RawScan) -> bytes:
    """The recording: version 4, JPEG colour, zlib depth."""
    height, width = scan.depth.shape[1:]
    colour_intrinsic = scan.intrinsic * np.array([[2], [2], [1], [1]], dtype=np.float32)
    identity = np.eye(4, dtype=np.float32)
    head = struct.pack("<IQ", 4, 15) + b"StructureSensor"
    for matrix in (colour_intrinsic, identity, scan.intrinsic, identity):
        head += matrix.astype("<f4").tobytes()
    parts = [head, struct.pack("<iiIIIIfQ", 2, 1, 2 * width, 2 * height, width, height, 1000.0, len(scan.view))]
    for number, view in enumerate(scan.view):
        colour, depth = scan.jpegs[view], zlib.compress(scan.depth[view].astype("<u2").tobytes())
        times = 33_000 * number, 33_000 * number + 500
        parts += [scan.pose[view].astype("<f4").tobytes(), struct.pack("<QQQQ", *times, len(colour), len(depth))]
        parts += [colour, depth]
    # No inertial frames behind the images.
    return b"".join(parts) + struct.pack("<Q", 0)


def ply_bytes(scan: RawScan, labelled: bool) -> bytes:
    """The mesh; `labelled` adds the NYU40 id of each vertex."""
    fields = [(axis, "<f4") for axis in "xyz"] + [(name, "u1") for name in ("red", "green", "blue", "alpha")]
    names = ["float x", "float y", "float z", "uchar red", "uchar green", "uchar blue", "uchar alpha"]
    if labelled:
        fields, names = [*fields, ("label", "<u2")], [*names, "ushort label"]
    vertices = np.zeros(len(scan.coord), dtype=fields)
    for column, axis in enumerate("xyz"):
        vertices[axis] = scan.coord[:, column]
    for column, colour in enumerate(("red", "green", "blue")):
        vertices[colour] = scan.colour[:, column]
    vertices["alpha"] = 255
    if labelled:
        vertices["label"] = scan.nyu40
    faces = np.zeros(len(scan.faces), dtype=[("length", "u1"), ("corners", "<i4", (3,))])
    faces["length"], faces["corners"] = 3, scan.faces
    lines = ["ply", "format binary_little_endian 1.0", "comment VCGLIB generated", f"element vertex {len(vertices)}"]
    lines += [f"property {name}" for name in names]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    return "\n".join(lines).encode() + b"\n" + vertices.tobytes() + faces.tobytes()
