"""From a plan to waiting jobs: bundle, manifest, messages, seal, in this order.

Whoever is killed half-way and repeats the command finds the manifest without its seal and
goes on with that batch: jobs that may have been sent before are sent again, flagged, so
that no job is missing and none is decided twice.
"""

from __future__ import annotations

import fcntl
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adr.batch import BatchPlan, new_batch_id
from adr.bundle import write_bundle
from adr.errors import AdrError, Conflict, NotFound, RunnerGone
from adr.keys import BATCHES, MANIFEST, TOMBSTONE, bundle_key, manifest_key, seal_key, sent_key
from adr.manifest import Manifest, jobs_digest, manifest_bytes, read_manifest
from adr.models import SCHEMA, Job, new_id
from adr.orders import read_orders
from adr.progress import SILENT, Progress
from adr.runner import Runner

__all__ = ["QueueReport", "clear_bundles", "queue_batch", "queue_single"]

_NOTE_EVERY_S = 10.0
_BUNDLE = "bundle-{}.zip"


@dataclass(frozen=True)
class QueueReport:
    """Say what was queued."""

    batch: str
    jobs: int
    #: Whether queueing this batch had been cut off before.
    resumed: bool
    bundle_bytes: int


def queue_batch(runner: Runner, plan: BatchPlan, progress: Progress = SILENT) -> QueueReport:
    """Bundle the inputs of a plan and queue its jobs.

    Parameters
    ----------
    runner : Runner
        Where to.
    plan : BatchPlan
        What; fingerprints are computed unless they are there.
    progress : Progress, optional
        Told of reading, bundling and sending.

    Raises
    ------
    RunnerGone
        If the runner takes no jobs.
    """
    runner.ledger.send([])
    if any(job.fingerprint is None for job in plan.jobs):
        plan = plan.with_fingerprints(progress)
    manifest = _unfinished(runner, jobs_digest(plan.jobs))
    if manifest is not None:
        sent = _sent(runner, manifest.batch)
        _send(runner, manifest.batch, manifest.jobs[sent:], sent, progress, again=True)
        return QueueReport(manifest.batch, len(manifest.jobs), True, manifest.bundle_bytes)
    plan = plan.with_batch(new_batch_id(plan.root))
    batch = plan.jobs[0].batch
    with _new_bundle(runner.scratch) as bundle:
        written = write_bundle(
            plan.root, plan.members, bundle, compress=runner.compress, progress=progress
        )
        runner.store.upload(bundle, bundle_key(batch), move=True)
    body = manifest_bytes(
        plan.jobs,
        root=plan.root,
        created=time.time(),
        bundle_bytes=written.size_bytes,
        unpacked_bytes=plan.size_bytes,
    )
    runner.store.write(manifest_key(batch), body)
    _send(runner, batch, plan.jobs, 0, progress)
    return QueueReport(batch, len(plan.jobs), False, written.size_bytes)


def queue_single(runner: Runner, job: Job) -> Job:
    """Queue one job into a batch whose bundle was uploaded by itself.

    The job gets a manifest of its own, which nobody seals since it is sent by one call, and
    the first number that is free: of several who queue at once, one gets it, and the others
    the next.

    Returns
    -------
    Job
        The job with the number that it got.
    """
    prefix = f"{BATCHES}{job.batch}+"
    taken = [entry.key.removeprefix(prefix) for entry in runner.store.list(prefix)]
    index = max((int(name.removesuffix(MANIFEST)) for name in taken), default=0) + 1
    # There is no root; what stands there tells our manifest from that of another.
    root = f"{job.batch} {new_id()}"
    again = False
    while True:
        own = replace(job, index=index, count=index, label=str(index))
        key = manifest_key(f"{job.batch}+{index}")
        body = manifest_bytes(
            [own], root=root, created=time.time(), bundle_bytes=0, unpacked_bytes=0
        )
        try:
            runner.store.write(key, body, if_absent=True)
        except Conflict:
            # Ours after all, where the answer to an earlier try of the same write was lost.
            if runner.store.read(key).body != body:
                index += 1
                continue
            again = True
        runner.ledger.send([own], again=again)
        runner.store.write(seal_key(job.batch), _note(1))
        return own


def clear_bundles(scratch: Path) -> None:
    """Remove the bundles that killed processes have left in a folder."""
    for path in scratch.glob(_BUNDLE.format("*")):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def _new_bundle(scratch: Path | None) -> Iterator[Path]:
    """Yield a place for a bundle, whose file is locked for as long as it is being made."""
    if scratch is None:
        with tempfile.TemporaryDirectory(prefix="adr-bundle-") as folder:
            yield Path(folder, "bundle.zip")
        return
    path = scratch / _BUNDLE.format(new_id())
    try:
        clear_bundles(scratch)
        file = path.open("wb")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise AdrError(f"cannot make a bundle in {scratch}: {error.strerror}") from error
    with file:
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _unfinished(runner: Runner, digest: str) -> Manifest | None:
    """Find the batch of the same work whose queueing was cut off, unless it was called off."""
    keys = {entry.key for entry in runner.store.list(BATCHES)}
    if TOMBSTONE in keys:
        raise RunnerGone(
            f"the runner {runner.id} has been destroyed: adr destroy goes on where that was cut off"
        )
    for key in sorted(keys):
        name = key.removeprefix(BATCHES).removesuffix(MANIFEST)
        if key.endswith(MANIFEST) and seal_key(name) not in keys and not {"+", "~"} & {*name}:
            manifest = read_manifest(runner.store.read(key).body)
            if manifest.digest == digest and not _is_called_off(runner, name):
                return manifest
    return None


def _is_called_off(runner: Runner, batch: str) -> bool:
    return batch in read_orders(runner.store).destroyed_batches


def _sent(runner: Runner, batch: str) -> int:
    try:
        return int(json.loads(runner.store.read(sent_key(batch)).body)["sent"])
    except NotFound:
        return 0


def _send(
    runner: Runner,
    batch: str,
    jobs: Sequence[Job],
    before: int,
    progress: Progress,
    again: bool = False,
) -> None:
    """Send jobs, note now and then how far that is, and seal the batch."""
    progress.start("queueing", len(jobs), "jobs")
    guard, told, noted_at = threading.Lock(), 0, time.monotonic()

    def sent(number: int) -> None:
        nonlocal told, noted_at
        with guard:
            if number <= told:
                return
            progress.advance(number - told)
            told = number
            if time.monotonic() - noted_at < _NOTE_EVERY_S:
                return
            noted_at = time.monotonic()
        runner.store.write(sent_key(batch), _note(before + number))

    try:
        runner.ledger.send(jobs, again=again, sent=sent)
    finally:
        progress.finish()
    runner.store.write(seal_key(batch), _note(before + len(jobs)))


def _note(sent: int) -> bytes:
    return json.dumps({"schema": SCHEMA, "sent": sent}).encode()
