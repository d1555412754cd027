"""Arguments of the commands that read PonderV2's config files."""

from __future__ import annotations

import argparse
import os

EVALUATE_HELP = "or a semantic-segmentation config, tested with --weights"
PARITIES = ("ponderv2", "corrected")


def is_config(text: str) -> bool:
    """Whether an argument means a config file: it ends in .py or has a path separator; recipes have neither."""
    return text.endswith(".py") or "/" in text or os.sep in text


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Options that only a config file needs."""
    group = parser.add_argument_group("for a PonderV2 config file")
    group.add_argument("--weights", metavar="FILE", help="weights to start from (default: the config's `weight`)")
    group.add_argument(
        "--text",
        metavar="SOURCE",
        help="embeddings of the class names: clip, offline (from the words alone), or a .npz or .safetensors file",
    )
    group.add_argument(
        "--parity",
        choices=PARITIES,
        default=PARITIES[0],
        help="ponderv2 (default) keeps the departures of its code from its paper, corrected does not",
    )


def add_finetune(commands: argparse._SubParsersAction) -> None:
    """The parser of `ponder finetune`."""
    parser = commands.add_parser(
        "finetune",
        help="train a downstream task as a PonderV2 config says",
        description="Train semantic segmentation as a PonderV2 config says, from pre-trained weights or from scratch.",
    )
    parser.add_argument("recipe", metavar="CONFIG.py", help="a semantic-segmentation config of PonderV2")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, e.g. batch_size=4")
    parser.add_argument("--data", metavar="ROOT", help='folder that stands for the config\'s "data"')
    parser.add_argument("--out", metavar="DIR", help="output folder (default: the first free runs/CONFIG, ...)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    add_config_options(parser)
