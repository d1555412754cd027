"""Arguments of `ponder features`."""

from __future__ import annotations

import argparse


def add_features(commands: argparse._SubParsersAction) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "features",
        help="features of every point of your own cloud",
        description="Features of every point of a cloud with the frozen backbone of a checkpoint, ours or PonderV2's.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt of a run, or a file of PonderV2's")
    parser.add_argument(
        "--data",
        metavar="CLOUD",
        required=True,
        help="a .ply, .pcd, .las, .laz, .npy, .npz, .xyz, .txt, .csv or PonderV2's .pth, in metres; "
        "an RGB-D folder; or room:SEED",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help=".npz (coord, feature), .npy (features alone) or .ply (points coloured by the features)",
    )
    parser.add_argument("--pca", action="store_true", help="add colours of the three principal components to .npz")
    parser.add_argument("--dtype", default="float32", help="of the features in the file: float32 (default) or float16")
    parser.add_argument("--config", metavar="CONFIG.py", help="PonderV2's config, if it is not one of those it ships")
    parser.add_argument("--condition", metavar="DATASET", help="dataset whose norms SpUNet-v1m3 uses (default ScanNet)")
    parser.add_argument("--voxel", type=float, metavar="METRES", help="edge of a voxel (default: that of the training)")
    parser.add_argument("--reduce", default="mean", help="points of a voxel: their mean (default), or one point")
    parser.add_argument(
        "--viewpoint",
        default="centre",
        metavar="X,Y,Z",
        help="where normals point to that have to be estimated: a position, up, or centre of the box (default)",
    )
    parser.add_argument(
        "--chunk", type=int, default=400_000, metavar="VOXELS", help="most voxels at a time (default 400000)"
    )
    parser.add_argument(
        "--block", type=float, metavar="METRES", help="longest edge of a block (default: what --chunk allows)"
    )
    parser.add_argument(
        "--overlap", type=float, metavar="METRES", help="context around every block (default: 100 voxels)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
