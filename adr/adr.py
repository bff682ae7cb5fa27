"""The functions of adr: one for each command, and those that the commands are made of.

Each takes a runner id, which is the UUID4 of an AWS runner or the path of a local one, and
delegates. Here stand those that queue and process jobs; the others are imported: runners
as a whole from `adr.lifecycle`, machines from `adr.hosts`, what became of jobs from
`adr.results`, what waits for them from `adr.waiting` and steers them from `adr.control`, what
takes boto3 resources from `adr.resources`.

Where a function says that a value comes from the configuration, see `adr.config`. The
documented defaults that belonged to one account or one model are not built in any more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adr.progress import SILENT, Progress

if TYPE_CHECKING:
    from adr.batch import BatchPlan, find_root
    from adr.control import cancel, failures, pause, resume
    from adr.embedded import RunReport
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
    from adr.lifecycle import RunnerInfo, create, destroy, get_runners, list_runners
    from adr.queueing import QueueReport
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
    from adr.results import download, logs, status
    from adr.retrying import dead_letters, retry
    from adr.waiting import wait, watch
    from adr.worker.contents import cache_contents, restore_contents
    from adr.worker.loop import WorkerReport

__all__ = [
    "RunnerInfo",
    "cache_contents",
    "cancel",
    "create",
    "create_bucket",
    "create_queue",
    "dead_letters",
    "deregister_workers",
    "destroy",
    "download",
    "download_batch",
    "failures",
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
    "pause",
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
    "resume",
    "retry",
    "run",
    "run_plan",
    "start",
    "status",
    "stop",
    "upload_batch",
    "upload_files",
    "wait",
    "watch",
]

#: Where the functions stand that are not written here. Each is imported when it is asked for:
#: together they take ten times as long as most commands.
_ELSEWHERE = {
    "adr.batch": ("find_root",),
    "adr.control": ("cancel", "failures", "pause", "resume"),
    "adr.hosts": (
        *("get_workers", "host_output", "iterate_workers", "launch", "launch_plan"),
        *("list_hosts", "list_orphans", "plan_launch", "prepare", "start", "stop"),
    ),
    "adr.lifecycle": ("RunnerInfo", "create", "destroy", "get_runners", "list_runners"),
    "adr.resources": (
        *("create_bucket", "create_queue", "deregister_workers", "download_batch", "get_job"),
        *("isiterable", "key_exists", "launch_workers", "parse_message", "process_job"),
        *("queue_job", "register_workers", "upload_batch", "upload_files"),
    ),
    "adr.results": ("download", "logs", "status"),
    "adr.retrying": ("dead_letters", "retry"),
    "adr.waiting": ("wait", "watch"),
    "adr.worker.contents": ("cache_contents", "restore_contents"),
}


def __getattr__(name: str) -> Any:
    for module, names in _ELSEWHERE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


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
    attempts: int | None = None,
    retry_on: Sequence[int] = (),
    crash_limit: int | None = None,
    avoid: Sequence[str | os.PathLike[str]] = (),
) -> BatchPlan:
    """Look at input files and say what queueing them would bundle and run; changes nothing.

    Parameters
    ----------
    files : list
        List of file names used as input
    command, preprocessing, postprocessing : str, optional
        As for `queue`.
    store_patterns, root, exclude, env, timeout, attempts, retry_on, crash_limit
        As for `queue`.
    avoid : list, optional
        Folders that are not bundled wherever they lie.

    Raises
    ------
    UsageError
        If any of it cannot be used.
    """
    from adr import config
    from adr.batch import plan_batch
    from adr.joblimits import job_limits

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
        limits=job_limits(timeout, attempts, retry_on, crash_limit),
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
    attempts: int | None = None,
    retry_on: Sequence[int] = (),
    crash_limit: int | None = None,
    rerun: bool = False,
    progress: Progress = SILENT,
) -> str:
    r"""Queue job.

    Queues job to runner by zipping the root of all given input files, uploading the zipped
    input to the Amazon S3 Bucket and announcing the jobs to the Amazon SQS Message Queue, one
    for each file. A job that has succeeded on this runner with the same command, settings and
    inputs, or waits or runs there, is not queued again.

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
        Seconds after which a job is ended and has failed. [default: from the configuration,
        or none]
    attempts : int, optional
        How often the command is run until it succeeds, with growing pauses. [default: from the
        configuration, or 1]
    retry_on : list of int, optional
        Exit codes after which it is run again, 128 + n for signal n. [default: from the
        configuration, or all]
    crash_limit : int, optional
        How many workers a job may lose before it has failed. [default: from the configuration,
        or 5]
    rerun : bool, optional
        Queue also what is there already [default: False]
    progress : Progress, optional
        Told of the advance.

    Returns
    -------
    str
        Batch ID; the newest of those that hold the jobs where none had to be queued

    See Also
    --------
    download, queue_job, upload_batch

    Notes
    -----
    Be aware that the common root of all input files is zipped and uploaded. If the input
    files are located in very different locations, these files may have a very shallow common
    root that is potentially very large: `plan` tells.
    """
    from adr.runner import is_runner_id

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
        retry_on=retry_on,
        crash_limit=crash_limit,
        avoid=[runner_id] if not is_runner_id(runner_id) else [],
    )
    return queue_plan(runner_id, planned, region_name, rerun=rerun, progress=progress).batch


def queue_plan(
    runner_id: str,
    plan: BatchPlan,
    region_name: str | None = None,
    *,
    rerun: bool = False,
    progress: Progress = SILENT,
) -> QueueReport:
    """Queue what `plan` has planned and is not there yet, and go on where that was cut off.

    Parameters
    ----------
    runner_id : str
        Runner ID
    plan : BatchPlan
        What to queue.
    region_name : str, optional
        Amazon region identifier
    rerun : bool, optional
        Queue also what is there already [default: False]
    progress : Progress, optional
        Told of the advance.
    """
    from adr.queueing import queue_batch
    from adr.runner import open_runner

    return queue_batch(open_runner(runner_id, region_name), plan, progress, rerun=rerun)


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
    from adr.models import new_id
    from adr.runner import open_runner
    from adr.worker.loop import Worker
    from adr.worker.signals import stopping

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
    attempts: int | None = None,
    retry_on: Sequence[int] = (),
    crash_limit: int | None = None,
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
    root, exclude, env, timeout, attempts, retry_on, crash_limit
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
        retry_on=retry_on,
        crash_limit=crash_limit,
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
    from adr.embedded import run_batch

    return run_batch(plan, to, slots=slots, rerun=rerun, progress=progress)
