"""Raw S3DIS and 2D-3D-S to PonderV2's files, and the lens and mesh arithmetic behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ponder.data.convert.s3dis import S3DISOptions, plan_s3dis
from ponder.data.convert.s3dis_points import CLASSES, read_object_points, read_room
from ponder.data.convert.sink import BrokenPieceError, PartReport
from ponder.data.convert.units import CLOUD, FRAMES
from ponder.data.scene import DataError
from ponder.data.synthetic.raw import RawRoom, write_raw_s3dis
from tests.ponder.convert_help import copy_of, load, reasons, run

BENT = (0.05, -0.02, 0.001, -0.0005, 0.003)


def options_of(root: Path, **more: object) -> S3DISOptions:
    return S3DISOptions(root / "Stanford3dDataset_v1.2", root / "2D-3D-S", **more)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RawRoom]]:
    root = tmp_path_factory.mktemp("s3dis")
    return root, write_raw_s3dis(root, size=(18, 24))


@pytest.fixture(scope="module")
def converted(raw: tuple[Path, list[RawRoom]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("processed")
    outcome = run(plan_s3dis(options_of(raw[0])), out)
    assert (outcome.total(CLOUD).converted, outcome.total(FRAMES).converted) == (2, 4)
    assert not outcome.total(CLOUD).skipped and not outcome.total(FRAMES).skipped
    return out


def test_clouds(raw: tuple[Path, list[RawRoom]], converted: Path) -> None:
    for room in raw[1]:
        data = load(converted / f"{room.name}.pth")
        assert np.array_equal(data["coord"], room.coord) and data["coord"].dtype == np.float64
        assert np.array_equal(data["color"], room.colour)
        assert data["semantic_gt"].dtype == data["instance_gt"].dtype == np.int64
        assert np.array_equal(data["semantic_gt"], room.semantic[:, None])
        assert np.array_equal(data["instance_gt"], room.instance[:, None])
        assert np.array_equal(data["room_center"], (room.coord.min(0) + room.coord.max(0)) / 2)
        assert np.abs(data["normal"][room.shell] - room.normal[room.shell]).max() < 1e-6
        assert np.abs(np.linalg.norm(data["normal"], axis=1) - 1).max() < 1e-9


def test_frames(raw: tuple[Path, list[RawRoom]], converted: Path) -> None:
    """In area 5, the second half is brought into the frame of the first."""
    for room in raw[1]:
        assert len(list((converted / f"{room.name}_rgbd").iterdir())) == 2
        for view, name in enumerate(room.frames):
            data = load(converted / f"{room.name}_rgbd/{name}.pth")
            assert np.array_equal(data["depth"], room.depth[view]) and data["depth"].dtype == np.uint16
            assert np.abs(data["rgb"].astype(int) - room.rgb[view]).mean() < 6 and data["rgb"].dtype == np.uint8
            assert np.abs(data["extrinsic"] - room.pose[view]).max() < 1e-12
            assert np.array_equal(data["intrinsic"], room.intrinsic)
            assert data["depth_mask"].all() and data["depth_mask"].dtype == bool
            # Points of the frame are points of the cloud, but for a rounding at the edges of objects.
            assert (data["semantic_map"] == room.pixel_semantic[view]).mean() > 0.995
            assert data["semantic_map"].dtype == np.int64


def points_of(frame: dict[str, np.ndarray]) -> np.ndarray:
    """[K, 3] points of the pixels of a frame that lie on the cloud."""
    rows, columns = np.nonzero(frame["depth_mask"])
    z = frame["depth"][rows, columns] / 4000
    matrix = frame["intrinsic"]
    camera = np.stack([(columns - matrix[0, 2]) / matrix[0, 0] * z, (rows - matrix[1, 2]) / matrix[1, 1] * z, z], 1)
    return camera @ frame["extrinsic"][:3, :3].T + frame["extrinsic"][:3, 3]


def test_aligned_rooms(raw: tuple[Path, list[RawRoom]], tmp_path: Path) -> None:
    """Cloud, normals and cameras turn together about the centre of the room."""
    run(plan_s3dis(options_of(raw[0], align_angle=True)), tmp_path)
    for room in raw[1]:
        data = load(tmp_path / f"{room.name}.pth")
        assert room.angle == 90
        offset = room.coord - data["room_center"]
        turned = np.stack([offset[:, 1], -offset[:, 0], offset[:, 2]], 1) + data["room_center"]
        assert np.abs(data["coord"] - turned).max() < 1e-9
        normal = np.stack([room.normal[:, 1], -room.normal[:, 0], room.normal[:, 2]], 1)
        assert np.abs(data["normal"][room.shell] - normal[room.shell]).max() < 1e-6
        for name in room.frames:
            frame = load(tmp_path / f"{room.name}_rgbd/{name}.pth")
            points = points_of(frame)
            assert len(points) == 18 * 24
            gap = np.linalg.norm(points[:, None] - data["coord"][None], axis=2).min(1)
            assert gap.max() < 2e-3


def test_distorted_lenses(tmp_path: Path) -> None:
    """What a bent lens recorded becomes, away from edges, what a straight one would have."""
    (room,) = write_raw_s3dis(tmp_path, areas=(2,), size=(36, 48), views=1, distortion=BENT)
    run(plan_s3dis(options_of(tmp_path, normals=False)), tmp_path / "out")
    data = load(tmp_path / f"out/{room.name}_rgbd/{room.frames[0]}.pth")
    raw_depth = np.abs(data["depth"].astype(float) - room.depth[0]) / room.depth[0]
    assert np.median(raw_depth) < 2e-3 and 0.8 < data["depth_mask"].mean() < 1
    on_cloud = data["depth_mask"]
    assert (data["semantic_map"][~on_cloud] == -1).all()
    assert (data["semantic_map"][on_cloud] == room.pixel_semantic[0][on_cloud]).mean() > 0.95
    assert "normal" not in load(tmp_path / f"out/{room.name}.pth")


def test_objects_are_numbered_by_file_and_named_by_class(tmp_path: Path) -> None:
    """A class that is none of the 13, such as stairs, counts as clutter."""
    (tmp_path / "Annotations").mkdir()
    for name in ("stairs_1", "chair_10", "chair_2", "ceiling_1"):
        (tmp_path / f"Annotations/{name}.txt").write_text(f"{len(name)} 2 3 4 5 6\n", encoding="utf-8")
    points = read_room(tmp_path, PartReport())
    assert [CLASSES[k] for k in points.semantic[:, 0]] == ["ceiling", "chair", "chair", "clutter"]
    assert points.instance.tolist() == [[0], [1], [2], [3]] and points.coord[:, 0].tolist() == [9, 8, 7, 8]


def test_lines_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "ceiling_1.txt"
    path.write_bytes(
        b"1.0 2.0 3.0 10 20 30\n"
        b"1.5 2.5 3.5 11\x1021 31\n"  # as in the release: a control character between two numbers
        b"1.5 2.5 x 11 21 31\n1.5 2.5\n\n# remark\nnan 2.5 3.5 11 21 31\n7 8 9 1 2 3 4\n"
    )
    report = PartReport()
    expected = [[1, 2, 3, 10, 20, 30], [1.5, 2.5, 3.5, 11, 21, 31], [7, 8, 9, 1, 2, 3]]
    assert read_object_points(path, report).tolist() == expected
    assert report.skipped["line of an object is not six finite numbers"].count == 3
    for content in (b"", b"\n\n", b"1 2 3\n4 5 6\n", b"x\n"):
        path.write_bytes(content)
        with pytest.raises(BrokenPieceError, match="object has no points"):
            read_object_points(path, PartReport())


AREA, ROOM = "Area_1", "Area_1/office_1"


def first_file(pattern: str, change: Callable[[bytes], bytes] | None) -> Callable[[Path], None]:
    """Change, or with None remove, the first file that matches."""

    def apply(root: Path) -> None:
        path = sorted(root.glob(pattern))[0]
        path.write_bytes(change(path.read_bytes())) if change else path.unlink()

    return apply


IMAGES = "2D-3D-S/area_1/raw/"
# damage, part, reason, number left out, frames of the area's room that are left
DAMAGE = {
    "object empty": (
        first_file(f"Stanford3dDataset_v1.2/{ROOM}/Annotations/*.txt", lambda data: b""),
        CLOUD,
        "object has no points",
        1,
        2,
    ),
    "pose missing numbers": (
        first_file(f"{IMAGES}*_pose_*", lambda data: data[:60]),
        FRAMES,
        "pose is not a finite 4x4 matrix",
        1,
        1,
    ),
    "pose infinite": (
        first_file(f"{IMAGES}*_pose_*", lambda data: b"-inf " * 16),
        FRAMES,
        "pose is not a finite 4x4 matrix",
        1,
        1,
    ),
    "pose words": (first_file(f"{IMAGES}*_pose_*", lambda data: b"a b"), FRAMES, "pose cannot be read", 1, 1),
    "lens missing": (first_file(f"{IMAGES}*_intrinsics_*", None), FRAMES, "intrinsics is missing", 1, 1),
    "lens short": (
        first_file(f"{IMAGES}*_intrinsics_*", lambda data: data[:30]),
        FRAMES,
        "intrinsics are not height width fx fy cx cy k1 k2 p1 p2 k3",
        1,
        1,
    ),
    "colour missing": (first_file(f"{IMAGES}*_i0_*", None), FRAMES, "colour image is missing", 1, 1),
    "colour truncated": (
        first_file(f"{IMAGES}*_i0_*", lambda data: data[:300]),
        FRAMES,
        "colour image cannot be decoded",
        1,
        1,
    ),
    "depth truncated": (
        first_file(f"{IMAGES}*_d0_*", lambda data: data[:-200]),
        FRAMES,
        "depth image cannot be decoded",
        1,
        1,
    ),
    "rooms of cameras missing": (
        first_file("2D-3D-S/area_1/3d/camera_to_room.json", None),
        FRAMES,
        "table of the rooms of cameras is missing",
        1,
        0,
    ),
    "mesh missing": (
        first_file("2D-3D-S/area_1/3d/rgb.obj", None),
        CLOUD,
        "no normals: the area's mesh is missing",
        1,
        2,
    ),
    "mesh damaged": (
        first_file("2D-3D-S/area_1/3d/rgb.obj", lambda data: data.replace(b"v 0", b"v x", 1)),
        CLOUD,
        "no normals: the area's mesh cannot be read",
        1,
        2,
    ),
    "mesh without faces": (
        first_file("2D-3D-S/area_1/3d/rgb.obj", lambda data: data.partition(b"f ")[0]),
        CLOUD,
        "no normals: the area's mesh has no faces of its own vertices",
        1,
        2,
    ),
    "mesh elsewhere": (
        first_file("2D-3D-S/area_1/3d/rgb.obj", lambda data: data.replace(b"v ", b"v 99")),
        CLOUD,
        "no normals: the area's mesh has nothing where the room is",
        1,
        2,
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(name: str, raw: tuple[Path, list[RawRoom]], converted: Path, tmp_path: Path) -> None:
    damage, part, reason, count, left = DAMAGE[name]
    root = copy_of(raw[0], tmp_path)
    damage(root)
    out = tmp_path / "out"
    outcome = run(plan_s3dis(options_of(root)), out)
    other = FRAMES if part == CLOUD else CLOUD
    assert reasons(outcome, part) == {reason: count} and reasons(outcome, other) == {}
    assert (outcome.total(CLOUD).converted, outcome.total(FRAMES).converted) == (2, left + 2)
    data, whole = load(out / f"{ROOM}.pth"), load(converted / f"{ROOM}.pth")
    assert ("normal" in data) == ("mesh" not in name)
    if name == "object empty":
        own = whole["instance_gt"][:, 0] > 0
        assert all(np.array_equal(data[key], whole[key][own]) for key in ("coord", "semantic_gt", "instance_gt"))
    else:
        assert np.array_equal(data["coord"], whole["coord"])


def test_a_room_without_points(raw: tuple[Path, list[RawRoom]], tmp_path: Path) -> None:
    root = copy_of(raw[0], tmp_path)
    for path in (root / f"Stanford3dDataset_v1.2/{ROOM}/Annotations").iterdir():
        path.unlink()
    outcome = run(plan_s3dis(options_of(root)), tmp_path / "out")
    for part, left in ((CLOUD, 1), (FRAMES, 2)):
        assert reasons(outcome, part) == {"room has no readable objects": 1} and outcome.total(part).converted == left


def test_clouds_without_images(raw: tuple[Path, list[RawRoom]], tmp_path: Path) -> None:
    outcome = run(plan_s3dis(S3DISOptions(raw[0] / "Stanford3dDataset_v1.2")), tmp_path)
    assert outcome.total(CLOUD).converted == 2 and FRAMES not in outcome.now
    assert "normal" not in load(tmp_path / f"{ROOM}.pth") and not (tmp_path / f"{ROOM}_rgbd").exists()


def test_every_second_frame_without_clouds(raw: tuple[Path, list[RawRoom]], tmp_path: Path) -> None:
    outcome = run(plan_s3dis(options_of(raw[0], every=2, parts=(FRAMES,))), tmp_path)
    # Per half in area 5, where each has one.
    assert outcome.total(FRAMES).converted == 3 and not list(tmp_path.glob("*/*.pth"))


def test_bad_options(raw: tuple[Path, list[RawRoom]], tmp_path: Path) -> None:
    data = raw[0] / "Stanford3dDataset_v1.2"
    for make, message in (
        (lambda: S3DISOptions(data, every=0), "every: expected at least 1, got 0"),
        (lambda: S3DISOptions(data, parts=(FRAMES,)), "expected the folder of 2D-3D-S"),
        (lambda: S3DISOptions(data, tmp_path / "absent"), "there is no such folder"),
        (lambda: plan_s3dis(S3DISOptions(raw[0])), r"expected folders Area_\*/<room>/Annotations, got none"),
        (lambda: plan_s3dis(S3DISOptions(tmp_path / "absent")), "there is no such folder"),
    ):
        with pytest.raises(DataError, match=message):
            make()
    root = copy_of(raw[0], tmp_path)
    angles = root / f"Stanford3dDataset_v1.2/{AREA}/{AREA}_alignmentAngle.txt"
    for content, message in (
        ("hall_1 90\n", "expected an alignment angle of office_1"),
        ("office_1\n", "but list index"),
    ):
        angles.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            plan_s3dis(options_of(root, align_angle=True))
    table = json.loads((root / "2D-3D-S/area_1/3d/camera_to_room.json").read_text(encoding="utf-8"))
    assert set(table.values()) == {"office_1_1"}
