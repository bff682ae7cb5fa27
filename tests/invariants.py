"""What holds after every scene, whatever went wrong in it: nothing lost, doubled or left over.

Jobs note beside their workspace which of their attempts began and which came to their end
(`tests.scene`). Against these notes stand the records, the results as they are downloaded, and
what is left of workers: processes, files, leases, messages, memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import boto3

import adr
from adr.adr import status
from adr.models import JobState
from adr.runner import open_runner

if TYPE_CHECKING:
    from tests.scene import Scene

#: How much a worker may grow after it has warmed up. Threads and arenas of malloc take some.
GROWTH_BYTES = 24 << 20


def check(scene: Scene, batch: str, failed: Mapping[int, str] | None = None) -> None:
    """Assert all of them for the one batch of a scene, of which all processes have ended.

    Parameters
    ----------
    failed : mapping of int to str, optional
        The jobs that fail, with regular expressions for their whole reasons; others succeed.
    """
    check_outcomes(scene, batch, failed or {})
    check_results(scene, batch, failed or {})
    check_records(scene, batch)
    check_nothing_left(scene)
    check_memory(scene)


def check_outcomes(scene: Scene, batch: str, failed: Mapping[int, str]) -> None:
    """Assert that every job is decided, as it has to be."""
    found = status(scene.runner)
    assert [each.batch for each in found.batches] == [batch]
    states = {view.job.index: view.state for view in found.jobs}
    assert states == {
        job: JobState.FAILED if job in failed else JobState.SUCCEEDED for job in scene.jobs
    }
    reasons = {view.job.index: view.record.reason for view in found.jobs if view.record}
    for job in scene.jobs:
        assert re.fullmatch(failed.get(job, ""), reasons[job], re.DOTALL), (job, reasons[job])


def check_results(scene: Scene, batch: str, failed: Mapping[int, str]) -> None:
    """Assert that the results of those that succeeded are there, whole, and of that attempt."""
    target = scene.folder / "download"
    adr.download(scene.runner, target)
    shown = scene.visible(batch)
    for job in sorted(set(scene.jobs) - set(failed)):
        folder = target / batch / f"case-{job}"
        record = shown[job]
        assert _digests(folder) == {
            os.fsencode(each.name): (each.size_bytes, each.sha256) for each in record.results
        }
        proof = (folder / "proof.txt").read_text()
        assert proof == f"{batch} {job} {record.attempt}\n{scene.secret(job)}"


def check_records(scene: Scene, batch: str) -> None:
    """Assert that what the records say has happened, and that nothing else was stored."""
    states: dict[tuple[int, str], set[JobState]] = {}
    for record in scene.records(batch):
        states.setdefault((record.index, record.attempt), set()).add(record.state)
        if record.started_at is not None:
            assert record.attempt in scene.attempts("runs", record.index)
        if record.state is JobState.SUCCEEDED:
            assert record.attempt in scene.attempts("ends", record.index)
    assert [each for each in states.values() if len(each) > 1] == []
    for job in scene.jobs:
        ran = Counter(scene.attempts("runs", job))
        assert set(ran.values()) <= {1}, f"job {job} ran one attempt twice: {ran}"
    for entry in open_runner(scene.runner).store.list(f"{batch}/"):
        attempt, index = entry.key.split("/", 2)[1].split("-")
        assert attempt in scene.attempts("runs", int(index)), entry.key


def check_published(scene: Scene) -> None:
    """Assert that ``adr run`` has put the results of all jobs in place and has left nothing."""
    files = {
        path.relative_to(scene.results)
        for path in scene.results.rglob("*")
        if path.is_file() and path.relative_to(scene.results).parts[0] != ".adr"
    }
    assert files == {Path(f"case-{job}", "proof.txt") for job in scene.jobs}
    for job in scene.jobs:
        first, secret = (scene.results / f"case-{job}/proof.txt").read_text().splitlines()
        _, number, attempt = first.split()
        assert (number, f"{secret}\n") == (str(job), scene.secret(job))
        assert attempt in scene.attempts("ends", job)
    scene.await_no_process()
    kept = scene.results / ".adr"
    assert [*kept.glob("work/*"), *kept.glob("tmp/*")] == []


def check_nothing_left(scene: Scene) -> None:
    """Assert that no message, lease, process, lock or temporary file has stayed."""
    assert scene.ledger.depth().empty
    if scene.kind == "aws":
        assert _dead_letters(scene.runner) == 0
    scene.await_no_process()
    # Heartbeats of those that were killed are believed for a while.
    scene.wait(lambda: not scene.roster.alive())
    assert list(scene.workingdir.iterdir()) == []
    if scene.kind == "local":
        runner = Path(scene.runner)
        assert [path for path in (runner / "workers").iterdir() if _is_locked(path)] == []
        assert list((runner / "tmp").iterdir()) == []


def check_memory(scene: Scene) -> None:
    """Assert that no worker has grown since the test called it warm."""
    for process, before in scene.warm.items():
        grown = process.peak_bytes - before
        assert grown <= GROWTH_BYTES, f"{process.log.name} has grown by {grown >> 20} MiB"


def _digests(folder: Path) -> dict[bytes, tuple[int, str]]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            name = os.fsencode(path.relative_to(folder))
            found[name] = (len(data), hashlib.sha256(data).hexdigest())
    return found


def _dead_letters(runner: str) -> int:
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName=f"{runner}-dead")["QueueUrl"]
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(counts[name]) for name in names)


def _is_locked(path: Path) -> bool:
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
