"""PonderV2's datasets where frames, scenes, files or configurations cannot be used."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ponder.data.ponderv2 import SampleKey, build_dataset, describe
from ponder.data.ponderv2.files import load_dict, read_image
from ponder.data.ponderv2.skips import (
    BAD_LABELS,
    BAD_POSE,
    LITTLE_DEPTH,
    LITTLE_MASK,
    MISSING,
    NO_FRAMES,
    OTHER_SIZE,
    UNREADABLE,
)
from ponder.data.scene import DataError
from tests.ponder.ponderv2_data import (
    S3DIS,
    SCANNET,
    STRUCTURED3D,
    WITH_VIEWS,
    build,
    equal,
    frame_files,
    rewrite,
)

# ------------------------------------------------------------------------------------------------ unusable frames


def test_broken_frames_of_scannet_are_replaced(own: Path) -> None:
    """Of the frames 40, 50, 60, 70 three are broken in their own ways: every view shows the fourth."""
    scene = own / "scannet/rgbd/scene0000_00"
    (scene / "pose/40.txt").write_text("-inf -inf -inf -inf\n" * 4)
    (scene / "label/50.png").unlink()
    Image.fromarray(np.zeros((48, 64), dtype=np.uint16)).save(scene / "depth/60.png")
    dataset = build(SCANNET, own)
    sample = dataset[0]
    assert sample["id"] == "scene0000_00/70" and len({tuple(pose.ravel()) for pose in sample["extrinsic"]}) == 1
    assert dataset.skipped == {BAD_POSE: 1, MISSING: 1, LITTLE_DEPTH: 1}
    assert sorted(describe(dataset.skipped).split(", ")) == sorted(f"1 x {r}" for r in dataset.skipped)
    assert equal(sample, dataset[0]) and equal(sample, build(SCANNET, own)[0])
    (scene / "color/70.jpg").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"no scene of 'train' can be used: .*1 x frame with a file that cannot be read"
    ):
        build(SCANNET, own)[0]


@pytest.mark.parametrize("name", ["S3DIS", "Structured3D"])
def test_broken_frames_of_rooms_are_replaced(own: Path, name: str) -> None:
    files = frame_files(own, name)
    rewrite(files[0], depth_mask=np.zeros((48, 64), dtype=bool))
    rewrite(files[1], extrinsic=np.zeros((4, 4)))
    files[2].write_bytes(files[2].read_bytes()[:500])
    before = {path: path.read_bytes() for path in files}
    dataset = build(WITH_VIEWS[name], own)
    good = np.linalg.inv(load_dict(files[3])["extrinsic"])
    for pose in dataset[0]["extrinsic"]:
        np.testing.assert_allclose(pose, good, atol=1e-6)
    assert dataset.skipped == {LITTLE_MASK: 1, BAD_POSE: 1, UNREADABLE: 1}
    assert {path: path.read_bytes() for path in frame_files(own, name)} == before, "no file is renamed or changed"


def test_little_depth_and_other_sizes(own: Path) -> None:
    files = frame_files(own, "S3DIS")
    stored = load_dict(files[0])
    rewrite(files[0], depth=np.where(np.arange(48 * 64).reshape(48, 64) < 300, stored["depth"], 0))
    small = {key: stored[key][:40] for key in ("rgb", "depth", "depth_mask", "semantic_map")}
    dataset = build(S3DIS, own, num_cameras=4, min_depth_pixels=400)
    assert dataset[0]["depth"].shape == (4, 48, 64) and dataset.skipped == {LITTLE_DEPTH: 1}
    assert build(S3DIS, own, num_cameras=4, min_depth_pixels=100)[0] and not build(S3DIS, own).skipped
    rewrite(files[0], **small)
    dataset = build(S3DIS, own, num_cameras=4)
    for epoch in range(4):
        assert len(dataset[SampleKey(epoch, 0, 0)]["depth"]) == 4
    assert dataset.skipped[OTHER_SIZE] >= 4


def test_unusable_scenes_are_replaced(own: Path) -> None:
    for path in frame_files(own, "Structured3D"):
        rewrite(path, depth_mask=np.zeros((48, 64), dtype=bool))
    dataset = build(STRUCTURED3D, own)
    good = build(STRUCTURED3D, own)[1]["coord"]
    np.testing.assert_array_equal(dataset[0]["coord"], good)
    assert dataset.skipped[NO_FRAMES] >= 1
    for path in frame_files(own, "Structured3D"):
        path.unlink()
    listed = build(STRUCTURED3D, own)
    assert len(listed) == 1 and listed.skipped == {NO_FRAMES: 1}


def test_labels_out_of_range(own: Path) -> None:
    path = own / "s3dis/Area_1/office_1.pth"
    labels = load_dict(path)["semantic_gt"].copy()
    labels[:5, 0] = [13, -2, 255, 12, -1]
    rewrite(path, semantic_gt=labels)
    dataset = build(S3DIS, own, num_cameras=4)
    assert dataset[0]["segment"][:5].tolist() == [-1, -1, -1, 12, -1] and dataset.skipped == {BAD_LABELS: 1}
    other = build(dict(type="S3DISDataset", data_root="data/s3dis", ignore_index=-100), own)
    assert other[0]["segment"][:5].tolist() == [-100, -100, -100, 12, -100]
    image = frame_files(own, "S3DIS")[0]
    semantic = load_dict(image)["semantic_map"].copy()
    semantic[0, :3] = [41, 39, 12]
    rewrite(image, semantic_map=semantic)
    dataset = build(S3DIS, own, num_cameras=4)
    found = dataset[0]["semantic"]
    assert found.max() <= 12 and dataset.skipped[BAD_LABELS] == 2


def test_teacher_features(own: Path, tmp_path: Path) -> None:
    """Files beside the images, in the folders of the images."""
    places = {
        "ScanNet": [f"scene0000_00/{number}" for number in (40, 50, 60, 70)],
        "S3DIS": [f"Area_1/office_1/{path.stem}" for path in frame_files(own, "S3DIS")],
        "Structured3D": [f"train/scene_00000/room_0/frame_{v}" for v in range(4)],
    }
    for name, stems in places.items():
        folder = tmp_path / name
        for number, stem in enumerate(stems[:3]):
            path = folder / stem
            path.parent.mkdir(parents=True, exist_ok=True)
            feature = np.full((3, 4, 5), number, dtype=np.float16)
            if number:
                np.save(f"{path}.npy", feature)
            else:
                np.savez(f"{path}.npz", features=feature, other=np.zeros(2))
        dataset = build(WITH_VIEWS[name], own, teacher_root=str(folder), num_cameras=3)
        sample = dataset[0]
        assert sample["teacher"].shape == (3, 3, 4, 5) and sample["teacher"].dtype == np.float16
        assert {int(t.min()) for t in sample["teacher"]} == {0, 1, 2}
        assert dataset.skipped.total() == dataset.skipped[MISSING] <= 1
        np.save(folder / f"{stems[1]}.npy", np.zeros((3, 4)))
        broken = build(WITH_VIEWS[name], own, teacher_root=str(folder), num_cameras=4)
        assert {int(t.min()) for t in broken[0]["teacher"]} == {0, 2} and broken.skipped[UNREADABLE] == 1


# ------------------------------------------------------------------------------------------------ files and errors


def old_numpy_file(path: Path, data: dict[str, Any]) -> None:
    """A saved dict whose arrays refer to NumPy 1's modules."""
    torch.save(data, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert any(b"numpy._core" in text for text in content.values())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, text in content.items():
            archive.writestr(name, text.replace(b"cnumpy._core.", b"cnumpy.core."))


def test_files_written_with_any_numpy(tmp_path: Path) -> None:
    kinds = ("float64", "float32", "float16", "int64", "int16", "uint8", "uint16", "bool")
    data: dict[str, Any] = {kind: np.arange(6).reshape(3, 2).astype(kind)[:, ::-1] for kind in kinds}
    data |= {"scene_id": "a", "number": 3, "scalar": np.float64(0.5), "tensor": torch.arange(3)}
    torch.save(data, tmp_path / "new.pth")
    old_numpy_file(tmp_path / "old.pth", data)
    for name in ("new.pth", "old.pth"):
        loaded = load_dict(tmp_path / name)
        assert loaded.keys() == data.keys() and isinstance(loaded["tensor"], np.ndarray)
        for key, value in data.items():
            assert np.array_equal(loaded[key], value), key
            assert not isinstance(value, np.ndarray) or loaded[key].dtype == value.dtype


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_files_cannot_run_code(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    torch.save({"coord": _Evil(mark)}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"evil\.pth: .* not a file of plain arrays"):
        load_dict(tmp_path / "evil.pth")
    assert not mark.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert mark.exists(), "the file was harmless"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "not a file of plain arrays"),
        (b"PK\x03\x04 cut", "not a file of plain arrays"),
        (pickle.dumps([1], protocol=2), "not a file of plain arrays"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_dict(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_lists_are_no_scenes(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(DataError, match="expected a saved dict of arrays, got list"):
        load_dict(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(normal=np.zeros((3, 3))), "expected 'normal' for 3000 points, got 3"),
        (dict(color=np.zeros((3000, 4))), r"expected 'color' of shape \[N, 3\] with N > 0, got \[3000, 4\]"),
        (dict(coord=None), r"expected 'coord' of shape \[N, 3\] with N > 0, got nothing"),
        (dict(coord=np.full((3000, 3), np.nan)), "expected finite 'coord', got 9000 other values"),
        (dict(semantic_gt20=np.zeros(7)), "expected 'semantic_gt20' for 3000 points, got 7"),
    ],
)
def test_malformed_scenes(own: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(own / "scannet/train/scene0000_00.pth", **changes)
    with pytest.raises(DataError, match=message):
        build(dict(type="ScanNetDataset", data_root="data/scannet"), own)[0]


def test_missing_folders(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scannet/train: expected a folder of prepared scenes, got nothing"):
        build(dict(type="ScanNetDataset", data_root="data/scannet"), tmp_path)
    with pytest.raises(DataError, match="Area_7: expected a folder"):
        build(S3DIS, world, split=("Area_1", "Area_7"))
    with pytest.raises(DataError, match="videos: expected a folder of recordings, got nothing"):
        build(SCANNET, world, rgbd_root="data/scannet/videos")
    with pytest.raises(DataError, match="expected scenes in 'Area_6', found none"):
        build(dict(type="S3DISDataset", data_root="data/s3dis", split="Area_6"), world)
    with pytest.raises(DataError, match=r"found none \(1 x scene without usable frames\)"):
        build(SCANNET, world, split="val", nearby_num=30)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="ScanNetDatasets"), "dataset: type is .*did you mean 'ScanNetDataset'"),
        (dict(split="train"), "dataset: lacks a type; known: ConcatDataset, "),
        (S3DIS | dict(num_camera=3), "dataset: S3DISRGBDDataset: unknown key 'num_camera'; did you mean 'num_cameras'"),
        (S3DIS | dict(num_cameras=0), "num_cameras: expected at least 1, got 0"),
        (S3DIS | dict(loop=0), "loop: expected an integer of at least 1, got 0"),
        (S3DIS | dict(seed=1), "S3DISRGBDDataset: unknown key 'seed'; known: "),
        (S3DIS | dict(transform=[dict(type="Colect")]), r"transform\[0\]: type is 'Colect'; did you mean 'Collect'"),
        (SCANNET | dict(frame_interval=0), "frame_interval, .*: expected at least 1"),
        (dict(type="ConcatDataset", datasets=[]), "datasets: expected at least one"),
        (dict(type="ConcatDataset", dataset=[]), "ConcatDataset: unknown key 'dataset'; did you mean 'datasets'"),
        (
            dict(type="ConcatDataset", datasets=[dict(type="ScanNetDataset", spli="x")]),
            r"ConcatDataset.datasets\[0\]: ScanNetDataset: unknown key 'spli'; did you mean 'split'",
        ),
    ],
)
def test_wrong_configurations(world: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_dataset(config, world)
    with pytest.raises(ValueError, match="seed: expected an integer of at least 0, got -1"):
        build_dataset(S3DIS, world, seed=-1)[0]


def test_root_replaces_data_alone(world: Path) -> None:
    """Defaults are below "data" as well; absolute folders stay."""
    assert len(build(dict(type="ScanNetDataset"), world)) == 2
    absolute = dict(type="S3DISDataset", data_root=str(world / "s3dis"))
    assert len(build(absolute, Path("/nowhere"))) == 2
    stated = build_dataset(S3DIS, world, keep_class_zero=True, min_depth_pixels=7)
    assert stated.keep_class_zero and stated.min_depth_pixels == 7  # type: ignore[union-attr]
    assert not build_dataset(dict(type="S3DISDataset"), world, min_depth_pixels=7).skipped


def test_images_of_other_kinds(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(buffer, format="PNG")
    (tmp_path / "rgb.png").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="expected one channel of 8 or 16 bits, got uint8 of"):
        read_image(tmp_path / "rgb.png")
    Image.fromarray(np.full((4, 4), 40000, dtype=np.int32)).save(tmp_path / "wide.tiff")
    assert read_image(tmp_path / "wide.tiff").dtype == np.uint16
