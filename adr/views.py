"""The state of a runner and of its jobs, as it is shown: by `adr.survey`, to whoever asks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from adr.decisions import Decision
from adr.models import SCHEMA, Job, JobRecord, JobState
from adr.workerinfo import WorkerInfo

__all__ = ["OVER", "BatchStatus", "Counts", "JobView", "Status"]

#: Of a job in one of these no more is expected.
OVER = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


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

    def add(self, state: JobState, number: int = 1) -> None:
        """Count one job, or so many."""
        self.jobs += number
        setattr(self, state.value, getattr(self, state.value) + number)

    @property
    def undecided(self) -> int:
        """Return how many jobs have no outcome yet."""
        return self.jobs - self.succeeded - self.failed - self.cancelled


@dataclass(frozen=True, slots=True)
class JobView:
    """Show one job: what was asked, where it is, and its visible record if it is decided."""

    job: Job
    state: JobState
    #: None also where it was not asked for.
    record: JobRecord | None
    #: What decides the job; None where it is not decided by a record.
    decision: Decision | None = None

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
