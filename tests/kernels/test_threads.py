"""Chunks on threads: order, errors, modes of torch, and results that do not depend on the number of threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from ponder_kernels import _threads, render_rays
from ponder_kernels._threads import PerThread, even_parts, for_each
from tests.kernels.render_cases import Shape, gradients, make_case

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _restore_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_threads, "LEAST_ITEMS", 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "most", "sizes"), [
    (0, 5, []), (1, 5, [1]), (5, 5, [5]), (6, 5, [5, 1]), (40, 5, [5] * 8), (41, 5, [5] * 8 + [1]),
    (50, 5, [5] * 10), (81, 10, [9] * 9), (1024, 62, [57] * 17 + [55]), (8, 1, [1] * 8), (9, 1, [1] * 9),
])  # fmt: skip
def test_parts_have_one_size_and_cover_everything(count: int, most: int, sizes: list[int]) -> None:
    parts = even_parts(count, most)
    assert [part.stop - part.start for part in parts] == sizes
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_are_used_in_order(threads: int) -> None:
    """Also where the first takes longest."""
    torch.set_num_threads(threads)
    used: list[int] = []

    def slow_first(item: int) -> int:
        time.sleep(0.05 if item == 0 else 0)
        return item * item

    for_each(slow_first, list(range(20)), CPU, use=used.append)
    assert used == [item * item for item in range(20)]


def test_a_result_is_used_by_the_thread_that_made_it_before_it_makes_another() -> None:
    torch.set_num_threads(2)
    made: dict[int, list[int]] = {}

    def work(item: int) -> tuple[int, int]:
        made.setdefault(threading.get_ident(), []).append(item)
        time.sleep(0.002 * (item % 3))
        return item, threading.get_ident()

    def use(result: tuple[int, int]) -> None:
        item, thread = result
        assert thread == threading.get_ident() and made[thread][-1] == item

    for_each(work, list(range(30)), CPU, use=use)
    assert sorted(item for items in made.values() for item in items) == list(range(30))


def test_few_items_stay_with_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr(_threads, "LEAST_ITEMS", 4)
    for count, here in ((3, True), (4, False)):
        seen: list[tuple[int, int]] = []
        for_each(lambda _: (threading.get_ident(), torch.get_num_threads()), [0] * count, CPU, use=seen.append)
        assert len(seen) == count
        assert all((thread == threading.get_ident()) == here and split == 1 + here for thread, split in seen)


def test_nobody_waits_for_a_result_that_never_comes() -> None:
    """The second item's thread waits for its turn when the first fails."""
    torch.set_num_threads(2)
    used: list[int] = []

    def work(item: int) -> int:
        if item == 0:
            time.sleep(0.05)
            raise ZeroDivisionError("chunk 0")
        return item

    with pytest.raises(ZeroDivisionError, match="chunk 0"):
        for_each(work, [0, 1, 2], CPU, use=used.append)
    assert used == []


def test_chunks_run_on_several_threads_with_unsplit_operations() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2)
    seen: list[tuple[int, int]] = []

    def work(item: int) -> tuple[int, int]:
        both.wait(timeout=30)
        return threading.get_ident(), torch.get_num_threads()

    for_each(work, [0, 1], CPU, use=seen.append)
    assert len({name for name, _ in seen}) == 2 and all(count == 1 for _, count in seen)
    assert torch.get_num_threads() == 2
    # A thread that is started now is as it would have been.
    for_new: list[int] = []
    thread = threading.Thread(target=lambda: for_new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert for_new == [2]


@pytest.mark.parametrize("where", ["function", "use"])
def test_an_error_arrives_and_ends_the_work(where: str) -> None:
    torch.set_num_threads(2)
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        if where == "function" and item == 3:
            raise ZeroDivisionError("chunk 3")
        return item

    def use(item: int) -> None:
        if where == "use" and item == 3:
            raise ZeroDivisionError("chunk 3")

    with pytest.raises(ZeroDivisionError, match="chunk 3"):
        for_each(work, list(range(1000)), CPU, use=use)
    count = len(started)
    time.sleep(0.05)
    assert count < 100 and len(started) == count
    used: list[int] = []
    for_each(lambda item: item, [1, 2, 3], CPU, use=used.append)
    assert used == [1, 2, 3]


@pytest.mark.parametrize("threads", [1, 2])
def test_nothing_is_recorded_and_inference_tensors_can_be_written(threads: int) -> None:
    torch.set_num_threads(threads)
    weight = torch.ones(3, requires_grad=True)
    products: list[torch.Tensor] = []
    for_each(lambda item: weight * item, [1, 2, 3], CPU, use=products.append)
    assert not any(product.requires_grad for product in products)
    with torch.inference_mode():
        out = torch.zeros(3)
        for_each(lambda item: out[item : item + 1].fill_(item), [0, 1, 2], CPU)
    assert out.tolist() == [0, 1, 2]


def test_every_thread_makes_its_own_value() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2)
    values = PerThread(object)

    def work(item: int) -> object:
        both.wait(timeout=30)
        return values.value

    seen: list[object] = []
    for_each(work, [0, 1], CPU, use=seen.append)
    assert seen[0] is not seen[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_works_in_a_forked_process() -> None:
    torch.set_num_threads(2)
    for_each(lambda item: item, [1, 2, 3], CPU)
    child = os.fork()
    if child == 0:
        used: list[int] = []
        for_each(lambda item: item, [1, 2, 3], CPU, use=used.append)
        os._exit(0 if used == [1, 2, 3] else 1)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("the forked process hangs")


def test_the_number_of_threads_does_not_change_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, from two threads on: sums over chunks are taken in one order.

    Products outside the chunks are torch's own: how it splits them over its threads, which stay as many here, changes
    their rounding on some processors.
    """
    found = []
    torch.set_num_threads(3)
    for threads in (2, 3):
        monkeypatch.setattr(_threads, "MAX_THREADS", threads)
        case = make_case(Shape(rays=40, options={"chunk_bytes": 2000}), torch.float32)
        found.append(gradients(case.call(render_rays, backend="torch"), case))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
