"""Jobs and outcomes for the tests of ledgers."""

from __future__ import annotations

from collections.abc import Sequence

from adr.ledgers.base import Ledger
from adr.models import Job, JobRecord, JobState, Lease, Outcome

BATCH = "20261120-0912-waves-18165f"


def a_job(index: int = 1, generation: int = 0, count: int = 1) -> Job:
    return Job(BATCH, index, count, f"case{index}", f"run {index}", generation=generation)


def some_jobs(count: int) -> list[Job]:
    return [a_job(index, count=count) for index in range(1, count + 1)]


def outcome_of(
    lease: Lease, state: JobState = JobState.SUCCEEDED, worker: str = "", reason: str = ""
) -> Outcome:
    job = lease.job
    record = JobRecord(
        job.batch,
        job.index,
        job.label,
        job.generation,
        lease.attempt,
        state,
        worker=worker,
        reason=reason,
    )
    return Outcome(lease, record)


def run_all(ledger: Ledger, wait_s: float = 0) -> list[Job]:
    """Run and settle what the ledger leases until it leases nothing more."""
    run = []
    while leases := ledger.receive(10, wait_s):
        begun = ledger.start(leases)
        ledger.settle([outcome_of(lease) for lease in begun])
        run += [lease.job for lease in begun]
    return run


def indexes(leases: Sequence[Lease]) -> list[int]:
    return sorted(lease.job.index for lease in leases)
