"""Arguments of `ponder convert`."""

from __future__ import annotations

import argparse
import os

_MAX_DEFAULT_WORKERS = 4

_EPILOG = """examples:
  ponder convert scannet --data ScanNet --splits ScanNet/Tasks/Benchmark --out data/scannet
  ponder convert s3dis --data Stanford3dDataset_v1.2 --images 2D-3D-S --out data/s3dis
  ponder convert structured3d --data Structured3D_zips --out data/structured3d

What is missing or damaged is left out and counted; convert.json in the output folder has the counts. An interrupted
conversion goes on where it was when the same command is given again.
"""


def add_convert(commands: argparse._SubParsersAction) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "convert",
        help="raw ScanNet, S3DIS or Structured3D to PonderV2's files",
        description="Convert the download of a data set to the files that PonderV2's datasets read.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    _add_scannet(datasets)
    _add_s3dis(datasets)
    _add_structured3d(datasets)


def _add_dataset(datasets: argparse._SubParsersAction, name: str, data: str, every: str) -> argparse.ArgumentParser:
    parser = datasets.add_parser(name, help=f"convert {data}", description=f"Convert {data}.")
    parser.add_argument("--data", metavar="RAW", required=True, help=f"folder of {data}")
    parser.add_argument("--out", metavar="PROCESSED", required=True, help="folder to write")
    workers = min(_MAX_DEFAULT_WORKERS, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, metavar="N", help=f"processes (default {workers})")
    parser.add_argument("--every", type=int, default=1, metavar="N", help=f"{every} (default 1: all)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--clouds-only", action="store_true", help="no RGB-D frames")
    only.add_argument("--frames-only", action="store_true", help="no point clouds")
    return parser


def _add_scannet(datasets: argparse._SubParsersAction) -> None:
    parser = _add_dataset(
        datasets, "scannet", "the ScanNet download, with scans/ and perhaps scans_test/",
        "every N-th frame, under its own number; PonderV2's own loader needs all of them",
    )  # fmt: skip
    parser.add_argument(
        "--splits",
        metavar="FOLDER",
        help="folder with scannetv2_train.txt and scannetv2_val.txt; scenes in neither are test scenes",
    )
    parser.add_argument("--split", metavar="NAME", help="instead of --splits: train, val or test for all of scans/")
    parser.add_argument(
        "--labels", metavar="FILE", help="the label table (default: scannetv2-labels.combined.tsv in RAW)"
    )
    parser.add_argument(
        "--keep-jpeg",
        action="store_true",
        help="copy the recorded colour images (faster, no second loss) instead of encoding them again as PonderV2 does",
    )


def _add_s3dis(datasets: argparse._SubParsersAction) -> None:
    parser = _add_dataset(
        datasets, "s3dis", "Stanford3dDataset_v1.2, with Area_1/ to Area_6/", "every N-th frame of a room"
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="2D-3D-S, with area_1/raw, area_1/3d and so on, for frames and normals (default: neither)",
    )
    parser.add_argument("--align-angle", action="store_true", help="turn rooms by their alignment angles")
    parser.add_argument("--no-normals", action="store_true", help="no normals from the meshes of 2D-3D-S")


def _add_structured3d(datasets: argparse._SubParsersAction) -> None:
    parser = _add_dataset(
        datasets, "structured3d", "the Structured3D zip archives", "every N-th frame of a room; clouds are made of all"
    )
    parser.add_argument(
        "--grid-size", type=float, default=0.01, metavar="METRES",
        help="keep one point per cube of this side (default 0.01; 0: all)",
    )  # fmt: skip
    parser.add_argument(
        "--views", choices=("perspective", "panorama", "both"), default="both", help="what clouds are made of"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the points that are kept (default 0)")
