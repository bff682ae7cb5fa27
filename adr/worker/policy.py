"""When a worker leases how many jobs, how long it waits for them, and when it leaves.

Decides by what it is told of jobs and leases, and by what ledger and survey say of the
queue; `adr.worker.loop` acts on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from adr.ledgers.base import Ledger
from adr.survey import Survey

__all__ = ["Policy"]

#: Prefetch as many jobs as the slots finish in this time.
_AHEAD_S = 1.0
_MOST_AHEAD = 100
#: As many as one call leases on SQS.
_ENOUGH = 10
_LOOKS = 3
_BETWEEN_LOOKS_S = 20.0
#: While jobs run, wait no longer than this for more where the worker is to leave.
_LONGEST_WAIT_S = 5.0


class Policy:
    """Decide about leasing and leaving.

    Calls must not overlap, but for `is_finished`, which only `leased` must not overlap with.

    Parameters
    ----------
    ledger : Ledger
        The queue that is leased from.
    survey : Survey
        What became of all jobs.
    stop_on_empty : bool
        Leave when the queue is proved to be empty.
    most_jobs : int, optional
        Lease so many jobs and no more, and leave when there is none to lease.
    clock : callable, optional
        Returns seconds that never run backwards.
    """

    def __init__(
        self,
        ledger: Ledger,
        survey: Survey,
        *,
        stop_on_empty: bool,
        most_jobs: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._survey = survey
        self._stop_on_empty = stop_on_empty
        self._left = most_jobs
        self._clock = clock
        self._began = clock()
        self._job_s: float | None = None
        self._held_up = False
        self._looks: list[float] = []

    @property
    def is_used_up(self) -> bool:
        """Tell whether all jobs have been leased that may be."""
        return self._left == 0

    def wanted(self, slots: int, running: Collection[float], ready: int) -> int:
        """Return how many jobs to lease now.

        Parameters
        ----------
        slots : int
            How many jobs run at once.
        running : collection of float
            When each of those began that run, by the clock.
        ready : int
            How many are leased and wait for a slot.
        """
        ahead = 0
        if self._job_s is not None and self._job_s < _AHEAD_S and not self._held_up:
            # A slot that has been at its job for longer may be so for days.
            free = slots - sum(self._clock() - began > _AHEAD_S for began in running)
            ahead = min(_MOST_AHEAD, int(free * _AHEAD_S / max(self._job_s, 0.001)))
        wanted = slots + ahead - len(running) - ready
        # While there is something ahead, many are leased by one call rather than one by each.
        if ready and wanted < min(_ENOUGH, 1 + ahead // 2):
            return 0
        return wanted if self._left is None else min(wanted, self._left)

    def patience_s(self, idle: bool) -> float:
        """Return how long to wait for jobs, by whether the worker has nothing else to do."""
        if not self._stop_on_empty and self._left is None:
            return self._ledger.poll_s
        # While jobs run, about as long as one of them: then there may be none left to wait for.
        job_s = self._clock() - self._began if self._job_s is None else self._job_s
        longest_s = 1.0 if idle else min(_LONGEST_WAIT_S, max(1.0, job_s))
        return min(self._ledger.poll_s, longest_s)

    def leased(self, jobs: int) -> None:
        """Take note that so many jobs were leased."""
        if jobs:
            self._looks.clear()
        if self._left is not None:
            self._left -= jobs

    def ended(self, job_s: float) -> None:
        """Take note of how long a job has run."""
        self._held_up = False
        self._job_s = job_s if self._job_s is None else 0.8 * self._job_s + 0.2 * job_s

    def given_back(self) -> None:
        """Take note that jobs were leased ahead in vain: no more of that until one has ended."""
        self._held_up = True

    def is_finished(self, idle: bool) -> bool:
        """Tell whether a worker that was given no job is to leave, by whether it has any.

        Raises
        ------
        RunnerGone, ServiceError, AdrError
            If the queue or the records cannot be read.
        """
        if self._left is not None:
            return True
        if not self._stop_on_empty or not idle:
            return False
        depth = self._ledger.depth()
        if not depth.empty:
            self._looks.clear()
        if depth.exact or not depth.empty:
            return depth.empty
        if self._survey.manifests() and self._survey.is_decided():
            return True
        # Counts of SQS are approximate: only looks that agree over a minute prove anything.
        now = self._clock()
        if not self._looks or now - self._looks[-1] >= _BETWEEN_LOOKS_S:
            self._looks.append(now)
        return len(self._looks) > _LOOKS and not self._survey.is_being_queued()
