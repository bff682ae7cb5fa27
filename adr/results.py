"""The functions of adr about what became of jobs: their state, their output, their results.

They are part of the Python API, and to be had from `adr.adr` and from ``adr`` itself.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from adr.errors import AdrError, UsageError
from adr.progress import SILENT, Progress
from adr.publish import fetches
from adr.runner import Runner, open_runner
from adr.survey import JobView, Status, Survey, pick_jobs
from adr.transfer import FetchReport, fetch

__all__ = ["download", "logs", "status"]


def status(runner_id: str, region_name: str | None = None, *, batch: str | None = None) -> Status:
    """Tell what became of every job, and who works.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    batch : str, optional
        Look at this batch only.
    """
    return Survey(open_runner(runner_id, region_name)).status(batch)


def logs(runner_id: str, job: str, region_name: str | None = None) -> Iterator[bytes]:
    """Return the output of a job, byte by byte as it was.

    Parameters
    ----------
    runner_id : str
        Runner ID
    job : str
        ``<batch>/<label>``, or label or number of a job of the newest batch that has it
    region_name : str, optional
        Amazon region identifier

    Raises
    ------
    UsageError
        If there is no such job.
    AdrError
        If it has not ended yet.
    """
    runner = open_runner(runner_id, region_name)
    views = Survey(runner).status().jobs
    found = [view for view in views if job in (view.job.name, view.job.label)]
    found = found or [view for view in views if job == str(view.job.index)]
    if not found:
        raise UsageError(f"there is no job {job!r}: adr status --jobs shows all")
    view = found[-1]
    if view.record is None:
        raise AdrError(f"{view.job.name} is {view.state}: its output can be had once it has ended")
    return _output(runner, view)


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
        Only jobs whose label or ``<batch>/<label>`` matches this glob.
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
    try:
        wanted = re.compile(match or "")
    except re.error as error:
        raise UsageError(f"--match={match!r} is no regular expression: {error}") from error
    runner = open_runner(runner_id, region_name)
    views = Survey(runner).outcomes(batch)
    if job is not None:
        views = pick_jobs(views, job)
        if not views:
            raise UsageError(f"no job is named like {job!r}: adr status --jobs shows all")
    items = [
        item
        for view in views
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
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"several jobs have a result {twice}: download without --flat")
    return fetch(runner.store, items, Path(path), overwrite=overwrite, progress=progress)


def _output(runner: Runner, view: JobView) -> Iterator[bytes]:
    assert view.record is not None
    if view.record.log is None:
        yield view.record.tail.encode("utf-8", "surrogateescape")
        return
    with tempfile.TemporaryDirectory(prefix="adr-log-") as folder:
        path = Path(folder, "log")
        runner.store.download(view.record.log, path)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
