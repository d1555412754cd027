"""How many threads a reader uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operators on the calling thread only, inside the `with` block.

    One image is too small to gain from being split over threads, and where the cores are shared with other
    processes the threads of each small operator wait for one another, which multiplies the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
