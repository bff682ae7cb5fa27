"""The ledger of a local runner: one SQLite database, exact in everything.

A lease belongs to a worker that holds a file lock (`adr.roster.WorkerLocks`). Once that lock
is free the lease is lost, at once, whatever any clock says; while it is held the lease has
no deadline. Records and the removal of their jobs are one transaction.

Settling and sending wait for the disk. Leasing does not: SQLite's log survives the death of
every process, and after a power cut a forgotten lease is a job that waits, which it was.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from adr.decisions import Decision
from adr.documents import reading
from adr.jobtext import job_text
from adr.ledgers.base import LONGEST_DELAY_S, lost_too_often
from adr.ledgers.database import Database, is_destroyed
from adr.models import Depth, Job, JobRecord, Lease, Outcome, new_id
from adr.roster import WorkerLocks

__all__ = ["SqliteLedger"]

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    batch TEXT NOT NULL, position INTEGER NOT NULL, generation INTEGER NOT NULL,
    body TEXT NOT NULL,
    ready_at REAL NOT NULL DEFAULT 0,
    worker TEXT, attempt TEXT, started INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0, lost INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (batch, position, generation)
);
CREATE INDEX IF NOT EXISTS waiting ON jobs (batch, position) WHERE worker IS NULL;
CREATE UNIQUE INDEX IF NOT EXISTS leased ON jobs (worker, attempt) WHERE worker IS NOT NULL;
CREATE TABLE IF NOT EXISTS records (
    batch TEXT NOT NULL, position INTEGER NOT NULL, generation INTEGER NOT NULL,
    attempt TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (batch, position, generation, attempt)
) WITHOUT ROWID;
"""

_SEND = (
    "INSERT OR IGNORE INTO jobs (batch, position, generation, body) SELECT ?1, ?2, ?3, ?4 WHERE"
    " NOT EXISTS (SELECT 1 FROM records WHERE batch = ?1 AND position = ?2 AND generation = ?3)"
)
_RECORDS = "SELECT body FROM records WHERE batch = ?"
_OF_ATTEMPT = " AND position = ? AND generation = ? AND attempt = ?"
# Read from the record, so that it stands in one place; the whole takes ten times as long.
_DECIDED = (
    "SELECT batch, position, generation, attempt, json_extract(body, '$.state'),"
    " json_extract(body, '$.late') FROM records WHERE batch = ?"
)
_FORGOTTEN = "forgotten "
_LOOK_EVERY_S = 0.05
_RECLAIM_EVERY_S = 1.0
# Whoever is to wait longer than anybody may was given back before the clock was set back.
_READY = f"(ready_at <= :now OR ready_at > :now + {LONGEST_DELAY_S})"
_LEASED = " WHERE worker = ? AND attempt = ?"
_HOLDERS = "SELECT DISTINCT worker FROM jobs WHERE worker IS NOT NULL AND worker IS NOT ?"


class SqliteLedger:
    """Keep the jobs and records of a local runner; see `adr.ledgers.base.Ledger`.

    Parameters
    ----------
    path : Path
        The database file.
    locks : WorkerLocks
        The locks that tell living workers from dead ones.
    worker : str, optional
        Id of the worker that leases through this object; None where nobody does.
    """

    settle_within_s = 0.05
    # As long as one look: a worker that is to leave when all is done does not wait for more.
    poll_s = 0.05

    def __init__(self, path: Path, locks: WorkerLocks, worker: str | None = None) -> None:
        self._path = path
        self._database = Database(path)
        self._locks = locks
        self._worker = worker
        self._reclaimed_at = -math.inf
        #: Wakes who waits for jobs.
        self._settled = threading.Event()

    def create(self) -> None:
        """Make the database; idempotent."""
        self._database.create(_TABLES)

    def destroy(self) -> None:
        """Remove all jobs, keep the records, and let every worker know; idempotent."""
        with self._database.transaction("durable", even_if_destroyed=True) as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('destroyed', 'true')")
            db.execute("DELETE FROM jobs")

    @property
    def destroyed(self) -> bool:
        """Tell whether `destroy` has been called."""
        with self._database.transaction("read", even_if_destroyed=True) as db:
            return is_destroyed(db)

    def send(
        self, jobs: Sequence[Job], *, again: bool = False, sent: Callable[[int], None] | None = None
    ) -> None:
        """Queue jobs in one transaction; a job that is there or decided is left as it is."""
        with self._database.transaction("durable") as db:
            forgotten = self._forgotten(db)
            rows = (
                (job.batch, job.index, job.generation, job_text(job))
                for job in jobs
                if job.batch not in forgotten
            )
            db.executemany(_SEND, rows)
        if sent:
            sent(len(jobs))

    def receive(self, most: int, wait_s: float) -> list[Lease]:
        """Lease waiting jobs in the order they were queued; looks 20 times a second meanwhile.

        Returns as well once this worker has settled the last job that there was.
        """
        assert self._worker is not None, "a ledger leases only for a worker"
        self._locks.hold(self._worker)
        give_up_at = time.monotonic() + wait_s
        while True:
            if time.monotonic() - self._reclaimed_at >= _RECLAIM_EVERY_S:
                self._reclaim()
            leases = self._lease(most)
            left_s = give_up_at - time.monotonic()
            if leases or left_s <= 0:
                return leases
            if self._settled.wait(min(_LOOK_EVERY_S, left_s)):
                self._settled.clear()
                if not self._has_jobs():
                    return []

    def start(self, leases: Sequence[Lease]) -> list[Lease]:
        """Mark leases as begun, so that they count as lost if this worker dies."""
        # Each by a statement of its own, since that is what begins with every job.
        with self._database.statements() as db:
            begun = [
                lease
                for lease in leases
                if db.execute(
                    "UPDATE jobs SET started = 1" + _LEASED, (self._worker, lease.attempt)
                ).rowcount
            ]
        if len(begun) < len(leases):
            # A destroyed runner has no jobs.
            with self._database.transaction("read"):
                pass
        return begun

    def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        """Return the leases that are still this worker's."""
        with self._database.transaction("read") as db:
            held = self._held(db)
        return [lease for lease in leases if lease.attempt in held]

    def release(
        self, leases: Sequence[Lease], *, delay_s: float = 0, failed: bool = False, note: str = ""
    ) -> None:
        """Give jobs back; idempotent."""
        ready_at = time.time() + delay_s if delay_s else 0.0
        with self._database.transaction("quick") as db:
            if note:
                self._note(db, leases, note)
            db.executemany(
                "UPDATE jobs SET worker = NULL, attempt = NULL, started = 0, ready_at = ?,"
                " failures = failures + ?" + _LEASED,
                [(ready_at, int(failed), self._worker, lease.attempt) for lease in leases],
            )

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write the records and remove the jobs in one transaction; idempotent."""
        with self._database.transaction("durable") as db:
            forgotten = self._forgotten(db)
            held = self._held(db)
            ours = [each for each in outcomes if each.lease.job.batch not in forgotten]
            self._write_records(
                db,
                [
                    (each if each.lease.attempt in held else each.marked_late()).record
                    for each in ours
                ],
            )
            db.executemany(
                "DELETE FROM jobs" + _LEASED,
                [(self._worker, each.lease.attempt) for each in ours],
            )
        self._settled.set()

    def depth(self) -> Depth:
        """Count exactly."""
        with self._database.transaction("read") as db:
            waiting, delayed, leased = db.execute(
                f"SELECT count(*) FILTER (WHERE worker IS NULL AND {_READY}),"
                f" count(*) FILTER (WHERE worker IS NULL AND NOT {_READY}),"
                f" count(*) FILTER (WHERE worker IS NOT NULL) FROM jobs",
                {"now": time.time()},
            ).fetchone()
        return Depth(waiting, leased, delayed, exact=True)

    def decided(self, batches: Iterable[str]) -> Iterator[Decision]:
        """Read no more of each record than that."""
        what = f"a record in the database {self._path}"
        for batch in batches:
            with (
                self._database.transaction("read", even_if_destroyed=True) as db,
                reading(what),
            ):
                # One by one, since there may be very many. Until the last one is read, or this
                # iterator is closed, the lock and the transaction last.
                for row in db.execute(_DECIDED, (batch,)):
                    yield Decision.read(*row)

    def records(
        self, batches: Iterable[str], only: Collection[Decision] | None = None
    ) -> list[JobRecord]:
        """Return the records of these batches."""
        with self._database.transaction("read", even_if_destroyed=True) as db:
            if only is None:
                keys = [(batch,) for batch in batches]
                found = [row for key in keys for row in db.execute(_RECORDS, key)]
            else:
                chosen = [each.record for each in only]
                found = [row for key in chosen for row in db.execute(_RECORDS + _OF_ATTEMPT, key)]
        with reading(f"a record in the database {self._path}"):
            return [JobRecord.from_dict(json.loads(body)) for (body,) in found]

    def forget(self, batch: str) -> None:
        """Remove jobs and records of a batch; a worker that runs one of them loses its lease."""
        with self._database.transaction("durable", even_if_destroyed=True) as db:
            db.execute("INSERT OR IGNORE INTO meta VALUES (?, 'true')", (_FORGOTTEN + batch,))
            db.execute("DELETE FROM jobs WHERE batch = ?", (batch,))
            db.execute("DELETE FROM records WHERE batch = ?", (batch,))

    def _lease(self, most: int) -> list[Lease]:
        now = time.time()
        leases = []
        with self._database.transaction("quick") as db:
            rows = db.execute(
                f"SELECT rowid, body, failures, lost FROM jobs WHERE worker IS NULL AND {_READY}"
                f" ORDER BY batch, position LIMIT :most",
                {"now": now, "most": most},
            ).fetchall()
            for rowid, body, failures, lost in rows:
                job, notes = _read_body(body)
                leases.append(
                    Lease(job, new_id(), str(rowid), now, math.inf, failures, lost, notes=notes)
                )
            db.executemany(
                "UPDATE jobs SET worker = ?, attempt = ?, started = 0 WHERE rowid = ?",
                [(self._worker, lease.attempt, int(lease.handle)) for lease in leases],
            )
        return leases

    def _has_jobs(self) -> bool:
        with self._database.transaction("read") as db:
            return db.execute("SELECT 1 FROM jobs LIMIT 1").fetchone() is not None

    def _reclaim(self) -> None:
        """Take back what dead workers had leased."""
        self._reclaimed_at = time.monotonic()
        with self._database.transaction("read") as db:
            holders = [row[0] for row in db.execute(_HOLDERS, (self._worker,))]
        for holder in holders:
            with self._locks.if_dead(holder) as dead:
                if dead:
                    self._take_back(holder)

    def _take_back(self, holder: str) -> None:
        with self._database.transaction("durable") as db:
            db.execute("UPDATE jobs SET lost = lost + started WHERE worker = ?", (holder,))
            rows = db.execute(
                "SELECT body, attempt, lost FROM jobs WHERE worker = ? AND lost > 0", (holder,)
            ).fetchall()
            for body, attempt, lost in rows:
                job, notes = _read_body(body)
                if lost >= job.crash_limit:
                    self._write_records(db, [lost_too_often(job, attempt, lost, notes)])
                    db.execute("DELETE FROM jobs" + _LEASED, (holder, attempt))
            db.execute(
                "UPDATE jobs SET worker = NULL, attempt = NULL, started = 0 WHERE worker = ?",
                (holder,),
            )

    def _note(self, db: sqlite3.Connection, leases: Sequence[Lease], note: str) -> None:
        """Add a note to jobs that are leased here; it lies beside the fields of the job."""
        for lease in leases:
            held = (self._worker, lease.attempt)
            for (body,) in db.execute("SELECT body FROM jobs" + _LEASED, held).fetchall():
                data = json.loads(body)
                data["notes"] = [*data.get("notes", ()), note]
                db.execute("UPDATE jobs SET body = ?" + _LEASED, (json.dumps(data), *held))

    def _held(self, db: sqlite3.Connection) -> set[str]:
        """Return the attempts that are leased here."""
        rows = db.execute("SELECT attempt FROM jobs WHERE worker = ?", (self._worker,))
        return {attempt for (attempt,) in rows}

    @staticmethod
    def _write_records(db: sqlite3.Connection, records: Iterable[JobRecord]) -> None:
        """Write records, except of attempts that have one."""
        db.executemany(
            "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?)",
            [(*each.id, each.attempt, json.dumps(each.to_dict())) for each in records],
        )

    @staticmethod
    def _forgotten(db: sqlite3.Connection) -> set[str]:
        names = db.execute("SELECT name FROM meta WHERE name LIKE ?", (_FORGOTTEN + "%",))
        return {name.removeprefix(_FORGOTTEN) for (name,) in names}


def _read_body(body: str) -> tuple[Job, tuple[str, ...]]:
    """Return a job, and what was noted about it since."""
    with reading("a job in the database"):
        data = json.loads(body)
        return Job.from_dict(data), tuple(data.get("notes", ()))
