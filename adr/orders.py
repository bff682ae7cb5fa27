"""Orders to workers: small objects that each worker looks for every few seconds.

What an order is about stands in its key, so that one listing tells all of them. Only what
calls jobs off has more to say, and never changes: it is read once by each process.

A listing costs twelve times as much as reading a small object, and workers look all the time
while next to nothing is ordered. So whoever orders something then says in one object that
something was ordered, and workers read that.

An order calls off jobs by number and generation. So a retry, which raises the generation, is
not touched by it, and an outcome that was recorded before still counts.
"""

from __future__ import annotations

import bisect
import heapq
import json
import logging
import random
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from adr.documents import reading
from adr.errors import AdrError, NotFound, RunnerGone, ServiceError
from adr.keys import CONTROL, FOLLOWS, TOMBSTONE
from adr.models import SCHEMA, Job, JobId, check_schema, new_id
from adr.stores.base import ObjectStore
from adr.times import time_text

__all__ = [
    "Follow",
    "OrderBook",
    "Orders",
    "end_following",
    "follow_key",
    "order_cancelling",
    "order_destruction",
    "order_following",
    "order_pause",
    "order_resumption",
    "read_orders",
]

_log = logging.getLogger(__name__)

_RUNNER = CONTROL + "destroyed"
_BATCH = CONTROL + "destroyed-batch/"
_PAUSED = CONTROL + "paused"
_CANCEL = CONTROL + "cancel/"
_CHANGED = CONTROL + "changed"
_FOLLOWED = re.compile(FOLLOWS + r"(?P<batch>[^/]+)/(?P<index>\d{1,9})/(?P<id>[0-9a-f]+)")

#: After so many looks the orders are listed in any case: who orders may have ended in between.
_LOOKS = 30

#: First index, last index and generation of jobs that follow each other.
_Span = tuple[int, int, int]


@dataclass(frozen=True)
class Follow:
    """Ask the worker that runs a job to show its output while it grows."""

    batch: str
    index: int
    #: Id of the order.
    id: str
    #: Changes for as long as somebody follows.
    etag: str


@dataclass(frozen=True)
class Orders:
    """Hold the orders that stand."""

    #: The runner is being destroyed: end all jobs and write nothing more.
    destroyed: bool = False
    #: Batches that are not to be touched any more.
    destroyed_batches: frozenset[str] = frozenset()
    #: Nothing is to be leased.
    paused: bool = False
    #: For each batch the jobs that are called off, in the order of their numbers.
    cancelled: Mapping[str, tuple[_Span, ...]] = field(default_factory=dict)
    #: Whose output somebody reads.
    follows: tuple[Follow, ...] = ()

    def against(self, job: Job | JobId) -> str:
        """Return why a job is not to be run any more, in words; empty where it is."""
        if not self.destroyed_batches and not self.cancelled:
            return ""
        batch, index, generation = job.id if isinstance(job, Job) else job
        if batch in self.destroyed_batches:
            return "its batch was destroyed"
        covered = _covers(self.cancelled.get(batch, ()), index, generation)
        return "cancelled" if covered else ""


class OrderBook:
    """Read the orders of a runner again and again.

    Parameters
    ----------
    store : ObjectStore
        The store of the runner.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        #: What each order calls off, and all of them together.
        self._read: dict[str, Mapping[str, tuple[_Span, ...]]] = {}
        self._cancelled: dict[str, tuple[_Span, ...]] = {}
        self._seen: Orders | None = None
        #: The note of a change that was there before those were read; empty where none was.
        self._noted = ""
        # Many that begin together are not to list together.
        self._looks_left = random.randint(1, _LOOKS)

    def look(self) -> Orders:
        """Return the orders that stand, by one read where there is no new one; for one thread.

        An order that was cut off before it was made known counts later.
        """
        try:
            noted = self._store.read(_CHANGED).etag
        except NotFound:
            noted = ""
        if self._seen is None or noted != self._noted or self._looks_left <= 0:
            # After the note: what is ordered between the two is seen now, and once more.
            self._seen = self.read()
            self._noted, self._looks_left = noted, _LOOKS
        self._looks_left -= 1
        return self._seen

    def read(self) -> Orders:
        """Return the orders that stand: one listing, and one call for each new cancelling.

        One that cannot be read is logged, once: it must not hide the others.
        """
        entries = list(self._store.list(CONTROL))
        keys = [entry.key for entry in entries]
        return Orders(
            destroyed=_RUNNER in keys,
            destroyed_batches=frozenset(
                key.removeprefix(_BATCH) for key in keys if key.startswith(_BATCH)
            ),
            paused=_PAUSED in keys,
            cancelled=self._read_cancelled([key for key in keys if key.startswith(_CANCEL)]),
            follows=tuple(
                Follow(found["batch"], int(found["index"]), found["id"], entry.etag)
                for entry in entries
                if (found := _FOLLOWED.fullmatch(entry.key))
            ),
        )

    def _read_cancelled(self, keys: Iterable[str]) -> dict[str, tuple[_Span, ...]]:
        new = [key for key in keys if key not in self._read]
        for key in new:
            try:
                self._read[key] = _spans(self._store.read(key).body)
            except NotFound:
                continue
            except (RunnerGone, ServiceError):
                raise
            except AdrError as error:
                _log.warning("%s: it is left out", error)
                self._read[key] = {}
        if new:
            spans: dict[str, list[_Span]] = {}
            for order in self._read.values():
                for batch, some in order.items():
                    spans.setdefault(batch, []).extend(some)
            self._cancelled = {batch: _merged(some) for batch, some in spans.items()}
        return self._cancelled


def read_orders(store: ObjectStore) -> Orders:
    """Read the orders that stand, once."""
    return OrderBook(store).read()


def order_destruction(store: ObjectStore, batch: str | None = None) -> None:
    """Call off the jobs of a batch, or of the whole runner, for good; idempotent."""
    if batch is None:
        store.write(TOMBSTONE, _order())
    store.write(_RUNNER if batch is None else _BATCH + batch, _order())
    _note_change(store)


def order_cancelling(store: ObjectStore, jobs: Iterable[Job]) -> None:
    """Call off jobs, each in its generation."""
    spans: dict[str, list[_Span]] = {}
    for job in sorted(jobs, key=lambda job: job.id):
        known = spans.setdefault(job.batch, [])
        if known and known[-1][1:] == (job.index - 1, job.generation):
            known[-1] = (known[-1][0], job.index, job.generation)
        else:
            known.append((job.index, job.index, job.generation))
    if spans:
        store.write(f"{_CANCEL}{new_id()}.json", _order(batches=spans))
        _note_change(store)


def order_pause(store: ObjectStore) -> None:
    """Let no worker begin anything more; idempotent."""
    store.write(_PAUSED, _order())
    _note_change(store)


def order_resumption(store: ObjectStore) -> None:
    """Let workers go on; idempotent."""
    store.delete([_PAUSED])
    _note_change(store)


def order_following(store: ObjectStore, job: Job, order: str) -> None:
    """Ask to show the output of a job, or go on asking: the order is another one each time."""
    store.write(follow_key(job, order), _order(beat=new_id()))
    _note_change(store)


def end_following(store: ObjectStore, job: Job, order: str) -> None:
    """Ask no more to show the output of a job; idempotent."""
    store.delete([follow_key(job, order)])
    _note_change(store)


def follow_key(job: Job, order: str) -> str:
    """Return the key of the order to show the output of a job."""
    return f"{FOLLOWS}{job.batch}/{job.index:06d}/{order}"


def _note_change(store: ObjectStore) -> None:
    """Let workers read the orders: the last step of each change to them."""
    store.write(_CHANGED, _order(change=new_id()))


def _order(**about: Any) -> bytes:
    return json.dumps({"schema": SCHEMA, "ordered_at": time_text(time.time()), **about}).encode()


def _spans(body: bytes) -> dict[str, tuple[_Span, ...]]:
    what = "an order to cancel jobs"
    with reading(what):
        data = json.loads(body)
        check_schema(data, what)
        return {
            batch: tuple(
                (int(first), int(last), int(generation)) for first, last, generation in some
            )
            for batch, some in data["batches"].items()
        }


def _merged(spans: Iterable[_Span]) -> tuple[_Span, ...]:
    """Return spans that do not overlap and cover the same: the newest generation of each number."""
    coming = sorted(spans)
    edges = sorted({edge for first, last, _ in coming for edge in (first, last + 1)})
    merged: list[_Span] = []
    open_: list[tuple[int, int]] = []
    at = 0
    for first, end in pairwise(edges):
        while at < len(coming) and coming[at][0] <= first:
            heapq.heappush(open_, (-coming[at][2], coming[at][1]))
            at += 1
        while open_ and open_[0][1] < first:
            heapq.heappop(open_)
        if open_:
            generation = -open_[0][0]
            if merged and merged[-1][1:] == (first - 1, generation):
                merged[-1] = (merged[-1][0], end - 1, generation)
            else:
                merged.append((first, end - 1, generation))
    return tuple(merged)


def _covers(spans: tuple[_Span, ...], index: int, generation: int) -> bool:
    place = bisect.bisect_right(spans, index, key=lambda span: span[0]) - 1
    if place < 0:
        return False
    _, last, newest = spans[place]
    return index <= last and generation <= newest
