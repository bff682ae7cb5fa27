"""The functions of adr that follow and steer what is queued: wait, failures, cancel, pause.

They are part of the Python API, and to be had from `adr.adr` and from ``adr`` itself. None of
them talks to a worker: they read what workers write, and write orders that workers read.
"""

from __future__ import annotations

import enum
import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from adr.errors import ServiceError, UsageError
from adr.likeness import FailureGroup, group_failures
from adr.models import JobState
from adr.orders import order_cancelling, order_pause, order_resumption, read_orders
from adr.progress import SILENT, Progress
from adr.runner import Runner, open_runner
from adr.survey import Counts, JobView, Status, Survey, choose_jobs

__all__ = [
    "CancelReport",
    "FailureReport",
    "Look",
    "PauseReport",
    "WaitReport",
    "WaitState",
    "cancel",
    "failures",
    "pause",
    "resume",
    "wait",
    "watch",
]

_log = logging.getLogger(__name__)

#: Between two looks is this part of the time since the first one, within bounds.
_PAUSE_PART = 0.1
_SHORTEST_S = 0.5
_LONGEST_S = (1.0, 10.0)
#: But so many times as long as a look takes, at least: others use the services as well.
_LOOKS_APART = 10
#: A number that stands alone in a sentence.
_NUMBER = re.compile(r"(?<!\S)\d[\d,]*(?!\S)")
_WAITS = (JobState.QUEUED, JobState.UNACCOUNTED, JobState.LOST)


@dataclass(frozen=True)
class Look:
    """Show the state of a runner at one of many looks."""

    status: Status
    #: Why it could not be read anew; empty where it was.
    trouble: str
    #: After how many seconds to look again.
    pause_s: float


def watch(
    runner_id: str, region_name: str | None = None, *, batch: str | None = None
) -> Iterator[Look]:
    """Look at a runner again and again, whenever the next is asked for.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    batch : str, optional
        Look at this batch only.

    Yields
    ------
    Look
        What `status` tells; or, where a service has failed since the first look, what the last
        one told.

    Raises
    ------
    UsageError
        If there is no such batch.
    ServiceError
        If the first look fails.
    """
    runner = open_runner(runner_id, region_name)
    survey = Survey(runner)
    longest_s = min(max(runner.ledger.poll_s, _LONGEST_S[0]), _LONGEST_S[1])
    began = before = time.monotonic()
    status = survey.status(batch)
    while True:
        now = time.monotonic()
        usual_s = min(max(_SHORTEST_S, _PAUSE_PART * (now - began)), longest_s)
        yield Look(status, "", max(usual_s, _LOOKS_APART * (now - before)))
        while True:
            before = time.monotonic()
            try:
                status = survey.status(batch)
                break
            except ServiceError as error:
                yield Look(status, str(error), longest_s)


class WaitState(str, enum.Enum):
    """How waiting has ended."""

    #: Every job has succeeded.
    SUCCEEDED = "succeeded"
    #: Every job is decided, and some did not succeed.
    FAILED = "failed"
    #: Every job that is not decided is lost: nobody will run it.
    LOST = "lost"
    #: Some jobs were not decided in time.
    TIMEOUT = "timeout"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class WaitReport:
    """Say how waiting has ended, and with what."""

    state: WaitState
    totals: Counts

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {"state": self.state.value, "totals": asdict(self.totals)}


def wait(
    runner_id: str,
    region_name: str | None = None,
    *,
    batch: str | None = None,
    timeout: float | None = None,
    progress: Progress = SILENT,
) -> WaitReport:
    """Wait until every job is decided; changes nothing, and can be interrupted at any time.

    Whatever keeps jobs from being done is logged once as a warning. Services that fail
    meanwhile are asked again.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    batch : str, optional
        Wait for this batch only [default: all that were not destroyed]
    timeout : float, optional
        Seconds after which to wait no longer
    progress : Progress, optional
        Told of the advance.

    Raises
    ------
    UsageError
        If there is nothing to wait for.

    See Also
    --------
    status, failures
    """
    give_up_at = math.inf if timeout is None else time.monotonic() + timeout
    advance, told, troubled = _Advance(progress), _Told(), False
    try:
        for look in watch(runner_id, region_name, batch=batch):
            totals = _totals(look.status, whole=batch is not None)
            if not totals.jobs:
                raise UsageError("there is nothing to wait for: queue a batch with adr queue")
            if look.trouble and not troubled:
                _log.warning("%s; asking again until it answers", look.trouble)
            troubled = bool(look.trouble)
            told.tell(look.status.notes)
            advance.show(totals)
            if not totals.undecided:
                done = totals.succeeded == totals.jobs
                return WaitReport(WaitState.SUCCEEDED if done else WaitState.FAILED, totals)
            if totals.undecided == totals.lost:
                return WaitReport(WaitState.LOST, totals)
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                return WaitReport(WaitState.TIMEOUT, totals)
            time.sleep(min(look.pause_s, left_s))
    finally:
        progress.finish()
    raise AssertionError("looks do not end")


class _Told:
    """Log each sentence when it begins to be true, whatever number it names."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def tell(self, notes: Sequence[str]) -> None:
        known = {_NUMBER.sub("", note): note for note in notes}
        for note in known.keys() - self._known:
            _log.warning("%s", known[note])
        self._known = set(known)


class _Advance:
    """Show counts as progress, also where jobs are added or queued again meanwhile."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._jobs = self._decided = 0

    def show(self, totals: Counts) -> None:
        decided = totals.jobs - totals.undecided
        if totals.jobs != self._jobs or decided < self._decided:
            self._progress.start("waiting", totals.jobs, "jobs", decided)
        else:
            self._progress.advance(decided - self._decided)
        self._jobs, self._decided = totals.jobs, decided
        unusual = {name: getattr(totals, name) for name in ("cancelled", "lost")}
        self._progress.note(
            done=totals.succeeded,
            failed=totals.failed,
            running=totals.running,
            **{name: number for name, number in unusual.items() if number},
        )


def _totals(status: Status, whole: bool) -> Counts:
    """Add up what is waited for: all of it, or without batches that were destroyed."""
    parts = [asdict(each) for each in status.batches if whole or not each.destroyed]
    return Counts(*(sum(part[each.name] for part in parts) for each in fields(Counts)))


@dataclass(frozen=True)
class FailureReport:
    """Show the failed jobs that were asked for."""

    #: Those that are alike together, the largest group first.
    groups: tuple[FailureGroup, ...]
    #: How many jobs were looked at, and how many of them are lost or not decided yet.
    jobs: int
    lost: int
    undecided: int

    @property
    def failed(self) -> int:
        """Return how many jobs have failed."""
        return sum(len(group.failures) for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object, with every failed job."""
        return {
            "jobs": self.jobs,
            "failed": self.failed,
            "lost": self.lost,
            "groups": [group.to_dict() for group in self.groups],
        }


def failures(
    runner_id: str,
    jobs: Sequence[str] = (),
    region_name: str | None = None,
    *,
    batch: str | None = None,
) -> FailureReport:
    """Tell which jobs have failed, those together that are alike.

    Parameters
    ----------
    runner_id : str
        Runner ID
    jobs : sequence of str, optional
        Names, numbers or globs of jobs [default: all]
    region_name : str, optional
        Amazon region identifier
    batch : str, optional
        Look at this batch only.

    Raises
    ------
    UsageError
        If there is no such batch or job.
    """
    status = Survey(open_runner(runner_id, region_name)).status(batch)
    views = choose_jobs(status.jobs, jobs)
    totals = Counts()
    for view in views:
        totals.add(view.state)
    failed = [
        (view.job, view.record)
        for view in views
        if view.state is JobState.FAILED and view.record is not None
    ]
    groups = tuple(group_failures(failed))
    return FailureReport(groups, totals.jobs, totals.lost, totals.undecided)


@dataclass(frozen=True)
class CancelReport:
    """Say which jobs were called off, or would be."""

    #: Jobs that waited and that ran.
    waiting: tuple[str, ...]
    running: tuple[str, ...]
    #: How many of those that were meant are decided already and stay as they are.
    decided: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "cancelled": len(self.waiting) + len(self.running),
            "waiting": list(self.waiting),
            "running": list(self.running),
            "decided": self.decided,
        }


def cancel(
    runner_id: str,
    jobs: Sequence[str] = (),
    region_name: str | None = None,
    *,
    batch: str | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> CancelReport:
    """Call jobs off: those that wait never begin, those that run are ended by their workers.

    Undecided jobs are cancelled at once, whether a worker runs or not. What was recorded before
    stays, and a job that is queued again later is another matter. Idempotent.

    Parameters
    ----------
    runner_id : str
        Runner ID
    jobs : sequence of str, optional
        Names, numbers or globs of jobs
    region_name : str, optional
        Amazon region identifier
    batch : str, optional
        All jobs of this batch
    everything : bool, optional
        All jobs [default: False]
    dry_run : bool, optional
        Only tell which [default: False]

    Raises
    ------
    UsageError
        If not exactly one of `jobs`, `batch` and `everything` is given, or if there is none of
        these.
    """
    if [bool(jobs), batch is not None, everything].count(True) != 1:
        raise UsageError("name jobs to cancel, or give --batch=BATCH, or --all: one of these")
    runner = open_runner(runner_id, region_name)
    status = Survey(runner).status(batch)
    views = choose_jobs(status.jobs, jobs)
    if not views:
        raise UsageError("there are no jobs to cancel: adr queue queues some")
    waiting = [view for view in views if view.state in _WAITS]
    running = [view for view in views if view.state is JobState.RUNNING]
    undecided = waiting + running
    if undecided and not dry_run:
        # Whole batches are few words. Of a job that is decided an order changes nothing.
        batches = {view.job.batch for view in undecided}
        meant = undecided if jobs else [view for view in views if view.job.batch in batches]
        order_cancelling(runner.store, (view.job for view in meant))
    return CancelReport(_names(waiting), _names(running), len(views) - len(undecided))


def _names(views: Sequence[JobView]) -> tuple[str, ...]:
    return tuple(view.job.name for view in views)


@dataclass(frozen=True)
class PauseReport:
    """Say whether a runner is paused, and what it has to do."""

    paused: bool
    #: Whether that was otherwise before.
    changed: bool
    #: Jobs that run and that wait.
    running: int
    waiting: int
    workers: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def pause(runner_id: str, region_name: str | None = None) -> PauseReport:
    """Let no worker begin anything more, until `resume`; idempotent.

    Jobs that run go on to their end; those that were leased and have not begun are given back.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier

    Raises
    ------
    RunnerGone
        If the runner has been destroyed.
    """
    return _set_pause(open_runner(runner_id, region_name), paused=True)


def resume(runner_id: str, region_name: str | None = None) -> PauseReport:
    """Let workers go on after `pause`; idempotent.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier

    Raises
    ------
    RunnerGone
        If the runner has been destroyed.
    """
    return _set_pause(open_runner(runner_id, region_name), paused=False)


def _set_pause(runner: Runner, *, paused: bool) -> PauseReport:
    depth = runner.ledger.depth()
    changed = read_orders(runner.store).paused != paused
    if changed:
        (order_pause if paused else order_resumption)(runner.store)
    workers = runner.roster.alive()
    return PauseReport(
        paused,
        changed,
        running=sum(len(worker.running) for worker in workers),
        waiting=depth.waiting + depth.delayed,
        workers=len(workers),
    )
