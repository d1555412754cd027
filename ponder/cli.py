"""The command line: `ponder pretrain | finetune | evaluate | render | mesh | features | convert | doctor`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ponder.cli_convert import add_convert
from ponder.cli_features import add_features
from ponder.cli_ponderv2 import EVALUATE_HELP, add_config_options, add_finetune

# Seconds-long imports (torch, skimage, spconv) happen inside the commands, so that --help answers at once.

EPILOG = """examples:
  ponder pretrain demo                                   procedural rooms, no download
  ponder pretrain rgbd --data my_sequence --out runs/a   an RGB-D folder
  ponder pretrain rgbd --data my_sequence --out runs/a --resume
  ponder evaluate runs/a/checkpoint.pt --data my_sequence --out runs/a/evaluate
  ponder pretrain configs/scannet/pretrain-ponder-spunet-v1m1-0-base.py --data data    a PonderV2 config
  ponder features model_last.pth --data office.ply --out office.npz
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="ponder",
        description="Pre-train 3D representations by differentiable neural rendering.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_pretrain(commands)
    add_finetune(commands)
    _add_evaluate(commands)
    _add_render(commands)
    _add_mesh(commands)
    add_features(commands)
    add_convert(commands)
    commands.add_parser("doctor", help="what was found on this machine, and what will be used")
    return parser


def _add_pretrain(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("pretrain", help="train by rendering", description="Train by rendering.")
    parser.add_argument(
        "recipe", metavar="RECIPE", help="demo (procedural rooms), rgbd (an RGB-D folder), or a PonderV2 config file"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to change, e.g. steps=100 optim.lr=1e-3"
    )
    parser.add_argument("--data", metavar="PATH", help="folder of the recipe's input")
    parser.add_argument(
        "--out", metavar="DIR", help="output folder (default: the first free runs/RECIPE, runs/RECIPE-2, ...)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --out (default: the latest runs/RECIPE*)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    add_config_options(parser)


def _add_scene(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt of a run")
    parser.add_argument(
        "--data",
        metavar="SCENE",
        help="input cloud: an RGB-D folder or room:SEED (default: the first scene of the training)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluate", help=f"compare rendered views with frames, {EVALUATE_HELP}")
    _add_scene(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the config file to change")
    add_config_options(parser)
    parser.add_argument(
        "--views",
        metavar="FOLDER",
        help="RGB-D frames to compare with, in the scene's world frame (default: its held-out frames)",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="output folder")


def _add_render(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("render", help="colour, depth and normal images along a path, and an animation")
    _add_scene(parser)
    parser.add_argument(
        "--poses",
        metavar="FILE",
        help="camera-to-world matrices, 16 numbers each (default: a path through the views)",
    )
    parser.add_argument("--frames", type=int, default=24, help="images along an interpolated path (default 24)")
    parser.add_argument("--width", type=int, help="image width in pixels (default: that of the scene's frames)")
    parser.add_argument("--out", metavar="DIR", required=True, help="output folder")


def _add_mesh(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("mesh", help="triangle mesh of the learned SDF")
    _add_scene(parser)
    parser.add_argument(
        "--cell",
        type=float,
        help="spacing of the marching-cubes lattice in metres (default: the run's mesh_cell)",
    )
    parser.add_argument("--out", metavar="FILE.ply", required=True, help="file to write")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; `key=value` may stand before, between or behind the options."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    stray = [text for text in rest if not hasattr(options, "overrides") or text.startswith("-")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:
        options.overrides += rest
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = parse(arguments)
    # Read by the OpenMP runtime when torch loads. Its default is to spin at every barrier: some 15 % faster on an idle
    # two-core machine, but three times slower as soon as one other process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ponder import commands

    return commands.run(options)


if __name__ == "__main__":
    sys.exit(main())
