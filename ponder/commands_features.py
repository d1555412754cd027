"""`ponder features`: point features of the user's own cloud with a checkpoint's backbone."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ponder.train.config import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ponder.data.cloud_files import RawCloud
    from ponder.tasks.features import FeatureModel, FeatureOptions, Prepared


def features(options: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    import torch

    from ponder.tasks.features import extract, files
    from ponder.tasks.features.blocks import BlockError
    from ponder.train.checkpoint import CheckpointError
    from ponder.train.device import choose_device
    from ponder.train.files import make_output_folder, write_json
    from ponder.train.progress import Stage

    path = _checked_output(options)
    how = _how(options)
    device = choose_device(options.device)
    began = time.perf_counter()
    model = _open(options, device)
    for sentence in model.about:
        _say(console, sentence)
    with Stage("reading the cloud", console):
        cloud = _read(options.data, model)
    make_output_folder(path.parent)
    with Stage("preparing voxels", console) as stage:
        try:
            prepared = extract.prepare_cloud(model, cloud, how, stage)
        except BlockError as error:
            raise ConfigError(f"--chunk, --overlap: {error}; raise --chunk or lower --overlap") from None
        except ValueError as error:
            raise _named(error) from None
    for sentence in prepared.notes:
        _say(console, sentence)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    computing = time.perf_counter()
    with Stage("computing features", console) as stage:
        found = extract.voxel_features(model, prepared, stage)
    seconds = time.perf_counter() - computing
    if not bool(torch.isfinite(found).all()):
        raise CheckpointError(f"checkpoint {options.checkpoint} gave features that are not finite")
    stored = _stored(found, options.dtype)
    colours = files.principal_colours(found) if options.pca or path.suffix.lower() == ".ply" else None
    of_point = prepared.voxels.of_point
    files.write_features(path, cloud.coord, stored[of_point], None if colours is None else colours[of_point])
    summary = _summary(options, model, cloud, prepared, found, device)
    summary |= {"seconds_network": seconds, "seconds": time.perf_counter() - began}
    write_json(path.with_suffix(".metrics.json"), summary)
    _say(
        console,
        f"{len(cloud)} points, {len(found)} voxels, {found.shape[1]} channels, {len(prepared.blocks)} "
        f"block{'s' if len(prepared.blocks) > 1 else ''} in {path}",
    )


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, highlight=False, soft_wrap=True, markup=False)


def _checked_output(options: argparse.Namespace) -> Path:
    from ponder.tasks.features.files import DTYPES, ENDINGS

    path = Path(options.out)
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--out: expected a file ending in {', '.join(ENDINGS)}, got {path}")
    if options.pca and path.suffix.lower() == ".npy":
        raise ConfigError("--pca: .npy holds the features alone; use .npz or .ply")
    if options.dtype not in DTYPES:
        raise ConfigError(f"--dtype: expected {' or '.join(DTYPES)}, got {options.dtype!r}")
    return path


def _how(options: argparse.Namespace) -> FeatureOptions:
    from ponder.tasks.features import FeatureOptions

    viewpoint: Any = options.viewpoint
    if "," in viewpoint:
        try:
            viewpoint = tuple(float(text) for text in viewpoint.split(","))
        except ValueError:
            raise ConfigError(f"--viewpoint: expected X,Y,Z, up or centre, got {options.viewpoint!r}") from None
    try:
        return FeatureOptions(
            options.voxel, options.reduce, viewpoint, options.block, options.overlap, options.chunk
        )  # fmt: skip
    except ValueError as error:
        raise _named(error) from None


def _named(error: ValueError) -> Exception:
    """Errors of the input as they are; those of an argument with the name that the command line gives it."""
    from ponder.data.scene import DataError

    names = {"edge": "block", "reduction": "reduce"}
    name, colon, rest = str(error).partition(":")
    return error if isinstance(error, DataError) else ConfigError(f"--{names.get(name, name)}{colon}{rest}")


def _open(options: argparse.Namespace, device: Any) -> FeatureModel:
    from ponder.tasks.features import open_feature_model, settings_from_config

    settings = None
    if options.config is not None:
        from ponder.compat.ponderv2 import load_config

        settings = settings_from_config(load_config(options.config))
    return open_feature_model(Path(options.checkpoint), options.condition, settings, device)


def _read(name: str, model: FeatureModel) -> RawCloud:
    """A cloud file, or the input cloud of a scene as the other commands take it."""
    from ponder.data.cloud_files import RawCloud, read_cloud
    from ponder.data.config import DataConfig
    from ponder.data.scene import DataError
    from ponder.data.sources import ROOM_PREFIX, load_scene

    if not name.startswith(ROOM_PREFIX) and not Path(name).is_dir():
        return read_cloud(Path(name))
    cloud = load_scene(name, DataConfig() if model.run is None else model.run.data).cloud
    if len(cloud) == 0:
        raise DataError(f"{name}: the fused point cloud is empty")
    return RawCloud(cloud.coord.double(), cloud.colour, cloud.normal)


def _stored(found: Tensor, dtype: str) -> Tensor:
    import torch

    from ponder.tasks.features.files import DTYPES

    stored = found.to(DTYPES[dtype])
    if not bool(torch.isfinite(stored).all()):
        raise ConfigError(f"--dtype: features reach {float(found.abs().max()):.4g}, more than {dtype} can hold")
    return stored


def _summary(
    options: argparse.Namespace, model: FeatureModel, cloud: RawCloud, prepared: Prepared, found: Tensor, device: Any
) -> dict[str, Any]:
    import torch

    windows = [len(block.window) for block in prepared.blocks]
    summary: dict[str, Any] = {
        "checkpoint": options.checkpoint,
        "data": options.data,
        "points": len(cloud),
        "voxels": len(found),
        "voxel": prepared.voxels.size,
        "channels": found.shape[1],
        "dtype": options.dtype,
        "blocks": len(windows),
        "largest_block": max(windows),
        "voxels_computed": sum(windows),
        "device": str(device),
        "peak_memory_bytes": _peak_memory(),
        "model": list(model.about),
        "assumed": list(prepared.notes),
    }
    if device.type == "cuda":
        summary["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return summary


def _peak_memory() -> int | None:
    """Largest resident memory of this process so far, bytes; None on systems that do not tell."""
    if importlib.util.find_spec("resource") is None:
        return None
    resource = importlib.import_module("resource")
    # In bytes on macOS, in kilobytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
