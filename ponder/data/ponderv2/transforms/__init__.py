"""PonderV2's transforms of indoor scenes, by the names that its configurations use.

transform = build_transform([dict(type="CenterShift", apply_z=True), dict(type="ToTensor"), ...])
sample = transform(sample, np.random.default_rng(0))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder.data.ponderv2.transforms.assemble import Add, Collect, Copy, InstanceParser, ToTensor
from ponder.data.ponderv2.transforms.base import Sample, Transform
from ponder.data.ponderv2.transforms.colour import (
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    HueSaturationTranslation,
    NormalizeColor,
    RandomColorDrop,
)
from ponder.data.ponderv2.transforms.geometry import (
    CenterShift,
    RandomFlip,
    RandomRotate,
    RandomRotateTargetAngle,
    RandomScale,
    RandomShift,
)
from ponder.data.ponderv2.transforms.jitter import ElasticDistortion, RandomJitter
from ponder.data.ponderv2.transforms.sampling import GridSample, RandomDropout, ShufflePoint, SphereCrop
from ponder.registry import choose, construct

TRANSFORMS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Add,
        CenterShift,
        ChromaticAutoContrast,
        ChromaticJitter,
        ChromaticTranslation,
        Collect,
        Copy,
        ElasticDistortion,
        GridSample,
        HueSaturationTranslation,
        InstanceParser,
        NormalizeColor,
        RandomColorDrop,
        RandomDropout,
        RandomFlip,
        RandomJitter,
        RandomRotate,
        RandomRotateTargetAngle,
        RandomScale,
        RandomShift,
        ShufflePoint,
        SphereCrop,
        ToTensor,
    )
}

__all__ = ["TRANSFORMS", "Compose", "Sample", "Transform", "build_step", "build_transform", *sorted(TRANSFORMS)]


@dataclass(frozen=True)
class Compose:
    """Transforms one after the other, all drawing from the same generator."""

    steps: tuple[Transform, ...] = ()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, rng)
        return sample


def build_step(config: Mapping[str, Any], where: str = "transform") -> Transform:
    """One transform from `dict(type=NAME, ...)`.

    Args:
        config: the name and the arguments.
        where: what the configuration belongs to, for error messages.

    Raises:
        ValueError: unknown name, unknown or wrong argument.
        TypeError: no mapping.
    """
    _, cls, arguments = choose(config, TRANSFORMS, where)
    if cls is Collect:
        named = {"keys", "stack_keys", "offset_keys_dict", "groups"}
        groups = [key for key in arguments if key.endswith("_keys") and key not in named]
        arguments["groups"] = {key.removesuffix("_keys"): arguments.pop(key) for key in groups}
    step: Transform = construct(cls, arguments, f"{where}: {cls.__name__}")
    return step


def build_transform(configs: Sequence[Mapping[str, Any]] | None, where: str = "transform") -> Compose:
    """A chain of transforms from a list of configurations; None = leave samples as they are.

    Raises:
        ValueError, TypeError: as `build_step`.
    """
    return Compose(tuple(build_step(config, f"{where}[{place}]") for place, config in enumerate(configs or ())))
