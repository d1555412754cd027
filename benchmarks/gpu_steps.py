"""What benchmarks/on_gpu.sh runs: the commands on a GPU, and the same at tiny sizes on the CPU for a dry run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

# Folders of tests with some that need a GPU; the others import packages that a bare machine does not have.
TESTS = ("tests/kernels", "tests/compat", "tests/benchmarks")
DRY_SECONDS = 400.0
Words = tuple[str, ...]
# What `ponder pretrain` imports beside torch, and the package's name where it is another.
PIPELINE_NEEDS = ("rich", "skimage", "trimesh", "PIL", "scipy", "tensorboard")
TINY_RUN = (
    "steps=2", "rays=64", "views=2", "preview_every=0", "mesh_cell=0.2", "data.rooms=1", "data.train_views=3",
    "data.heldout_views=1", "data.width=32", "data.height=24", "model.voxel=0.15", "model.cell=0.2", "model.margin=0.2",
    "model.sparse_base=4", "model.sparse_channels=[4,4,4,4]", "model.sparse_layers=[1,1,1,1]", "model.dense_base=4",
    "model.dense_levels=3", "model.renderer.uniform_samples=12", "model.renderer.importance_samples=4",
)  # fmt: skip


def require_pipeline(device: str) -> None:
    """Leave the process with a sentence where the whole pipeline cannot run."""
    absent = [name for name in PIPELINE_NEEDS if importlib.util.find_spec(name) is None]
    if absent:
        sys.exit(f"cannot import {', '.join(absent)}")
    from ponder.models.sparse_engine import SparseEngineError, load_engine

    try:
        load_engine("auto", device)
    except (SparseEngineError, ImportError) as error:
        sys.exit(str(error))


class Step(NamedTuple):
    """One process.

    Attributes:
        name: for the summary.
        seconds: limit of its own.
        arguments: of the Python interpreter; "{left}" stands for the seconds it may begin further work in.
        show: how many of its last lines are printed; all are in the log.
        needs: arguments of a process that fails where the step is to be skipped, its last line saying why.
        result: JSON file that the summary takes up, if it is there afterwards.
    """

    name: str
    seconds: float
    arguments: Words
    show: int = 3
    needs: Words = ()
    result: Path | None = None


def steps(folder: Path, work: Path, dry: bool) -> list[Step]:
    """All steps, most important first, with results in `folder` and what nobody needs afterwards in `work`."""
    device = "cpu" if dry else "cuda"
    run, timings = work / "pipeline", str(folder / "benchmarks.json")
    script: Words = ("-m", "benchmarks.ponderv2_step")
    quiet = ("-q", "-p", "no:cacheprovider")
    pipeline: Words = ("-m", "ponder", "pretrain", "demo", "--device", device, "--out", str(run))
    needs = ("-c", f"from benchmarks.gpu_steps import require_pipeline; require_pipeline({device!r})")
    suite: Words = ("-m", "pytest", "benchmarks", *quiet, f"--benchmark-json={timings}")
    tune: Words = ("-m", "benchmarks.tune", "--out", str(folder / "launch_table.json"))
    time: Words
    memory: Words
    if dry:
        time = (*script, "time", "--rays", "16", "--repeats", "1", "--renderers", "ponder")
        memory = (*script, "memory", "--rays", "8", "16", "--renderers", "ponder")
        pipeline = (*pipeline, *TINY_RUN)
        few = ("--bench-size=tiny", "--bench-rounds=1", "--bench-seconds=0", "--bench-competitors=ponder,eager")
        suite = (*suite, "-m", "not gpu", *few)
        tune = (*tune, "--dry-run", "--only", "sdf_field_scatter_kernel", "render_rays")
    else:
        time = (*script, "time", "--rays", "1280", "10240", "--repeats", "5")
        memory = (*script, "memory", "--rays", "1280", "5120")
        pipeline = (*pipeline, "steps=30", "preview_every=0")
        suite = (*suite, "-m", "gpu")
        tune = (*tune, "--seconds", "{left}")
    plan = [
        Step("selftest", 120, ("-m", "ponder_kernels.selftest", "--device", device)),
        Step("tests", 120, ("-m", "pytest", "-m", "gpu", *quiet, *TESTS)),
        Step("step-time", 75, (*time, "--device", device), show=8),
        Step("step-memory", 75, (*memory, "--device", device)),
        Step("pipeline", 75, pipeline, show=8, needs=needs, result=run / "metrics.json"),
        Step("benchmarks", 180, suite),
        Step("report", 30, ("-m", "benchmarks.report", timings, "--out", str(folder))),
        Step("tune", 270, tune, show=12),
    ]
    # Of a dry run only the whole time counts: other work may share the cores.
    return [step._replace(seconds=DRY_SECONDS) for step in plan] if dry else plan
