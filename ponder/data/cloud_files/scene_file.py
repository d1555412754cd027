"""Scenes as PonderV2's preprocessing saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.data.cloud_files.raw import RawCloud, make_cloud
from ponder.data.plain_files import read_plain
from ponder.data.scene import DataError


def read_scene_file(path: Path) -> RawCloud:
    """A dictionary with `coord` [N, 3] metres and, where present, `color` [N, 3] of 0..255 and `normal` [N, 3].

    ScanNet, S3DIS and Structured3D scenes have this form; labels are ignored.
    """
    content = read_plain(path)
    if not isinstance(content, dict) or "coord" not in content:
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: expected a dictionary with 'coord', got {got}")
    coord, colour, normal = (_array(content.get(name)) for name in ("coord", "color", "normal"))
    assert coord is not None
    return make_cloud(str(path), coord, colour, normal, colour_scale=255.0)


def _array(values: Any) -> NDArray | None:
    return None if values is None else np.asarray(values)
