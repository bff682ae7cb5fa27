"""From a plan to waiting jobs: bundle, manifest, messages, seal, in this order.

Queueing is idempotent. What the runner has already (`adr.history`) is left alone. Whoever is
killed half-way and repeats the command finds the manifest without its seal and goes on with
that batch: jobs that may have been sent before are sent again, flagged, so that no job is
missing and none is decided twice.
"""

from __future__ import annotations

import fcntl
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adr.batch import BatchPlan, new_batch_id
from adr.bundle import write_bundle
from adr.documents import reading
from adr.errors import AdrError, Conflict, NotFound, RunnerGone
from adr.history import Key, Known, Wanted, known_jobs
from adr.keys import (
    BATCHES,
    MANIFEST,
    batch_of,
    bundle_key,
    manifest_key,
    retry_number,
    seal_key,
    sent_key,
)
from adr.manifest import Manifest, manifest_bytes
from adr.models import SCHEMA, Job, new_id
from adr.orders import Orders, read_orders
from adr.progress import SILENT, Progress
from adr.runner import Runner
from adr.survey import Survey

__all__ = [
    "NewBatch",
    "QueueReport",
    "clear_bundles",
    "finish_sending",
    "queue_batch",
    "queue_new",
    "queue_single",
]

_NOTE_EVERY_S = 10.0
_BUNDLE = "bundle-{}.zip"


@dataclass(frozen=True)
class NewBatch:
    """Name a batch that was queued, and what was bundled for it."""

    batch: str
    plan: BatchPlan
    bundle_bytes: int


@dataclass(frozen=True)
class QueueReport:
    """Say what was queued, and what was there already."""

    #: The batch that was queued; the newest of those that hold the jobs where none was.
    batch: str
    #: How many jobs this call has queued, those of `resumed` included.
    jobs: int
    #: Batches whose queueing had been cut off before.
    resumed: tuple[str, ...]
    #: What was queued into a new batch.
    new: NewBatch | None
    #: Jobs that were not queued, since they are here already.
    known: Known


def queue_batch(
    runner: Runner, plan: BatchPlan, progress: Progress = SILENT, *, rerun: bool = False
) -> QueueReport:
    """Queue those jobs of a plan that have not succeeded here, do not wait and do not run.

    Batches of the same jobs whose queueing was cut off are finished first.

    Parameters
    ----------
    runner : Runner
        Where to.
    plan : BatchPlan
        What; fingerprints are computed unless they are there.
    progress : Progress, optional
        Told of reading, bundling and sending.
    rerun : bool, optional
        Queue also what is there already.

    Raises
    ------
    RunnerGone
        If the runner takes no jobs.
    """
    runner.ledger.send([])
    if any(job.fingerprint is None for job in plan.jobs):
        plan = plan.with_fingerprints(progress)
    survey = Survey(runner)
    batches = survey.manifests()
    if survey.is_destroyed:
        raise RunnerGone(
            f"the runner {runner.id} has been destroyed: adr destroy goes on where that was cut off"
        )
    wanted = Wanted(plan.jobs)
    resumed: dict[Key, str] = {}
    known = Known()
    if batches:
        orders = read_orders(runner.store)
        resumed = _finish_queueing(runner, survey.unsealed, wanted, orders, progress)
        if not rerun:
            known = known_jobs(runner, survey, wanted, orders, batches)
            known = Known({key: at for key, at in known.jobs.items() if key not in resumed})
    here = resumed.keys() | known.jobs.keys()
    missing = [job.index for key, job in wanted.jobs.items() if key not in here]
    new = queue_new(runner, plan.only(missing), progress) if missing else None
    holding = {*resumed.values(), *(batch for batch, _ in known.jobs.values())}
    return QueueReport(
        batch=new.batch if new else [batch for batch in batches if batch in holding][-1],
        jobs=len(resumed) + len(missing),
        resumed=tuple(sorted(set(resumed.values()))),
        new=new,
        known=known,
    )


def queue_new(runner: Runner, plan: BatchPlan, progress: Progress = SILENT) -> NewBatch:
    """Bundle the inputs of a plan and queue all its jobs as a new batch."""
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
    finish_sending(runner, batch, plan.jobs, progress)
    return NewBatch(batch, plan, written.size_bytes)


def finish_sending(
    runner: Runner, name: str, jobs: Sequence[Job], progress: Progress, *, again: bool = False
) -> None:
    """Send the jobs of a manifest, note now and then how far that is, and seal it.

    Parameters
    ----------
    name : str
        What stands in the key of the manifest.
    again : bool, optional
        Some may have been sent, or are being sent by somebody else: those that were for certain
        are not sent again.
    """
    before = _sent(runner, name) if again else 0
    left = jobs[before:]
    progress.start("queueing", len(left), "jobs")
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
        runner.store.write(sent_key(name), _note(before + number))

    try:
        runner.ledger.send(left, again=again, sent=sent)
    finally:
        progress.finish()
    runner.store.write(seal_key(name), _note(len(jobs)))


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


def _finish_queueing(
    runner: Runner,
    unsealed: Mapping[str, Manifest],
    wanted: Wanted,
    orders: Orders,
    progress: Progress,
) -> dict[Key, str]:
    """Send what is left of batches all of whose jobs are wanted; return the jobs with theirs.

    Jobs that are called off do not count: no worker runs them, and they are queued anew. Nobody
    else would ever finish a batch with other jobs as well, but those who queued it.
    """
    found: dict[Key, str] = {}
    for name, manifest in unsealed.items():
        live = [job for job in manifest.jobs if not orders.against(job)]
        keys = {wanted.key(job) for job in live}
        if (
            not retry_number(name)
            and live
            and all(map(wanted.may_be, live))
            and keys.isdisjoint(found)
        ):
            finish_sending(runner, name, manifest.jobs, progress, again=True)
            found |= dict.fromkeys(keys, batch_of(name))
    return found


def _sent(runner: Runner, batch: str) -> int:
    key = sent_key(batch)
    try:
        with reading(f"the note {key}"):
            return max(0, int(json.loads(runner.store.read(key).body)["sent"]))
    except NotFound:
        return 0


def _note(sent: int) -> bytes:
    return json.dumps({"schema": SCHEMA, "sent": sent}).encode()
