"""Semantic segmentation in a run: validation after each epoch, and the test protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ponder.data.ponderv2 import collate
from ponder.tasks.semseg import Overlap, save_area, scores, validate
from ponder.tasks.semseg_votes import prediction_writer, scene_iou, segment_scenes, summary
from ponder.train.config import ConfigError
from ponder.train.ponderv2.distributed import World, all_sum
from ponder.train.ponderv2.loaders import TestScenes, validation_batches
from ponder.train.ponderv2.loop import Validated
from ponder.train.ponderv2.settings import TrainerConfig
from ponder.train.ponderv2.step import to_device
from ponder.train.progress import Stage

Config = Mapping[str, Any]
# The score that chooses the best weights.
CHOOSES = "mIoU"


class Segmentation:
    """Validation of a semantic-segmentation configuration.

    Args:
        config: its `data` has num_classes, ignore_index, names and val.
        settings: of the run.
        world: this rank; each sees its part of the scenes.
        root: folder that stands for "data".
    """

    def __init__(self, config: Config, settings: TrainerConfig, world: World, root: Path | None) -> None:
        self.classes, self.ignore, self.names = classes_of(config)
        self.world = world
        self.batches = validation_batches(config, settings, world, root)

    def validate(self, model: nn.Module, device: torch.device) -> Validated:
        """Segment all validation scenes, in float32 as PonderV2 does; the same result on every rank."""
        batches = (to_device(batch, device) for batch in self.batches)
        found = validate(model, batches, self.classes, self.ignore, lambda value: all_sum(value, self.world))
        values = summary(found.scores, self.names)
        if math.isfinite(found.loss):
            values["loss"] = found.loss
        return Validated(values, CHOOSES)


def classes_of(config: Config) -> tuple[int, int, list[str]]:
    """Number of classes, the label that does not count, and the classes' names.

    Raises:
        ConfigError: missing, or of different numbers.
    """
    data = config["data"]
    classes, ignore, names = data.get("num_classes"), data.get("ignore_index", -1), data.get("names")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise ConfigError(f"data.num_classes: expected a number above 0, got {classes!r}")
    labels = list(names) if names is not None else [str(number) for number in range(classes)]
    if len(labels) != classes:
        raise ConfigError(f"data.names: expected {classes} names, as num_classes says, got {len(labels)}")
    return classes, ignore, labels


def run_protocol(
    config: Config,
    settings: TrainerConfig,
    model: nn.Module,
    world: World,
    root: Path | None,
    folder: Path,
    console: Console,
) -> dict[str, float]:
    """Segment the test scenes by votes and write `result/`: predictions and, for an area of S3DIS, its counts.

    Args:
        config: its `data.test` describes scenes, fragments and augmentations.
        settings: of the run.
        model: is left in evaluation mode.
        world: this rank; each segments its part of the scenes and writes their predictions.
        root: folder that stands for "data".
        folder: of the run.
        console: where to speak.

    Returns:
        mIoU, mAcc, allAcc, and iou/NAME and acc/NAME of each class.
    """
    classes, ignore, names = classes_of(config)
    scenes = TestScenes(config, settings, world, root)
    result = folder / "result"
    write = prediction_writer(result, scenes.class_ids)
    with Stage("testing", console) as stage:
        done = iter(range(1, len(scenes) + 1))

        def report(name: str, own: Overlap) -> None:
            stage(next(done), len(scenes), f"{name} mIoU {scene_iou(own):.3f}")

        counts = segment_scenes(model, scenes, classes, collate, ignore, write, report)
    device = next(model.parameters()).device
    counts = Overlap(*all_sum(torch.stack(counts).to(device), world).cpu())
    section = config["data"]["test"]
    if world.is_main and section.get("type") == "S3DISDataset" and isinstance(section.get("split"), str):
        save_area(result / f"{section['split']}.pth", counts)
    return summary(scores(counts), names)
