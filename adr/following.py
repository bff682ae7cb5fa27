"""The output of a job: read from its record, or followed while the job runs.

Who follows keeps an order fresh, and the worker that runs the job puts what it has written so
far into the store (`adr.worker.following`), as parts under their offsets. They are shown in
their order and removed; what is not among them when the job is decided, is taken from the
record. So what was shown of an attempt is its output, byte for byte, whoever was away meanwhile.

Looking at the record is dear where thousands of jobs end meanwhile, so that is done seldom,
until a note among the parts says that the attempt has ended.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path

from adr.clock import boot_time
from adr.decisions import visible
from adr.errors import AdrError, Denied, NotFound, ServiceError, Unavailable
from adr.keys import FOLLOWED, FOLLOWS, followed_prefix
from adr.models import Job, JobRecord, JobState, new_id
from adr.orders import end_following, order_following
from adr.runner import Runner
from adr.stores.base import ObjectStore
from adr.survey import Survey
from adr.views import JobView, Status

__all__ = ["follow", "how_it_ended", "is_at_work", "output_of", "why_silent"]

_log = logging.getLogger(__name__)

#: Workers leave an order alone that has not changed for a minute.
_RENEW_S = 20.0
#: What is left of a reader that was killed; none that lives lets its order grow so old.
_LEFT_S = 600.0
_CHUNK_BYTES = 1 << 20
#: How often the last parts are waited for once there is a record.
_LAST_LOOKS = 4
_PART = re.compile(r"(?P<attempt>[0-9a-f]+)-(?P<offset>\d+)(?P<end>\.end)?")


def output_of(
    store: ObjectStore, record: JobRecord, start: int = 0
) -> Generator[bytes, None, None]:
    """Yield the output of an attempt that is recorded, from a byte on."""
    if record.log is None:
        yield record.tail.encode("utf-8", "surrogateescape")[start:]
        return
    with tempfile.TemporaryDirectory(prefix="adr-log-") as folder:
        path = Path(folder, "log")
        store.download(record.log, path)
        with path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


def follow(
    runner: Runner, survey: Survey, job: Job, tell: Callable[[str], None]
) -> Generator[bytes, None, None]:
    """Yield the output of a job as it grows, from its first byte on, until the job is decided.

    Close it where it is not read to its end, so that its order goes.

    Parameters
    ----------
    runner : Runner
        The runner of the job.
    survey : Survey
        Looks at that runner.
    job : Job
        A job that is not decided.
    tell : callable
        Called with sentences for people, such as that the output begins anew.

    Raises
    ------
    Denied
        If these credentials may not order anything.
    AdrError
        If the job is cancelled before it has begun, or is lost.
    """
    parts = _Parts(runner.store, job)
    with suppress(ServiceError):
        _sweep(runner.store)
    try:
        try:
            order_following(runner.store, job, parts.order)
        except Denied as error:
            raise Denied(
                f"{job.name} can be followed only by who may write orders: {error}"
            ) from error
        yield from _Follower(runner, survey, job, tell, parts).output()
    finally:
        with suppress(AdrError):
            parts.remove()


class _Parts:
    """Read the parts that one order brings, those of one attempt at a time."""

    def __init__(self, store: ObjectStore, job: Job) -> None:
        self._store = store
        self.order = new_id()
        self._job = job
        self._prefix = followed_prefix(job.batch, job.index, self.order)
        #: Key and length of each part that is there, by its offset, for each attempt.
        self._found: dict[str, dict[int, tuple[str, int]]] = {}
        #: How long the output is of each attempt that has ended.
        self._lengths: dict[str, int] = {}
        self._past: set[str] = set()
        #: The attempt that is read, empty before the first.
        self.attempt = ""
        #: How much of it has been read.
        self.offset = 0

    def look(self) -> None:
        """Find out what is there."""
        self._found = {}
        for entry in self._store.list(self._prefix):
            name = _PART.fullmatch(entry.key.removeprefix(self._prefix))
            if name is None:
                continue
            parts = self._found.setdefault(name["attempt"], {})
            if name["end"]:
                self._lengths[name["attempt"]] = int(name["offset"])
            else:
                parts[int(name["offset"])] = (entry.key, entry.size_bytes)

    def read(self) -> Iterator[bytes]:
        """Yield what goes on where the last call has ended; nothing where there is none yet."""
        done = []
        for offset, (key, length) in sorted(self._found.get(self.attempt, {}).items()):
            # A worker that has forgotten this order begins at the front, with other parts.
            if offset <= self.offset < offset + length:
                try:
                    body = self._store.read(key).body[self.offset - offset :]
                except NotFound:
                    break
                self.offset += len(body)
                yield body
            if offset + length <= self.offset:
                done.append(key)
        # The listing stays short, however long the output is.
        with suppress(ServiceError):
            self._store.delete(done)

    @property
    def length(self) -> int | None:
        """Return how long the output of the attempt is, None as long as more may come."""
        return self._lengths.get(self.attempt)

    @property
    def new(self) -> str:
        """Return an attempt that was not read yet, empty where there is none."""
        return min(self._found.keys() - self._past - {self.attempt}, default="")

    def has(self, attempt: str) -> bool:
        """Tell whether anything of an attempt is there."""
        return attempt in self._found

    def turn_to(self, attempt: str) -> None:
        """Read another attempt, from its first byte on."""
        self._past.add(self.attempt)
        self.attempt, self.offset = attempt, 0

    def remove(self) -> None:
        """Remove the order and all that it has brought."""
        # First, so that no more comes than is on its way.
        end_following(self._store, self._job, self.order)
        self._store.delete([entry.key for entry in self._store.list(self._prefix)])


class _Follower:
    """Show parts as they come, and look whether the job is decided."""

    def __init__(
        self,
        runner: Runner,
        survey: Survey,
        job: Job,
        tell: Callable[[str], None],
        parts: _Parts,
    ) -> None:
        self._runner = runner
        self._survey = survey
        self._job = job
        self._tell = tell
        self._parts = parts
        self._every_s = runner.orders_s / 5
        self._renew_at = boot_time() + _RENEW_S
        self._look_pause_s = runner.orders_s
        self._look_at = time.monotonic() + self._look_pause_s
        self._has_ended = False
        #: Whether a worker said at the last look that it runs the job.
        self._runs = False
        self._called_off = False
        self._is_over = False

    def output(self) -> Iterator[bytes]:
        pause_s, is_away = self._every_s, False
        while not self._is_over:
            try:
                for body in self._round():
                    pause_s = self._every_s
                    yield body
                is_away = False
            except Unavailable as error:
                if not is_away:
                    _log.warning("%s; trying again and again", error)
                is_away = True
            if not self._is_over:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, self._runner.orders_s / 2)

    def _round(self) -> Iterator[bytes]:
        # By a clock that goes on while a laptop sleeps.
        if boot_time() >= self._renew_at:
            order_following(self._runner.store, self._job, self._parts.order)
            self._renew_at = boot_time() + _RENEW_S
        for body in self._new():
            # As long as something comes, it is not decided.
            self._look_at = time.monotonic() + self._look_pause_s
            yield body
        if self._is_due():
            record = self._look()
            if record is not None:
                yield from self._rest(record)
                self._is_over = True

    def _new(self) -> Iterator[bytes]:
        """Yield what has come since, of one attempt after the other."""
        parts = self._parts
        parts.look()
        yield from parts.read()
        while parts.new:
            self._turn_to(parts.new)
            yield from parts.read()

    def _turn_to(self, attempt: str) -> None:
        """Go on with another attempt, and say so if this is not the first one."""
        past = self._parts.attempt
        if past:
            fate = "ended with its worker" if self._parts.length is None else "is repeated"
            self._tell(
                f"attempt {past} of {self._job.name} {fate}: "
                f"attempt {attempt} follows, from its first byte"
            )
        self._parts.turn_to(attempt)
        self._has_ended = False

    def _is_due(self) -> bool:
        """Tell whether it is time to look at the record: soon after the end, else seldom."""
        if self._parts.length is not None and not self._has_ended:
            self._has_ended = True
            self._look_pause_s = self._every_s
            self._look_at = -1.0
        return time.monotonic() >= self._look_at

    def _look(self) -> JobRecord | None:
        """Return the record of the job if there is one."""
        began = time.monotonic()
        status = self._survey.status(self._job.batch, records=False)
        now = time.monotonic()
        slower_s = min(2 * self._look_pause_s, 3 * self._runner.orders_s)
        self._look_pause_s = max(slower_s, 10 * (now - began))
        self._look_at = now + self._look_pause_s
        found = [view for view in status.jobs if view.job.index == self._job.index]
        [view] = self._survey.with_records(found)
        if view.job.generation != self._job.generation:
            return self._queued_again(view)
        if view.record is None:
            self._consider(view, runs=is_at_work(status, view.job))
        return view.record

    def _queued_again(self, view: JobView) -> JobRecord | None:
        batch, ledger = [self._job.batch], self._runner.ledger
        before = visible(
            each
            for each in ledger.decided(batch)
            if each.index == self._job.index and each.generation <= self._job.generation
        )
        record = next(iter(ledger.records(batch, list(before.values()))), None)
        how = "adr logs -f follows its next run" if record else "its next run is followed as well"
        self._tell(f"{self._job.name} has been queued again: {how}")
        self._job, self._called_off = view.job, False
        return record

    def _consider(self, view: JobView, runs: bool) -> None:
        """Say what has become of the worker, or stop waiting for one.

        Raises
        ------
        AdrError
            If no worker will run the job.
        """
        name = self._job.name
        why = why_silent(view, runs=runs)
        if why and view.state is JobState.CANCELLED:
            # The worker that has just ended it is about to record that.
            if self._called_off and not self._parts.attempt:
                raise AdrError(why)
            if self._called_off:
                self._tell(f"{name} was cancelled")
            self._is_over = self._called_off
            self._called_off = True
        elif why:
            raise AdrError(why)
        elif self._runs and not runs and self._parts.length is None:
            self._tell(f"the worker of {name} has gone: waiting for the next one")
        self._runs = runs

    def _rest(self, record: JobRecord) -> Iterator[bytes]:
        """Yield what is still missing of the attempt that counts."""
        parts = self._parts
        yield from self._new()
        if parts.attempt != record.attempt:
            self._turn_to(record.attempt)
        # The worker stores the last parts beside the results: they are most likely there.
        for _ in range(_LAST_LOOKS):
            if not parts.has(record.attempt) and not parts.offset:
                break
            if parts.length is not None:
                break
            time.sleep(self._every_s)
            parts.look()
            yield from parts.read()
        if parts.offset != parts.length:
            yield from output_of(self._runner.store, record, parts.offset)
        if ending := how_it_ended(self._job, record):
            self._tell(ending)


def how_it_ended(job: Job, record: JobRecord) -> str:
    """Say how a job ended that did not succeed; empty where it did."""
    if record.state is JobState.CANCELLED:
        return f"{job.name} was cancelled"
    return "" if record.state is JobState.SUCCEEDED else f"{job.name} has failed: {record.reason}"


def why_silent(view: JobView, *, runs: bool) -> str:
    """Return why no output of a job is to be had, now or later; empty where that may be.

    Parameters
    ----------
    runs : bool
        Whether a worker says that it runs the job, see `is_at_work`.
    """
    name = view.job.name
    if view.state is JobState.LOST:
        return f"{name} is lost: adr retry --lost queues it again"
    if view.state is JobState.CANCELLED:
        if view.record is not None:
            return f"{name} was cancelled: no output of it is kept"
        if not runs:
            return f"{name} was cancelled before it ran: it has no output"
    return ""


def is_at_work(status: Status, job: Job) -> bool:
    """Tell whether a worker says that it runs a job."""
    place = (job.batch, job.index)
    return any(
        (slot.batch, slot.index) == place for worker in status.workers for slot in worker.running
    )


def _sweep(store: ObjectStore) -> None:
    """Remove what is left of those who followed a job and were killed."""
    orders = {entry.key for entry in store.list(FOLLOWS)}
    left: dict[str, list[str]] = {}
    for entry in store.list(FOLLOWED):
        order = FOLLOWS + entry.key.rpartition("/")[0].removeprefix(FOLLOWED)
        left.setdefault(order, []).append(entry.key)
    for order in sorted(orders | left.keys()):
        try:
            age_s = store.read(order if order in orders else left[order][-1]).age_s
        except NotFound:
            continue
        if age_s >= _LEFT_S:
            store.delete([order, *left.get(order, ())])
