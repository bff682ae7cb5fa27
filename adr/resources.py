"""The documented helpers that take boto3 resources of S3 and SQS: one step of the work each.

They are for those who build something of their own on a runner's bucket and queue. adr
itself works through `adr.runner`, and so do these wherever it has what they need. Those about
instances are in `adr.instances`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adr.batch import new_batch_id
from adr.bundle import unpack_bundle, write_bundle
from adr.errors import UsageError
from adr.keys import bundle_key
from adr.members import DEFAULT_EXCLUDES, choose
from adr.models import Job, new_id
from adr.queueing import queue_single
from adr.runner import Runner, open_runner
from adr.transfer import store_files
from adr.worker.loop import Worker

__all__ = [
    "create_bucket",
    "create_queue",
    "download_batch",
    "get_job",
    "key_exists",
    "parse_message",
    "process_job",
    "queue_job",
    "upload_batch",
    "upload_files",
]

#: ``adr.get_job`` never waits longer than this in one poll; the limit of SQS.
_LONGEST_POLL_S = 20


def create_bucket(
    s3: Any, runner_id: str, region_name: str | None = None, ACL: str = "private"
) -> None:
    """Create Amazon S3 Bucket: private, encrypted, public access blocked.

    Parameters
    ----------
    s3 : boto3 resource
        Boto3 S3 Resource object in specified region
    runner_id : str
        Runner ID and name of bucket to be created
    region_name : str, optional
        Amazon region identifier; must be that of `s3` where it is given
    ACL : str, optional
        Amazon access control list [default: private]; no other is possible, since access by
        lists is switched off for new buckets
    """
    if ACL != "private":
        raise UsageError(f"the bucket of a runner is private: it cannot have the ACL {ACL!r}")
    region = s3.meta.client.meta.region_name
    if region_name not in (None, region):
        raise UsageError(f"the S3 resource is for region {region}, not for {region_name}")
    _runner(runner_id, s3=s3).store.create()


def create_queue(sqs: Any, runner_id: str) -> None:
    """Create Amazon SQS Message Queue, and its dead-letter queue.

    Parameters
    ----------
    sqs : boto3 resource
        Boto3 SQS Resource object in specified region
    runner_id : str
        Runner ID and name of queue to be created
    """
    _runner(runner_id, sqs=sqs).ledger.create()


def key_exists(s3: Any, runner_id: str, key: str) -> bool:
    """Check if key exists in Amazon S3 Bucket.

    Parameters
    ----------
    s3 : boto3 resource
        Boto3 S3 resource object in specified region
    runner_id : str
        Runner ID
    key : str
        Key to be checked

    Returns
    -------
    bool
        Flag indicating existence of key
    """
    return any(entry.key == key for entry in _runner(runner_id, s3=s3).store.list(key))


def upload_batch(
    s3: Any,
    runner_id: str,
    path: str,
    exclude_patterns: Sequence[str] = (r"\.log$", r"\.nc$", r"\.pyc$"),
) -> str:
    """Upload batch input to Amazon S3 Bucket.

    Creates a unique batch ID and uploads the batch input under that id to the Amazon S3 Bucket.

    Parameters
    ----------
    s3 : boto3 resource
        Boto3 S3 resource object in specified region
    runner_id : str
        Runner ID
    path : str
        Folder with the input
    exclude_patterns : list, optional
        Regular expressions of paths, relative to `path`, that are not uploaded

    Returns
    -------
    str
        Batch ID
    """
    runner, batch = _runner(runner_id, s3=s3), new_batch_id(path)
    root = Path(path).absolute()
    # `choose` leaves out some files by default; here the patterns alone decide.
    choice = choose(str(root), [], exclude=[f"!*{ending}" for ending in DEFAULT_EXCLUDES])
    excluded = [re.compile(pattern) for pattern in exclude_patterns]
    members = [
        member
        for member in (*choice.folders, *choice.files)
        if not any(pattern.search(member.name) for pattern in excluded)
    ]
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        bundle = Path(folder, "bundle.zip")
        write_bundle(root, members, bundle, compress=runner.compress)
        runner.store.upload(bundle, bundle_key(batch), move=True)
    return batch


def download_batch(s3: Any, runner_id: str, batch_id: str, path: str) -> None:
    """Download batch input from Amazon S3 Bucket.

    Download zipped batch input and unzip it at `path`/`batch_id`, unless it is there already.

    Parameters
    ----------
    s3 : boto3 resource
        Boto3 S3 resource object in specified region
    runner_id : str
        Runner ID
    batch_id : str
        Batch ID
    path : str
        Local download directory
    """
    target = Path(path, batch_id)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=path) as folder:
        bundle = Path(folder, "bundle.zip")
        _runner(runner_id, s3=s3).store.download(bundle_key(batch_id), bundle)
        unpack_bundle(bundle, target)


def upload_files(
    s3: Any,
    runner_id: str,
    batch_id: str,
    path: str,
    include_patterns: Sequence[str] = (r"\.nc$",),
    overwrite: bool = False,
) -> None:
    """Upload batch results to Amazon S3 Bucket.

    Traverses directory tree and upload all files that match one or more regular expressions,
    under `batch_id`/<path relative to `path`>. The results of jobs that `process` runs do
    not pass through here: they lie below their attempt, where no two jobs can meet.

    Parameters
    ----------
    s3 : boto3 resource
        Boto3 S3 resource object in specified region
    runner_id : str
        Runner ID
    batch_id : str
        Batch ID
    path : str
        Root directory for traversal
    include_patterns : list, optional
        List of regular expressions from which at least one should match for a file to be uploaded
    overwrite : bool, optional
        Flag to enable overwriting remote files [default: False]
    """
    store = _runner(runner_id, s3=s3).store
    included = [re.compile(pattern) for pattern in include_patterns]
    there = set() if overwrite else {entry.key for entry in store.list(f"{batch_id}/")}
    found = (
        (file, f"{batch_id}/{file.relative_to(path).as_posix()}")
        for file in sorted(Path(path).rglob("*"))
        if file.is_file()
    )
    store_files(
        store,
        [
            (file, key)
            for file, key in found
            if key not in there and any(each.search(key) for each in included)
        ],
    )


def queue_job(
    sqs: Any,
    runner_id: str,
    batch_id: str,
    command: str,
    store_patterns: Sequence[str] | None = None,
    preprocessing: str | None = None,
    postprocessing: str | None = None,
) -> None:
    """Construct and send message to the Amazon SQS Message Queue.

    Parameters
    ----------
    sqs : boto3 resource
        Boto3 SQS resource object in specified region
    runner_id : str
        Runner ID
    batch_id : str
        Batch ID, as returned by `upload_batch`
    command : str
        Command to be executed.
    store_patterns : list, optional
        List of regular expressions to identify files that need to be stored to the Amazon S3
        Bucket after execution; without, every file that is new or changed.
    preprocessing, postprocessing : str, optional
        Commands to be executed before and after the `command`.
    """
    queue_single(
        _runner(runner_id, sqs=sqs),
        Job(
            batch=batch_id,
            index=1,
            count=1,
            label="1",
            command=command,
            preprocessing=preprocessing,
            postprocessing=postprocessing,
            store=tuple(store_patterns or ()),
        ),
    )


def get_job(sqs: Any, runner_id: str, delay: int = 10, retry: int = 30) -> dict[str, Any] | None:
    """Poll SQS Message Queue for job.

    The message stays in the queue and is hidden for two minutes: delete it once the work is
    durable.

    Parameters
    ----------
    sqs : boto3 resource
        Boto3 SQS resource object in specified region
    runner_id : str
        Runner ID
    delay : int
        Longest time in seconds that one poll waits for a message [at most 20]
    retry : int
        Maximum number of polls

    Returns
    -------
    dict or None
        Message received from queue parsed with :func:`parse_message`; None where none came

    See Also
    --------
    parse_message
    """
    from adr.aws import translated

    client = sqs.meta.client
    with translated("receive from the queue", runner_id):
        url = client.get_queue_url(QueueName=runner_id)["QueueUrl"]
        for _ in range(retry):
            answer = client.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=1,
                WaitTimeSeconds=min(delay, _LONGEST_POLL_S),
                AttributeNames=["ApproximateReceiveCount"],
            )
            for message in answer.get("Messages", ()):
                return parse_message(message)
    return None


def parse_message(message: dict[str, Any]) -> dict[str, Any]:
    """Parse message from SQS Message Queue.

    Parameters
    ----------
    message : dict
        Multi-level message from SQS Message Queue

    Returns
    -------
    dict
        Flattened message: the fields of `adr.models.Job`, and ``message_id``,
        ``receipt_handle`` and ``receives`` of the message
    """
    job = Job.from_dict(json.loads(message["Body"]))
    return {
        **asdict(job),
        "message_id": message["MessageId"],
        "receipt_handle": message["ReceiptHandle"],
        "receives": int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
    }


def process_job(sqs: Any, s3: Any, runner_id: str, workingdir: str = ".") -> bool:
    """Process specific job.

    Parameters
    ----------
    sqs : boto3 resource
        Boto3 SQS resource object in specified region
    s3 : boto3 resource
        Boto3 S3 resource object in specified region
    runner_id : str
        Runner ID
    workingdir : str, optional
        Working directory at processing node

    Returns
    -------
    bool
        Returns True if a job has been processed and False otherwise

    See Also
    --------
    get_job, download_batch, upload_files
    """
    worker = new_id()
    runner = open_runner(runner_id, worker=worker, s3=s3, sqs=sqs)
    report = Worker(runner, worker, Path(workingdir), slots=1, most_jobs=1).run()
    return bool(report.succeeded + report.failed + report.cancelled)


def _runner(runner_id: str, *, s3: Any = None, sqs: Any = None) -> Runner:
    return open_runner(runner_id, s3=s3, sqs=sqs)
