"""Files of features: .npz, .npy, and .ply with the three strongest directions of the features as colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ponder.data.cloud_files import ply_bytes
from ponder.train.files import write_atomically, write_bytes

ENDINGS = (".npz", ".npy", ".ply")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
# Shares of the voxels that may be darker than black or brighter than white.
_LOW, _HIGH = 0.01, 0.99
_ROWS = 1 << 18


def principal_colours(features: Tensor) -> Tensor:
    """Colours from the three principal components of features.

    Args:
        features: [V, C].

    Returns:
        [V, 3] uint8: red the strongest. Each component spans the range between its 1st and 99th percentile, and has
        the sign that makes its largest weight positive. A component without variance is mid grey.
    """
    mean = features.mean(0, dtype=torch.float64)
    # In parts: all features in float64 may be more than what computed them needed.
    moments = sum(part.T @ part for part in (part.double() - mean for part in features.split(_ROWS)))
    _, axes = torch.linalg.eigh(moments)
    axes = axes[:, -3:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    values = torch.cat([(part.double() - mean) @ axes for part in features.split(_ROWS)])
    values = torch.nn.functional.pad(values, (0, 3 - values.shape[1]))
    ordered = values.sort(0).values
    low, high = (ordered[round(share * (len(values) - 1))] for share in (_LOW, _HIGH))
    spread = high - low
    flat = spread <= 1e-9 * spread.max().clamp_min(1e-30)
    shares = torch.where(flat, 0.5, (values - low) / torch.where(flat, 1.0, spread))
    return (shares.clamp(0, 1) * 255).round().to(torch.uint8)


def write_features(path: Path, coord: Tensor, features: Tensor, colours: Tensor | None) -> None:
    """Write features atomically; the ending of the name says how.

    Args:
        path: .npz: arrays `coord`, `feature` and, if given, `pca`; .npy: the features alone; .ply: points with `pca`
            as colours.
        coord: [N, 3] float64 metres.
        features: [N, C].
        colours: [N, 3] uint8 of `principal_colours`; needed for .ply.

    Raises:
        ValueError: another ending, or no colours for .ply.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS or (ending == ".ply" and colours is None):
        raise ValueError(f"path: expected a name ending in {', '.join(ENDINGS)} (.ply with colours), got {path.name}")
    if ending == ".ply" and colours is not None:
        write_bytes(path, ply_bytes(coord.numpy(), colours.numpy()))
    elif ending == ".npy":
        write_atomically(path, lambda stream: np.save(stream, features.numpy()))
    elif colours is None:
        write_atomically(path, lambda stream: np.savez(stream, coord=coord.numpy(), feature=features.numpy()))
    else:
        pca = colours.numpy()
        write_atomically(path, lambda stream: np.savez(stream, coord=coord.numpy(), feature=features.numpy(), pca=pca))
