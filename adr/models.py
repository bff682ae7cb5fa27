"""The nouns of adr, frozen: job, lease, record, outcome.

Nothing here does I/O. Everything that is stored or sent is JSON made by the ``to_dict`` of
a class here and read by its ``from_dict``; both carry `SCHEMA`, and a newer one is refused
with a sentence, so that an old worker never misreads a new job.

Times are seconds since the epoch in UTC; `adr.times` writes them.
"""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

from adr.documents import known_fields, reading
from adr.errors import AdrError
from adr.keys import is_batch
from adr.times import parse_time, time_text

__all__ = [
    "CRASH_LIMIT",
    "SCHEMA",
    "Depth",
    "Job",
    "JobId",
    "JobRecord",
    "JobState",
    "Lease",
    "Outcome",
    "ResultFile",
    "check_schema",
    "new_id",
]

#: Version of everything adr writes: messages, records, manifests, cards, database.
SCHEMA = 1

#: Of a job that has lost so many started attempts with their workers no more is expected.
CRASH_LIMIT = 5


def check_schema(data: object, what: str) -> None:
    """Refuse `data` that a newer adr wrote.

    Raises
    ------
    AdrError
        If the schema is missing or newer than `SCHEMA`.
    """
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if not isinstance(schema, int):
        raise AdrError(f"{what} is not adr's: it has no schema number")
    if schema > SCHEMA:
        raise AdrError(
            f"{what} has schema {schema}, this adr reads up to {SCHEMA}: "
            f"upgrade adr here (pip install --upgrade adr)"
        )


def new_id() -> str:
    """Make a random id of 16 hexadecimal digits, for an attempt or a worker."""
    return os.urandom(8).hex()


class JobState(str, enum.Enum):
    """Where a job is; the words of ``adr status``."""

    #: Waits in the queue, or is leased and not started.
    QUEUED = "queued"
    #: A live worker says that it runs it.
    RUNNING = "running"
    #: Its command ended with exit code 0 and its results are stored.
    SUCCEEDED = "succeeded"
    #: Its command failed as often as allowed, or could not be run.
    FAILED = "failed"
    #: It was called off before it succeeded.
    CANCELLED = "cancelled"
    #: It was unaccounted at two looks, at least 90 s apart.
    LOST = "lost"
    #: It is neither decided, nor queued, nor running at this look, as far as can be told: the
    #: queue on AWS is counted approximately.
    UNACCOUNTED = "unaccounted"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def of(cls, word: str) -> JobState:
        """Return the state of that name, in a fraction of the time that the enumeration takes."""
        return _STATES.get(word) or cls(word)


_STATES = {state.value: state for state in JobState}

#: So many lost workers are no accident any more.
_SUSPECT = 3

#: What names a job within a runner: batch, index, generation.
JobId = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """Carry everything a worker needs to run one job; a worker never reads the manifest."""

    #: Batch id.
    batch: str
    #: Position in the batch, from 1.
    index: int
    #: Number of jobs in the batch.
    count: int
    #: Name for people, unique in the batch: see `adr.templates.labels`.
    label: str
    #: Expanded shell command.
    command: str
    #: Path of the input file relative to the root of the bundle; None where there is none.
    input: str | None = None
    #: Shell text run before and after the command.
    preprocessing: str | None = None
    postprocessing: str | None = None
    #: Regular expressions that choose results by relative path; empty: every new or changed file.
    store: tuple[str, ...] = ()
    #: Variables added to the environment of the job.
    env: tuple[tuple[str, str], ...] = ()
    #: Seconds after which a run is ended and has failed; None: no limit.
    timeout_s: float | None = None
    #: How often the command may be run before the job has failed.
    attempts: int = 1
    #: Exit codes after which it is run again, 128 + n for signal n; empty: after any failure.
    retry_on: tuple[int, ...] = ()
    #: How many started attempts may be lost with their workers before the job has failed.
    crash_limit: int = CRASH_LIMIT
    #: Raised by one with each retry.
    generation: int = 0
    #: Digest of all that decides the outcome; None where it was not computed.
    fingerprint: str | None = None

    @property
    def id(self) -> JobId:
        """Return batch, index and generation."""
        return (self.batch, self.index, self.generation)

    @property
    def name(self) -> str:
        """Return ``<batch>/<label>``, the job's name for people."""
        return f"{self.batch}/{self.label}"

    def names(self) -> dict[str, Any]:
        """Return a JSON object that only tells which job this is."""
        return {
            "batch": self.batch,
            "index": self.index,
            "label": self.label,
            "generation": self.generation,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object without the fields that have their default value."""
        named = zip(_JOB_NAMES, _job_values(self), _JOB_DEFAULTS, strict=True)
        data: dict[str, Any] = {"schema": SCHEMA} | {
            name: value
            for name, value, default in named
            if value is not default and value != default
        }
        if self.env:
            data["env"] = dict(self.env)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        """Read what `to_dict` wrote; unknown fields are ignored."""
        what = "the job message"
        check_schema(data, what)
        with reading(what):
            values = {**data}
            values["store"] = tuple(values.get("store", ()))
            values["retry_on"] = tuple(values.get("retry_on", ()))
            values["env"] = tuple(sorted(dict(values.get("env", {})).items()))
            if type(values.get("batch")) is str:
                # One text for all jobs of a batch, since a worker remembers very many.
                values["batch"] = sys.intern(values["batch"])
            job = cls(**known_fields(cls, values))
            if not is_batch(job.batch):
                # Folders of workers are called like it.
                raise ValueError(f"its batch is {job.batch!r:.50}, which can be the name of none")
            return job


# Asked once, since there are very many jobs.
_JOB_NAMES = tuple(spec.name for spec in fields(Job))
_JOB_DEFAULTS = tuple(spec.default for spec in fields(Job))
_job_values = attrgetter(*_JOB_NAMES)


@dataclass(frozen=True)
class Lease:
    """Hold one job for one attempt, until its deadline."""

    job: Job
    #: Random id of this attempt.
    attempt: str
    #: What the backend needs to find the lease again; nobody else reads it.
    handle: str
    #: When the job was leased.
    leased_at: float
    #: Boot-time clock at which the lease ends; infinity where it lasts as long as the worker.
    deadline: float
    #: How often the command of this job has failed before.
    failures: int = 0
    #: How many attempts were started and lost with their worker before.
    lost: int = 0
    #: False where the backend wants to hear of the start of this attempt before it happens.
    ordinary: bool = True
    #: What those wrote who gave the job back, in their order.
    notes: tuple[str, ...] = ()

    @property
    def is_suspect(self) -> bool:
        """Tell whether the job has lost so many workers that it may be what ends them.

        It is run alone then: jobs that run beside the one that ends a worker cannot be told from
        it, and are not to fail with it.
        """
        return self.lost >= max(1, min(_SUSPECT, self.job.crash_limit - 1))


@dataclass(frozen=True, slots=True)
class ResultFile:
    """Name one stored result."""

    #: Path relative to the job's directory, as `os.fsdecode` gives it (any bytes survive).
    name: str
    size_bytes: int
    sha256: str
    #: Permission bits, so that a result that is a program stays one.
    mode: int = 0o644

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object with every field."""
        return {
            "name": self.name,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "mode": self.mode,
        }


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Tell what became of one attempt; the durable truth about a job."""

    batch: str
    index: int
    label: str
    generation: int
    attempt: str
    #: SUCCEEDED, FAILED or CANCELLED.
    state: JobState
    #: Exit code of the job's script; None where it was ended by a signal or never ran.
    exit_code: int | None = None
    #: Number of the signal that ended the job's script.
    signal: int | None = None
    #: Why the job did not succeed, in words; empty where it did.
    reason: str = ""
    leased_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    #: When the results were in the store.
    stored_at: float | None = None
    host: str = ""
    worker: str = ""
    #: Number of the slot, from 1.
    slot: int = 0
    #: Largest resident set of one process of the job, in bytes.
    peak_memory_bytes: int = 0
    #: User and system time of all processes of the job, in seconds.
    cpu_s: float = 0.0
    results: tuple[ResultFile, ...] = ()
    #: Last 2 KiB of the output, all of it where `log` is None; undecodable bytes as surrogates.
    tail: str = ""
    #: Key of the whole output in the store; None where `tail` is the whole.
    log: str | None = None
    #: True where the worker knew that it had lost its lease.
    late: bool = False
    #: What happened to the job on its way, in sentences: those of its lease, and of this attempt.
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, job: Job, attempt: str, state: JobState, reason: str = "", **about: Any
    ) -> JobRecord:
        """Make the record of an attempt of a job; `about` are further fields."""
        return cls(
            batch=job.batch,
            index=job.index,
            label=job.label,
            generation=job.generation,
            attempt=attempt,
            state=state,
            reason=reason,
            **about,
        )

    @property
    def id(self) -> JobId:
        """Return batch, index and generation."""
        return (self.batch, self.index, self.generation)

    @property
    def code(self) -> int | None:
        """Return the exit code as a shell tells it, 128 + n for signal n; None: it never ran."""
        return self.exit_code if self.signal is None else 128 + self.signal

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object with every field; times as text."""
        data: dict[str, Any] = {
            "schema": SCHEMA,
            **dict(zip(_RECORD_NAMES, _record_values(self), strict=True)),
        }
        data["state"] = self.state.value
        data["results"] = tuple([each.to_dict() for each in self.results])
        for key in _TIMES:
            data[key] = time_text(data[key])
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JobRecord:
        """Read what `to_dict` wrote; unknown fields are ignored."""
        what = "the job record"
        check_schema(data, what)
        with reading(what):
            values = {**data}
            values["state"] = JobState.of(values["state"])
            values["results"] = tuple(
                ResultFile(**known_fields(ResultFile, each)) for each in values.get("results", ())
            )
            values["notes"] = tuple(values.get("notes", ()))
            for key in _TIMES:
                values[key] = parse_time(values.get(key))
            return cls(**known_fields(cls, values))


_TIMES = ("leased_at", "started_at", "ended_at", "stored_at")
_RECORD_NAMES = tuple(spec.name for spec in fields(JobRecord))
_record_values = attrgetter(*_RECORD_NAMES)


@dataclass(frozen=True)
class Outcome:
    """Pair a lease with the record that ends it."""

    lease: Lease
    record: JobRecord

    def marked_late(self) -> Outcome:
        """Return the same outcome as one that came after its lease was lost."""
        return replace(self, record=replace(self.record, late=True))


@dataclass(frozen=True)
class Depth:
    """Count the messages of a queue."""

    waiting: int
    in_flight: int
    delayed: int
    #: False where the service counts approximately (SQS).
    exact: bool

    @property
    def empty(self) -> bool:
        """Tell whether nothing waits, is in flight or is delayed."""
        return not (self.waiting or self.in_flight or self.delayed)
