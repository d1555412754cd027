"""What each command of the command line does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ponder.cli_ponderv2 import is_config
from ponder.data.scene import DataError
from ponder.models.sparse_engine import SparseEngineError
from ponder.train.checkpoint import CheckpointError
from ponder.train.config import ConfigError
from ponder.train.device import DeviceError
from ponder.train.files import OutputError

# Mistakes of the caller or of the input: one sentence, no traceback. Anything else is a fault of ours and shows one.
EXPECTED = (CheckpointError, ConfigError, DataError, DeviceError, OutputError, SparseEngineError)
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run(options: argparse.Namespace) -> int:
    """Dispatch to the command; returns the exit code."""
    from ponder.commands_convert import convert
    from ponder.commands_features import features
    from ponder.commands_ponderv2 import finetune
    from ponder.train.ponderv2.distributed import PeerError
    from ponder.train.ponderv2.signals import Stopped
    from ponder.train.run import TrainingError

    console = Console()
    command = {
        "pretrain": pretrain,
        "finetune": finetune,
        "evaluate": evaluate,
        "render": render,
        "mesh": mesh,
        "features": features,
        "convert": convert,
        "doctor": doctor,
    }[options.command]
    try:
        command(options, console)
    except (*EXPECTED, TrainingError, PeerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        hints = {
            **dict.fromkeys(("pretrain", "finetune"), "; continue with --resume"),
            "convert": "; the same command again continues",
        }
        print(f"interrupted{hints.get(options.command, '')}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def pretrain(options: argparse.Namespace, console: Console) -> None:
    """`ponder pretrain`."""
    if is_config(options.recipe):
        from ponder.commands_ponderv2 import pretrain as pretrain_config

        return pretrain_config(options, console)
    _refuse_config_options(options)
    from ponder.recipes import get_recipe
    from ponder.train.config import apply_overrides
    from ponder.train.device import choose_device
    from ponder.train.folders import output_folder
    from ponder.train.run import open_run
    from ponder.train.run import pretrain as run_pretrain

    config = get_recipe(options.recipe)
    overrides = list(options.overrides)
    if options.data is not None:
        if config.data.source == "rooms":
            raise ConfigError(f"--data: recipe {options.recipe!r} generates its own scenes and takes no folder")
        overrides.insert(0, f"data.path={Path(options.data).resolve()}")
    config = apply_overrides(config, overrides)
    device = choose_device(options.device)
    folder = output_folder(options.out, options.recipe, options.resume)
    current = open_run(config, folder, device, options.resume, console)
    console.print(f"recipe {options.recipe} on {device}, writing to {folder}", highlight=False)
    summary = run_pretrain(current)
    table = Table("held-out views", "PSNR dB", "mean colour dB", "SSIM", "depth MAE m", "depth RMSE m")
    for name in ("initial", "final"):
        table.add_row(name, *_metric_cells(summary[name]))
    console.print(table)
    found = summary["mesh"]
    distance = (
        f", median distance to the {found['distance_to']} {found['median_distance']:.4f} m" if found["vertices"] else ""
    )
    console.print(f"mesh of {found['scene']}: {found['vertices']} vertices{distance}", highlight=False, soft_wrap=True)
    console.print(f"outputs in {folder}", highlight=False, soft_wrap=True)


def _refuse_config_options(options: argparse.Namespace) -> None:
    for name in ("weights", "text"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name}: only a PonderV2 config file takes it")


def _metric_cells(values: dict[str, float]) -> list[str]:
    formats = {
        "psnr": ".2f",
        "psnr_mean_colour": ".2f",
        "ssim": ".3f",
        "depth_mae": ".3f",
        "depth_rmse": ".3f",
    }
    return [format(values[name], spec) for name, spec in formats.items()]


def evaluate(options: argparse.Namespace, console: Console) -> None:
    """`ponder evaluate`."""
    if options.checkpoint.endswith(".py"):
        from ponder.commands_ponderv2 import evaluate as evaluate_config

        return evaluate_config(options, console)
    _refuse_config_options(options)
    if options.overrides:
        raise ConfigError(f"{options.overrides[0]}: only a PonderV2 config file takes key=value")
    from ponder.data.sources import load_views
    from ponder.tasks.trained import open_trained
    from ponder.tasks.view_synthesis import evaluate_views, summarise
    from ponder.train.files import make_output_folder, write_json
    from ponder.train.preview import panel, save_png
    from ponder.train.progress import Stage

    trained = open_trained(options.checkpoint, options.data, options.device, console)
    frames = trained.scene.heldout
    if options.views:
        frames = load_views(Path(options.views), trained.config.data, trained.scene.colour_ratio)
    folder = make_output_folder(Path(options.out))
    with Stage("rendering views", console) as stage:
        metrics, images = evaluate_views(trained.model, trained.volume, frames, stage)
    table = Table("view", "PSNR dB", "mean colour dB", "SSIM", "depth MAE m", "depth RMSE m")
    for index, (view, image) in enumerate(zip(metrics, images, strict=True)):
        table.add_row(view.name, *_metric_cells(view._asdict()))
        save_png(folder / f"{view.name}.png", panel(frames, index, image))
    summary = summarise(metrics)
    table.add_section()
    table.add_row("mean", *_metric_cells(summary))
    console.print(table)
    height, width = frames.size
    per_view = [{k: v for k, v in view._asdict().items() if v == v} for view in metrics]
    write_json(folder / "metrics.json", {**summary, "width": width, "height": height, "per_view": per_view})
    console.print(f"outputs in {folder}", highlight=False, soft_wrap=True)


def render(options: argparse.Namespace, console: Console) -> None:
    """`ponder render`."""
    from ponder.tasks.flythrough import render_path
    from ponder.tasks.trained import open_trained

    for name in ("frames", "width"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: expected at least 1, got {value}")
    trained = open_trained(options.checkpoint, options.data, options.device, console)
    poses = Path(options.poses) if options.poses else None
    render_path(trained, poses, options.frames, options.width, Path(options.out), console)
    console.print(f"outputs in {options.out}", highlight=False, soft_wrap=True)


def mesh(options: argparse.Namespace, console: Console) -> None:
    """`ponder mesh`."""
    from ponder.render.mesh import extract_mesh
    from ponder.tasks.mesh_file import write_ply
    from ponder.tasks.trained import open_trained
    from ponder.train.files import make_output_folder
    from ponder.train.progress import Stage

    path = Path(options.out)
    if path.suffix.lower() != ".ply":
        raise ConfigError(f"--out: expected a file ending in .ply, got {path}")
    if options.cell is not None and not options.cell > 0:
        raise ConfigError(f"--cell: expected a value above 0, got {options.cell}")
    trained = open_trained(options.checkpoint, options.data, options.device, console)
    make_output_folder(path.parent)
    with Stage("extracting the mesh", console) as stage:
        found = extract_mesh(
            trained.model.renderer, trained.volume.features, trained.volume.box, trained.scene.cloud.coord,
            cell=options.cell or trained.config.mesh_cell, reach=trained.config.loss.truncation, progress=stage,
        )  # fmt: skip
    write_ply(path, found)
    console.print(
        f"{len(found.vertices)} vertices, {len(found.faces)} faces in {path}", highlight=False, soft_wrap=True
    )


def doctor(options: argparse.Namespace, console: Console) -> None:
    """`ponder doctor`."""
    from ponder.doctor import report

    for name, found in report():
        console.print(f"{name:<24} {found}", highlight=False, soft_wrap=True)
