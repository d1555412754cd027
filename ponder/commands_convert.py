"""What `ponder convert` does."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ponder.data.convert.units import CLOUD, FRAMES, Plan
from ponder.train.config import ConfigError
from ponder.train.files import OutputError, make_output_folder, write_atomically, write_json, write_text


def convert(options: argparse.Namespace, console: Console) -> None:
    """`ponder convert`."""
    from ponder.data.convert.runner import Writers, run_plan
    from ponder.data.convert.summary import SKIP_LIST, check_not_empty, merged_skip_list, summary_data
    from ponder.train.progress import Stage

    if options.workers < 1:
        raise ConfigError(f"--workers: expected at least 1, got {options.workers}")
    began = time.monotonic()
    console.print(f"looking through {options.data} ...", highlight=False, soft_wrap=True)
    plan = _plan(options)
    out = make_output_folder(Path(options.out))
    writers = Writers(quick=partial(write_atomically, durable=False), durable=write_atomically)
    try:
        with Stage(f"converting {len(plan.units)} {plan.unit_name}", console) as stage:
            outcome = run_plan(plan, out, writers, options.workers, stage)
        check_not_empty(outcome)
        summary = summary_data(plan.dataset, outcome)
        skip_list = merged_skip_list(out, outcome)
        if skip_list is not None:
            write_text(out / SKIP_LIST, skip_list)
        write_json(out / "convert.json", {**summary, "seconds": round(time.monotonic() - began, 1)})
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{error.filename or out} cannot be written: {error.strerror or error}") from None
    table = Table("", "converted", "by earlier runs", "left out")
    for part, counts in summary["parts"].items():
        lost = sum(entry["count"] for entry in counts["skipped"])
        table.add_row(part, str(counts["converted"]), str(counts["converted_before"]), str(lost))
    console.print(table)
    for part, counts in summary["parts"].items():
        for entry in counts["skipped"]:
            text = f"{part}: {entry['count']} x {entry['reason']}, e.g. {entry['examples'][0]}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(f"outputs in {out}", highlight=False, markup=False, soft_wrap=True)


def _plan(options: argparse.Namespace) -> Plan:
    """The units of the data set that the options name."""
    from ponder.data.convert.s3dis import S3DISOptions, plan_s3dis
    from ponder.data.convert.scannet import ScanNetOptions, plan_scannet
    from ponder.data.convert.structured3d import PANORAMA, PERSPECTIVE, Structured3DOptions, plan_structured3d

    data, every = Path(options.data), options.every
    parts = (CLOUD,) if options.clouds_only else (FRAMES,) if options.frames_only else (CLOUD, FRAMES)
    if options.dataset == "scannet":
        splits = Path(options.splits) if options.splits else None
        labels = Path(options.labels) if options.labels else None
        return plan_scannet(ScanNetOptions(data, splits, options.split, labels, every, options.keep_jpeg, parts))
    if options.dataset == "s3dis":
        images = Path(options.images) if options.images else None
        return plan_s3dis(S3DISOptions(data, images, options.align_angle, not options.no_normals, every, parts))
    views = (PERSPECTIVE, PANORAMA) if options.views == "both" else (options.views,)
    return plan_structured3d(Structured3DOptions(data, options.grid_size, views, options.seed, every, parts))
