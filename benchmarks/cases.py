"""Named workloads: what is rendered, from which volume, through how many rays.

Every workload has three sizes: "full", the published one, for GPUs; "small", which two CPU cores manage with the eager
renderers too, from volumes that their caches hold, so that the ratios do not depend on what the neighbours of a shared
machine leave of the memory's bandwidth; and "tiny", which only shows that everything runs. `benchmarks.inputs` makes
the tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.baselines.ponderv2 import configs

Config = dict[str, Any]
SIZES = ("full", "small", "tiny")

# PonderV2 evaluates this many rays at a time, indoors and outdoors.
INDOOR_CHUNK, OUTDOOR_CHUNK = 10_240, 8_192


@dataclass(frozen=True)
class Sizes:
    """How much of a workload there is.

    Attributes:
        volume: C, D, H, W of every scene's features.
        scenes: volumes, rendered one after the other as PonderV2 does; losses are taken over all their rays.
        views: cameras per scene.
        rays: rays per camera; a whole image's for an image.
        rounds: how often each competitor is timed in a sitting.
        memory_rays: rays per camera at which peak memory is measured.
        more_memory_rays: the same, where `memory.AT_MOST` allows; few rays of a lean renderer do not show.
        image: width and height of the image whose pixels are the rays; None: a training step.
    """

    volume: tuple[int, int, int, int]
    scenes: int
    views: int
    rays: int
    rounds: int
    memory_rays: tuple[int, ...] = ()
    more_memory_rays: tuple[int, ...] = ()
    image: tuple[int, int] | None = None

    @property
    def scene_rays(self) -> int:
        """Rays of one scene."""
        return self.views * self.rays

    @property
    def all_rays(self) -> int:
        """Rays of one step."""
        return self.scenes * self.scene_rays

    @property
    def label(self) -> str:
        """In words, for tables."""
        channels, depth, height, width = self.volume
        scenes = f"{self.scenes} scenes, each " if self.scenes > 1 else ""
        rays = f"{self.views} x {self.rays} rays" if self.image is None else f"{self.image[0]} x {self.image[1]} pixels"
        return f"{scenes}{width} x {height} x {depth} voxels of {channels} channels, {rays}"


@dataclass(frozen=True)
class RenderCase:
    """A workload of the whole renderer.

    Attributes:
        name, title: short and long.
        config: makes PonderV2's `renderer` dictionary.
        sizes: one `Sizes` for each of SIZES.
        cube: lower end and length of the region that the volume spans, on all axes.
        outwards: all cameras of a scene stand in its middle and look around, as on a car; else they look inwards.
        chunk: rays rendered at once in evaluation.
        compiled: whether torch.compile takes part; it needs most of a minute per case before anything is timed.
    """

    name: str
    title: str
    config: Callable[[], Config]
    sizes: Mapping[str, Sizes]
    cube: tuple[float, float] = (-0.5, 1.0)
    outwards: bool = False
    chunk: int = INDOOR_CHUNK
    compiled: bool = False

    @property
    def training(self) -> bool:
        """Forward, losses and backward; else evaluation without gradients."""
        return self.sizes["full"].image is None

    @property
    def samples(self) -> tuple[int, int]:
        """Samples per ray that the sampler evaluates first, and all of them."""
        sampler = self.config()["sampler"]
        return sampler["num_samples"], sampler["num_samples"] + sampler["num_samples_importance"]


def without(config: Config, *outputs: str) -> Config:
    """A copy of a renderer's configuration without some decoders ("rgb", "semantic") and their losses."""
    config = copy.deepcopy(config)
    for name in outputs:
        del config["field"][f"{name}_decoder"], config["loss"]["weights"][f"{name}_loss"]
    return config


def _camera() -> Config:
    """UniPAD's camera branch: colour and depth from six cameras, one random shift for all samples of a ray."""
    config = configs.outdoor(rgb=True)
    config["sampler"]["single_jitter"] = True
    return config


INDOOR = {
    "full": Sizes((128, 32, 128, 128), 1, 5, 256, rounds=3, memory_rays=(64, 128, 256)),
    "small": Sizes((128, 8, 24, 24), 1, 5, 16, rounds=1, memory_rays=(64, 160), more_memory_rays=(960,)),
    "tiny": Sizes((128, 4, 8, 8), 1, 2, 4, rounds=1, memory_rays=(8, 16)),
}
BATCH = {
    "full": Sizes((128, 32, 128, 128), 8, 5, 256, rounds=2),
    "small": Sizes((128, 8, 32, 32), 8, 5, 2, rounds=1),
    "tiny": Sizes((128, 4, 8, 8), 2, 2, 2, rounds=1),
}
OUTDOOR = {
    "full": Sizes((32, 5, 180, 180), 1, 6, 512, rounds=3, memory_rays=(128, 256, 512)),
    "small": Sizes((32, 5, 60, 60), 1, 6, 32, rounds=1, memory_rays=(256, 384), more_memory_rays=(1920,)),
    "tiny": Sizes((32, 3, 8, 8), 1, 2, 4, rounds=1, memory_rays=(8, 16)),
}


def _image(volume: tuple[int, int, int, int], width: int, height: int, rounds: int) -> Sizes:
    return Sizes(volume, 1, 1, width * height, rounds, image=(width, height))


IMAGE = {
    "full": _image((128, 32, 128, 128), 640, 480, rounds=1),
    "small": _image((128, 8, 24, 24), 12, 10, rounds=2),
    "tiny": _image((128, 4, 8, 8), 4, 3, rounds=1),
}
CUBE = (0.0, 1.0)

_RENDER_CASES = (
    RenderCase("indoor", "indoor step, all losses", configs.indoor, INDOOR, compiled=True),
    RenderCase(
        "indoor-no-semantics",
        "indoor step without semantics",
        lambda: without(configs.indoor(), "semantic"),
        INDOOR,
    ),
    RenderCase("indoor-batch8", "indoor step, 8 scenes", configs.indoor, BATCH),
    RenderCase("outdoor", "outdoor step, depth", configs.outdoor, OUTDOOR, CUBE, outwards=True, chunk=OUTDOOR_CHUNK),
    RenderCase(
        "outdoor-semantics",
        "outdoor step, depth and semantics",
        lambda: configs.outdoor(semantic=True),
        OUTDOOR,
        CUBE,
        outwards=True,
        chunk=OUTDOOR_CHUNK,
    ),
    RenderCase("camera", "camera step, depth and colour", _camera, OUTDOOR, CUBE, outwards=True, chunk=OUTDOOR_CHUNK),
    RenderCase(
        "image",
        "one image: colour, depth, normals",
        lambda: without(configs.indoor(), "semantic"),
        IMAGE,
        compiled=True,
    ),
    RenderCase("image-semantics", "one image with semantics", configs.indoor, IMAGE),
)
RENDER_CASES = {case.name: case for case in _RENDER_CASES}
TRAINING_CASES = {name: case for name, case in RENDER_CASES.items() if case.training}


@dataclass(frozen=True)
class SampleSizes:
    """Volume C, D, H, W; points read from it."""

    volume: tuple[int, int, int, int]
    points: int
    rounds: int

    @property
    def label(self) -> str:
        """In words, for tables."""
        channels, depth, height, width = self.volume
        return f"{width} x {height} x {depth} voxels of {channels} channels, {self.points} points"


@dataclass(frozen=True)
class CompositeSizes:
    """Rays, samples of each, channels that are summed along them."""

    rays: int
    samples: int
    channels: int
    rounds: int

    @property
    def label(self) -> str:
        """In words, for tables."""
        return f"{self.rays} rays x {self.samples} samples of {self.channels} channels"


# Points of the indoor step's 1,280 rays; its 64 channels of geometry.
SAMPLE = {
    "full": SampleSizes((64, 32, 128, 128), 1280 * 132, rounds=2),
    "small": SampleSizes((64, 8, 32, 32), 16 * 132, rounds=4),
    "tiny": SampleSizes((16, 4, 8, 8), 64, rounds=1),
}
# What an indoor ray sums: the 131 inputs of the semantic decoder.
COMPOSITE = {
    "full": CompositeSizes(10_240, 132, 131, rounds=2),
    "small": CompositeSizes(512, 132, 131, rounds=2),
    "tiny": CompositeSizes(16, 8, 3, rounds=1),
}
