"""How fast samples of PonderV2's ScanNet pre-training are read and transformed, from files of ScanNet's sizes.

``python -m benchmarks.data_loading`` writes generated rooms in the dataset's own form (150,000 points, 640 x 480 depth,
1296 x 968 colour and labels) into a temporary folder, takes samples of 5 views through the shipped transforms, and
prints seconds for each part and samples per second by number of loader processes. Files just written are read from the
system's cache: a disk comes on top.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from ponder.data.ponderv2 import Loader, PointDataset, build_dataset
from ponder.data.synthetic.ponderv2_layouts import write_scannet

CAMERAS = {"keys": ["extrinsic"]}
# Those of PonderV2's ScanNet pre-training.
TRANSFORMS: list[dict[str, Any]] = [
    {"type": "CenterShift", "apply_z": True, **CAMERAS},
    {"type": "RandomDropout", "dropout_ratio": 0.8, "dropout_application_ratio": 1.0},
    {"type": "RandomRotate", "angle": [-1, 1], "axis": "z", "center": [0, 0, 0], "p": 0.5, **CAMERAS},
    {"type": "RandomRotate", "angle": [-1 / 64, 1 / 64], "axis": "x", "p": 0.5, **CAMERAS},
    {"type": "RandomRotate", "angle": [-1 / 64, 1 / 64], "axis": "y", "p": 0.5, **CAMERAS},
    {"type": "RandomScale", "scale": [0.9, 1.1], **CAMERAS},
    {"type": "RandomFlip", "p": 0.5, **CAMERAS},
    {"type": "GridSample", "grid_size": 0.02, "hash_type": "fnv", "mode": "train", "return_grid_coord": True},
    {"type": "CenterShift", "apply_z": False, **CAMERAS},
    {"type": "NormalizeColor"},
    {"type": "ShufflePoint"},
    {"type": "Add", "keys_dict": {"condition": "ScanNet"}},
    {"type": "ToTensor"},
    {
        "type": "Collect",
        "keys": ("coord", "grid_coord", "segment", "condition", "rgb", "depth", "depth_scale"),
        "stack_keys": ("intrinsic", "extrinsic", "rgb", "depth", "semantic"),
        "feat_keys": ("color", "normal"),
    },
]


def dataset(root: Path, views: int, transforms: Sequence[dict[str, Any]]) -> PointDataset:
    """The generated scenes, as often as a long epoch needs."""
    config = {
        "type": "ScanNetRGBDDataset", "data_root": "data/scannet", "num_cameras": views, "transform": transforms,
        "loop": 1000,
    }  # fmt: skip
    built = build_dataset(config, root)
    assert isinstance(built, PointDataset)
    return built


def seconds_per_sample(source: PointDataset, samples: int) -> float:
    """Median, in this process."""
    taken = []
    for index in range(samples + 1):
        began = time.perf_counter()
        source[index]
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def samples_per_second(source: PointDataset, batch: int, workers: int, samples: int) -> float:
    """Of whole batches, after the first of each process."""
    batches = iter(Loader(source, batch, workers))
    for _ in range(max(1, workers)):
        next(batches)
    count = -(-samples // batch)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch / (time.perf_counter() - began)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="benchmarks.data_loading", description=__doc__)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    for name, default in (("scenes", 2), ("frames", 12), ("points", 150_000), ("height", 480), ("width", 640)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--views", type=int, default=5)
    options = parser.parse_args(arguments)
    sizes = (options.samples, options.batch, options.scenes, options.frames, options.points, options.views)
    if min(*sizes, options.height, options.width) < 1 or min(options.workers) < 0:
        parser.error("expected numbers of at least 1, and of workers at least 0")
    return options


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parse(arguments)
    facts = provenance("cpu")
    print(f"{facts['device']}, torch {facts['torch']}, commit {facts['commit']}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        size = (options.height, options.width)
        write_scannet(
            folder, scenes=options.scenes, size=size, frames=options.frames, points=options.points, frame_step=10
        )
        whole, bare = (dataset(Path(folder), options.views, steps) for steps in (TRANSFORMS, []))
        cloud = bare[0]["coord"].shape[0]
        print(f"{cloud} points, {options.views} views of {options.width} x {options.height}")
        reading = seconds_per_sample(bare, options.samples)
        total = seconds_per_sample(whole, options.samples)
        print(f"reading {reading:.3f} s, transforms {total - reading:.3f} s, sample {total:.3f} s")
        for workers in options.workers:
            rate = samples_per_second(whole, options.batch, workers, options.samples)
            print(f"{workers} loader processes: {rate:.1f} samples/s in batches of {options.batch}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
