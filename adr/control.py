"""The functions of adr that tell what went wrong and steer what is queued.

They are part of the Python API, and to be had from `adr.adr` and from ``adr`` itself. None of
them talks to a worker: they read what workers write, and write orders that workers read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adr.choosing import choose_jobs
from adr.errors import RunnerGone, UsageError
from adr.likeness import FailureGroup, group_failures
from adr.models import JobState
from adr.orders import order_cancelling, order_pause, order_resumption, read_orders
from adr.runner import Runner, open_runner
from adr.survey import Survey
from adr.views import Counts, JobView

__all__ = [
    "CancelReport",
    "FailureReport",
    "PauseReport",
    "cancel",
    "failures",
    "pause",
    "resume",
]

_WAITS = (JobState.QUEUED, JobState.UNACCOUNTED, JobState.LOST)


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
    survey = Survey(open_runner(runner_id, region_name))
    views = choose_jobs(survey.status(batch, records=False).jobs, jobs)
    totals = Counts()
    for view in views:
        totals.add(view.state)
    found = survey.with_records([view for view in views if view.state is JobState.FAILED])
    failed = [(view.job, view.record) for view in found if view.record is not None]
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
    status = Survey(runner).status(batch, records=False)
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
    orders = read_orders(runner.store)
    if orders.destroyed:
        raise RunnerGone(f"the runner {runner.id} has been destroyed: nothing runs there any more")
    changed = orders.paused != paused
    if changed:
        (order_pause if paused else order_resumption)(runner.store)
    # Not what the queue tells: it counts jobs that were called off, and some twice.
    status = Survey(runner).status(jobs=False)
    return PauseReport(
        paused,
        changed,
        running=status.totals.running,
        waiting=status.totals.queued,
        workers=len(status.workers),
    )
