"""From a raw download through `ponder convert` to the samples of PonderV2's datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial import KDTree

from ponder.cli import main
from ponder.data.ponderv2.build import build_dataset
from ponder.data.synthetic.raw import write_raw_s3dis, write_raw_scannet, write_raw_structured3d

SIZE = (18, 24)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that PonderV2's configurations call data/."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    for name in ("scannet", "s3dis", "structured3d"):
        (raw / name).mkdir()
    write_raw_scannet(raw / "scannet", scenes=2, size=SIZE)
    write_raw_s3dis(raw / "s3dis", areas=(1, 5), size=SIZE)
    write_raw_structured3d(raw / "structured3d", scenes=(7, 3001), size=SIZE)
    for arguments in (
        ["scannet", "--data", "scannet", "--splits", "scannet/splits"],
        ["s3dis", "--data", "s3dis/Stanford3dDataset_v1.2", "--images", "s3dis/2D-3D-S", "--align-angle"],
        ["structured3d", "--data", "structured3d"],
    ):
        places = [str(raw / word) if "/" in word or word == arguments[0] else word for word in arguments[1:]]
        assert main(["convert", arguments[0], *places, "--out", str(out / arguments[0]), "--workers", "1"]) == 0
    return out


CONFIGS: dict[str, dict[str, Any]] = {
    # As few frames as these recordings have none of PonderV2's margins.
    "ScanNetRGBDDataset": dict(
        split="train", data_root="data/scannet", frame_interval=1, nearby_num=0, nearby_interval=0, num_cameras=2
    ),
    "S3DISRGBDDataset": dict(split=("Area_1", "Area_5"), data_root="data/s3dis", num_cameras=2),
    "Structured3DRGBDDataset": dict(split=("train", "val"), data_root="data/structured3d", num_cameras=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_views_fit_their_clouds(name: str, data: Path) -> None:
    """Unprojected with their cameras, pixels lie on the cloud, with its colours and classes."""
    dataset = build_dataset({"type": name, "transform": [], **CONFIGS[name]}, root=data, keep_class_zero=True)
    assert len(dataset) == (1 if name.startswith("ScanNet") else 2)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample["rgb"].shape == (2, *SIZE, 3) and sample["normal"].shape == sample["coord"].shape
        tree = KDTree(sample["coord"])
        for view in range(2):
            z = sample["depth"][view] * sample["depth_scale"]
            rows, columns = np.nonzero(z > 0)
            z = z[rows, columns]
            matrix = sample["intrinsic"][view]
            x = (columns - matrix[0, 2]) / matrix[0, 0] * z
            y = (rows - matrix[1, 2]) / matrix[1, 1] * z
            world = np.stack([x, y, z, np.ones_like(z)], 1) @ np.linalg.inv(sample["extrinsic"][view]).T
            distance, nearest = tree.query(world[:, :3])
            assert np.quantile(distance, 0.9) < 0.02 and len(z) > 0.5 * SIZE[0] * SIZE[1]
            label = sample["semantic"][view][rows, columns]
            assert (label == sample["segment"].reshape(-1)[nearest]).mean() > 0.95
            gap = np.abs(sample["rgb"][view][rows, columns].astype(float) - sample["color"][nearest])
            assert np.median(gap) < 25


@pytest.mark.parametrize(
    ("config", "count", "classes"),
    [
        (dict(type="ScanNetDataset", split=["train", "val"], data_root="data/scannet"), 2, 20),
        (dict(type="ScanNet200Dataset", split="val", data_root="data/scannet"), 1, 200),
        (dict(type="S3DISDataset", split="Area_5", data_root="data/s3dis"), 1, 13),
        (dict(type="Structured3DDataset", split="val", data_root="data/structured3d"), 1, 25),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else None,
)
def test_clouds(config: dict[str, Any], count: int, classes: int, data: Path) -> None:
    dataset = build_dataset({"transform": [], **config}, root=data)
    assert len(dataset) == count
    for index in range(count):
        sample = dataset[index]
        assert len(sample["segment"]) == len(sample["coord"]) == len(sample["normal"])
        assert sample["segment"].min() >= -1 and 2 < sample["segment"].max() < classes
    assert not dataset.skips.counter()
