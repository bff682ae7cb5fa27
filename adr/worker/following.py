"""How a worker shows the output of a job while it grows, to those who follow it.

Who follows a job keeps an order fresh (`adr.following`). For each such order the worker puts
what its job has written since into the store, as parts under their offsets: so nothing is
missing and nothing is there twice, whatever is repeated. When the attempt has ended, a note
tells how long its output is. Where nobody follows a job that runs here, nothing is stored,
and there is no thread for it.

An order is fresh as long as it changes, by the clock of this boot: no clocks of two machines
are compared. A part is no record: what cannot be stored now, is later or never, and whoever
follows takes the rest from the record.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adr.clock import boot_time
from adr.errors import AdrError, RunnerGone
from adr.keys import followed_key, followed_prefix
from adr.models import Lease
from adr.orders import Follow
from adr.stores.base import ObjectStore
from adr.stores.files import open_regular

__all__ = ["Following"]

_log = logging.getLogger(__name__)

#: Who follows renews the order every 20 s.
_STALE_AFTER_S = 60.0
_PART_BYTES = 1 << 20
#: After so many parts others have their turn.
_PARTS_A_TURN = 4
#: More than that is not stored after the end: the whole output is stored then anyway.
_LAST_PARTS = 8
_CLOSE_S = 2.0


@dataclass
class _Stream:
    """What one order gets of one attempt."""

    prefix: str
    attempt: str
    #: Stays readable when the file is moved or removed.
    file: BinaryIO
    sent_bytes: int = 0


class Following:
    """Show the output of the jobs of one worker to those who follow them.

    Parameters
    ----------
    store : ObjectStore
        The store of the runner.
    logs : callable
        Returns lease and log of each job that runs; the same object for as long as it runs.
    most_bytes : int
        Largest output of a job; what exceeds it will be cut off.
    every_s : float
        Seconds between two looks at what has been added.
    clock : callable, optional
        Returns seconds on a clock that nobody can set.
    """

    def __init__(
        self,
        store: ObjectStore,
        logs: Callable[[], Sequence[tuple[Lease, Path]]],
        most_bytes: int,
        every_s: float,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._store = store
        self._logs = logs
        self._most_bytes = most_bytes
        self._every_s = every_s
        self._clock = clock
        #: Guards the fields below, apart from the streams, which the thread alone uses.
        self._guard = threading.Lock()
        #: Each order as it was when it last changed, and when that was, by its id.
        self._orders: dict[str, tuple[Follow, float]] = {}
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._streams: dict[tuple[str, str], _Stream] = {}

    def heed(self, follows: Iterable[Follow]) -> None:
        """Take the orders that stand, all of them; returns at once."""
        with self._guard:
            now = self._clock()
            known, self._orders = self._orders, {}
            for follow in follows:
                order, _ = before = known.get(follow.id, (follow, now))
                self._orders[follow.id] = before if order.etag == follow.etag else (follow, now)
            if self._fresh() and self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._go_on, name="follow", daemon=True)
                self._thread.start()

    def close(self, gone: bool = False) -> None:
        """Store the rest of what is followed, unless the runner is gone, and begin nothing more.

        Does not wait for long where the store is away.
        """
        with self._guard:
            thread = self._thread
            if gone:
                self._orders = {}
            self._closing.set()
        if thread is not None and not gone:
            thread.join(_CLOSE_S)

    def _fresh(self) -> dict[str, Follow]:
        """Return the orders that have changed lately, by their id."""
        since = self._clock() - _STALE_AFTER_S
        return {each: order for each, (order, at) in self._orders.items() if at > since}

    def _go_on(self) -> None:
        more = False
        while True:
            # One turn more when it closes: by then all jobs have ended.
            is_closing = self._closing.wait(0 if more else self._every_s)
            try:
                more = self._turn()
            except RunnerGone as error:
                _log.debug("%s", error)
                self._drop(list(self._streams))
                with self._guard:
                    self._orders = {}
            except AdrError as error:
                # The heartbeat tells of a store that is away.
                _log.debug("%s", error)
                more = False
            except Exception:
                _log.exception("could not show the output of a job")
                more = False
            with self._guard:
                if is_closing or not (self._streams or self._fresh()):
                    self._thread = None
                    return

    def _turn(self) -> bool:
        """Store some of what is new in each log that is followed; tell whether there is more."""
        with self._guard:
            known, fresh = set(self._orders), self._fresh()
        # Before any of it is read: a log that is not among these has its end by now.
        logs = self._logs()
        running = {lease.attempt for lease, _ in logs}
        for order in fresh.values():
            for log in logs:
                job = log[0].job
                if (job.batch, job.index) == (order.batch, order.index):
                    self._begin(order, log)
        more = False
        for (order_id, attempt), stream in list(self._streams.items()):
            has_ended = attempt not in running
            if not stream.sent_bytes and not os.fstat(stream.file.fileno()).st_nlink:
                # The launcher has replaced it for this job, whose log is to be opened anew. Where
                # it has ended as well, the record tells all, and how long it is not known here.
                self._drop([(order_id, attempt)])
                continue
            if order_id in fresh:
                is_behind = self._send(stream, _LAST_PARTS if has_ended else _PARTS_A_TURN)
                more = more or (is_behind and not has_ended)
                if has_ended:
                    length = min(os.fstat(stream.file.fileno()).st_size, self._most_bytes)
                    end = followed_key(stream.prefix, attempt, length, end=True)
                    self._store.write(end, b"")
            # An order that comes back, as that of a laptop that slept, goes on where it was.
            if has_ended or order_id not in known:
                self._drop([(order_id, attempt)])
        return more

    def _begin(self, order: Follow, log: tuple[Lease, Path]) -> None:
        lease, path = log
        place = (order.id, lease.attempt)
        if place in self._streams:
            return
        # The launcher makes the file, and may not have done so yet.
        with suppress(OSError):
            file = open_regular(path)
            # The same path may be that of the next job by now.
            if any(each is log for each in self._logs()):
                prefix = followed_prefix(order.batch, order.index, order.id)
                self._streams[place] = _Stream(prefix, lease.attempt, file)
            else:
                file.close()

    def _send(self, stream: _Stream, most_parts: int) -> bool:
        """Store up to so many parts; tell whether there is more."""
        for _ in range(most_parts):
            room = min(_PART_BYTES, self._most_bytes - stream.sent_bytes)
            body = os.pread(stream.file.fileno(), room, stream.sent_bytes)
            if body:
                key = followed_key(stream.prefix, stream.attempt, stream.sent_bytes)
                self._store.write(key, body)
                stream.sent_bytes += len(body)
            if len(body) < _PART_BYTES:
                return False
        return True

    def _drop(self, places: Iterable[tuple[str, str]]) -> None:
        for place in places:
            self._streams.pop(place).file.close()
