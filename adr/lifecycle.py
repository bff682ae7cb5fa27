"""The functions of adr about runners as a whole: create, list and destroy them.

They are part of the Python API, and to be had from `adr.adr` and from ``adr`` itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from adr.credentials import may_have_credentials
from adr.destruction import destroy_batch, destroy_runner
from adr.errors import AdrError, RunnerGone, UsageError
from adr.launching import logging_in, terminate
from adr.progress import SILENT, Progress
from adr.runner import Runner, create_runner, is_runner_id, local_runners, open_runner

__all__ = ["RunnerInfo", "create", "destroy", "get_runners", "list_runners"]

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
