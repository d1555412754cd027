"""Raw ScanNet with pieces missing or damaged: each is left out and counted, and the rest is what it would be."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ponder.data.convert.scannet import ScanNetOptions, plan_scannet, vertex_normals
from ponder.data.convert.sens import decompress_depth, iterate_frames, read_header
from ponder.data.convert.sink import BrokenPieceError
from ponder.data.convert.summary import merged_skip_list
from ponder.data.convert.units import CLOUD, FRAMES
from ponder.data.synthetic.raw import RawScan, write_raw_scannet
from tests.ponder.convert_help import copy_of, load, reasons, run

FIRST = "scene0000_00"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RawScan]]:
    root = tmp_path_factory.mktemp("scannet")
    return root, write_raw_scannet(root, scenes=3, size=(9, 12), views=1, frames=4)


@pytest.fixture(scope="module")
def converted(raw: tuple[Path, list[RawScan]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("processed")
    run(plan_scannet(ScanNetOptions(raw[0], splits=raw[0] / "splits")), out)
    return out


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def frame_offsets(data: bytes) -> list[int]:
    """Where each frame of a recording begins, and where the last one ends."""
    start = 12 + 15 + 4 * 64 + 36
    count = struct.unpack_from("<Q", data, start - 8)[0]
    offsets = [start]
    for _ in range(count):
        colour, depth = struct.unpack_from("<QQ", data, offsets[-1] + 80)
        offsets.append(offsets[-1] + 96 + colour + depth)
    return offsets


def overwrite(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def in_frame(number: int, place: int, new: bytes) -> Callable[[bytes], bytes]:
    """Overwrite bytes of a frame, counted from its start or, if negative, from its end."""

    def change(data: bytes) -> bytes:
        offsets = frame_offsets(data)
        return overwrite(data, (offsets[number] if place >= 0 else offsets[number + 1]) + place, new)

    return change


def replace_label(number: int, content: bytes | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / f"{FIRST}_2d-label-filt.zip"
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        del files[f"label-filt/{number}.png"]
        if content is not None:
            files[f"label-filt/{number}.png"] = content
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)

    return change


def change_file(suffix: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / f"{FIRST}{suffix}", change)


def remove_file(suffix: str) -> Callable[[Path], None]:
    return lambda folder: (folder / f"{FIRST}{suffix}").unlink()


def header_field(place: int, new: bytes) -> Callable[[Path], None]:
    """Overwrite bytes of the recording's header, counted from the end of the header."""
    return change_file(".sens", lambda data: overwrite(data, frame_offsets(data)[0] + place, new))


MINUS_INFINITY = struct.pack("<f", float("-inf"))
FRAME_DAMAGE = {
    "recording missing": (remove_file(".sens"), "recording is missing", 1, 0),
    "recording empty": (change_file(".sens", lambda data: b""), "recording is truncated", 1, 0),
    "recording of another version": (
        change_file(".sens", lambda data: overwrite(data, 0, b"\x03")),
        "recording is not a .sens file of version 4",
        1,
        0,
    ),
    "recording without sizes": (header_field(-20, bytes(4)), "recording has a damaged header", 1, 0),
    "recording in centimetres": (header_field(-12, struct.pack("<f", 100.0)), "depth is not in millimetres", 1, 0),
    "raw colour": (header_field(-36, struct.pack("<i", 0)), "colour compression is not supported", 1, 0),
    "occi depth": (header_field(-32, struct.pack("<i", 2)), "depth compression is not supported", 4, 0),
    "truncated in the third frame": (
        change_file(".sens", lambda data: data[: frame_offsets(data)[2] + 200]),
        "recording is truncated",
        2,
        2,
    ),
    "truncated in a frame's fixed part": (
        change_file(".sens", lambda data: data[: frame_offsets(data)[3] + 20]),
        "recording is truncated",
        1,
        3,
    ),
    "impossible byte count": (
        change_file(".sens", in_frame(1, 86, b"\x7f")),
        "recording has a damaged frame and cannot be read beyond it",
        3,
        1,
    ),
    "broken colour": (change_file(".sens", in_frame(1, 96, bytes(40))), "colour image cannot be decoded", 1, 3),
    "broken depth": (change_file(".sens", in_frame(1, -20, bytes(20))), "depth image cannot be decoded", 1, 3),
    "lost tracking": (change_file(".sens", in_frame(2, 0, MINUS_INFINITY * 16)), "pose is not finite", 1, 3),
    "labels missing": (remove_file("_2d-label-filt.zip"), "2D labels of a scene are missing", 1, 4),
    "labels truncated": (
        change_file("_2d-label-filt.zip", lambda data: data[:300]),
        "2D labels of a scene cannot be read",
        1,
        4,
    ),
    "label of a frame missing": (replace_label(2, None), "2D label of a frame cannot be read", 1, 3),
    "label of a frame broken": (replace_label(2, b"no image"), "label image cannot be decoded", 1, 3),
    "description missing": (remove_file(".txt"), "scene description (axis alignment) is missing", 1, 4),
}


@pytest.mark.parametrize("name", FRAME_DAMAGE)
def test_damaged_recordings(name: str, raw: tuple[Path, list[RawScan]], converted: Path, tmp_path: Path) -> None:
    damage, reason, count, left = FRAME_DAMAGE[name]
    root = copy_of(raw[0], tmp_path)
    damage(root / "scans" / FIRST)
    out = tmp_path / "out"
    outcome = run(plan_scannet(ScanNetOptions(root, splits=root / "splits", parts=(FRAMES,))), out)
    assert reasons(outcome, FRAMES) == {reason: count}
    assert outcome.total(FRAMES).converted == left + 8
    written = {path.stem for path in (out / "rgbd" / FIRST / "color").glob("*.jpg")}
    # What is left is what it would be without the damage.
    for number in written:
        for kind in ("depth", "color"):
            place = next((out / "rgbd" / FIRST / kind).glob(f"{number}.*"))
            assert place.read_bytes() == (converted / place.relative_to(out)).read_bytes()


@pytest.mark.parametrize("last", [1, 2])
def test_lost_frames_are_those_that_were_wanted(last: int, raw: tuple[Path, list[RawScan]], tmp_path: Path) -> None:
    """Of frames 0 and 2, the second is behind the end of a recording that stops in frame 1 or in frame 2."""
    root = copy_of(raw[0], tmp_path)
    change_file(".sens", lambda data: data[: frame_offsets(data)[last] + 20])(root / "scans" / FIRST)
    options = ScanNetOptions(root, splits=root / "splits", every=2, parts=(FRAMES,))
    outcome = run(plan_scannet(options), tmp_path / "out")
    assert reasons(outcome, FRAMES) == {"recording is truncated": 1} and outcome.total(FRAMES).converted == 5


def test_depth_with_a_damaged_end(raw: tuple[Path, list[RawScan]]) -> None:
    """Even where all pixels can be unpacked, a missing or wrong checksum means damage."""
    path = raw[0] / "scans" / FIRST / f"{FIRST}.sens"
    with path.open("rb") as stream:
        header = read_header(stream, "recording")
        frame = next(iterate_frames(stream, header, "recording", 1))
    assert np.array_equal(decompress_depth(frame, header, "it"), raw[1][0].depth[0])
    for depth in (frame.depth[:-2], frame.depth[:-1] + bytes([frame.depth[-1] ^ 1]), zlib.compress(bytes(218)), b""):
        with pytest.raises(BrokenPieceError, match="depth image cannot be decoded"):
            decompress_depth(frame._replace(depth=depth), header, "it")
    plain = frame._replace(depth=raw[1][0].depth[0].astype("<u2").tobytes())
    unpacked = decompress_depth(plain, header._replace(depth_compression=0), "it")
    assert np.array_equal(unpacked, raw[1][0].depth[0])


def test_frames_without_pose_or_label_are_never_drawn(raw: tuple[Path, list[RawScan]], tmp_path: Path) -> None:
    """Written, since PonderV2's dataset takes frame numbers as positions, and named in skip.lst."""
    root = copy_of(raw[0], tmp_path)
    change_file(".sens", in_frame(2, 0, MINUS_INFINITY * 16))(root / "scans" / FIRST)
    replace_label(1, None)(root / "scans" / FIRST)
    out = tmp_path / "out"
    outcome = run(plan_scannet(ScanNetOptions(root, split="train", parts=(FRAMES,))), out)
    folder = out / "rgbd" / FIRST
    assert (folder / "pose/2.txt").read_text(encoding="utf-8").split() == ["-inf"] * 16
    assert len(list((folder / "color").iterdir())) == 4 and not (folder / "label/1.png").exists()
    (out / "skip.lst").write_text("scene0707_00 10\nscene0000_00 1\n", encoding="utf-8")
    assert merged_skip_list(out, outcome) == "scene0707_00 10\nscene0000_00 1\nscene0000_00 2\n"


def change_mesh(**fields: object) -> Callable[[Path], None]:
    """Overwrite columns of the first vertex or face."""

    def change(data: bytes) -> bytes:
        start = data.index(b"end_header\n") + 11
        if "x" in fields:
            data = overwrite(data, start, struct.pack("<f", fields["x"]))
        if "corner" in fields:
            vertices = int(data.split(b"element vertex ")[1].split()[0])
            data = overwrite(data, start + 16 * vertices + 1, struct.pack("<i", fields["corner"]))
        return data

    return change_file("_vh_clean_2.ply", change)


def emptied(data: bytes) -> bytes:
    header, _, _ = data.partition(b"end_header\n")
    lines = [b"element vertex 0" if line.startswith(b"element vertex") else line for line in header.splitlines()]
    lines = [b"element face 0" if line.startswith(b"element face") else line for line in lines]
    return b"\n".join([*lines, b"end_header\n"])


CLOUD_DAMAGE = {
    "missing": (remove_file("_vh_clean_2.ply"), "mesh is missing"),
    "truncated": (change_file("_vh_clean_2.ply", lambda data: data[:-100]), "mesh is truncated"),
    "empty": (change_file("_vh_clean_2.ply", emptied), "mesh is empty"),
    "no file": (
        change_file("_vh_clean_2.ply", lambda data: b""),
        "mesh is not a binary PLY file of vertices and faces",
    ),
    "ascii": (
        change_file("_vh_clean_2.ply", lambda data: data.replace(b"binary_little_endian", b"ascii")),
        "mesh is not a binary PLY file of vertices and faces",
    ),
    "foreign vertex": (change_mesh(corner=10**6), "mesh has faces of vertices that it lacks"),
}


@pytest.mark.parametrize("name", CLOUD_DAMAGE)
def test_damaged_meshes(name: str, raw: tuple[Path, list[RawScan]], tmp_path: Path) -> None:
    damage, reason = CLOUD_DAMAGE[name]
    root = copy_of(raw[0], tmp_path)
    damage(root / "scans" / FIRST)
    out = tmp_path / "out"
    outcome = run(plan_scannet(ScanNetOptions(root, splits=root / "splits", parts=(CLOUD,))), out)
    assert reasons(outcome, CLOUD) == {reason: 1} and outcome.total(CLOUD).converted == 2
    assert not list((out / "train").glob("*")) if (out / "train").exists() else True


def test_vertices_that_are_not_finite(raw: tuple[Path, list[RawScan]], converted: Path, tmp_path: Path) -> None:
    """Left out with their triangles; everything else stays as it was."""
    root = copy_of(raw[0], tmp_path)
    change_mesh(x=float("nan"))(root / "scans" / FIRST)
    out = tmp_path / "out"
    outcome = run(plan_scannet(ScanNetOptions(root, splits=root / "splits", parts=(CLOUD,))), out)
    assert reasons(outcome, CLOUD) == {"vertex is not finite": 1} and outcome.total(CLOUD).converted == 3
    data, whole = load(out / f"train/{FIRST}.pth"), load(converted / f"train/{FIRST}.pth")
    for key in ("coord", "color", "semantic_gt20", "semantic_gt200", "instance_gt"):
        assert np.array_equal(data[key], whole[key][1:])
    faces = raw[1][0].faces.astype(np.int64)
    faces = faces[(faces > 0).all(1)] - 1
    assert np.array_equal(data["normal"], vertex_normals(data["coord"], faces))


def short_segments(data: bytes) -> bytes:
    content = json.loads(data)
    return json.dumps({**content, "segIndices": content["segIndices"][1:]}).encode()


LABEL_DAMAGE = {
    "segments missing": (remove_file("_vh_clean_2.0.010000.segs.json"), "segments file is missing"),
    "segments of another mesh": (
        change_file("_vh_clean_2.0.010000.segs.json", short_segments),
        "segments file is of another mesh",
    ),
    "aggregation truncated": (
        change_file(".aggregation.json", lambda data: data[:-30]),
        "aggregation file is not JSON",
    ),
    "aggregation without labels": (
        change_file(".aggregation.json", lambda data: data.replace(b'"label"', b'"name"')),
        "aggregation file lacks segGroups of label, segments and id",
    ),
}


@pytest.mark.parametrize("name", LABEL_DAMAGE)
def test_labels_of_the_labelled_mesh_stand_in(
    name: str, raw: tuple[Path, list[RawScan]], converted: Path, tmp_path: Path
) -> None:
    damage, reason = LABEL_DAMAGE[name]
    root = copy_of(raw[0], tmp_path)
    damage(root / "scans" / FIRST)
    options = ScanNetOptions(root, splits=root / "splits", parts=(CLOUD,))
    outcome = run(plan_scannet(options), tmp_path / "out")
    assert reasons(outcome, CLOUD) == {f"no instances and 200 classes: {reason}": 1}
    data, whole = load(tmp_path / f"out/train/{FIRST}.pth"), load(converted / f"train/{FIRST}.pth")
    assert np.array_equal(data["semantic_gt20"], whole["semantic_gt20"])
    assert "semantic_gt200" not in data and "instance_gt" not in data
    remove_file("_vh_clean_2.labels.ply")(root / "scans" / FIRST)
    outcome = run(plan_scannet(options), tmp_path / "out")
    assert reasons(outcome, CLOUD)["no labels: labelled mesh is missing"] == 1
    assert set(load(tmp_path / f"out/train/{FIRST}.pth")) == {"scene_id", "coord", "color", "normal"}
