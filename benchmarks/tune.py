"""Launch parameters of the hot kernels, swept on the GPU at hand and written into the launch table.

``python -m benchmarks.tune`` writes the rows of this GPU's family into ponder_kernels/launch_table.json, or with
``--out`` a whole table to another file. A candidate that spills registers, does not run or changes the result is
rejected; a row is written where the best candidate is clearly faster than what the table has. ``--dry-run`` goes
through the sweep without a GPU: candidates are compiled, and counted programs stand in for milliseconds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks import tune_cases
from benchmarks.tune_machines import Machine, dry, gpu
from benchmarks.tune_sweeps import SWEEPS, Row, Sweep, objection, trying
from ponder.train.files import write_text
from ponder_kernels import _tuning

# What a candidate may take of the present row's time to take its place: less of a gain is noise.
MARGIN = 0.97
REPEATS = 5


@dataclass
class Candidate:
    """A row, why it is rejected, and what it cost in each round."""

    row: Row
    rejected: str = ""
    costs: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.costs)


def check(sweep: Sweep, candidates: list[Candidate], machine: Machine, pool: Executor | None) -> None:
    """Compile every candidate and reject those that cannot be used; over all cores where there is a pool."""
    if pool is None:
        for candidate in candidates:
            candidate.rejected = objection(sweep, candidate.row, machine.target, most=1)
        return
    jobs = [pool.submit(objection, sweep, candidate.row, machine.target) for candidate in candidates]
    for candidate, job in zip(candidates, jobs, strict=True):
        candidate.rejected = job.result()


def race(sweep: Sweep, candidates: list[Candidate], run: tune_cases.Run, machine: Machine) -> None:
    """Run the candidates in turn, so that a GPU that slows down does so for all of them, and note their costs.

    The first candidate is the present row: the others' results are compared with its own.
    """
    want: list[torch.Tensor] = []
    for number in range(1 if machine.tiny else REPEATS + 1):
        for candidate in [c for c in candidates if not c.rejected]:
            with trying(sweep.row, candidate.row, (machine.family,)):
                try:
                    if number == 0 and not machine.tiny:
                        # Compiles besides. What a dry run leaves in its tensors is arbitrary.
                        found = run()
                        want = want or found
                        if tune_cases.differs(found, want):
                            candidate.rejected = "changes the result"
                            continue
                    cost = machine.clock(run, sweep.kernel)
                except (RuntimeError, triton.runtime.errors.OutOfResources) as error:
                    candidate.rejected = f"does not run: {str(error).strip().splitlines()[0]}"
                    continue
            if number or machine.tiny:
                candidate.costs.append(cost)


def sweep_one(sweep: Sweep, run: tune_cases.Run, machine: Machine, pool: Executor | None) -> Row | None:
    """Try every candidate, print what became of it, and return the row to write, if any."""
    present = Candidate(dict(_tuning.parameters(sweep.kernel, sweep.bucket, machine.family)))
    others = [Candidate(row) for row in sweep.candidates() if row != present.row]
    others = others[-1:] if machine.tiny else others
    check(sweep, others, machine, pool)
    race(sweep, [present, *others], run, machine)
    for candidate in (present, *others):
        if candidate.rejected:
            print(f"{sweep.row}  {candidate.row}  rejected: {candidate.rejected}", flush=True)
    if present.rejected:
        return None
    finished = sorted((c for c in (present, *others) if not c.rejected), key=lambda c: c.cost)
    for candidate in finished:
        mark = "  (present)" if candidate is present else ""
        ratio = present.cost / candidate.cost if candidate.cost else 1.0
        print(f"{sweep.row}  {candidate.row}  {candidate.cost:.4g}  {ratio:.2f} x{mark}", flush=True)
    best = finished[0]
    return best.row if best.cost < MARGIN * present.cost else None


def render_table(table: Mapping[str, Any]) -> str:
    """The table as JSON, a row on a line."""
    families = []
    for family, own in table.items():
        lines = [f"      {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(own["rows"].items())]
        rows = "{\n" + ",\n".join(lines) + "\n    }" if lines else "{}"
        head = f'  {json.dumps(family)}: {{\n    "source": {json.dumps(own["source"])},\n'
        families.append(f'{head}    "rows": {rows}\n  }}')
    return "{\n" + ",\n".join(families) + "\n}\n"


def tune(machine: Machine, sweeps: list[Sweep], out: Path, deadline: float, pool: Executor | None) -> int:
    """Sweep, writing the table after each; returns how many sweeps there was time for."""
    table = json.loads(_tuning.TABLE.read_text(encoding="utf-8"))
    own = table[machine.family]
    own["source"] = (
        f"python -m benchmarks.tune on {machine.name}, torch {torch.__version__}, triton {triton.__version__}, "
        f"{datetime.date.today()}"
    )
    runs: dict[str, tune_cases.Run] = {}
    for number, sweep in enumerate(sweeps):
        if time.monotonic() > deadline:
            print(f"no time left for {', '.join(s.row for s in sweeps[number:])}", flush=True)
            return number
        if sweep.case not in runs:
            runs.clear()  # one workload's memory at a time
            runs[sweep.case] = tune_cases.make(sweep.case, machine.device, machine.tiny)
        # Later sweeps run with what earlier ones found.
        own["rows"] |= _found(sweep, sweep_one(sweep, runs[sweep.case], machine, pool), machine)
        write_text(out, render_table(table))
    return len(sweeps)


def _found(sweep: Sweep, row: Row | None, machine: Machine) -> dict[str, Row]:
    rows = {} if row is None else {sweep.row: row}
    _tuning.rows()[machine.family].update(rows)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Sweep and write; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.tune", description=__doc__)
    names = [sweep.row for sweep in SWEEPS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ROW", help="rows of the table")
    parser.add_argument(
        "--out", type=Path, help="file to write (default: the committed table; of a dry run, a new file)"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no sweep after these (default 600)")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU; nothing is launched")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds: expected a positive number, got {options.seconds}")
    deadline = time.monotonic() + options.seconds
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out: no folder {options.out.parent}")
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error("unset TRITON_INTERPRET, interpreted kernels cannot be compiled")
    out = options.out or (Path(tempfile.mkdtemp()) / _tuning.TABLE.name if options.dry_run else _tuning.TABLE)
    sweeps = [sweep for sweep in SWEEPS if sweep.row in options.only]
    try:
        machine = dry() if options.dry_run else gpu()
    except RuntimeError as error:
        print(f"benchmarks.tune: {error}", file=sys.stderr)
        return 2
    if options.dry_run:
        done = tune(machine, sweeps, out, deadline, None)
    else:
        # Not forked: this process has threads and a CUDA context.
        cores = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
            done = tune(machine, sweeps, out, deadline, pool)
    print(f"{done} of {len(sweeps)} rows swept on {machine.name}, table in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
