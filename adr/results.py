"""The functions of adr about what became of jobs: their state, their output, their results.

They are part of the Python API, and to be had from `adr.adr` and from ``adr`` itself.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

from adr.choosing import choose_jobs
from adr.errors import AdrError, UsageError
from adr.models import Job, JobRecord, JobState
from adr.progress import SILENT, Progress
from adr.runner import Runner, open_runner
from adr.survey import Survey
from adr.views import JobView, Status

if TYPE_CHECKING:
    from adr.transfer import FetchReport

__all__ = ["download", "logs", "status"]


def status(
    runner_id: str,
    region_name: str | None = None,
    *,
    batch: str | None = None,
    jobs: bool = True,
) -> Status:
    """Tell what became of every job, and who works.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    batch : str, optional
        Look at this batch only.
    jobs : bool, optional
        Show each job as well; counting very many takes a fraction of that [default: True]
    """
    return Survey(open_runner(runner_id, region_name)).status(batch, jobs=jobs)


def logs(
    runner_id: str,
    job: str,
    region_name: str | None = None,
    *,
    follow: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Generator[bytes, None, None]:
    """Return the output of a job, byte by byte as it was.

    Parameters
    ----------
    runner_id : str
        Runner ID
    job : str
        ``<batch>/<label>``, or label or number of a job of the newest batch that has it
    region_name : str, optional
        Amazon region identifier
    follow : bool, optional
        Go on while the job waits or runs, until it is decided; close the iterator where you
        do not read it to its end [default: False]
    tell : callable, optional
        Called with sentences for people while a job is followed: that it waits, that its
        worker was lost, that it has failed

    Raises
    ------
    UsageError
        If there is no such job.
    AdrError
        If it has not ended yet and is not followed, or there never is to be any output.
    """
    from adr import following

    runner = open_runner(runner_id, region_name)
    survey = Survey(runner)
    status = survey.status(records=False)
    found = [view for view in status.jobs if job in (view.job.name, view.job.label)]
    found = found or [view for view in status.jobs if job == str(view.job.index)]
    if not found:
        raise UsageError(f"there is no job {job!r}: adr status --jobs shows all")
    (view,) = survey.with_records(found[-1:])
    why = following.why_silent(view, runs=following.is_at_work(status, view.job))
    if why:
        raise AdrError(why)
    if view.record is not None:
        return _ended(runner, view.job, view.record, tell if follow else lambda _: None)
    if follow:
        if view.state in (JobState.QUEUED, JobState.UNACCOUNTED):
            tell(_waits(view, status))
        return following.follow(runner, survey, view.job, tell)
    how = "or followed: adr logs -f" if view.state is JobState.RUNNING else "adr logs -f waits"
    raise AdrError(
        f"{view.job.name} is {view.state}: its output can be had once it has ended, {how}"
    )


def _ended(
    runner: Runner, job: Job, record: JobRecord, tell: Callable[[str], None]
) -> Generator[bytes, None, None]:
    from adr import following

    yield from following.output_of(runner.store, record)
    if ending := following.how_it_ended(job, record):
        tell(ending)


def _waits(view: JobView, status: Status) -> str:
    why = ""
    if status.paused:
        why = ", and the runner is paused: adr resume"
    elif not status.workers:
        why = ", and no worker runs"
    return f"{view.job.name} waits to be run{why}"


def download(
    runner_id: str,
    path: str | os.PathLike[str],
    region_name: str | None = None,
    overwrite: bool = False,
    *,
    batch: str | None = None,
    job: str | None = None,
    match: str | None = None,
    flat: bool = False,
    progress: Progress = SILENT,
) -> FetchReport:
    """Download batch results from Amazon S3 Bucket.

    Fetches what is missing, to ``path/<batch>/<job>/…``, and verifies it.

    Parameters
    ----------
    runner_id : str
        Runner ID
    path : str
        Local download location
    region_name : str, optional
        Amazon region identifier
    overwrite : bool, optional
        Overwrite existing files that differ [default: False]
    batch : str, optional
        Only this batch.
    job : str, optional
        Only jobs of this label, ``<batch>/<label>`` or number, or else those that match this glob.
    match : str, optional
        Only files whose path relative to the job's directory matches this regular expression.
    flat : bool, optional
        No folder for each job: ``path/<batch>/…``.
    progress : Progress, optional
        Told of the advance.

    Raises
    ------
    UsageError
        If nothing like that is there, or two files would have the same place.
    PartialFailure
        If some files could not be had; all others are there.
    """
    from adr.publish import fetches
    from adr.transfer import fetch

    try:
        wanted = re.compile(match or "")
    except re.error as error:
        raise UsageError(f"--match={match!r} is no regular expression: {error}") from error
    runner = open_runner(runner_id, region_name)
    survey = Survey(runner)
    views = choose_jobs(survey.outcomes(batch), [] if job is None else [job])
    items = [
        item
        for view in survey.with_records(views)
        if view.record is not None
        for item, result in zip(
            fetches(
                view.job,
                view.record,
                f"{view.job.batch}/" if flat else f"{view.job.name}/",
            ),
            view.record.results,
            strict=True,
        )
        if wanted.search(result.name)
    ]
    names = [item.name for item in items]
    if len(set(names)) < len(names):
        twice = next(name for name, number in Counter(names).items() if number > 1)
        raise UsageError(f"several jobs have a result {twice}: download without --flat")
    return fetch(runner.store, items, Path(path), overwrite=overwrite, progress=progress)
