"""When a worker leases how many jobs, how long it waits for them, and when it leaves.

Decides by what it is told of jobs and leases, and by what ledger and survey say of the
queue and the roster of the other workers; `adr.worker.loop` acts on it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator
from itertools import islice, takewhile

from adr.ledgers.base import Ledger
from adr.models import Depth
from adr.survey import Survey

__all__ = ["Policy"]

#: Prefetch as many jobs as the slots finish in this time.
_AHEAD_S = 1.0
_MOST_AHEAD = 100
#: As many as one call leases on SQS.
_ENOUGH = 10
_LOOKS = 3
_BETWEEN_LOOKS_S = 20.0
#: The shortest wait for jobs that makes a queue show all that it has: a long poll of SQS.
_SHORTEST_WAIT_S = 1.0
#: While jobs run, wait no longer than this for more where the worker is to leave.
_LONGEST_WAIT_S = 5.0
#: An idle worker asks no oftener than this what became of the jobs, and who else is there.
_BETWEEN_QUESTIONS_S = 60.0
#: So many idle workers, and such a part of all, stay while others are at their last jobs; but
#: not more than each of thousands can count.
_STAY = 1
_STAY_PART = 0.05
_MOST_STAY = 20


class Policy:
    """Decide about leasing and leaving.

    `ended`, `given_back` and `usual_s` are for any thread, the others for the one that leases.

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
    idle_s : float, optional
        Leave when the last jobs are decided that there were in its time, or after so many
        seconds with nothing to do and nothing waiting; but a few idle workers stay while others
        still run jobs, to take over those of one that dies. Where all was decided before, a
        worker waits for what may be queued next.
    worker : str, optional
        Id of this worker.
    idle : callable, optional
        Returns how many workers live, and the ids of idle ones in order; see `Roster.idle`.
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
        idle_s: float | None = None,
        worker: str = "",
        idle: Callable[[], tuple[int, Iterator[str]]] = lambda: (0, iter(())),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._survey = survey
        self._stop_on_empty = stop_on_empty
        self._left = most_jobs
        self._idle_s = idle_s
        self._worker = worker
        self._idle = idle
        self._clock = clock
        self._guard = threading.Lock()
        self._began = clock()
        self._job_s: float | None = None
        self._held_up = False
        #: Whether the last attempt to lease has brought nothing.
        self._in_vain = False
        self._looks: list[float] = []
        #: Since when there is nothing to do; None where there is, or it is not known.
        self._idle_since: float | None = None
        self._asked_survey_at = -math.inf
        self._asked_roster_at = -math.inf
        #: Since when leasing fails while there is nothing to do; None where it does not.
        self._shut_out_since: float | None = None
        #: Whether there were jobs to do in the time of this worker, by whomever.
        self._seen_work = False
        #: The batches that there were when all was found to be decided; None before that.
        self._decided_batches: set[str] | None = None

    @property
    def usual_s(self) -> float | None:
        """Return how long jobs usually run; None before one has ended."""
        return self._job_s

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
        # SQS lends so many messages of a queue and no more: where it has none to lend, to take
        # one ahead would take it from a slot elsewhere.
        may_be_ahead = not self._held_up and not self._in_vain
        if self._job_s is not None and self._job_s < _AHEAD_S and may_be_ahead:
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
        # While jobs run, about as long as one of them: then there may be none left to wait for.
        job_s = self._clock() - self._began if self._job_s is None else self._job_s
        if self._stop_on_empty or self._left is not None:
            shortest_s = _SHORTEST_WAIT_S
            longest_s = shortest_s if idle else min(_LONGEST_WAIT_S, max(shortest_s, job_s))
        elif self._idle_s is not None:
            # The longer there was nothing to do, the longer it will be so.
            so_far_s = 0 if self._idle_since is None else self._clock() - self._idle_since
            longest_s = max(_SHORTEST_WAIT_S, min(self._idle_s, so_far_s) if idle else job_s)
        else:
            return self._ledger.poll_s
        return min(self._ledger.poll_s, longest_s)

    def is_soon_done(self, idle: bool) -> bool:
        """Tell whether the end of what there is to do comes before that of any wait for jobs.

        So that a worker that may leave then need not look for jobs at the same time. It does so
        once: where that end does not come, it waits for jobs.
        """
        may_leave = self._stop_on_empty and self._left is None
        is_short = self._job_s is not None and self._job_s < _SHORTEST_WAIT_S
        return may_leave and is_short and not idle and not self._in_vain

    def leased(self, jobs: int) -> None:
        """Take note that so many jobs were leased, or that there were none."""
        self._shut_out_since = None
        self._in_vain = jobs == 0
        if jobs:
            self._looks.clear()
            self._idle_since = None
            self._asked_survey_at = -math.inf
            self._seen_work = True
        if self._left is not None:
            self._left -= jobs

    def ended(self, job_s: float) -> None:
        """Take note of how long a job has run."""
        with self._guard:
            self._held_up = False
            self._job_s = job_s if self._job_s is None else 0.8 * self._job_s + 0.2 * job_s

    def given_back(self) -> None:
        """Take note that jobs were leased ahead in vain: no more of that until one has ended."""
        self._held_up = True

    def is_finished(self, idle: bool, paused: bool = False) -> bool:
        """Tell whether a worker that was given no job is to leave, by whether it has any.

        Parameters
        ----------
        idle : bool
            Whether it has nothing to do.
        paused : bool, optional
            Whether nobody is to lease what waits.

        Raises
        ------
        RunnerGone, ServiceError, AdrError
            If the queue or the records cannot be read.
        """
        if self._left is not None:
            return True
        if not idle:
            self._idle_since = None
            return False
        if not self._stop_on_empty and self._idle_s is None:
            return False
        depth = self._ledger.depth()
        now = self._clock()
        if not depth.empty:
            self._looks.clear()
        elif not self._looks or now - self._looks[-1] >= _BETWEEN_LOOKS_S:
            self._looks.append(now)
        if self._stop_on_empty:
            by_records = depth.empty and not depth.exact and self._is_decided()
            if by_records or self._is_proved(depth):
                return True
        return self._idle_s is not None and self._is_idle_enough(depth, now, self._idle_s, paused)

    def is_shut_out(self, idle: bool) -> bool:
        """Tell whether a worker is to leave whose attempt to lease failed, as those before did.

        Parameters
        ----------
        idle : bool
            Whether it has nothing to do, nothing to store, and all but the queue works.
        """
        now = self._clock()
        if not idle:
            self._shut_out_since = None
        elif self._shut_out_since is None:
            self._shut_out_since = now
        if self._idle_s is None or self._shut_out_since is None:
            return False
        return now - self._shut_out_since >= self._idle_s

    def _is_idle_enough(self, depth: Depth, now: float, idle_s: float, paused: bool) -> bool:
        """Tell whether there was nothing to do for long enough, or will be nothing any more."""
        if not depth.empty:
            self._asked_survey_at = -math.inf
            self._seen_work = True
        elif now - self._asked_survey_at >= _BETWEEN_QUESTIONS_S:
            self._asked_survey_at = now
            if self._is_over():
                return True
        if (depth.waiting or depth.delayed) and not paused:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < idle_s:
            return False
        # While the runner is paused there is nothing to take over.
        if paused or self._is_proved(depth):
            return True
        if now - self._asked_roster_at < _BETWEEN_QUESTIONS_S:
            return False
        self._asked_roster_at = now
        return not self._is_to_stay()

    def _is_over(self) -> bool:
        """Tell whether all is decided that there was to do in the time of this worker."""
        decided = self._survey.is_decided()
        batches = self._survey.batches
        if not batches:
            return False
        if decided is None:
            self._asked_survey_at = -math.inf
            return False
        if not decided:
            self._seen_work = True
            return False
        if self._decided_batches is None:
            self._decided_batches = batches
        return self._seen_work or batches != self._decided_batches

    def _is_decided(self) -> bool:
        return self._survey.is_decided() is True and bool(self._survey.batches)

    def _is_proved(self, depth: Depth) -> bool:
        """Tell whether nothing waits and nobody runs anything.

        Counts of SQS are approximate: only looks that agree over a minute prove anything.
        """
        if depth.exact or not depth.empty:
            return depth.empty
        return len(self._looks) > _LOOKS and not self._survey.is_being_queued()

    def _is_to_stay(self) -> bool:
        """Tell whether this is one of the few idle workers that stay; all of them agree on it."""
        alive, idle = self._idle()
        stay = min(_MOST_STAY, _STAY + math.ceil(_STAY_PART * alive))
        # Not by whether we are among them: our own heartbeat may still tell of our last job.
        before = takewhile(lambda worker: worker < self._worker, idle)
        return len(list(islice(before, stay))) < stay
