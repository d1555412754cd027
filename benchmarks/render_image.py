"""One image from a large volume: seconds and peak memory of the whole process.

``python -m benchmarks.render_image --size 640x480`` renders colour, depth and normals from 32 x 128 x 128 voxels of 128
channels, showing its progress.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch
from rich.console import Console

from ponder.render.image import render_image
from ponder.render.renderer import NeusRenderer, RendererConfig
from ponder.train.progress import Stage

CHANNELS, VOXELS = 128, (32, 128, 128)


def main(arguments: list[str]) -> None:
    """Render and print one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.render_image", description=__doc__)
    parser.add_argument("--size", default="640x480", help="WIDTHxHEIGHT")
    options = parser.parse_args(arguments)
    width, height = map(int, options.size.split("x"))
    torch.set_num_threads(2)
    torch.manual_seed(0)
    renderer = NeusRenderer(RendererConfig(sdf_channels=CHANNELS // 2, colour_channels=CHANNELS // 2))
    volume = torch.empty(1, CHANNELS, *VOXELS).to(memory_format=torch.channels_last_3d).normal_(std=0.1)
    box = torch.tensor([[[-3.2, -3.2, -0.8], [3.2, 3.2, 0.8]]])
    intrinsics = torch.tensor([[width * 0.9, 0, width / 2], [0, width * 0.9, height / 2], [0, 0, 1.0]])
    # From outside, looking along +x with z up.
    pose = torch.tensor([[0, 0, 1.0, -4.0], [-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])
    start = time.perf_counter()
    with Stage("rendering", Console(stderr=True)) as show:
        image = render_image(renderer, volume, box, intrinsics, pose, (height, width), show)
    line = {
        "size": options.size,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "opaque": float(image.opacity.mean()),
        "finite": all(bool(torch.isfinite(value).all()) for value in image),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:])
