"""Ctrl-C and SIGTERM: the first ends a worker in good order, the second at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stopping"]

_log = logging.getLogger(__name__)


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Call `stop` on the first signal within, and leave the process on the second.

    Leaving at once is safe: the launchers notice and end the jobs, the leases come back.
    Does nothing outside the main thread, where Python allows no handlers.

    Yields
    ------
    callable
        Tells whether a signal has come.
    """
    came = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        if came.is_set():
            os._exit(128 + number)
        came.set()
        _log.warning("ending the jobs; once more to leave at once")
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
