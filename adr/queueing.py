"""From a plan to waiting jobs: bundle, manifest, messages, seal, in this order.

Queueing is idempotent. What the runner has already (`adr.history`) is left alone, and what did
not succeed there is retried where it is: its failure counts no more once the retry has succeeded.
Whoever is killed half-way and repeats the command finds the manifest without its seal and goes
on with that batch or retry: jobs that may have been sent before are sent again, flagged, so that
no job is missing and none is decided twice.
"""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adr.batch import BatchPlan, new_batch_id
from adr.bundle import stream_bundle, write_bundle
from adr.errors import AdrError, Conflict, RunnerGone
from adr.history import Key, Known, Wanted, known_jobs
from adr.joblimits import JobLimits
from adr.keys import BATCHES, MANIFEST, batch_of, bundle_key, manifest_key, retry_number
from adr.manifest import Manifest, manifest_bytes
from adr.models import Job, JobState, new_id
from adr.orders import Orders, read_orders
from adr.progress import SILENT, Progress
from adr.runner import Runner
from adr.sending import finish_sending, has_inputs, queue_again, seal
from adr.stores.base import Streaming
from adr.survey import Survey
from adr.views import JobView

__all__ = [
    "NewBatch",
    "QueueReport",
    "clear_bundles",
    "queue_batch",
    "queue_new",
    "queue_single",
]

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
    #: How many jobs this call has queued, those of `resumed` and `retried` included.
    jobs: int
    #: Batches whose queueing, or retry, was not finished: cut off, or still under way elsewhere.
    resumed: tuple[str, ...]
    #: What was queued into a new batch.
    new: NewBatch | None
    #: Jobs that were not queued, since they are here already.
    known: Known
    #: How many jobs that had not succeeded were queued again, by their batch.
    retried: Mapping[str, int] = field(default_factory=dict)
    #: How many of the jobs queued wait or run with other limits as well, by the batch of those.
    doubled: Mapping[str, int] = field(default_factory=dict)


def queue_batch(
    runner: Runner, plan: BatchPlan, progress: Progress = SILENT, *, rerun: bool = False
) -> QueueReport:
    """Queue those jobs of a plan that have not succeeded here, do not wait and do not run.

    Batches and retries of the same jobs whose queueing was cut off are finished first. Jobs that
    failed, were cancelled or are lost are retried in their batch, with the limits of the plan,
    where its inputs are still there. The others go into a new batch.

    Parameters
    ----------
    runner : Runner
        Where to.
    plan : BatchPlan
        What; fingerprints are computed unless they are there.
    progress : Progress, optional
        Told of reading, bundling and sending.
    rerun : bool, optional
        Queue also what is there already: all of it into a new batch.

    Raises
    ------
    RunnerGone
        If the runner takes no jobs.
    """
    runner.ledger.send([])
    if any(job.fingerprint is None for job in plan.jobs):
        plan = plan.with_fingerprints(progress, new_batch_id(plan.root))
    survey = Survey(runner)
    batches = survey.manifests()
    if survey.is_destroyed:
        raise RunnerGone(
            f"the runner {runner.id} has been destroyed: adr destroy goes on where that was cut off"
        )
    wanted = Wanted(plan.jobs)
    resumed: dict[Key, str] = {}
    retried: dict[Key, str] = {}
    known = Known()
    if batches:
        orders = read_orders(runner.store)
        unsealed = {
            name: manifest
            for name, manifest in survey.unsealed.items()
            if not (rerun and retry_number(name))
        }
        resumed = _finish_queueing(runner, unsealed, wanted, orders, progress)
        if not rerun:
            known = known_jobs(runner, survey, wanted, orders, batches).without(resumed)
            retried = _retry(runner, survey, wanted, known, orders, progress)
    here = resumed.keys() | retried.keys() | known.jobs.keys()
    rest = plan
    if here:
        rest = plan.only(job.index for key, job in wanted.jobs.items() if key not in here)
    # It has an entry for each job, and there may be very many.
    del wanted
    new = queue_new(runner, rest, progress) if rest.jobs else None
    at = {**resumed, **retried, **{key: batch for key, (batch, _) in known.jobs.items()}}
    holding = set(at.values())
    return QueueReport(
        batch=new.batch if new else [batch for batch in batches if batch in holding][-1],
        jobs=len(resumed) + len(retried) + len(rest.jobs),
        resumed=tuple(sorted(set(resumed.values()))),
        new=new,
        known=known,
        retried=Counter(retried.values()),
        doubled=Counter(
            batch for key, batch in known.otherwise.items() if key in retried or key not in here
        ),
    )


def queue_new(runner: Runner, plan: BatchPlan, progress: Progress = SILENT) -> NewBatch:
    """Bundle the inputs of a plan and queue all its jobs as a new batch."""
    if not plan.jobs[0].batch:
        plan = plan.with_batch(new_batch_id(plan.root))
    batch = plan.jobs[0].batch
    how: Any = {"compress": runner.compress, "progress": progress}
    if isinstance(runner.store, Streaming):
        with runner.store.writing(bundle_key(batch), plan.size_bytes) as write:
            written = stream_bundle(plan.root, plan.members, write, **how)
    else:
        assert runner.scratch is not None, "a store takes a stream, or there is where to make files"
        with _new_bundle(runner.scratch) as bundle:
            written = write_bundle(plan.root, plan.members, bundle, **how)
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
        seal(runner, job.batch, 1)
        return own


def clear_bundles(scratch: Path) -> None:
    """Remove the bundles that killed processes have left in a folder."""
    for path in scratch.glob(_BUNDLE.format("*")):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def _new_bundle(scratch: Path) -> Iterator[Path]:
    """Yield a place for a bundle, whose file is locked for as long as it is being made."""
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
    """Send what is left of batches and retries all of whose jobs are wanted; return these.

    Jobs that are called off do not count: no worker runs them, and they are queued anew. Nobody
    else would ever finish a batch with other jobs as well, but those who queued it.
    """
    found: dict[Key, str] = {}
    for name, manifest in unsealed.items():
        jobs = tuple(manifest.jobs())
        live = [job for job in jobs if not orders.against(job)]
        keys = {wanted.key(job) for job in live}
        if live and all(map(wanted.may_be, live)) and keys.isdisjoint(found):
            finish_sending(runner, name, jobs, progress, again=True)
            found |= dict.fromkeys(keys, batch_of(name))
    return found


def _retry(
    runner: Runner,
    survey: Survey,
    wanted: Wanted,
    known: Known,
    orders: Orders,
    progress: Progress,
) -> dict[Key, str]:
    """Queue again what has not succeeded, where it is; return the jobs with their batches.

    What somebody else has just queued again is `known` from then on.
    """
    found: dict[Key, str] = {}
    views: dict[str, list[JobView]] = {}
    for view in known.over.values():
        views.setdefault(view.job.batch, []).append(view)
    for batch, some in views.items():
        if not has_inputs(runner, batch, orders):
            continue
        jobs = queue_again(
            runner,
            survey,
            batch,
            sorted(some, key=lambda view: view.job.index),
            lambda job: JobLimits.of(wanted.jobs[wanted.key(job)]).to_dict(),
            progress,
        )
        found |= {wanted.key(job): batch for job in jobs}
        others = {wanted.key(view.job) for view in some} - found.keys()
        known.jobs |= dict.fromkeys(others, (batch, JobState.QUEUED))
    return found
