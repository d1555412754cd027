"""Raw ScanNet to PonderV2's files: equal to what the recordings were made of, whatever is damaged beside it."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ponder.data.convert.scannet import ScanNetOptions, plan_scannet, vertex_normals
from ponder.data.convert.scannet_labels import CLASSES_20, CLASSES_200
from ponder.data.convert.sens import count_frames, decompress_depth, iterate_frames, read_header
from ponder.data.convert.units import CLOUD, FRAMES
from ponder.data.scene import DataError
from ponder.data.synthetic.raw import RawScan, write_raw_scannet
from ponder.data.synthetic.raw.scannet import sens_bytes
from tests.ponder.convert_help import copy_of, load, run

FIRST = "scene0000_00"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RawScan]]:
    root = tmp_path_factory.mktemp("scannet")
    return root, write_raw_scannet(root, scenes=3, size=(18, 24), frames=4)


@pytest.fixture(scope="module")
def converted(raw: tuple[Path, list[RawScan]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("processed")
    outcome = run(plan_scannet(ScanNetOptions(raw[0], splits=raw[0] / "splits")), out)
    assert (outcome.total(CLOUD).converted, outcome.total(FRAMES).converted) == (3, 12)
    assert not outcome.total(CLOUD).skipped and not outcome.total(FRAMES).skipped
    return out


def expected_labels(scan: RawScan) -> dict[str, list[int]]:
    place = {id: number for number, id in enumerate(CLASSES_20)}
    place_200 = {id: number for number, id in enumerate(CLASSES_200)}
    return {
        "semantic_gt20": [place.get(id, -1) for id in scan.nyu40.tolist()],
        "semantic_gt200": [place_200.get(id, -1) for id in scan.label.tolist()],
        "instance_gt": scan.instance.tolist(),
    }


def test_class_lists() -> None:
    assert len(CLASSES_20) == 20 and len(CLASSES_200) == 200
    assert list(CLASSES_200) == sorted(set(CLASSES_200)) and CLASSES_200[-1] == 1191


def test_clouds(raw: tuple[Path, list[RawScan]], converted: Path) -> None:
    for scan in raw[1]:
        data = load(converted / scan.split / f"{scan.name}.pth")
        assert data["scene_id"] == scan.name
        assert np.array_equal(data["coord"], scan.coord) and data["coord"].dtype == np.float32
        assert np.array_equal(data["color"], scan.colour) and data["color"].dtype == np.float32
        assert np.array_equal(data["normal"], vertex_normals(scan.coord, scan.faces.astype(np.int64)))
        if scan.split == "test":
            assert set(data) == {"scene_id", "coord", "color", "normal"}
            continue
        for key, values in expected_labels(scan).items():
            assert data[key].dtype == np.int64 and data[key].tolist() == values, key
        # The generated rooms exercise what is annotated in one list only, and what is not annotated.
        assert len(set(data["semantic_gt20"].tolist())) > 4 and -1 in data["semantic_gt20"]


def test_frames(raw: tuple[Path, list[RawScan]], converted: Path) -> None:
    for scan in raw[1]:
        folder = converted / "rgbd" / scan.name
        assert {path.name for path in (folder / "color").iterdir()} == {f"{i}.jpg" for i in range(4)}
        for number, view in enumerate(scan.view):
            depth = np.array(Image.open(folder / f"depth/{number}.png"))
            assert depth.dtype == np.uint16 and np.array_equal(depth, scan.depth[view])
            assert np.abs(np.loadtxt(folder / f"pose/{number}.txt") - scan.pose[view]).max() <= 1e-6
            again = BytesIO()
            Image.open(BytesIO(scan.jpegs[view])).save(again, "JPEG", quality=75)
            colour = np.array(Image.open(folder / f"color/{number}.jpg"))
            assert colour.shape == (36, 48, 3) and np.array_equal(colour, np.array(Image.open(again)))
            if scan.split == "test":
                assert not (folder / "label").exists()
                continue
            label = np.array(Image.open(folder / f"label/{number}.png"))
            nyu40 = scan.nyu40.reshape(scan.depth.shape)[view].repeat(2, 0).repeat(2, 1)
            assert label.dtype == np.uint8 and np.array_equal(label, nyu40)
        intrinsic = np.loadtxt(folder / "intrinsic/intrinsic_depth.txt")
        assert np.abs(intrinsic - scan.intrinsic).max() <= 1e-6
        assert np.abs(np.loadtxt(folder / "intrinsic/intrinsic_color.txt")[:2] - 2 * intrinsic[:2]).max() < 1e-5
        assert np.array_equal(np.loadtxt(folder / "intrinsic/extrinsic_depth.txt"), np.eye(4))
        assert "axisAlignment" in (folder / f"{scan.name}.txt").read_text(encoding="utf-8")


def test_normals_are_sums_of_weighted_triangles() -> None:
    """Bit for bit the plain loop over float32 triangles, degenerate and unused vertices included."""
    rng = np.random.default_rng(0)
    coord = rng.normal(size=(30, 3)).astype(np.float32)
    faces = np.concatenate([rng.integers(0, 29, (80, 3)), [[3, 3, 5], [4, 4, 4]]])
    total = np.zeros_like(coord)
    for face in faces:
        a, b, c = coord[face]
        vector = np.cross(b - a, c - a)
        length = np.sqrt(np.sum(vector**2)) + np.float32(1e-8)
        for corner in set(face.tolist()):
            total[corner] += vector / length * (length * np.float32(0.5))
    expected = total / (np.sqrt(np.sum(total**2, axis=1, keepdims=True)) + np.float32(1e-8))
    result = vertex_normals(coord, faces)
    assert result.dtype == np.float32 and np.array_equal(result, expected)
    assert np.all(result[29] == 0) and np.abs(np.linalg.norm(result[:29], axis=1) - 1).max() < 1e-5


def test_recordings_are_read_frame_by_frame(raw: tuple[Path, list[RawScan]], tmp_path: Path) -> None:
    """Memory does not grow with the length of a recording."""
    scan = replace(raw[1][0], view=(0, 1) * 200)
    path = tmp_path / "long.sens"
    path.write_bytes(sens_bytes(scan))
    tracemalloc.start()
    with path.open("rb") as stream:
        header = read_header(stream, "long")
        depths = (decompress_depth(frame, header, "long") for frame in iterate_frames(stream, header, "long", 1))
        assert sum(int(depth.sum()) for depth in depths) == 200 * int(scan.depth.sum())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 10 and count_frames(path) == 400


def test_recorded_images_can_be_kept(raw: tuple[Path, list[RawScan]], tmp_path: Path) -> None:
    options = ScanNetOptions(raw[0], split="train", keep_jpeg=True, every=3, parts=(FRAMES,))
    outcome = run(plan_scannet(options), tmp_path)
    assert outcome.total(FRAMES).converted == 6 and CLOUD not in outcome.now
    scan = raw[1][0]
    folder = tmp_path / "rgbd" / scan.name
    assert sorted(path.name for path in (folder / "depth").iterdir()) == ["0.png", "3.png"]
    assert (folder / "color/3.jpg").read_bytes() == scan.jpegs[scan.view[3]]


def test_splits(raw: tuple[Path, list[RawScan]], tmp_path: Path) -> None:
    """Scenes of no list are test scenes; without lists the user chooses, but scans_test stays test."""
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "scannetv2_train.txt").write_text("scene0001_00\n", encoding="utf-8")
    (lists / "scannetv2_val.txt").write_text("\n", encoding="utf-8")

    def places(options: ScanNetOptions) -> list[str]:
        return [unit.parts[0].outputs[0].split("/")[0] for unit in plan_scannet(options).units]

    assert places(ScanNetOptions(raw[0], splits=lists)) == ["test", "train", "test"]
    assert places(ScanNetOptions(raw[0], split="val")) == ["val", "val", "test"]


def test_label_ids_outside_the_table_are_no_class(raw: tuple[Path, list[RawScan]], tmp_path: Path) -> None:
    root = copy_of(raw[0], tmp_path)
    table = root / "scannetv2-labels.combined.tsv"
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("1\twall")) + "\n", encoding="utf-8")
    run(plan_scannet(ScanNetOptions(root, splits=root / "splits")), tmp_path / "out")
    scan = raw[1][0]
    label = np.array(Image.open(tmp_path / f"out/rgbd/{FIRST}/label/0.png"))
    expected = np.where(
        scan.label_image[0] == 1, 0, np.array(scan.nyu40).reshape(scan.depth.shape)[0].repeat(2, 0).repeat(2, 1)
    )
    assert np.array_equal(label, expected) and (scan.label_image[0] == 1).any()
    data = load(tmp_path / f"out/train/{FIRST}.pth")
    assert np.all(data["semantic_gt20"][scan.label == 1] == -1) and np.all(data["instance_gt"][scan.label == 1] >= 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "expected either a folder with scannetv2_train.txt"),
        ({"split": "dev"}, "expected one of train, val, test, got 'dev'"),
        ({"split": "train", "every": 0}, "every: expected at least 1, got 0"),
        ({"split": "train", "data": "nowhere"}, "there is no such folder"),
        ({"split": "train", "data": "splits"}, r"expected folders scans/scene\*, got none"),
        ({"split": "train", "labels": "absent.tsv"}, "absent.tsv: label table is missing"),
        ({"split": "train", "labels": "splits/scannetv2_val.txt"}, "label table lacks id, raw_category and nyu40id"),
        ({"splits": "scans"}, "list of the val split is missing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_options(change: dict[str, object], message: str, raw: tuple[Path, list[RawScan]]) -> None:
    paths = {key: raw[0] / str(value) for key, value in change.items() if key in ("data", "labels", "splits")}
    with pytest.raises(DataError, match=message):
        plan_scannet(ScanNetOptions(**{"data": raw[0], **change, **paths}))
