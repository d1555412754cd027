"""ScanNet's labels: class lists, the label table, and the labels of a mesh's vertices."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ponder.data.convert.raw_files import read_object, read_text
from ponder.data.convert.sink import BrokenPieceError
from ponder.data.ponderv2.scannet import NYU40_IDS

# Position in these lists = class number. The 20 classes are NYU40 ids; the 200 are ids of ScanNet's label table, in
# the order of the ScanNet200 benchmark.
CLASSES_20 = NYU40_IDS
CLASSES_200 = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24, 26, 27, 28, 29, 31, 32, 33, 34,
    35, 36, 38, 39, 40, 41, 42, 44, 45, 46, 47, 48, 49, 50, 51, 52, 54, 55, 56, 57, 58, 59, 62, 63, 64, 65, 66, 67,
    68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 82, 84, 86, 87, 88, 89, 90, 93, 95, 96, 97, 98, 99, 100,
    101, 102, 103, 104, 105, 106, 107, 110, 112, 115, 116, 118, 120, 121, 122, 125, 128, 130, 131, 132, 134, 136,
    138, 139, 140, 141, 145, 148, 154, 155, 156, 157, 159, 161, 163, 165, 166, 168, 169, 170, 177, 180, 185, 188,
    191, 193, 195, 202, 208, 213, 214, 221, 229, 230, 232, 233, 242, 250, 261, 264, 276, 283, 286, 300, 304, 312,
    323, 325, 331, 342, 356, 370, 392, 395, 399, 408, 417, 488, 540, 562, 570, 572, 581, 609, 748, 776, 1156, 1163,
    1164, 1165, 1166, 1167, 1168, 1169, 1170, 1171, 1172, 1173, 1174, 1175, 1176, 1178, 1179, 1180, 1181, 1182,
    1183, 1184, 1185, 1186, 1187, 1188, 1189, 1190, 1191,
)  # fmt: skip
IGNORE = -1


class LabelTable(NamedTuple):
    """ScanNet's label table.

    Attributes:
        ids: name -> (label id, NYU40 id); of names listed twice the first counts.
        nyu40: [65536] uint8, label id -> NYU40 id, 0 for ids that are not listed.
    """

    ids: dict[str, tuple[int, int]]
    nyu40: NDArray[np.uint8]


def read_label_table(path: Path) -> LabelTable:
    """Read scannetv2-labels.combined.tsv.

    Raises:
        BrokenPieceError: missing, or without the columns id, raw_category and nyu40id.
    """
    rows = csv.DictReader(read_text(path, "label table").splitlines(), delimiter="\t")
    ids: dict[str, tuple[int, int]] = {}
    nyu40 = np.zeros(1 << 16, dtype=np.uint8)
    try:
        for row in rows:
            label, target = int(row["id"]), int(row["nyu40id"])
            if not (0 <= label < nyu40.size and 0 <= target < 256):
                raise ValueError(f"id {label}, nyu40id {target}")
            ids.setdefault(row["raw_category"], (label, target))
            nyu40[label] = target
        if not ids:
            raise ValueError("no rows")
    except (KeyError, TypeError, ValueError) as error:
        detail = f"{path} (line {rows.line_num}: {error})"
        raise BrokenPieceError("label table lacks id, raw_category and nyu40id", detail) from None
    return LabelTable(ids, nyu40)


def class_number(label: int, classes: tuple[int, ...]) -> int:
    """Position of a label in a class list, -1 if it is not in it."""
    return classes.index(label) if label in classes else IGNORE


def read_vertex_labels(
    segments: Path, aggregation: Path, count: int, table: LabelTable
) -> dict[str, NDArray[np.int64]]:
    """Labels of mesh vertices from their segments and the segments' objects.

    Args:
        segments: `.segs.json`, one segment per vertex.
        aggregation: `.aggregation.json`, the segments, name and number of each object.
        count: number of vertices.
        table: ids of the names.

    Returns:
        semantic_gt20, semantic_gt200 and instance_gt, [count] int64, -1 = none. Of objects that share a segment the
        last counts.

    Raises:
        BrokenPieceError: a file is missing or damaged, or is not about this mesh.
    """
    segment_of = _integers(read_object(segments, "segments file"), "segIndices", segments)
    if len(segment_of) != count:
        raise BrokenPieceError("segments file is of another mesh", f"{segments} ({len(segment_of)}, {count} vertices)")
    listed, position = np.unique(segment_of, return_inverse=True)
    labels = np.full((3, len(listed)), IGNORE, dtype=np.int64)
    for name, instance, members in _objects(aggregation):
        label, nyu40 = table.ids.get(name, (0, 0))
        values = class_number(nyu40, CLASSES_20), class_number(label, CLASSES_200), instance
        labels[:, np.isin(listed, members)] = np.array(values)[:, None]
    semantic_20, semantic_200, instance = labels[:, position]
    return {"semantic_gt20": semantic_20, "semantic_gt200": semantic_200, "instance_gt": instance}


def _objects(path: Path) -> list[tuple[str, int, NDArray[np.int64]]]:
    """Name, number and segments of each object."""
    data = read_object(path, "aggregation file")
    try:
        return [
            (str(group["label"]), int(group["id"]), _integers(group, "segments", path)) for group in data["segGroups"]
        ]
    except BrokenPieceError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = "aggregation file lacks segGroups of label, segments and id"
        raise BrokenPieceError(reason, f"{path} ({error})") from None


def _integers(data: dict, key: str, path: Path) -> NDArray[np.int64]:
    try:
        values = np.array(data[key])
        if values.size and (values.ndim != 1 or values.dtype.kind != "i"):
            raise ValueError(f"{key}: {values.dtype} {list(values.shape)}")
    except (KeyError, ValueError) as error:
        raise BrokenPieceError("label files do not hold lists of segment numbers", f"{path} ({error})") from None
    return values.astype(np.int64).reshape(-1)
