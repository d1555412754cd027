"""Raw Structured3D archives to PonderV2's files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ponder.data.convert.structured3d import PANORAMA, PERSPECTIVE, Structured3DOptions, plan_structured3d
from ponder.data.convert.structured3d_views import CLASSES, class_map, pixel_normals
from ponder.data.convert.units import CLOUD, FRAMES
from ponder.data.scene import DataError
from ponder.data.synthetic.raw import RawHouse, write_raw_structured3d
from ponder.data.synthetic.raw.world import png
from tests.ponder.convert_help import copy_of, load, reasons, run

# Swaps x and y of the raw frame, as PonderV2's files do.
SWAP = np.eye(4)[[1, 0, 2, 3]]
PERSPECTIVES, PANORAMAS = "Structured3D_perspective_full_00.zip", "Structured3D_panorama_00.zip"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RawHouse]]:
    root = tmp_path_factory.mktemp("structured3d")
    return root, write_raw_structured3d(root, size=(18, 24), views=3)


@pytest.fixture(scope="module")
def converted(raw: tuple[Path, list[RawHouse]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With all points, so that they can be compared."""
    out = tmp_path_factory.mktemp("processed")
    outcome = run(plan_structured3d(Structured3DOptions(raw[0], grid_size=0)), out)
    assert (outcome.total(CLOUD).converted, outcome.total(FRAMES).converted) == (3, 9)
    assert not outcome.total(CLOUD).skipped and not outcome.total(FRAMES).skipped
    return out


def cloud_of(out: Path, house: RawHouse) -> dict[str, np.ndarray]:
    return load(out / f"{house.split}/{house.name}/room_{house.room}.pth")


def frame_of(out: Path, house: RawHouse, frame: str) -> dict[str, np.ndarray]:
    return load(out / f"{house.split}/{house.name}/room_{house.room}_rgbd/frame_{frame}.pth")


def classes_of(nyu40: np.ndarray) -> np.ndarray:
    return np.array([CLASSES.index(k) if k in CLASSES else -1 for k in nyu40.reshape(-1)]).reshape(nyu40.shape)


def test_frames(raw: tuple[Path, list[RawHouse]], converted: Path) -> None:
    assert [house.split for house in raw[1]] == ["train", "val", "test"]
    for house in raw[1]:
        for view, name in enumerate(house.frames):
            data = frame_of(converted, house, name)
            assert np.array_equal(data["depth"], house.depth[view]) and data["depth"].dtype == np.uint16
            assert np.array_equal(data["rgb"], house.rgb[view]) and data["rgb"].dtype == np.uint8
            assert np.abs(data["intrinsic"] - house.intrinsic).max() < 1e-4
            assert np.abs(data["extrinsic"] - SWAP @ house.pose[view]).max() < 1e-6
            assert np.array_equal(data["semantic_map"], classes_of(house.nyu40[view]))
            assert data["depth_mask"].dtype == bool and 0.5 < data["depth_mask"].mean() < 1
            assert not data["depth_mask"][house.nyu40[view] == 0].any()


def test_clouds_lie_on_the_room(raw: tuple[Path, list[RawHouse]], converted: Path) -> None:
    for house in raw[1]:
        data = cloud_of(converted, house)
        assert [data[key].dtype for key in ("coord", "color", "normal", "semantic_gt")] == [
            np.float32, np.uint8, np.float32, np.int16,
        ]  # fmt: skip
        points = torch.as_tensor(data["coord"][:, [1, 0, 2]].astype(np.float64))
        # Depth has millimetres.
        assert float(house.geometry.sdf(points).abs().max()) < 1e-3
        label = house.geometry.labels(house.geometry.nearest_surface(points))[0].numpy()
        floor = house.geometry.class_names.index("floor")
        assert np.array_equal(data["semantic_gt"][:, 0] == CLASSES.index(2), label == floor)
        known = np.linalg.norm(data["normal"], axis=1) > 0
        up = np.abs(data["normal"][known & (label == floor)][:, 2])
        # Differences of millimetres between neighbours and edges of objects.
        assert np.median(up) > 0.99 and data["semantic_gt"].min() >= -1


def test_clouds_are_the_frames_and_the_panorama(
    raw: tuple[Path, list[RawHouse]], converted: Path, tmp_path: Path
) -> None:
    """In this order; the frames' own cameras give the same points."""
    options = Structured3DOptions(raw[0], grid_size=0, views=(PANORAMA,), parts=(CLOUD,))
    run(plan_structured3d(options), tmp_path)
    for house in raw[1]:
        whole, around = cloud_of(converted, house), cloud_of(tmp_path, house)
        parts = []
        for name in house.frames:
            data = frame_of(converted, house, name)
            rows, columns = np.nonzero(data["depth_mask"])
            z = data["depth"][rows, columns] / 1000
            matrix = data["intrinsic"]
            rays = np.stack(
                [(columns - matrix[0, 2]) / matrix[0, 0], (rows - matrix[1, 2]) / matrix[1, 1], np.ones(len(z))], 1
            )
            parts.append(rays * z[:, None] @ data["extrinsic"][:3, :3].T + data["extrinsic"][:3, 3])
        count = sum(map(len, parts))
        assert np.abs(whole["coord"][:count] - np.concatenate(parts)).max() < 1e-5
        assert all(np.array_equal(whole[key][count:], around[key]) for key in whole)
        usable = (house.panorama_nyu40 > 0).sum()
        assert 0.5 * usable < len(around["coord"]) <= usable


def test_one_point_per_cube(raw: tuple[Path, list[RawHouse]], converted: Path, tmp_path: Path) -> None:
    size = 0.25
    options = Structured3DOptions(raw[0], grid_size=size, parts=(CLOUD,))
    run(plan_structured3d(options), tmp_path / "a")
    run(plan_structured3d(options), tmp_path / "b")
    run(plan_structured3d(Structured3DOptions(raw[0], grid_size=size, seed=1, parts=(CLOUD,))), tmp_path / "c")
    for house in raw[1]:
        whole, kept = cloud_of(converted, house), cloud_of(tmp_path / "a", house)
        cubes = {tuple(cube) for cube in np.floor(whole["coord"] / np.float64(size)).astype(int).tolist()}
        assert len(kept["coord"]) == len(cubes) < len(whole["coord"])
        assert {tuple(cube) for cube in np.floor(kept["coord"] / np.float64(size)).astype(int).tolist()} == cubes
        rows = {
            tuple(row) for row in np.concatenate([whole["coord"], whole["color"], whole["semantic_gt"]], 1).tolist()
        }
        assert {
            tuple(r) for r in np.concatenate([kept["coord"], kept["color"], kept["semantic_gt"]], 1).tolist()
        } <= rows
        assert all(np.array_equal(kept[key], cloud_of(tmp_path / "b", house)[key]) for key in kept)
        assert not np.array_equal(kept["coord"], cloud_of(tmp_path / "c", house)["coord"])


def test_every_second_frame(raw: tuple[Path, list[RawHouse]], converted: Path, tmp_path: Path) -> None:
    """Clouds are made of all frames nevertheless."""
    outcome = run(plan_structured3d(Structured3DOptions(raw[0], grid_size=0, every=2)), tmp_path)
    assert outcome.total(FRAMES).converted == 6
    for house in raw[1]:
        assert np.array_equal(cloud_of(tmp_path, house)["coord"], cloud_of(converted, house)["coord"])
        frames = (tmp_path / f"{house.split}/{house.name}/room_{house.room}_rgbd").iterdir()
        assert sorted(path.name for path in frames) == ["frame_0.pth", "frame_2.pth"]
    only = run(plan_structured3d(Structured3DOptions(raw[0], parts=(FRAMES,))), tmp_path / "frames")
    assert only.total(FRAMES).converted == 9 and not list((tmp_path / "frames").glob("*/*/*.pth"))


def replaced(archive: str, name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
    """Change, or by None leave out, the files of the first scene whose names end in `name`."""

    def apply(root: Path) -> None:
        with zipfile.ZipFile(root / archive) as source:
            files = {entry: source.read(entry) for entry in source.namelist()}
        with zipfile.ZipFile(root / archive, "w") as target:
            for entry, data in files.items():
                mine = "scene_00000" in entry and entry.endswith(name)
                content = change(data) if mine else data
                if content is not None:
                    target.writestr(entry, content)

    return apply


def flipped(archive: str, name: str) -> Callable[[Path], None]:
    """Damage the stored bytes of a file, so that its checksum fails."""

    def apply(root: Path) -> None:
        with zipfile.ZipFile(root / archive) as source:
            place = next(i for i in source.infolist() if "scene_00000" in i.filename and i.filename.endswith(name))
        data = bytearray((root / archive).read_bytes())
        start = place.header_offset + 30 + len(place.filename) + 10
        data[start] ^= 0xFF
        (root / archive).write_bytes(bytes(data))

    return apply


def resized(data: bytes) -> bytes:
    stream = BytesIO()
    Image.open(BytesIO(data)).resize((8, 8), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


VIEW = "perspective/full/1/"
# damage, part that counts it, reason, frames left
DAMAGE = {
    "camera missing": (
        replaced(PERSPECTIVES, VIEW + "camera_pose.txt", lambda data: None),
        FRAMES,
        "camera is missing",
        8,
    ),
    "camera short": (
        replaced(PERSPECTIVES, VIEW + "camera_pose.txt", lambda data: data[:20]),
        FRAMES,
        "camera is not 11 finite numbers",
        8,
    ),
    "camera infinite": (
        replaced(PERSPECTIVES, VIEW + "camera_pose.txt", lambda data: b"-inf" + data[data.index(b" ") :]),
        FRAMES,
        "camera is not 11 finite numbers",
        8,
    ),
    "depth missing": (
        replaced(PERSPECTIVES, VIEW + "depth.png", lambda data: None),
        FRAMES,
        "depth image is missing",
        8,
    ),
    "depth of 8 bits": (
        replaced(PERSPECTIVES, VIEW + "depth.png", lambda data: png(np.ones((18, 24), np.uint8))),
        FRAMES,
        "depth image has another pixel format",
        8,
    ),
    "depth nowhere": (
        replaced(PERSPECTIVES, VIEW + "depth.png", lambda data: png(np.zeros((18, 24), np.uint16))),
        FRAMES,
        "view has no usable pixels",
        8,
    ),
    "colour truncated": (
        replaced(PERSPECTIVES, VIEW + "rgb_rawlight.png", lambda data: data[:200]),
        FRAMES,
        "colour image cannot be decoded",
        8,
    ),
    "label of another size": (
        replaced(PERSPECTIVES, VIEW + "semantic.png", resized),
        FRAMES,
        "images of a view differ in size",
        8,
    ),
    "coloured label": (
        replaced(PERSPECTIVES, VIEW + "semantic.png", lambda data: png(np.ones((18, 24, 3), np.uint8))),
        FRAMES,
        "label image has another pixel format",
        8,
    ),
    "checksum": (flipped(PERSPECTIVES, VIEW + "rgb_rawlight.png"), FRAMES, "colour image cannot be read", 8),
    "panorama missing": (
        replaced(PANORAMAS, "panorama/camera_xyz.txt", lambda data: None),
        CLOUD,
        "camera is missing",
        9,
    ),
    "panorama's depth damaged": (
        replaced(PANORAMAS, "full/depth.png", lambda data: b""),
        CLOUD,
        "depth image cannot be decoded",
        9,
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_views(name: str, raw: tuple[Path, list[RawHouse]], converted: Path, tmp_path: Path) -> None:
    damage, part, reason, left = DAMAGE[name]
    root = copy_of(raw[0], tmp_path)
    damage(root)
    out = tmp_path / "out"
    outcome = run(plan_structured3d(Structured3DOptions(root, grid_size=0)), out)
    other = FRAMES if part == CLOUD else CLOUD
    assert reasons(outcome, part) == {reason: 1} and reasons(outcome, other) == {}
    assert (outcome.total(CLOUD).converted, outcome.total(FRAMES).converted) == (3, left)
    first, *rest = raw[1]
    assert len(cloud_of(out, first)["coord"]) < len(cloud_of(converted, first)["coord"])
    for house in rest:
        assert np.array_equal(cloud_of(out, house)["coord"], cloud_of(converted, house)["coord"])


def test_damaged_archives(raw: tuple[Path, list[RawHouse]], tmp_path: Path) -> None:
    """One that is truncated is left out as a whole; the rooms are made of the other."""
    root = copy_of(raw[0], tmp_path)
    (root / PANORAMAS).write_bytes((root / PANORAMAS).read_bytes()[:-500])
    outcome = run(plan_structured3d(Structured3DOptions(root)), tmp_path / "out")
    assert reasons(outcome, CLOUD) == {"archive cannot be read": 1, "camera is missing": 3}
    assert (outcome.total(CLOUD).converted, outcome.total(FRAMES).converted) == (3, 9)
    (root / PERSPECTIVES).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"expected zip archives with Structured3D/scene_\*, got none; .*cannot be read"
    ):
        plan_structured3d(Structured3DOptions(root))


def test_missing_depth_is_marked_and_masked(raw: tuple[Path, list[RawHouse]], tmp_path: Path) -> None:
    root = copy_of(raw[0], tmp_path)
    house = raw[1][0]
    depth = house.depth[1].copy()
    depth[:9] = 0
    replaced(PERSPECTIVES, VIEW + "depth.png", lambda data: png(depth))(root)
    run(plan_structured3d(Structured3DOptions(root, parts=(FRAMES,))), tmp_path / "out")
    data = frame_of(tmp_path / "out", house, "1")
    assert np.all(data["depth"][:9] == 65535) and not data["depth_mask"][:9].any() and data["depth_mask"][9:].any()


def test_a_room_without_any_view(raw: tuple[Path, list[RawHouse]], tmp_path: Path) -> None:
    root = copy_of(raw[0], tmp_path)
    for archive in (PERSPECTIVES, PANORAMAS):
        replaced(archive, "depth.png", lambda data: None)(root)
    outcome = run(plan_structured3d(Structured3DOptions(root)), tmp_path / "out")
    assert reasons(outcome, FRAMES) == {"depth image is missing": 3}
    assert reasons(outcome, CLOUD) == {"depth image is missing": 1, "room has no usable view": 1}
    assert outcome.total(CLOUD).converted == 2


def test_normals_of_planes() -> None:
    rows, columns = np.meshgrid(np.arange(5.0), np.arange(6.0), indexing="ij")
    points = np.stack([columns, rows, 3 + 0 * rows], -1)
    normal = pixel_normals(points)
    assert np.all(normal[:-1, :-1] == [0, 0, -1]) and np.all(normal[-1] == 0) and np.all(normal[:, -1] == 0)
    ids = np.array([[0, 1, 2], [10, 40, 41]], dtype=np.uint16)
    assert class_map(ids).tolist() == [[-1, 0, 1], [-1, 24, -1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "every: expected at least 1, got 0"),
        ({"grid_size": -1.0}, "grid_size: expected a length of at least 0, got -1.0"),
        ({"grid_size": float("nan")}, "grid_size: expected a length"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"views": ()}, "views: expected perspective, panorama or both"),
        ({"views": ("fisheye", PERSPECTIVE)}, "views: expected perspective, panorama or both"),
        ({"data": Path("absent")}, "there is no such folder"),
        ({"data": Path(__file__).parent}, "expected zip archives with"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bad_options(change: dict[str, object], message: str, raw: tuple[Path, list[RawHouse]]) -> None:
    with pytest.raises(DataError, match=message):
        plan_structured3d(Structured3DOptions(**{"data": raw[0], **change}))
