"""Requests to stop: noted when they come, obeyed between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 - a run that was asked to end is no error
    """The run ended early because it was asked to; its state is saved. The message is one sentence.

    Attributes:
        number: the signal, 0 where another rank received it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended."""
        return 128 + (self.number or signal.SIGTERM)


@dataclass
class StopRequest:
    """The signal received so far, 0 for none.

    Attributes:
        number: of the last signal.
        ending: the process is about to end by itself: later signals must not cut its last words short.
    """

    number: int = 0
    ending: bool = False

    @property
    def name(self) -> str:
        """Of the signal."""
        return signal.Signals(self.number).name if self.number else "another rank"


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of dying of them; a second SIGINT interrupts as usual.

    Outside the main thread signals cannot be caught, and none is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            if not request.ending:
                signal.signal(number, handler)
