"""The heartbeat of a worker, and the orders that it reads between two beats.

A beat that reached the store is also noted in a file, if one is named: a timer of the system
that knows nothing of adr can tell by it whether this worker still does anything.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from adr.clock import boot_time
from adr.errors import AdrError, RunnerGone
from adr.orders import OrderBook, Orders
from adr.runner import Runner
from adr.workerinfo import WorkerInfo

__all__ = ["Heartbeat"]

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_AFTER_TROUBLE_S = 5.0


class Heartbeat:
    """Write the heartbeat of one worker when it is due; from one thread at a time.

    Parameters
    ----------
    runner : Runner
        Whose roster it is written to.
    info : callable
        Describes the worker as it is now.
    obey : callable
        Called with the orders each time they were read.
    on_gone : callable
        Called if the runner turns out to be destroyed.
    alive : Path, optional
        File for the boot-time clock at the last beat that reached the store.
    """

    def __init__(
        self,
        runner: Runner,
        info: Callable[[], WorkerInfo],
        obey: Callable[[Orders], None],
        on_gone: Callable[[RunnerGone], None],
        alive: Path | None = None,
    ) -> None:
        self._runner = runner
        self._info = info
        self._obey = obey
        self._on_gone = on_gone
        self._alive = alive
        self._alive_failed = False
        self._orders = OrderBook(runner.store)
        self._orders_at = 0.0
        self._told: WorkerInfo | None = None
        self._beat_at = 0.0
        #: Whether the store could be used at the last try.
        self.is_heard = False

    def begin(self) -> None:
        """Write the first heartbeat.

        Raises
        ------
        RunnerGone, ServiceError
            If it cannot be written.
        """
        info = self._info()
        self._runner.roster.hold(info.worker)
        self._beat(info)

    def go_on(self, over: threading.Event) -> None:
        """Write each further one, soon after a change, and read the orders, until `over`.

        But first clear away after other workers, for which nobody is to wait at the start.
        """
        self._fulfil(self._sweep, over)
        # Workers that were started together are not to look together for ever.
        self._orders_at = time.monotonic() + random.uniform(0, self._runner.orders_s)
        # Each by itself: a worker that may only read is to obey all the same.
        duties = (self._read_orders, self._beat_if_due)
        while not over.wait(_TICK_S):
            for duty in duties:
                self._fulfil(duty, over)

    def end(self, gone: bool) -> None:
        """Write the last one, or remove all where the runner is gone; raises nothing."""
        info = self._info()
        try:
            if gone:
                self._runner.roster.forget(info.worker)
            else:
                self._runner.roster.leave(info)
        except AdrError as error:
            _log.debug("the heartbeat stays behind: %s", error)

    def _fulfil(self, duty: Callable[[], None], over: threading.Event) -> None:
        """Do something; whatever comes of it, the thread goes on."""
        try:
            duty()
        except RunnerGone as error:
            self._on_gone(error)
        except AdrError as error:
            self.is_heard = False
            _log.warning("%s", error)
            over.wait(_AFTER_TROUBLE_S)
        except Exception:
            _log.exception("could not clear away, read the orders, or write the heartbeat")

    def _sweep(self) -> None:
        self._runner.roster.sweep(self._info().worker)

    def _read_orders(self) -> None:
        if time.monotonic() >= self._orders_at:
            self._obey(self._orders.look())
            self._orders_at = time.monotonic() + self._runner.orders_s

    def _beat_if_due(self) -> None:
        info = self._info()
        if self._is_due(info):
            self._beat(info)

    def _is_due(self, info: WorkerInfo) -> bool:
        shortest_s, usual_s = self._runner.heartbeat_s
        age_s = time.monotonic() - self._beat_at
        told = self._told
        if told is None or info.note != told.note:
            return True
        return age_s >= usual_s or (age_s >= shortest_s and info.running != told.running)

    def _beat(self, info: WorkerInfo) -> None:
        self._runner.roster.beat(info)
        self.is_heard = True
        usual_s = self._runner.heartbeat_s[1]
        self._told, self._beat_at = info, time.monotonic() - random.uniform(0, usual_s / 10)
        if self._alive is not None:
            self._note_alive(self._alive)

    def _note_alive(self, path: Path) -> None:
        """Write in place, as the folder may not be ours, and never less than was there."""
        text = f"{boot_time():.2f}\n".encode()
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(handle, text, 0)
                os.ftruncate(handle, len(text))
            finally:
                os.close(handle)
        except OSError as error:
            if not self._alive_failed:
                _log.warning("cannot note in %s that this worker lives: %s", path, error.strerror)
            self._alive_failed = True
