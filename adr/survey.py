"""What became of the jobs: manifests, records, heartbeats and queue read together.

A manifest says which jobs there are, the records what became of those that are decided, the
heartbeats which run. What is left waits. Counts of SQS are approximate and therefore decide
nothing but this: whether the queue seems empty while jobs are neither decided nor running. One
look at that makes a job unaccounted, two that are well apart make it lost.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from adr.documents import reading
from adr.errors import AdrError, NotFound, RunnerGone, ServiceError, UsageError
from adr.keys import (
    BATCHES,
    MANIFEST,
    TOMBSTONE,
    UNACCOUNTED,
    batch_of,
    manifest_key,
    retry_number,
    unaccounted_key,
    unsealed_names,
)
from adr.ledgers.base import DeadLetters
from adr.manifest import Manifest, jobs_of, read_manifest
from adr.models import SCHEMA, Job, JobId, JobRecord, JobState, WorkerInfo, visible
from adr.orders import OrderBook
from adr.runner import Runner

__all__ = ["BatchStatus", "Counts", "JobView", "Status", "Survey", "choose_jobs"]

_log = logging.getLogger(__name__)

_DAY_S = 24 * 3600.0
#: How long before a queue forgets a job we begin to say so.
_WARN_BEFORE_S = 4 * _DAY_S
#: A batch that has not been sent whole by then was given up by whoever queued it.
_SENDING_S = 600.0
#: As long as the counts of SQS take to be right, and more.
_LOST_AFTER_S = 90.0
#: From this part of what can be leased on, some get none; the count is approximate.
_NEARLY = 0.95
_READERS = 8


@dataclass
class Counts:
    """Count jobs by state; the states sum to `jobs`."""

    jobs: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0
    unaccounted: int = 0

    def add(self, state: JobState) -> None:
        """Count one job."""
        self.jobs += 1
        setattr(self, state.value, getattr(self, state.value) + 1)

    @property
    def undecided(self) -> int:
        """Return how many jobs have no outcome yet."""
        return self.jobs - self.succeeded - self.failed - self.cancelled


@dataclass(frozen=True)
class JobView:
    """Show one job: what was asked, where it is, and its visible record if it is decided."""

    job: Job
    state: JobState
    record: JobRecord | None

    @property
    def is_undecided(self) -> bool:
        """Tell whether it has no outcome, and is not called off."""
        return self.record is None and self.state is not JobState.CANCELLED

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object: the fields of the record, completed by those of the job."""
        job = self.job
        data: dict[str, Any] = {
            **job.names(),
            "input": job.input,
            "command": job.command,
        }
        if self.record:
            data.update(self.record.to_dict())
            del data["schema"]
        data["state"] = self.state.value
        return data


@dataclass
class BatchStatus(Counts):
    """Count the jobs of one batch."""

    batch: str = ""
    #: False while, or where, queueing it was cut off.
    sealed: bool = True
    #: Whether it was destroyed by itself: what was undecided then is called off.
    destroyed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that begins with the name."""
        data = asdict(self)
        return {"batch": data.pop("batch"), **data}


@dataclass
class Status:
    """Tell the state of a runner."""

    runner: str
    totals: Counts
    batches: list[BatchStatus]
    workers: list[WorkerInfo]
    jobs: list[JobView]
    #: Sentences that somebody should read.
    notes: list[str] = field(default_factory=list)
    paused: bool = False
    #: Jobs that are called off, and that workers have still to end.
    ending: int = 0

    def to_dict(self, jobs: bool = False) -> dict[str, Any]:
        """Return what ``adr status --json`` prints, with ``--jobs`` where `jobs`."""
        workers = [worker.to_dict() for worker in self.workers]
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "runner": self.runner,
            "paused": self.paused,
            "totals": asdict(self.totals),
            "batches": [batch.to_dict() for batch in self.batches],
            "workers": workers,
        }
        if jobs:
            data["jobs"] = [view.to_dict() for view in self.jobs]
        return data


class Survey:
    """Read the state of a runner again and again; what cannot change is read once.

    Parameters
    ----------
    runner : Runner
        The runner to look at.
    lost_after_s : float, optional
        Seconds between two looks at which a job is unaccounted before it is called lost.
    """

    def __init__(self, runner: Runner, lost_after_s: float = _LOST_AFTER_S) -> None:
        self._runner = runner
        self._lost_after_s = lost_after_s
        self._orders = OrderBook(runner.store)
        self._manifests: dict[str, Manifest] = {}
        self._keys: list[str] = []
        self._unsealed: set[str] = set()
        self._noted: set[str] = set()
        self._guard = threading.Lock()

    def manifests(self, batch: str | None = None) -> dict[str, list[Manifest]]:
        """Return the manifests of each batch, oldest batch first.

        A batch has one, one more for each job that was queued into it singly, and one more for
        each retry.

        Parameters
        ----------
        batch : str, optional
            Read the manifests of this batch only.
        """
        with self._guard:
            keys = [entry.key for entry in self._runner.store.list(BATCHES + (batch or ""))]
            self._keys = keys
            self._unsealed = unsealed_names(keys)
            self._noted = {key for key in keys if key.endswith(UNACCOUNTED)}
            fresh = [key for key in keys if key.endswith(MANIFEST) and key not in self._manifests]
            if fresh:
                with ThreadPoolExecutor(_READERS) as pool:
                    documents = pool.map(self._runner.store.read, fresh)
                    for key, document in zip(fresh, documents, strict=True):
                        self._manifests[key] = read_manifest(document.body, key)
            found: dict[str, list[Manifest]] = {}
            # Ids tell the minute only: of two batches in one, they do not tell the older.
            for manifest in sorted(
                (self._manifests[key] for key in keys if key in self._manifests),
                key=lambda manifest: (manifest.created, manifest.batch),
            ):
                if batch in (None, manifest.batch):
                    found.setdefault(manifest.batch, []).append(manifest)
            return found

    def is_sealed(self, batch: str) -> bool:
        """Tell whether `manifests` has found the batch to be sent whole, and its retries too."""
        return batch not in map(batch_of, self._unsealed)

    @property
    def unsealed(self) -> dict[str, Manifest]:
        """Return what `manifests` has found not to be sent whole, by the names in the keys.

        Jobs that were queued singly are not among it.
        """
        keys = {name: manifest_key(name) for name in sorted(self._unsealed)}
        return {name: self._manifests[key] for name, key in keys.items() if key in self._manifests}

    @property
    def is_destroyed(self) -> bool:
        """Tell whether `manifests`, of all batches, has found that nobody is to queue any more."""
        return TOMBSTONE in self._keys

    def retries(self, batch: str) -> int:
        """Return the number of the last retry of a batch that `manifests` has found."""
        keys = [key for key in self._keys if key.endswith(MANIFEST)]
        names = [key.removeprefix(BATCHES).removesuffix(MANIFEST) for key in keys]
        return max((retry_number(name) for name in names if batch_of(name) == batch), default=0)

    def is_being_queued(self) -> bool:
        """Tell whether somebody may be sending the jobs of a batch right now."""
        now = time.time()
        manifests = self.manifests()
        called_off = self._orders.read().destroyed_batches
        return any(
            # Nor was it made in the future, if clocks have been set or differ that much.
            not self.is_sealed(batch) and abs(now - parts[-1].created) < _SENDING_S
            for batch, parts in manifests.items()
            if batch not in called_off
        )

    def is_decided(self) -> bool:
        """Tell whether every job of every batch has an outcome or is called off, and all are sent.

        Batches that were destroyed do not count.
        """
        manifests = self.manifests()
        orders = self._orders.read()
        batches = [batch for batch in manifests if batch not in orders.destroyed_batches]
        if not all(self.is_sealed(batch) for batch in batches):
            return False
        decided = visible(self._runner.ledger.records(batches))
        return all(
            _is_decided(job, decided.get((batch, job.index))) or orders.against(job)
            for batch in batches
            for job in jobs_of(manifests[batch])
        )

    def outcomes(self, batch: str | None = None) -> list[JobView]:
        """Return the jobs that are decided, of one batch or all.

        Raises
        ------
        UsageError
            If there is no such batch.
        """
        manifests = self._manifests_of(batch)
        decided = visible(self._runner.ledger.records(manifests))
        return [
            JobView(job, record.state, record)
            for name, parts in manifests.items()
            for job in jobs_of(parts)
            if (record := decided.get((name, job.index))) and _is_decided(job, record)
        ]

    def status(self, batch: str | None = None) -> Status:
        """Read everything once and count.

        Parameters
        ----------
        batch : str, optional
            Look at this batch only.

        Raises
        ------
        UsageError
            If there is no such batch.
        """
        runner = self._runner
        manifests = self._manifests_of(batch)
        workers = runner.roster.alive()
        orders = self._orders.read()
        try:
            depth = runner.ledger.depth()
            empty, gone = depth.empty and not orders.destroyed, orders.destroyed
        except RunnerGone:
            depth, empty, gone = None, False, True
        dead = 0 if gone else _count_dead(runner)
        # After the queue, so that no job can be in neither.
        decided = visible(runner.ledger.records(manifests))
        running = {
            (slot.batch, slot.index, slot.generation)
            for worker in workers
            for slot in worker.running
        }
        status = Status(runner.id, Counts(), [], workers, [], paused=orders.paused)
        for name, parts in manifests.items():
            destroyed = name in orders.destroyed_batches
            counts = BatchStatus(batch=name, sealed=self.is_sealed(name), destroyed=destroyed)
            views = []
            for job in jobs_of(parts):
                record = decided.get((name, job.index))
                if record and _is_decided(job, record):
                    state = record.state
                elif gone or orders.against(job):
                    record, state = None, JobState.CANCELLED
                    status.ending += job.id in running
                elif job.id in running:
                    record, state = None, JobState.RUNNING
                elif empty and counts.sealed:
                    record, state = None, JobState.UNACCOUNTED
                else:
                    record, state = None, JobState.QUEUED
                views.append(JobView(job, state, record))
            for view in self._with_lost(name, views):
                counts.add(view.state)
                status.totals.add(view.state)
                status.jobs.append(view)
            status.batches.append(counts)
            if counts.undecided:
                since = {job.id: part.created for part in parts for job in part.jobs}
                oldest = min(since[each.job.id] for each in views if each.is_undecided)
                status.notes += _notes_on(oldest, counts, runner.retention_s)
        if status.ending:
            ending = (
                "that is cancelled still runs until its worker ends it",
                "that are cancelled still run until their workers end them",
            )
            status.notes.append(_jobs(status.ending, *ending))
        if dead:
            status.notes.append(
                f"the queue has given up {_messages(dead)} that came back too often: "
                f"adr failures --dead lists them, adr retry --dead sends them again"
            )
        if depth and depth.waiting and depth.in_flight > _NEARLY * runner.most_leased:
            status.notes.append(
                f"about {depth.in_flight:,} jobs are leased, and the queue of a runner lends "
                f"{runner.most_leased:,} at a time: more workers, or slots, get none of those that "
                f"wait; divide what is queued next among several runners"
            )
        if gone:
            status.notes.append("the runner has been destroyed: only what it has done is left")
        elif orders.paused:
            status.notes.append("the runner is paused, and nothing begins: adr resume")
        elif status.totals.queued and not workers:
            status.notes.append(
                f"{_jobs(status.totals.queued, 'waits', 'wait')} and no worker runs"
            )
        return status

    def _with_lost(self, batch: str, views: list[JobView]) -> list[JobView]:
        """Tell those jobs as lost that are unaccounted, and were so at an earlier look.

        What was unaccounted at a look is noted, with the time of the first such look.
        """
        key = unaccounted_key(batch)
        missing = [_noted_as(view.job) for view in views if view.state is JobState.UNACCOUNTED]
        if not missing and key not in self._noted:
            return views
        store = self._runner.store
        known: dict[str, float] = {}
        if key in self._noted:
            try:
                with reading(f"the note {key}"):
                    found = json.loads(store.read(key).body)["since"]
                    known = {index: float(since) for index, since in found.items()}
            except (RunnerGone, ServiceError):
                raise
            except NotFound:
                pass
            except AdrError as error:
                _log.warning("%s: it is written anew", error)
        now = time.time()
        # A look cannot have been later than this one: its clock was ahead, or set back since.
        since = {index: min(known.get(index, now), now) for index in missing}
        if since != known:
            # Who may only read is not to be kept from looking.
            with suppress(ServiceError):
                store.write(key, json.dumps({"schema": SCHEMA, "since": since}).encode())
        lost = {index for index in since.keys() & known if now - since[index] >= self._lost_after_s}
        return [
            replace(view, state=JobState.LOST) if _noted_as(view.job) in lost else view
            for view in views
        ]

    def _manifests_of(self, batch: str | None) -> dict[str, list[Manifest]]:
        manifests = self.manifests(batch)
        if batch is not None and batch not in manifests:
            raise UsageError(f"there is no batch {batch}: adr status shows those there are")
        return manifests


def choose_jobs(views: Sequence[JobView], patterns: Sequence[str]) -> list[JobView]:
    """Return the jobs, of those in `views`, that any pattern names; without any, all of them.

    A job is named by label or ``batch/label``; what is no name is a number, and else a glob.

    Raises
    ------
    UsageError
        If there is no job of one of these names.
    """
    if not patterns:
        return list(views)
    # A shell may have made a hundred thousand names of one pattern.
    named: dict[str, list[JobView]] = {}
    numbered: dict[str, list[JobView]] = {}
    for view in views:
        numbered.setdefault(str(view.job.index), []).append(view)
        for name in (view.job.label, view.job.name):
            named.setdefault(name, []).append(view)
    chosen: dict[JobId, JobView] = {}
    for pattern in patterns:
        found = named.get(pattern) or numbered.get(pattern) or _matching(views, pattern)
        if not found:
            raise UsageError(f"no job is named like {pattern!r}: adr status --jobs shows all")
        chosen.update((view.job.id, view) for view in found)
    return [view for view in views if view.job.id in chosen]


def _matching(views: Sequence[JobView], glob: str) -> list[JobView]:
    return [
        view
        for view in views
        if any(fnmatch.fnmatchcase(name, glob) for name in (view.job.label, view.job.name))
    ]


def _noted_as(job: Job) -> str:
    """Return what stands for a job in the note on what is unaccounted; another after a retry."""
    return f"{job.index}~{job.generation}" if job.generation else str(job.index)


def _is_decided(job: Job, record: JobRecord | None) -> bool:
    return record is not None and record.generation >= job.generation


def _count_dead(runner: Runner) -> int:
    """Count the messages that the queue has given up, where it does and lets us know."""
    if isinstance(runner.ledger, DeadLetters):
        with suppress(ServiceError, RunnerGone):
            return runner.ledger.count_dead()
    return 0


def _messages(number: int) -> str:
    return "1 message" if number == 1 else f"{number:,} messages"


def _jobs(number: int, one: str, many: str) -> str:
    return f"1 job {one}" if number == 1 else f"{number:,} jobs {many}"


def _notes_on(created: float, counts: BatchStatus, retention_s: float) -> Iterator[str]:
    are = (f"of {counts.batch} is", f"of {counts.batch} are")
    have = (f"of {counts.batch} has", f"of {counts.batch} have")
    if not counts.sealed:
        yield (
            f"queueing {counts.batch} is not finished: if it was cut off, repeat its adr queue or "
            f"adr retry, or adr destroy --batch={counts.batch}"
        )
    if counts.unaccounted:
        yield (
            f"{_jobs(counts.unaccounted, *are)} neither decided, queued nor running, "
            f"as far as approximate counts tell: look again in two minutes"
        )
    if counts.lost:
        yield f"{_jobs(counts.lost, *are)} lost: queue again with adr retry --lost"
    age_s = time.time() - created
    if age_s > retention_s - _WARN_BEFORE_S:
        yield (
            f"{_jobs(counts.undecided, *have)} waited for {age_s / _DAY_S:.0f} days: "
            f"the queue forgets them after {retention_s / _DAY_S:.0f}"
        )
