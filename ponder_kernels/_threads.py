"""Chunks of work on the CPU, one thread each.

torch splits every operation over its threads, which for the hundreds of short operations of a chunk costs up to a third
of the time in waiting. Here each thread runs whole chunks, its operations unsplit. Results are used in the order of the
chunks, so sums over them do not depend on the number of threads.

A few chunks are left to torch: its threads go on spinning for milliseconds after the caller's last operation, and for
so long take the processors from those here.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")

# Python holds its lock for a few microseconds per operation; more threads than this would mostly wait for it.
MAX_THREADS = 8
# For fewer items the threads do not pay.
LEAST_ITEMS = 5
# From here on one part more makes each smaller by a tenth at most.
EVEN_FROM = 9
# M_ARENA_MAX of glibc's malloc.h.
_ARENA_MAX = -8


class PerThread(threading.local, Generic[Value]):
    """A value that every thread makes for itself when it first asks."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self.value = make()


def even_parts(count: int, most: int) -> list[slice]:
    """`count` things in parts of one size, at most `most`, but for the last; from EVEN_FROM parts on nearly all alike.

    There are then mostly as many for either of two threads, and the parts do not depend on the number of threads. Fewer
    parts stay as large as they may be, and all have one size, so that memory grows with `count` no more than it must.
    """
    size, parts = most, -(-count // most)
    if parts >= EVEN_FROM:
        size = -(-count // (parts + parts % 2))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def for_each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    device: torch.device,
    use: Callable[[Result], object] | None = None,
) -> None:
    """`function` of every item, and `use` of what it returns; as many threads as torch uses share LEAST_ITEMS or more.

    `use` sees the results in the order of the items, one at a time, on the thread that made them and before it makes
    another: they may lie in that thread's buffers. Nothing is recorded by autograd.
    """
    shared = device.type == "cpu" and len(items) >= LEAST_ITEMS
    threads = min(torch.get_num_threads(), MAX_THREADS, len(items)) if shared else 1
    if threads < 2:
        with torch.no_grad():
            for item in items:
                result = function(item)
                if use is not None:
                    use(result)
        return
    line = _Line(function, use)
    pool, waiting = _pool(threads), deque[Future[None]]()
    try:
        for number, item in enumerate(items):
            if len(waiting) > threads:
                waiting.popleft().result()
            waiting.append(pool.submit(line.run, number, item))
        while waiting:
            waiting.popleft().result()
    finally:
        # After an error nothing goes on writing into the caller's tensors.
        line.end()
        for future in waiting:
            future.cancel()
        for future in waiting:
            if not future.cancelled():
                future.exception()


class _Line(Generic[Item, Result]):
    """Results in the order of their numbers, each used by the thread that made it when its turn has come.

    The caller's thread only waits: its operations would be split, and compete with the chunks.
    """

    def __init__(self, function: Callable[[Item], Result], use: Callable[[Result], object] | None) -> None:
        self._function, self._use = function, use
        # Modes of autograd belong to a thread; inference tensors can be written in inference mode only.
        self._inference = torch.is_inference_mode_enabled()
        self._turn, self._next, self._ended = threading.Condition(), 0, False

    def run(self, number: int, item: Item) -> None:
        """Compute and use one result."""
        with torch.inference_mode() if self._inference else torch.no_grad():
            result = self._function(item)
            if self._use is not None and self._wait_for(number):
                self._use(result)
        # After an error it stays this one's turn until the caller hears of it.
        with self._turn:
            self._next += 1
            self._turn.notify_all()

    def _wait_for(self, number: int) -> bool:
        """Whether there is still a turn for it."""
        with self._turn:
            self._turn.wait_for(lambda: self._next == number or self._ended)
            return not self._ended

    def end(self) -> None:
        """From now on nobody waits and nothing is used."""
        with self._turn:
            self._ended = True
            self._turn.notify_all()


@contextlib.contextmanager
def _one_heap() -> Iterator[None]:
    """Threads that start in here share the main thread's heap, where the C library is glibc.

    It would give each its own, and what one thread has freed would not serve the others: a step's peak of memory would
    be the sum of what its phases need, not the largest of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or "MALLOC_ARENA_MAX" in os.environ or "GLIBC_TUNABLES" in os.environ:
        yield
        return
    mallopt(_ARENA_MAX, 1)
    try:
        yield
    finally:
        mallopt(_ARENA_MAX, 0)  # what it is unless somebody has set it


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that torch does not split operations in."""
    total = torch.get_num_threads()
    ready = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # torch sets the number of a thread when first asked, and must not do so later
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="ponder", initializer=start)
    with _one_heap():
        for _ in range(threads):
            pool.submit(int)
        ready.wait()
    # What the threads set is also what other new threads start with; this puts it back.
    torch.set_num_threads(total)
    return pool


# A forked process has none of the threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
