"""What comes after a job: its results are uploaded, then its record is made durable.

In this order and no other: results in the store → record in the ledger → job removed. The
uploads of several jobs run side by side; their outcomes are settled in groups, because a
group costs hardly more than one. Until then the leases are held on to (`leases`).
"""

from __future__ import annotations

import logging
import queue
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from adr.errors import AdrError, RunnerGone, ServiceError, Unavailable
from adr.keys import log_key, result_key
from adr.models import JobRecord, JobState, Lease, Outcome, ResultFile
from adr.runner import Runner
from adr.transfer import file_digest, store_files
from adr.worker.slot import Delivery
from adr.worker.tree import discard_tree

__all__ = ["Outbox"]

_log = logging.getLogger(__name__)

_UPLOADERS = 32
_GROUP = 200
#: Those of one group that is being settled, of the next, and what is uploaded meanwhile.
_WAITING_DELIVERIES = 512
_LOOK_S = 0.02
_LONGEST_PAUSE_S = 30.0


class _GivenUp(Exception):
    """Leave an outcome as it is, since there is no time to try again."""


class Outbox:
    """Store deliveries and settle them, in threads of its own.

    Parameters
    ----------
    runner : Runner
        Whose store and ledger these go to.
    on_settled : callable
        Called with each record once it is durable, from the settling thread.
    is_idle : callable
        Tells whether the worker has nothing else to do, so that waiting for more is no use.
    on_gone : callable
        Called once if the runner turns out to be destroyed.
    """

    def __init__(
        self,
        runner: Runner,
        on_settled: Callable[[JobRecord], None],
        is_idle: Callable[[], bool],
        on_gone: Callable[[RunnerGone], None],
    ) -> None:
        self._runner = runner
        self._on_settled = on_settled
        self._is_idle = is_idle
        self._on_gone = on_gone
        self._uploads = ThreadPoolExecutor(_UPLOADERS, "upload")
        self._room = threading.BoundedSemaphore(_WAITING_DELIVERIES)
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        #: Wakes who waits for the last lease to be let go.
        self._emptied = threading.Condition(self._guard)
        #: Wakes the settler while it waits for more.
        self._looking = threading.Event()
        self._leases: dict[str, Lease] = {}
        self._uploading = 0
        self._abandoned = threading.Event()
        #: Set when what fails is not to be tried again.
        self._hurried = threading.Event()
        self._settler = threading.Thread(target=self._settle_all, name="settle", daemon=True)

    def start(self) -> None:
        """Begin to settle."""
        self._settler.start()

    def put(self, delivery: Delivery) -> None:
        """Take a delivery; blocks while too many wait."""
        if delivery.is_empty:
            self.settle(delivery.lease, delivery.record)
            return
        self._room.acquire()
        with self._guard:
            self._leases[delivery.lease.attempt] = delivery.lease
            self._uploading += 1
        self._uploads.submit(self._upload, delivery)

    def settle(self, lease: Lease, record: JobRecord) -> None:
        """Take a record that has no files."""
        self._room.acquire()
        with self._guard:
            self._leases[lease.attempt] = lease
        self._outcomes.put(Outcome(lease, record))

    def leases(self) -> list[Lease]:
        """Return the leases that are not settled yet."""
        with self._guard:
            return list(self._leases.values())

    def look(self) -> None:
        """Look at once whether to wait for more before settling, from any thread."""
        self._looking.set()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until everything is settled, for so long at most; tell whether it is."""
        with self._emptied:
            return self._emptied.wait_for(lambda: not self._leases, timeout_s)

    @property
    def is_empty(self) -> bool:
        """Tell whether everything is settled."""
        with self._guard:
            return not self._leases

    def close(self) -> None:
        """Finish everything and end the threads; blocks while services are away, until `hurry`."""
        self._uploads.shutdown()
        self._outcomes.put(None)
        self._settler.join()
        left = self.leases()
        if left and not self._abandoned.is_set():
            _log.warning("%d jobs will run again: their outcomes could not be recorded", len(left))
            with suppress(AdrError):
                self._runner.ledger.release(left)

    def hurry(self) -> None:
        """Begin no upload any more and repeat nothing that fails, from any thread."""
        self._hurried.set()

    def give_up(self) -> list[Lease]:
        """Hold on to nothing any more and return the leases of what is not settled.

        An upload that is under way is not waited for, and what it would complete is not settled.
        """
        self.hurry()
        with self._guard:
            left = list(self._leases.values())
            self._leases.clear()
            self._emptied.notify_all()
        if left:
            _log.warning("%d jobs will run again: there was no time for their results", len(left))
        return left

    def abandon(self) -> None:
        """Store and settle nothing more, from any thread."""
        self._abandoned.set()
        self._hurried.set()

    def _upload(self, delivery: Delivery) -> None:
        record: JobRecord | None = delivery.record
        try:
            record = self._stored(delivery)
        except _GivenUp:
            record = None
        except FileNotFoundError as error:
            name = delivery.lease.job.name
            _log.warning("%s runs again, as its results were removed: %s", name, error)
            record = None
            self._let_go([delivery.lease])
            with suppress(AdrError):
                self._runner.ledger.release([delivery.lease])
        except Exception as error:
            if not isinstance(error, AdrError):
                _log.exception("storing the results of %s failed", delivery.lease.job.name)
            reason = f"its results could not be stored: {error}"
            record = replace(
                delivery.record, state=JobState.FAILED, reason=delivery.record.reason or reason
            )
        finally:
            with self._guard:
                self._uploading -= 1
            if record is None:
                self._room.release()
            else:
                self._outcomes.put(Outcome(delivery.lease, record))
            discard_tree(delivery.folder)

    def _stored(self, delivery: Delivery) -> JobRecord:
        if self._hurried.is_set():
            raise _GivenUp
        job, attempt = delivery.lease.job, delivery.lease.attempt
        results, files = [], []
        for path, name in delivery.files:
            state = path.stat()
            results.append(
                ResultFile(name, state.st_size, file_digest(path), stat.S_IMODE(state.st_mode))
            )
            files.append((path, result_key(job.batch, job.index, attempt, name)))
        log = None
        if delivery.log is not None:
            log = log_key(job.batch, job.index, attempt)
            files.append((delivery.log, log))
        self._again_and_again(
            lambda: store_files(self._runner.store, files, move=True), while_=Unavailable
        )
        return replace(delivery.record, results=tuple(results), log=log, stored_at=time.time())

    def _settle_all(self) -> None:
        ended = False
        while not ended:
            outcomes = [self._outcomes.get()]
            until = time.monotonic() + self._runner.ledger.settle_within_s
            while outcomes[-1] is not None and len(outcomes) < _GROUP:
                try:
                    outcomes.append(self._outcomes.get_nowait())
                except queue.Empty:
                    left_s = until - time.monotonic()
                    if left_s <= 0 or self._nothing_comes():
                        break
                    # Not woken by each outcome, which costs more than the outcome itself.
                    if self._looking.wait(min(_LOOK_S, left_s)):
                        self._looking.clear()
            ended = outcomes[-1] is None
            if group := [each for each in outcomes if each is not None]:
                self._settle(group)

    def _nothing_comes(self) -> bool:
        with self._guard:
            uploading = self._uploading
        return not uploading and self._outcomes.empty() and self._is_idle()

    def _settle(self, group: list[Outcome]) -> None:
        with self._guard:
            given_up = [each for each in group if each.lease.attempt not in self._leases]
        for outcome in given_up:
            group.remove(outcome)
            self._room.release()
        if not group:
            return
        try:
            self._again_and_again(lambda: self._runner.ledger.settle(group), while_=ServiceError)
            settled = True
        except _GivenUp:
            # Their leases are given back by `close`.
            for _ in group:
                self._room.release()
            return
        except RunnerGone as error:
            self.abandon()
            self._on_gone(error)
            settled = False
        except Exception:
            _log.exception("%d outcomes could not be recorded: their jobs run again", len(group))
            settled = False
            with suppress(AdrError):
                self._runner.ledger.release([outcome.lease for outcome in group])
        self._let_go([outcome.lease for outcome in group])
        self._room.release(len(group))
        if settled:
            for outcome in group:
                self._on_settled(outcome.record)

    def _let_go(self, leases: Sequence[Lease]) -> None:
        with self._emptied:
            for lease in leases:
                self._leases.pop(lease.attempt, None)
            if not self._leases:
                self._emptied.notify_all()

    def _again_and_again(self, step: Callable[[], None], while_: type[AdrError]) -> None:
        """Repeat a step for as long as it fails in this way and there is time for it."""
        pause_s = 0.5
        while not self._abandoned.is_set():
            try:
                return step()
            except while_ as error:
                if self._hurried.is_set() and not self._abandoned.is_set():
                    _log.warning("%s", error)
                    raise _GivenUp from error
                _log.warning("%s; trying again in %g s", error, pause_s)
                self._hurried.wait(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
        raise RunnerGone("this worker has been ended")
