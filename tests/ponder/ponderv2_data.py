"""Configurations of PonderV2's datasets on generated rooms, and ways to look into them and to damage them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ponder.data.ponderv2 import PointDataset, build_dataset
from ponder.data.ponderv2.files import load_dict

SCANNET = dict(type="ScanNetRGBDDataset", data_root="data/scannet", rgbd_root="data/scannet/rgbd", num_cameras=3)
S3DIS = dict(type="S3DISRGBDDataset", data_root="data/s3dis", split=("Area_1", "Area_2"), num_cameras=3)
STRUCTURED3D = dict(type="Structured3DRGBDDataset", data_root="data/structured3d", num_cameras=3)
WITH_VIEWS = {"ScanNet": SCANNET, "S3DIS": S3DIS, "Structured3D": STRUCTURED3D}
UNITS = {"ScanNet": 1 / 1000, "S3DIS": 1 / 4000, "Structured3D": 1 / 1000}


def build(config: dict[str, Any], root: Path, **options: Any) -> PointDataset:
    dataset = build_dataset(config | options, root)
    assert isinstance(dataset, PointDataset)
    return dataset


def frame_files(root: Path, name: str) -> list[Path]:
    """Image files of the room that comes first."""
    place = {"S3DIS": "s3dis/Area_1/office_1_rgbd", "Structured3D": "structured3d/train/scene_00000/room_0_rgbd"}
    return sorted((root / place[name]).glob("*.pth"))


def rewrite(path: Path, **changes: Any) -> None:
    torch.save(load_dict(path) | changes, path)


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
