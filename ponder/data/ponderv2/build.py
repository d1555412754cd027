"""From the dataset dicts of PonderV2's configurations to datasets."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder.data.ponderv2.base import PointDataset
from ponder.data.ponderv2.concat import ConcatDataset
from ponder.data.ponderv2.rooms import (
    DefaultDataset,
    S3DISDataset,
    S3DISRGBDDataset,
    Structured3DDataset,
    Structured3DRGBDDataset,
)
from ponder.data.ponderv2.scannet import ScanNet200Dataset, ScanNetDataset, ScanNetRGBDDataset
from ponder.registry import check_keys, choose, construct

DATASETS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        ConcatDataset,
        DefaultDataset,
        S3DISDataset,
        S3DISRGBDDataset,
        ScanNet200Dataset,
        ScanNetDataset,
        ScanNetRGBDDataset,
        Structured3DDataset,
        Structured3DRGBDDataset,
    )
}
_FOLDERS = ("data_root", "rgbd_root", "lr_file", "la_file", "teacher_root")
_DATA = "data"


def build_dataset(
    cfg: Mapping[str, Any],
    root: Path | str | None = None,
    seed: int | Sequence[int] = 0,
    keep_class_zero: bool | None = None,
    min_depth_pixels: int | None = None,
) -> PointDataset | ConcatDataset:
    """A dataset from `dict(type=NAME, split=..., data_root=..., transform=[...], ...)`.

    Args:
        cfg: `data.train`, `data.val` or `data.test` of a configuration.
        root: folder that takes the place of the leading "data/" of its paths; None leaves them as they are.
        seed: of all draws, at least 0; the parts of a concatenation draw independently.
        keep_class_zero, min_depth_pixels: see `ViewDataset`, for all datasets with images that do not say themselves;
            None = their defaults.

    Raises:
        ValueError: an unknown type or argument, or a wrong value; the message names it.
        DataError: missing or unusable files.
    """
    given = {"keep_class_zero": keep_class_zero, "min_depth_pixels": min_depth_pixels}
    return _build(cfg, root, seed, {key: value for key, value in given.items() if value is not None}, "dataset")


def _build(
    cfg: Mapping[str, Any], root: Path | str | None, seed: int | Sequence[int], given: Mapping[str, Any], where: str
) -> PointDataset | ConcatDataset:
    name, cls, arguments = choose(cfg, DATASETS, where)
    where = f"{where}: {name}"
    if cls is ConcatDataset:
        return _concatenation(arguments, root, seed, given, where)
    known = inspect.signature(cls).parameters
    for key in _FOLDERS:
        # Folders that the configuration leaves out have a default below "data" too.
        value = arguments.get(key, known[key].default if key in known else None)
        if isinstance(value, str | Path):
            arguments[key] = _placed(str(value), root)
    arguments = {key: value for key, value in given.items() if key in known} | arguments
    dataset: PointDataset = construct(cls, arguments, where, own={"seed": seed})
    return dataset


def _concatenation(
    arguments: dict[str, Any],
    root: Path | str | None,
    seed: int | Sequence[int],
    given: Mapping[str, Any],
    where: str,
) -> ConcatDataset:
    check_keys(arguments, ("datasets", "loop"), where)
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    parts = []
    for number, part in enumerate(arguments.get("datasets") or ()):
        dataset = _build(part, root, (*seeds, number), given, f"{where}.datasets[{number}]")
        if isinstance(dataset, ConcatDataset):
            raise ValueError(f"{where}.datasets[{number}].type: expected no ConcatDataset within one")
        parts.append(dataset)
    return ConcatDataset(parts, arguments.get("loop", 1))


def _placed(path: str, root: Path | str | None) -> str:
    """The path with its leading "data" replaced."""
    head, *rest = Path(path).parts or ("",)
    return path if root is None or head != _DATA else str(Path(root, *rest))
