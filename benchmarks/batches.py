"""Runners and batches for benchmarks: new ones, and some whose jobs are all decided."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

from adr.keys import manifest_key, result_key, seal_key
from adr.ledgers.journal import Journal
from adr.manifest import manifest_bytes
from adr.models import Job, JobRecord, JobState, Outcome, ResultFile, new_id
from adr.progress import Progress
from adr.runner import Runner, create_runner, open_runner

__all__ = ["Phases", "decided_batch", "new_runner", "sample_job", "sample_record"]

_GROUP = 1000


class Phases(Progress):
    """Note when each phase of queueing begins and ends."""

    def __init__(self) -> None:
        self.ended_at: dict[str, float] = {}
        self._phase = ""

    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Begin a phase."""
        self._phase = what

    def advance(self, amount: int = 1) -> None:
        """Take no note."""

    def note(self, **counts: int) -> None:
        """Take no note."""

    def finish(self) -> None:
        """End the phase."""
        self.ended_at[self._phase] = time.perf_counter()


def new_runner(directory: str | None) -> str:
    """Make a local runner in a directory, or one on AWS where there is none; return its id."""
    return create_runner(local=directory is not None, directory=directory, listed=False).id


def decided_batch(runner_id: str, number: int, workers: int = 10, results: bool = False) -> str:
    """Make a batch of jobs that have all succeeded, each with one result; return its id.

    With `results` the results are there, too.
    """
    worker = new_id()
    runner = open_runner(runner_id, worker=worker)
    batch = f"20261120-0912-benchmark-{worker[:6]}"
    jobs = [_job(batch, index, number) for index in range(1, number + 1)]
    body = manifest_bytes(
        jobs, root="/benchmark", created=time.time(), bundle_bytes=1000, unpacked_bytes=1000
    )
    runner.store.write(manifest_key(batch), body)
    if runner.kind == "local":
        runner.ledger.send(jobs)
        while leases := runner.ledger.receive(_GROUP, 0):
            runner.ledger.settle([Outcome(each, _record(each.job, worker)) for each in leases])
    else:
        _write_journal(runner, jobs, workers)
    runner.store.write(seal_key(batch), b'{"schema": 1, "sent": 0}')
    if results:
        _write_results(runner, batch)
    return batch


def _write_journal(runner: Runner, jobs: list[Job], workers: int) -> None:
    for part in range(workers):
        worker = new_id()
        journal = Journal(runner.store, worker)
        own = jobs[part::workers]
        for first in range(0, len(own), _GROUP):
            journal.append([_record(job, worker) for job in own[first : first + _GROUP]])


def _write_results(runner: Runner, batch: str) -> None:
    keys = [
        result_key(batch, record.index, record.attempt, each.name)
        for record in runner.ledger.records([batch])
        for each in record.results
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: runner.store.write(key, _CONTENT), keys))


_CONTENT = b"0.123456 0.234567\n" * 8


def _job(batch: str, index: int, count: int) -> Job:
    name = f"case{index:06d}.txt"
    return Job(
        batch=batch,
        index=index,
        count=count,
        label=name.removesuffix(".txt"),
        command=f"python3 model.py {name}",
        input=name,
        store=(r"\.csv$",),
        fingerprint=f"{index:064x}",
    )


def _record(job: Job, worker: str) -> JobRecord:
    now = time.time()
    result = ResultFile(f"{job.label}.csv", len(_CONTENT), hashlib.sha256(_CONTENT).hexdigest())
    return JobRecord.of(
        job,
        new_id(),
        JobState.SUCCEEDED,
        exit_code=0,
        leased_at=now,
        started_at=now,
        ended_at=now,
        stored_at=now,
        host="worker-1",
        worker=worker,
        slot=1,
        peak_memory_bytes=12_000_000,
        cpu_s=0.01,
        results=(result,),
        tail="done\n",
    )


def sample_job(batch: str = "20261120-0912-benchmark-0a1b2c") -> Job:
    """Return a job as others are."""
    return _job(batch, 12345, 100_000)


def sample_record() -> JobRecord:
    """Return a record as others are."""
    return _record(sample_job(), new_id())
