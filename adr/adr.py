"""The functions of adr: one for each command, and those that the commands are made of.

Each takes a runner id, which is the UUID4 of an AWS runner or the path of a local one, and
delegates. What takes boto3 resources stands in `adr.resources`.

Where a function says that a value comes from the configuration, see `adr.config`. The
documented defaults that belonged to one account or one model are not built in any more.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from adr import config
from adr.batch import BatchPlan, find_root, plan_batch
from adr.credentials import may_have_credentials
from adr.destruction import destroy_batch, destroy_runner
from adr.embedded import RunReport, run_batch
from adr.errors import AdrError, RunnerGone, UsageError
from adr.hosts import (
    get_workers,
    host_output,
    iterate_workers,
    launch,
    launch_plan,
    list_hosts,
    list_orphans,
    plan_launch,
    prepare,
    start,
    stop,
)
from adr.launching import logging_in, terminate
from adr.models import new_id
from adr.progress import SILENT, Progress
from adr.publish import fetches
from adr.queueing import QueueReport, queue_batch
from adr.resources import (
    create_bucket,
    create_queue,
    deregister_workers,
    download_batch,
    get_job,
    isiterable,
    key_exists,
    launch_workers,
    parse_message,
    process_job,
    queue_job,
    register_workers,
    upload_batch,
    upload_files,
)
from adr.runner import Runner, create_runner, is_runner_id, local_runners, open_runner
from adr.survey import JobView, Status, Survey, pick_jobs
from adr.transfer import FetchReport, fetch
from adr.worker.loop import Worker, WorkerReport
from adr.worker.signals import stopping
from adr.worker.workspace import cache_contents, restore_contents

__all__ = [
    "RunnerInfo",
    "cache_contents",
    "create",
    "create_bucket",
    "create_queue",
    "deregister_workers",
    "destroy",
    "download",
    "download_batch",
    "find_root",
    "get_job",
    "get_runners",
    "get_workers",
    "host_output",
    "isiterable",
    "iterate_workers",
    "key_exists",
    "launch",
    "launch_plan",
    "launch_workers",
    "list_hosts",
    "list_orphans",
    "list_runners",
    "logs",
    "parse_message",
    "plan",
    "plan_launch",
    "prepare",
    "process",
    "process_job",
    "queue",
    "queue_job",
    "queue_plan",
    "register_workers",
    "restore_contents",
    "run",
    "run_plan",
    "start",
    "status",
    "stop",
    "upload_batch",
    "upload_files",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunnerInfo:
    """Describe a runner in a list."""

    runner: str
    #: ``"aws"`` or ``"local"``.
    kind: str
    #: Jobs that wait and that are leased; None where nothing is left but results.
    waiting: int | None
    running: int | None
    #: Whether it has been destroyed.
    results_only: bool


def create(
    region_name: str | None = None,
    *,
    local: bool = False,
    directory: str | os.PathLike[str] | None = None,
) -> str:
    """Create runner.

    Creates runner consisting of a unique runner ID, an Amazon S3 Bucket and an Amazon SQS
    Message Queue. The runner ID is a UUID4 string. The name of the bucket and queue is equal
    to the runner ID.

    Parameters
    ----------
    region_name : str, optional
        Amazon region identifier [default: as boto3 finds it, then the configuration, then
        eu-central-1]
    local : bool, optional
        Make a local runner instead: a database and objects in a directory.
    directory : path, optional
        That directory, which must be empty or not exist [default: one in the user data
        directory of the platform]

    Returns
    -------
    str
        Runner ID, or the absolute path of the local runner

    See Also
    --------
    queue, process, destroy, create_queue, create_bucket
    """
    return create_runner(local=local, directory=directory, region_name=region_name).id


def get_runners(region_name: str | None = None) -> list[str]:
    """Get a list of valid runner ID's.

    A valid runner ID is an ID with an active Amazon SQS Message Queue and Amazon S3 Bucket.

    Parameters
    ----------
    region_name : str
        Amazon region identifier

    Returns
    -------
    list
        List of valid runner ID's

    See Also
    --------
    get_workers
    """
    from adr.aws import list_names

    queues, buckets = list_names(region_name)
    return sorted(name for name in queues & buckets if is_runner_id(name))


def list_runners(region_name: str | None = None, *, local: bool = False) -> list[RunnerInfo]:
    """List local runners, and those on AWS where there are credentials for it.

    What is out of reach is left out, with a warning in the log, if anything else is listed.

    Parameters
    ----------
    region_name : str, optional
        Amazon region identifier
    local : bool, optional
        List the local ones only [default: False]

    Returns
    -------
    list of RunnerInfo
        Local runners first, then those with jobs or workers, then those with results only
    """
    infos: list[RunnerInfo] = []
    for path in local_runners():
        with _not_in_the_way(f"the runner in {path}"):
            infos.append(_described(open_runner(path)))
    if not local and may_have_credentials():
        # Alone, what went wrong is the answer.
        with _not_in_the_way("the runners on AWS") if infos else nullcontext():
            infos.extend(_runners_on_aws(region_name))
    return infos


@contextmanager
def _not_in_the_way(what: str) -> Iterator[None]:
    """Say what cannot be listed, so that it does not hide what can."""
    try:
        yield
    except UsageError:
        raise
    except AdrError as error:
        _log.warning("%s cannot be listed: %s", what, error)


def _runners_on_aws(region_name: str | None) -> list[RunnerInfo]:
    from adr.aws import has_credentials, list_names

    if not has_credentials():
        return []
    queues, buckets = list_names(region_name)
    return [
        _described(open_runner(name, region_name))
        if name in queues
        else RunnerInfo(name, "aws", None, None, results_only=True)
        for name in sorted(filter(is_runner_id, buckets), key=lambda name: name not in queues)
    ]


def plan(
    files: Sequence[str | os.PathLike[str]],
    *,
    command: str | None = None,
    preprocessing: str | None = None,
    postprocessing: str | None = None,
    store_patterns: Sequence[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    attempts: int = 1,
    avoid: Sequence[str | os.PathLike[str]] = (),
) -> BatchPlan:
    """Look at input files and say what queueing them would bundle and run; changes nothing.

    Parameters
    ----------
    files : list
        List of file names used as input
    command, preprocessing, postprocessing : str, optional
        As for `queue`.
    store_patterns, root, exclude, env, timeout, attempts
        As for `queue`.
    avoid : list, optional
        Folders that are not bundled wherever they lie.

    Raises
    ------
    UsageError
        If any of it cannot be used.
    """
    defaults = config.load_config("command")
    return plan_batch(
        files,
        command=defaults["command"] if command is None else command,
        preprocessing=defaults["preprocessing"] if preprocessing is None else preprocessing,
        postprocessing=defaults["postprocessing"] if postprocessing is None else postprocessing,
        store_patterns=store_patterns or (),
        root=root,
        exclude=exclude,
        env=env or {},
        timeout_s=timeout,
        attempts=attempts,
        avoid=avoid,
    )


def queue(
    runner_id: str,
    files: Sequence[str | os.PathLike[str]],
    region_name: str | None = None,
    command: str | None = None,
    preprocessing: str | None = None,
    postprocessing: str | None = None,
    store_patterns: Sequence[str] | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    attempts: int = 1,
    progress: Progress = SILENT,
) -> str:
    r"""Queue job.

    Queues job to runner by zipping the root of all given input files, uploading the zipped
    input to the Amazon S3 Bucket and announcing the jobs to the Amazon SQS Message Queue, one
    for each file.

    Parameters
    ----------
    runner_id : str
        Runner ID
    files : list
        List of file names used as input
    region_name : str
        Amazon region identifier
    command : str
        Command pattern to be executed: ``{}`` is the input's path relative to the root,
        ``{.}`` that without extension, ``{/}`` its base name, ``{//}`` its folder, ``{/.}``
        its base name without extension, ``{#}`` the number of the job. Without any of them
        the path is appended. [default: from the configuration]
    preprocessing, postprocessing : str
        Command to be executed preceding and following the `command`. [default: from the
        configuration]
    store_patterns : list
        List of regular expressions to identify files that need to be stored to the Amazon S3
        Bucket after execution, such as ``[r'\.nc$']``. [default: every file that the job
        created or changed]
    root : path, optional
        Folder to bundle [default: the common root of the files]
    exclude : list, optional
        What not to bundle, as patterns of gitignore.
    env : dict, optional
        Variables for the environment of the jobs.
    timeout : float, optional
        Seconds after which a job is ended and has failed.
    attempts : int, optional
        How often the command is run until it succeeds [default: 1]
    progress : Progress, optional
        Told of the advance.

    Returns
    -------
    str
        Batch ID

    See Also
    --------
    download, queue_job, upload_batch

    Notes
    -----
    Be aware that the common root of all input files is zipped and uploaded. If the input
    files are located in very different locations, these files may have a very shallow common
    root that is potentially very large: `plan` tells.
    """
    planned = plan(
        files,
        command=command,
        preprocessing=preprocessing,
        postprocessing=postprocessing,
        store_patterns=store_patterns,
        root=root,
        exclude=exclude,
        env=env,
        timeout=timeout,
        attempts=attempts,
        avoid=[runner_id] if not is_runner_id(runner_id) else [],
    )
    return queue_plan(runner_id, planned, region_name, progress=progress).batch


def queue_plan(
    runner_id: str,
    plan: BatchPlan,
    region_name: str | None = None,
    *,
    progress: Progress = SILENT,
) -> QueueReport:
    """Queue what `plan` has planned; a repeated call goes on where one was cut off.

    Parameters
    ----------
    runner_id : str
        Runner ID
    plan : BatchPlan
        What to queue.
    region_name : str, optional
        Amazon region identifier
    progress : Progress, optional
        Told of the advance.
    """
    return queue_batch(open_runner(runner_id, region_name), plan, progress)


def process(
    runner_id: str,
    workingdir: str | os.PathLike[str] = ".",
    region_name: str | None = None,
    stop_on_empty: bool = False,
    *,
    slots: int | None = None,
    host: str | None = None,
    idle: float | None = None,
    max_hours: float | None = None,
    alive: str | os.PathLike[str] | None = None,
    spot: bool = False,
    job_user: str | None = None,
    aws_for_jobs: bool = False,
) -> WorkerReport:
    """Start processing loop for specific runner.

    Each worker needs to start this processing procedure. It polls the queue, processes jobs
    and uploads the result. SIGTERM and Ctrl-C end the jobs and give them back; the second
    one leaves at once.

    Parameters
    ----------
    runner_id : str
        Runner ID
    workingdir : str
        Working dir at processing node; the worker makes a directory of its own in it
    region_name : str, optional
        Amazon region identifier
    stop_on_empty : bool, optional
        Flag to quit the processing loop if no messages are left [default: False]
    slots : int, optional
        How many jobs run at once [default: the number of cores]
    host : str, optional
        What lists and records call this machine [default: its host name]
    idle : float, optional
        Leave once every job of a batch is decided, or after so many minutes with nothing to
        do; some stay while stragglers run [default: stay]
    max_hours : float, optional
        Leave before that many hours are over; a job that is cut by it has failed
    alive : path, optional
        File that is written with each heartbeat
    spot : bool, optional
        Leave when EC2 is about to take this instance away [default: False]
    job_user : str, optional
        Run jobs as this user, without credentials; needs root
    aws_for_jobs : bool, optional
        Leave ``AWS_*`` variables to the jobs of another user [default: False]

    Returns
    -------
    WorkerReport
        How many jobs this worker has settled, and whether a signal has ended it

    See Also
    --------
    process_job
    """
    worker = new_id()
    runner = open_runner(runner_id, region_name, worker=worker)
    work = Worker(
        runner,
        worker,
        Path(workingdir),
        slots=slots,
        stop_on_empty=stop_on_empty,
        host=host,
        idle_s=None if idle is None else 60 * idle,
        max_s=None if max_hours is None else 3600 * max_hours,
        alive=None if alive is None else Path(alive),
        watch_notice=spot,
        job_user=job_user,
        aws_for_jobs=aws_for_jobs,
    )
    with stopping(work.stop) as was_interrupted:
        report = work.run()
    report.interrupted = was_interrupted()
    return report


def run(
    files: Sequence[str | os.PathLike[str]],
    to: str | os.PathLike[str],
    command: str | None = None,
    preprocessing: str | None = None,
    postprocessing: str | None = None,
    store_patterns: Sequence[str] | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    attempts: int = 1,
    slots: int | None = None,
    rerun: bool = False,
    progress: Progress = SILENT,
) -> RunReport:
    """Run one job for each file on this machine, and collect the results in a folder.

    What has succeeded before with the same command, settings and inputs is not run again.

    Parameters
    ----------
    files : list
        List of file names used as input
    to : path
        Folder of the results: ``to/<job>/…``; the state is kept in ``to/.adr``
    command, preprocessing, postprocessing, store_patterns
        As for `queue`.
    root, exclude, env, timeout, attempts
        As for `queue`.
    slots : int, optional
        How many jobs run at once [default: the number of cores]
    rerun : bool, optional
        Run also what is done already [default: False]
    progress : Progress, optional
        Told of the advance.

    See Also
    --------
    queue, process, download
    """
    planned = plan(
        files,
        command=command,
        preprocessing=preprocessing,
        postprocessing=postprocessing,
        store_patterns=store_patterns,
        root=root,
        exclude=exclude,
        env=env,
        timeout=timeout,
        attempts=attempts,
        avoid=[to],
    )
    return run_plan(planned, to, slots=slots, rerun=rerun, progress=progress)


def run_plan(
    plan: BatchPlan,
    to: str | os.PathLike[str],
    *,
    slots: int | None = None,
    rerun: bool = False,
    progress: Progress = SILENT,
) -> RunReport:
    """Run what `plan` has planned; see `run`."""
    return run_batch(plan, to, slots=slots, rerun=rerun, progress=progress)


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


def destroy(
    runner_id: str,
    region_name: str | None = None,
    hosts: Sequence[str] | None = None,
    *,
    batch: str | None = None,
    purge: bool = False,
    user: str | None = None,
    password: str | None = None,
    key_filename: str | None = None,
    progress: Progress = SILENT,
) -> None:
    """Destroy runner.

    Delete Amazon SQS Message Queue associated with specified runner, terminate its workers and
    clean its Amazon S3 Bucket (but keep the batch results and the records that name them).

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str
        Amazon region identifier
    hosts : list, optional
        List of specific hosts to destroy, by name or address: they are ended, and nothing else
        is touched
    batch : str, optional
        Destroy this batch only: its jobs are called off and its input is removed.
    purge : bool, optional
        Remove results and records as well.
    user, password, key_filename : str, optional
        How to log in to hosts over SSH [default: as they were prepared]
    progress : Progress, optional
        Told of the advance.

    Raises
    ------
    PartialFailure
        If some hosts could not be ended, or something that was made for them is left.

    Notes
    -----
    No warnings, no undo! Can be repeated where it was cut off.
    """
    runner = logging_in(open_runner(runner_id, region_name), user, password, key_filename)
    if hosts is not None:
        if batch is not None or purge:
            raise UsageError(
                "--hosts destroys hosts and nothing else: leave --batch and --purge out"
            )
        terminate(runner, hosts, progress)
    elif batch is None:
        destroy_runner(runner, purge, progress)
    else:
        destroy_batch(runner, batch, purge, progress)


def _described(runner: Runner) -> RunnerInfo:
    try:
        depth = runner.ledger.depth()
    except RunnerGone:
        return RunnerInfo(runner.id, runner.kind, None, None, results_only=True)
    return RunnerInfo(
        runner.id, runner.kind, depth.waiting + depth.delayed, depth.in_flight, results_only=False
    )


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
