"""Peak memory of one step at several numbers of rays, and what a ray adds to it.

On a GPU it is what torch allocated there. On a CPU it is the resident memory of a process that does nothing else: a
child forked from a server that has imported everything and run nothing.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
import torch

from benchmarks.cases import RENDER_CASES, Sizes
from benchmarks.competitors import COMPETITORS
from benchmarks.contenders import render_contender
from benchmarks.inputs import make_inputs

# Of resource.getrusage: kilobytes on Linux, bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
CHILD_SECONDS = 300
# Bytes that a step may take where its rays are many.
AT_MOST = 3 << 30
# Imported before the fork, for everybody: the drop-in's first step imports torch's compiler and Triton, 100 MB of them.
PRELOAD = ["torch", "torch._dynamo", "triton", "benchmarks.memory"]


def peaks(case: str, competitor: str, sizes: Sizes, device: str) -> dict[int, int]:
    """Rays of one step -> peak bytes, at every number of rays per camera in `sizes.memory_rays`.

    And at those in `sizes.more_memory_rays` where the slope so far promises less than AT_MOST.

    Raises:
        RuntimeError: a child that failed, or did not end.
    """
    found: dict[int, int] = {}
    for rays in (*sizes.memory_rays, *sizes.more_memory_rays):
        at = replace(sizes, rays=rays)
        if rays in sizes.more_memory_rays and expected(found, at.all_rays) > AT_MOST:
            break
        found[at.all_rays] = _on_gpu(case, competitor, at) if device == "cuda" else _in_child(case, competitor, at)
    return found


def expected(found: Mapping[int, float], rays: int) -> float:
    """Peak bytes at another number of rays, on the line through what was found."""
    mean_rays, mean_peak = (sum(values) / len(found) for values in (found.keys(), found.values()))
    return mean_peak + slope(found) * (rays - mean_rays)


def slope(found: Mapping[int, float]) -> float:
    """Bytes that one more ray takes: least squares over all numbers of rays, at least two."""
    return float(np.polyfit(list(found), list(found.values()), 1)[0])


def step(case: str, competitor: str, sizes: Sizes, device: str) -> None:
    """Every part of a competitor's round, once."""
    workload = RENDER_CASES[case]
    contender = render_contender(
        COMPETITORS[competitor].build(workload), workload, make_inputs(workload, sizes, device)
    )
    contender.reset()
    for work in contender.parts.values():
        work()


def _on_gpu(case: str, competitor: str, sizes: Sizes) -> int:
    torch.cuda.empty_cache()
    # Other cases' volumes may be waiting for their next sitting.
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(case, competitor, sizes, "cuda")
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _in_child(case: str, competitor: str, sizes: Sizes) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sending, case, competitor, sizes, torch.get_num_threads()))
    child.start()
    sending.close()
    try:
        if not receiving.poll(CHILD_SECONDS):
            raise RuntimeError(f"memory of {competitor} in {case}: no answer within {CHILD_SECONDS} s")
        return int(receiving.recv())
    except EOFError:
        child.join()
        raise RuntimeError(f"memory of {competitor} in {case}: the process ended with {child.exitcode}") from None
    finally:
        child.kill()
        child.join()


def _child(sending: Connection, case: str, competitor: str, sizes: Sizes, threads: int) -> None:
    torch.set_num_threads(threads)
    step(case, competitor, sizes, "cpu")
    sending.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT)
