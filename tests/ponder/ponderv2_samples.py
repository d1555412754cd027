"""Samples for PonderV2's transforms."""

from __future__ import annotations

from typing import Any

import numpy as np

from ponder.data.ponderv2.transforms import build_step, build_transform

Array = np.ndarray[Any, Any]
CAMERAS = dict(keys=["extrinsic"])


def make_sample(points: int = 200, seed: int = 0, dtype: type = np.float32) -> dict[str, Any]:
    """A scene with two views. Its arrays are read-only, so that a transform that writes into them fails."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(points, 3))
    turn = np.linalg.qr(rng.normal(size=(2, 3, 3)))[0]
    extrinsic = np.tile(np.eye(4), (2, 1, 1))
    extrinsic[:, :3, :3] = turn * np.linalg.det(turn)[:, None, None]
    extrinsic[:, :3, 3] = rng.normal(size=(2, 3))
    sample: dict[str, Any] = {
        "coord": (rng.random((points, 3)) * [4, 3, 2] + [1, -2, 0.5]).astype(dtype),
        "normal": (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(dtype),
        "color": rng.integers(0, 256, (points, 3)).astype(dtype),
        "segment": rng.integers(-1, 5, points),
        "instance": rng.integers(-1, 9, points),
        "extrinsic": extrinsic,
        "intrinsic": np.tile(np.array([[50.0, 0, 31], [0, 50, 23], [0, 0, 1]]), (2, 1, 1)),
        "rgb": rng.integers(0, 256, (2, 6, 8, 3)).astype(np.uint8),
        "depth": rng.integers(0, 4000, (2, 6, 8)).astype(np.float32),
        "depth_scale": 1 / 1000,
        "scene_id": "room",
    }
    for value in sample.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    return sample


def run(config: Any, sample: dict[str, Any], seed: int = 0) -> Any:
    step = build_transform(config) if isinstance(config, list) else build_step(config)
    return step(dict(sample), np.random.default_rng(seed))
