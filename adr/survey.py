"""What became of the jobs: manifests, records, heartbeats and queue read together.

A manifest says which jobs there are, the records what became of those that are decided, the
heartbeats which run. What is left waits. Counts of SQS are approximate and therefore decide
nothing but this: whether the queue seems empty while jobs are neither decided nor running. One
look at that makes a job unaccounted, two that are well apart make it lost.
"""

from __future__ import annotations

import json
import logging
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from adr.advice import notes_on_all, notes_on_batch, notes_on_leases
from adr.decisions import Decision, visible
from adr.errors import RunnerGone, ServiceError, UsageError
from adr.keys import (
    BATCHES,
    DECIDED,
    MANIFEST,
    TOMBSTONE,
    UNACCOUNTED,
    batch_of,
    decided_key,
    manifest_key,
    retry_number,
    unaccounted_key,
    unsealed_names,
)
from adr.ledgers.base import DeadLetters
from adr.manifest import Manifest, job_ids, jobs_of, read_header, read_manifest
from adr.missing import LOST_AFTER_S, MissingJobs
from adr.models import SCHEMA, Depth, JobRecord, JobState
from adr.orders import OrderBook, Orders
from adr.runner import Runner
from adr.stores.base import ObjectInfo
from adr.views import OVER, BatchStatus, Counts, JobView, Status

__all__ = ["Survey"]

_log = logging.getLogger(__name__)

#: A batch that has not been sent whole by then was given up by whoever queued it.
_SENDING_S = 600.0
#: A worker reads the records of so many jobs a second, about.
_READ_JOBS_PER_S = 100_000
_SHORTEST_SPREAD_S = 1.0
#: What takes no longer is read by all.
_QUICK_S = 0.01
_READERS = 8


@dataclass(frozen=True)
class _Look:
    """Hold what one look has found."""

    #: Without its jobs.
    status: Status
    manifests: dict[str, list[Manifest]]
    #: Of each batch the states of its jobs in the order of `jobs_of`.
    states: dict[str, list[JobState]]
    #: What decides those that are decided, by batch and index.
    decided: dict[tuple[str, int], Decision]

    def views(self) -> Iterator[JobView]:
        """Yield the jobs, without their records."""
        for batch, parts in self.manifests.items():
            for job, state in zip(jobs_of(parts), self.states[batch], strict=True):
                decision = self.decided.get((batch, job.index)) if state in OVER else None
                if decision and decision.generation < job.generation:
                    decision = None
                yield JobView(job, state, None, decision)


class Survey:
    """Read the state of a runner again and again; what cannot change is read once.

    Parameters
    ----------
    runner : Runner
        The runner to look at.
    lost_after_s : float, optional
        Seconds between two looks at which a job is unaccounted before it is called lost.
    """

    def __init__(self, runner: Runner, lost_after_s: float = LOST_AFTER_S) -> None:
        self._runner = runner
        self._missing = MissingJobs(runner.store, lost_after_s)
        self._orders = OrderBook(runner.store)
        self._manifests: dict[str, Manifest] = {}
        self._keys: list[str] = []
        self._unsealed: set[str] = set()
        self._noted: set[str] = set()
        self._records: dict[tuple[str, int, int, str], JobRecord] = {}
        #: From when on the records of a batch are read to tell whether it is decided.
        self._read_at: dict[str, float] = {}
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
            entries = list(self._runner.store.list(BATCHES + (batch or "")))
            keys = [entry.key for entry in entries]
            self._keys = keys
            self._unsealed = unsealed_names(keys)
            self._noted = {key for key in keys if key.endswith(UNACCOUNTED)}
            fresh = [
                entry
                for entry in entries
                if entry.key.endswith(MANIFEST) and entry.key not in self._manifests
            ]
            if fresh:
                with ThreadPoolExecutor(_READERS) as pool:
                    for manifest in pool.map(self._read_manifest, fresh):
                        self._manifests[manifest.key] = manifest
            found: dict[str, list[Manifest]] = {}
            # Ids tell the minute only: of two batches in one, they do not tell the older.
            for manifest in sorted(
                (self._manifests[key] for key in keys if key in self._manifests),
                key=lambda manifest: (manifest.created, manifest.batch),
            ):
                if batch in (None, manifest.batch):
                    found.setdefault(manifest.batch, []).append(manifest)
            return found

    def _read_manifest(self, entry: ObjectInfo) -> Manifest:
        cache = self._runner.cache
        kept = cache.get(entry.key) if cache else None
        if kept and kept[0] == entry.etag:
            return read_header(kept[1], entry.key)
        document = self._runner.store.read(entry.key)
        manifest = read_manifest(document.body, entry.key)
        if cache:
            cache.put(entry.key, document.etag, document.body)
        return manifest

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
    def batches(self) -> set[str]:
        """Return the ids of the batches that `manifests` has found."""
        return {self._manifests[key].batch for key in self._keys if key in self._manifests}

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

    def is_decided(self) -> bool | None:
        """Tell whether every job of every batch has an outcome or is called off, and all are sent.

        Batches that were destroyed do not count. Who has proved it for a batch leaves a note, so
        that the others need not read its records. They would all do so at the same moment, when
        the queue is empty: of large batches each reads the records only after a time of its own.

        Returns
        -------
        bool or None
            None where it is not time yet to read them: it is worth asking again soon.
        """
        store = self._runner.store
        with ThreadPoolExecutor(2) as pool:
            reading_orders = pool.submit(self._orders.read)
            listing = pool.submit(lambda: {entry.key for entry in store.list(DECIDED)})
            manifests = self.manifests()
        orders, proved = reading_orders.result(), listing.result()
        batches = [batch for batch in manifests if batch not in orders.destroyed_batches]
        if not all(map(self.is_sealed, batches)):
            return False
        for batch in batches:
            parts = manifests[batch]
            key = decided_key(batch, [part.key for part in parts])
            if key in proved:
                continue
            if not self._is_time_to_read(batch, parts):
                return None
            if not self._is_batch_decided(batch, parts, orders):
                return False
            # Who may only read is not to be kept from looking.
            with suppress(ServiceError):
                store.write(key, json.dumps({"schema": SCHEMA}).encode())
        return True

    def _is_time_to_read(self, batch: str, parts: Sequence[Manifest]) -> bool:
        """Tell whether the records of a batch may be read: at once, or from some moment on."""
        if batch not in self._read_at:
            reading_s = sum(part.count for part in parts) / _READ_JOBS_PER_S
            # So one more begins, about, while one reads; the first after about as long. There is
            # no bound: whose turn would be in days leaves by what the queue says in a minute.
            readers = self._runner.roster.about() if reading_s > _QUICK_S else 1
            longest_s = reading_s * max(1, readers)
            if longest_s < _SHORTEST_SPREAD_S:
                return True
            self._read_at[batch] = time.monotonic() + random.uniform(0, longest_s)
        return time.monotonic() >= self._read_at[batch]

    def _is_batch_decided(self, batch: str, parts: Sequence[Manifest], orders: Orders) -> bool:
        newest: dict[int, int] = {}
        for each in self._runner.ledger.decided([batch]):
            if newest.get(each.index, -1) < each.generation:
                newest[each.index] = each.generation
        return all(
            newest.get(index, -1) >= generation or orders.against((batch, index, generation))
            for index, generation, _ in job_ids(parts)
        )

    def outcomes(self, batch: str | None = None) -> list[JobView]:
        """Return the jobs that are decided, of one batch or all; without their records.

        Raises
        ------
        UsageError
            If there is no such batch.
        """
        manifests = self._manifests_of(batch)
        decided = visible(self._runner.ledger.decided(manifests))
        return [
            JobView(job, found.state, None, found)
            for name, parts in manifests.items()
            for job in jobs_of(parts)
            if (found := decided.get((name, job.index))) and found.generation >= job.generation
        ]

    def status(
        self, batch: str | None = None, *, jobs: bool = True, records: bool = True
    ) -> Status:
        """Read everything once and count.

        Parameters
        ----------
        batch : str, optional
            Look at this batch only.
        jobs : bool, optional
            Show each job. Without, the status of many costs a fraction.
        records : bool, optional
            Show with each job its record; without, `with_records` can add it.

        Raises
        ------
        UsageError
            If there is no such batch.
        """
        look = self._look(batch)
        if jobs:
            views = list(look.views())
            look.status.jobs = self.with_records(views) if records else views
        return look.status

    def with_records(self, views: Sequence[JobView]) -> list[JobView]:
        """Return the same jobs, those that are decided with their records.

        Those of the last call are not read again, since a record never changes.
        """
        wanted = {view.decision.record: view.decision for view in views if view.decision}
        known = {name: self._records[name] for name in wanted if name in self._records}
        missing = [decision for name, decision in wanted.items() if name not in known]
        if missing:
            batches = dict.fromkeys(decision.batch for decision in missing)
            for record in self._runner.ledger.records(batches, missing):
                name = (*record.id, record.attempt)
                known[name] = record
        self._records = known
        return [
            replace(view, record=known.get(view.decision.record)) if view.decision else view
            for view in views
        ]

    def _look(self, batch: str | None) -> _Look:
        runner = self._runner
        manifests = self._manifests_of(batch)
        with ThreadPoolExecutor(1) as pool:
            # The queue and the store may be two services.
            asked = pool.submit(self._ask_queue)
            workers = runner.roster.alive()
            orders = self._orders.read()
            depth, dead = asked.result()
        gone = orders.destroyed or depth is None
        empty = depth is not None and depth.empty and not gone
        # After the queue, so that no job can be in neither.
        decided = visible(runner.ledger.decided(manifests))
        running = {
            (slot.batch, slot.index, slot.generation)
            for worker in workers
            for slot in worker.running
        }
        status = Status(runner.id, Counts(), [], workers, [], paused=orders.paused)
        found: dict[str, list[JobState]] = {}
        for name, parts in manifests.items():
            destroyed = name in orders.destroyed_batches
            counts = BatchStatus(batch=name, sealed=self.is_sealed(name), destroyed=destroyed)
            waits = JobState.UNACCOUNTED if empty and counts.sealed else JobState.QUEUED
            states: list[JobState] = []
            missing: dict[tuple[int, int], int] = {}
            oldest = math.inf
            for index, generation, manifest in job_ids(parts):
                decision = decided.get((name, index))
                if decision is not None and decision.generation >= generation:
                    states.append(decision.state)
                    continue
                job = name, index, generation
                if gone or orders.against(job):
                    states.append(JobState.CANCELLED)
                    status.ending += job in running
                    continue
                oldest = min(oldest, manifest.created)
                if job in running:
                    states.append(JobState.RUNNING)
                else:
                    if waits is JobState.UNACCOUNTED:
                        missing[index, generation] = len(states)
                    states.append(waits)
            noted = unaccounted_key(name) in self._noted
            if missing or noted:
                for each in self._missing.lost(name, missing, noted=noted):
                    states[missing[each]] = JobState.LOST
            found[name] = states
            for state in JobState:
                counts.add(state, states.count(state))
                status.totals.add(state, states.count(state))
            status.batches.append(counts)
            if counts.undecided:
                status.notes += notes_on_batch(counts, time.time() - oldest, runner.retention_s)
        if depth and depth.waiting:
            status.notes += notes_on_leases(depth.in_flight, runner.most_leased)
        status.notes += notes_on_all(status, 0 if gone else dead, gone=gone)
        return _Look(status, manifests, found, decided)

    def _ask_queue(self) -> tuple[Depth | None, int]:
        """Return what the queue holds, None where it is gone, and how many it has given up."""
        ledger, dead = self._runner.ledger, 0
        try:
            depth = ledger.depth()
        except RunnerGone:
            return None, 0
        if isinstance(ledger, DeadLetters):
            # Not everybody may look there.
            with suppress(ServiceError, RunnerGone):
                dead = ledger.count_dead()
        return depth, dead

    def _manifests_of(self, batch: str | None) -> dict[str, list[Manifest]]:
        manifests = self.manifests(batch)
        if batch is not None and batch not in manifests:
            raise UsageError(f"there is no batch {batch}: adr status shows those there are")
        return manifests
