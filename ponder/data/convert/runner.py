"""Runs a conversion: units side by side in processes, finished ones skipped, everything counted."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ponder.data.convert.records import is_done, read_record, remove_leftovers, remove_stale, write_record
from ponder.data.convert.sink import AtomicWriter, PartReport, Sink
from ponder.data.convert.units import CLOUD, Part, Plan, Unit
from ponder.data.scene import DataError

# Seconds between two looks at how far the workers are.
_POLL = 0.5
# Steps done, all steps, a note.
Progress = Callable[[int, int, str], None]
_Reports = dict[str, PartReport]


class Writers(NamedTuple):
    """How files are written, chosen by the caller; functions of a module, so that other processes find them.

    Attributes:
        quick: atomic, but left to the system's cache: for the many files of a unit.
        durable: atomic and on the disk when it returns: for records, written when everything else of a unit is.
    """

    quick: AtomicWriter
    durable: AtomicWriter


@dataclass
class Outcome:
    """What a conversion came to, by part.

    Attributes:
        now: what this run did.
        before: what earlier runs had done already.
    """

    now: _Reports = field(default_factory=dict)
    before: _Reports = field(default_factory=dict)

    def total(self, part: str) -> PartReport:
        """Both together."""
        result = PartReport()
        for reports in (self.before, self.now):
            result.merge(reports.get(part, PartReport()))
        return result


class _Task(NamedTuple):
    convert: Callable[[Unit, frozenset[str], Sink], None]
    unit: Unit
    todo: tuple[Part, ...]
    out: Path
    writers: Writers


class _StoppedError(Exception):
    """The run was interrupted while this process was at work."""


def run_plan(plan: Plan, out: Path, writers: Writers, workers: int, progress: Progress) -> Outcome:
    """Convert all units that are not done yet.

    Args:
        plan: what to convert.
        out: an existing folder.
        writers: how to write files.
        workers: number of processes; 1 = this one.
        progress: told how far the work is.

    Raises:
        DataError: a worker died; what it had finished stays.
        OSError: a file cannot be written.
    """
    outcome = Outcome()
    if plan.skipped.skipped:
        outcome.now[CLOUD] = PartReport()
        outcome.now[CLOUD].merge(plan.skipped)
    tasks = []
    for unit in plan.units:
        todo = []
        for part in unit.parts:
            record = read_record(out, unit, part)
            if record is not None and is_done(record, part):
                outcome.before.setdefault(part.name, PartReport()).merge(record.report)
            else:
                todo.append(part)
        if todo:
            tasks.append(_Task(plan.convert, unit, tuple(todo), out, writers))
    total = sum(task.unit.work for task in tasks)

    def tell(steps: int, note: str) -> None:
        progress(steps, total, note)

    run = _run_here(tasks, tell) if workers == 1 or len(tasks) < 2 else _run_pool(tasks, workers, tell)
    for reports in run:
        for name, report in reports.items():
            outcome.now.setdefault(name, PartReport()).merge(report)
    return outcome


def _run_unit(task: _Task, tick: Callable[[int], None]) -> _Reports:
    """Convert the missing parts of a unit and note them as done."""
    steps = 0

    def counted(count: int) -> None:
        nonlocal steps
        steps += count
        tick(count)

    for part in task.todo:
        remove_stale(task.out, read_record(task.out, task.unit, part), part)
        remove_leftovers(task.out, part)
        write_record(task.out, task.unit, part, None, task.writers.quick)
    sink = Sink(task.out, task.writers.quick, counted)
    wanted = [part.name for part in task.todo]
    try:
        task.convert(task.unit, frozenset(wanted), sink)
    except (OSError, MemoryError, _StoppedError):
        raise
    except Exception as error:
        # A fault of ours. One scene must not end the work of days on the others; it stays undone, and is told.
        place = traceback.format_exc(limit=-3)
        for name in wanted:
            sink.report(name).skip(f"internal error, {type(error).__name__}", f"{task.unit.name}\n{place}")
    else:
        # A record on the disk without the files that it tells of would survive a power failure.
        os.sync()
        for part in task.todo:
            write_record(task.out, task.unit, part, sink.report(part.name), task.writers.durable)
    if steps < task.unit.work:
        tick(task.unit.work - steps)
    return sink.reports


def _run_here(tasks: list[_Task], tell: Callable[[int, str], None]) -> Iterator[_Reports]:
    done = 0
    for task in tasks:
        name = task.unit.name

        def tick(count: int, name: str = name) -> None:
            nonlocal done
            done += count
            tell(done, name)

        yield _run_unit(task, tick)


# In a worker: steps of work done by all of them, and whether to stop.
_steps: Any = None
_stop: Any = None


def _start_worker(steps: Any, stop: Any) -> None:
    global _steps, _stop
    _steps, _stop = steps, stop
    # Ctrl-C reaches all processes of a terminal; the first one tells the others to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _tick_shared(count: int) -> None:
    if _stop.value:
        raise _StoppedError
    with _steps.get_lock():
        _steps.value += count


def _run_in_worker(task: _Task) -> _Reports:
    return _run_unit(task, _tick_shared)


def _run_pool(tasks: list[_Task], workers: int, tell: Callable[[int, str], None]) -> Iterator[_Reports]:
    # Not forked from this process, which shows its progress from a thread.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        # The workers share one import of torch.
        context.set_forkserver_preload([tasks[0].convert.__module__])
    steps, stop = context.Value("q", 0), context.Value("b", 0)
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker, (steps, stop))
    try:
        waiting: set[Future[_Reports]] = {pool.submit(_run_in_worker, task) for task in tasks}
        while waiting:
            finished, waiting = wait(waiting, _POLL, FIRST_COMPLETED)
            for future in finished:
                yield future.result()
            tell(steps.value, f"{len(tasks) - len(waiting)} of {len(tasks)}")
    except BrokenProcessPool:
        raise DataError(
            "a worker process ended unexpectedly, perhaps for want of memory; run the command again, with fewer "
            "--workers, to continue"
        ) from None
    finally:
        stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)
