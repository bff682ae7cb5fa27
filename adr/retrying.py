"""The functions of adr that queue jobs again: those that did not succeed, and dead letters.

How a retry is written down and sent is told in `adr.sending`. One that was cut off before its
seal is finished by whoever retries next, or queues the same jobs.

They are part of the Python API, and to be had from `adr.adr` and from ``adr`` itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from adr.choosing import choose_jobs
from adr.embedded import output_folder
from adr.errors import AdrError, RunnerGone, UsageError
from adr.joblimits import check_limit
from adr.keys import retry_number
from adr.ledgers.base import DeadLetter, DeadLetters
from adr.models import Job, JobState
from adr.orders import Orders, read_orders
from adr.progress import SILENT, Progress
from adr.runner import Runner, open_runner
from adr.sending import finish_sending, has_inputs, queue_again, raised
from adr.survey import Survey
from adr.views import JobView

__all__ = ["RetryReport", "dead_letters", "retry"]

#: So many batches are named in an error.
_NAMED = 3
_LEFT = {
    "succeeded": (JobState.SUCCEEDED,),
    "waiting": (JobState.QUEUED, JobState.UNACCOUNTED),
    "running": (JobState.RUNNING,),
}


@dataclass(frozen=True)
class RetryReport:
    """Say which jobs were queued again, or would be."""

    #: Each in its new generation.
    jobs: tuple[Job, ...]
    #: Those among them of retries that had been cut off.
    resumed: tuple[Job, ...]
    #: Jobs that were named and left alone, since they have succeeded, wait or run.
    left: tuple[JobView, ...]
    #: Jobs that were left alone since the inputs of their batch have been removed.
    gone: tuple[Job, ...]
    #: Dead letters that no job could be read from, and that were left alone.
    unreadable: tuple[DeadLetter, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "jobs": [job.names() for job in self.jobs],
            "resumed": len(self.resumed),
            "left": self.count_left(),
            "gone": dict(Counter(job.batch for job in self.gone)),
            "unreadable": [letter.to_dict() for letter in self.unreadable],
        }

    def count_left(self) -> dict[str, int]:
        """Count the jobs that were left alone by why they were."""
        counts = Counter(view.state for view in self.left)
        return {name: sum(counts[state] for state in states) for name, states in _LEFT.items()}


@dataclass(frozen=True)
class _Kinds:
    """Say which of the jobs that were meant are to be retried."""

    failed: bool
    lost: bool
    cancelled: bool
    succeeded: bool
    exit_code: int | None

    def include(self, view: JobView) -> bool:
        if view.state is JobState.FAILED:
            if self.exit_code is None:
                return self.failed
            return view.record is not None and view.record.code == self.exit_code
        return {
            JobState.LOST: self.lost,
            JobState.CANCELLED: self.cancelled,
            JobState.SUCCEEDED: self.succeeded,
        }.get(view.state, False)


def retry(
    runner_id: str,
    jobs: Sequence[str] = (),
    region_name: str | None = None,
    *,
    failed: bool = False,
    lost: bool = False,
    cancelled: bool = False,
    exit_code: int | None = None,
    batch: str | None = None,
    attempts: int | None = None,
    timeout: float | None = None,
    force: bool = False,
    dry_run: bool = False,
    dead: bool = False,
    progress: Progress = SILENT,
) -> RetryReport:
    """Queue jobs again that did not succeed, from what was written down when they were queued.

    Jobs that are named are retried if they have failed, are lost, or were cancelled. Without
    names, and without `failed`, `lost`, `cancelled` or `exit_code`, those that have failed are.
    A retry that was cut off is finished first.

    Parameters
    ----------
    runner_id : str
        Runner ID
    jobs : sequence of str, optional
        Names, numbers or globs of jobs [default: all]
    region_name : str, optional
        Amazon region identifier
    failed, lost, cancelled : bool, optional
        Only jobs of these kinds, which add up.
    exit_code : int, optional
        Of those that have failed only jobs with this exit code, 128 + n for signal n.
    batch : str, optional
        Only jobs of this batch.
    attempts : int, optional
        How often each is run until it succeeds [default: as before]
    timeout : float, optional
        Seconds after which a job is ended and has failed [default: as before]
    force : bool, optional
        Retry also jobs that are named and have succeeded [default: False]
    dry_run : bool, optional
        Only tell what would be done [default: False]
    dead : bool, optional
        Send dead letters again instead, as they are, see `dead_letters` [default: False]
    progress : Progress, optional
        Told of the advance.

    Raises
    ------
    UsageError
        If there is no such batch or job, or a value cannot be used.
    RunnerGone
        If the runner takes no jobs.
    AdrError
        If the inputs of all these jobs have been removed.
    """
    names = [jobs] if isinstance(jobs, str) else list(jobs)
    if dead:
        given = (exit_code, batch, attempts, timeout)
        chosen = names or failed or lost or cancelled or force
        if chosen or any(each is not None for each in given):
            raise UsageError("dead letters are sent again all and as they are: choose nothing else")
        return _send_dead(open_runner(runner_id, region_name), dry_run)
    changes = _changes(attempts, timeout)
    if exit_code is not None and not 1 <= exit_code <= 255:
        raise UsageError(f"exit_code is {exit_code}: give one from 1 to 255")
    if force and not names:
        raise UsageError("only jobs that are named are retried although they succeeded: name them")
    chosen = failed or lost or cancelled or exit_code is not None
    kinds = _Kinds(
        failed=failed or not chosen,
        lost=lost or bool(names and not chosen),
        cancelled=cancelled or bool(names and not chosen),
        succeeded=force,
        exit_code=exit_code,
    )
    runner = open_runner(runner_id, region_name)
    runner.ledger.send([])
    orders = read_orders(runner.store)
    if orders.destroyed:
        raise RunnerGone(f"the runner {runner.id} has been destroyed, only its results are left")
    survey = Survey(runner)
    meant = choose_jobs(survey.status(batch, records=False).jobs, names)
    if exit_code is not None:
        ended = iter(survey.with_records([each for each in meant if _has_failed(each)]))
        meant = [next(ended) if _has_failed(each) else each for each in meant]
    views = [view for view in meant if kinds.include(view)]
    kept = [] if dry_run else _finish_retries(runner, survey, batch, orders, progress)
    done: list[Job] = []
    gone: list[Job] = []
    for name, some in _by_batch(views).items():
        if not has_inputs(runner, name, orders):
            gone += [view.job for view in some]
        elif dry_run:
            done += raised(some, lambda _: changes)
        else:
            done += queue_again(runner, survey, name, some, lambda _: changes, progress)
    if gone and not done and not kept:
        raise AdrError(_without_inputs(runner, list(dict.fromkeys(job.batch for job in gone))))
    left = [view for view in meant if names and _is_left(view) and not kinds.include(view)]
    return RetryReport((*kept, *done), tuple(kept), tuple(left), tuple(gone))


def dead_letters(runner_id: str, region_name: str | None = None) -> list[DeadLetter]:
    """List the messages that the queue has given up since they came back too often.

    A local runner never gives up any.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    """
    ledger = open_runner(runner_id, region_name).ledger
    return ledger.dead_letters() if isinstance(ledger, DeadLetters) else []


def _send_dead(runner: Runner, dry_run: bool) -> RetryReport:
    letters: list[DeadLetter] = []
    if isinstance(runner.ledger, DeadLetters):
        letters = runner.ledger.dead_letters() if dry_run else runner.ledger.revive()
    jobs = {letter.job.id: letter.job for letter in letters if letter.job}
    unreadable = tuple(letter for letter in letters if letter.job is None)
    return RetryReport(tuple(jobs.values()), (), (), (), unreadable)


def _changes(attempts: int | None, timeout: float | None) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if attempts is not None:
        changes["attempts"] = check_limit("attempts", attempts)
    if timeout is not None:
        changes["timeout_s"] = check_limit("timeout", timeout)
    return changes


def _finish_retries(
    runner: Runner, survey: Survey, batch: str | None, orders: Orders, progress: Progress
) -> list[Job]:
    """Send what is left of retries that were cut off; return those not called off since."""
    found: list[Job] = []
    for name, manifest in survey.unsealed.items():
        if (
            retry_number(name)
            and batch in (None, manifest.batch)
            and manifest.batch not in orders.destroyed_batches
        ):
            jobs = tuple(manifest.jobs())
            finish_sending(runner, name, jobs, progress, again=True)
            found += [job for job in jobs if not orders.against(job)]
    return found


def _without_inputs(runner: Runner, batches: Sequence[str]) -> str:
    """Say what to do where nothing can be retried, since the inputs are gone."""
    named = ", ".join(batches[:_NAMED])
    if len(batches) > _NAMED:
        named += f" and {len(batches) - _NAMED:,} more"
    folder = output_folder(runner)
    which = f"adr run with --to={folder}" if folder else "adr queue"
    made = "made it" if len(batches) == 1 else "made them"
    return (
        f"the inputs of {named} have been removed: repeat the {which} that has {made}, "
        f"which runs again what did not succeed"
    )


def _by_batch(views: Iterable[JobView]) -> dict[str, list[JobView]]:
    found: dict[str, list[JobView]] = {}
    for view in views:
        found.setdefault(view.job.batch, []).append(view)
    return found


def _has_failed(view: JobView) -> bool:
    return view.state is JobState.FAILED


def _is_left(view: JobView) -> bool:
    return any(view.state in states for states in _LEFT.values())
