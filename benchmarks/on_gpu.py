"""Steps of benchmarks/on_gpu.sh: each a process with a time limit, most important first, all before one deadline.

What the steps print goes to log.txt as it comes, summary.json is written again after every step. A step whose limit or
whose share of the whole time is used up is interrupted as by Ctrl-C, and killed if that does not end it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.gpu_steps import Step, steps
from ponder.train.files import OutputError, make_output_folder, write_json

ROOT = Path(__file__).parents[1]
SECONDS = 540.0
# Less is not enough to begin a step: importing torch and starting CUDA take that long.
LEAST = 10.0
# What an interrupted step gets to write down what it has.
GRACE = 10.0
TAIL = 40
# What a step that looks at the clock itself leaves for what it has begun.
RESERVE = 45.0


class Outcome(NamedTuple):
    """What became of a step: "ok", "failed", "out of time" or "skipped"; `note` says why, for the last two.

    `last_lines` are of its output, `result` the JSON that it left.
    """

    name: str
    command: str
    status: str
    exit_code: int | None
    seconds: float
    note: str
    last_lines: list[str]
    result: Any = None


def run_step(step: Step, folder: Path, deadline: float) -> Outcome:
    """Run one step within its limit and before the deadline (of time.monotonic); its output goes to the log."""
    shown = shlex.join(["python", *step.arguments])

    def outcome(status: str, note: str = "", code: int | None = None) -> Outcome:
        taken = round(time.monotonic() - began, 1)
        return Outcome(step.name, shown, status, code, taken, note, last, result)

    began, last, result = time.monotonic(), [], None
    if deadline - began < LEAST:
        return outcome("skipped", "no time left")
    with open(folder / "log.txt", "ab") as log:
        log.write(f"\n==== {step.name}: {shown}\n".encode())
        log.flush()
        start = log.tell()
        if step.needs and _run(step.needs, log, deadline - began)[0]:
            return outcome("skipped", (_lines(folder, start) or ["no reason given"])[-1])
        limit = min(step.seconds, deadline - time.monotonic())
        left = f"{max(1.0, limit - RESERVE):.0f}"
        code, finished = _run([argument.replace("{left}", left) for argument in step.arguments], log, limit)
    last = _lines(folder, start)[-TAIL:]
    if step.result is not None and step.result.is_file():
        result = json.loads(step.result.read_text(encoding="utf-8"))
    if not finished:
        return outcome("out of time", f"stopped after {limit:.0f} s", code)
    return outcome("failed" if code else "ok", code=code)


def _lines(folder: Path, start: int) -> list[str]:
    """Of the log from a place on."""
    return (folder / "log.txt").read_bytes()[start:].decode(errors="replace").splitlines()


def _run(arguments: Sequence[str], log: IO[bytes], limit: float) -> tuple[int, bool]:
    """Exit code of a Python process, and whether it ended by itself; whatever it started ends with it."""
    # Interpreted kernels would run on the CPU.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # A shell starts what runs in the background deaf to Ctrl-C, which its children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        return process.wait(limit), True
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGINT)
        try:
            return process.wait(GRACE), False
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL, False
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen, number: int) -> None:
    """To the process and its children, whose session it leads."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run(plan: Sequence[Step], folder: Path, seconds: float, facts: dict[str, Any]) -> list[Outcome]:
    """Run the steps in order; log and summary in `folder` are up to date after each."""
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    (folder / "log.txt").write_bytes(b"")
    for step in plan:
        print(f"{step.name} ...", flush=True)
        outcome = run_step(step, folder, deadline)
        outcomes.append(outcome)
        for line in outcome.last_lines[-step.show :]:
            print(f"    {line}")
        print(f"{step.name}: {_words(outcome)}", flush=True)
        write_json(folder / "summary.json", facts | {"steps": [_without_places(o._asdict(), folder) for o in outcomes]})
    return outcomes


def _without_places(fields: Any, folder: Path) -> Any:
    """The same with names for folders of this machine: results are read elsewhere."""
    if isinstance(fields, dict):
        return {name: _without_places(value, folder) for name, value in fields.items()}
    if isinstance(fields, list):
        return [_without_places(value, folder) for value in fields]
    if not isinstance(fields, str):
        return fields
    for place, name in ((folder, "$OUT"), (ROOT, "."), (Path(tempfile.gettempdir()), "$TMPDIR")):
        fields = fields.replace(str(place), name)
    return fields


def _words(outcome: Outcome) -> str:
    note = f" ({outcome.note})" if outcome.note else ""
    code = "" if outcome.exit_code is None else f", exit code {outcome.exit_code}"
    return f"{outcome.status}{note}{code}, {outcome.seconds:.1f} s"


def table(outcomes: Sequence[Outcome]) -> str:
    """A line per step."""
    width = max(len(o.name) for o in outcomes)
    return "\n".join(f"{o.name.ljust(width)}  {_words(o)}" for o in outcomes)


def facts_of(device: str) -> dict[str, Any]:
    """What the results belong to; asked by another process, since this one should leave the GPU alone.

    Raises:
        RuntimeError: there is no such device.
    """
    code = "import json, sys, torch; from benchmarks.provenance import provenance\n"
    if device == "cuda":
        code += "if not torch.cuda.is_available(): sys.exit('no CUDA device; --dry-run runs every step on the CPU')\n"
    code += f"print(json.dumps(provenance({device!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no output").splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen steps; 0 if none failed or ran out of time, 1 if one did, 2 if they cannot run as asked."""
    names = [step.name for step in steps(Path(), Path(), dry=False)]
    parser = argparse.ArgumentParser(prog="benchmarks/on_gpu.sh", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="every step on the CPU at tiny sizes")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=f"some of {', '.join(names)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all steps (default {SECONDS:.0f})")
    parser.add_argument("--list", action="store_true", help="print the steps' limits and commands, run nothing")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds: expected a positive number, got {options.seconds}")
    device = "cpu" if options.dry_run else "cuda"
    with tempfile.TemporaryDirectory() as work:

        def plan(folder: Path) -> list[Step]:
            return [s for s in steps(folder, Path(work), options.dry_run) if s.name in (options.only or names)]

        if options.list:
            print("\n".join(f"{s.name}\t{s.seconds:.0f} s\t{shlex.join(s.arguments)}" for s in plan(Path("OUT"))))
            return 0
        try:
            folder = make_output_folder(_folder(options.dry_run))
            facts = facts_of(device) | {"dry_run": options.dry_run, "seconds": options.seconds}
        except (OutputError, RuntimeError) as error:
            print(f"on_gpu: cannot run on {device}: {error}", file=sys.stderr)
            return 2
        outcomes = run(plan(folder), folder, options.seconds, facts)
    print(f"\n{table(outcomes)}\nresults in {folder}")
    return int(any(o.status in ("failed", "out of time") for o in outcomes))


def _folder(dry: bool) -> Path:
    """Where results go: the folder named by OUT, else of a dry run a new one."""
    given = os.environ.get("OUT")
    if given:
        return Path(given).resolve()
    return Path(tempfile.mkdtemp(prefix="ponder-dry-run-")) if dry else ROOT / "benchmarks" / "results" / "gpu"


if __name__ == "__main__":
    sys.exit(main())
