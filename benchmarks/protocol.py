"""The calls of workers and clients to SQS and S3, counted from what the code does.

A model and no measurement: it counts the calls of workers in steady work, at their start and at
their end, second by second, from the constants of the code, which it imports. Where it needs to
know how large a record is or how long it takes to read one, it makes one and looks.
"""

from __future__ import annotations

import inspect
import json
import math
import secrets
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from adr import orders, roster, runner, survey
from adr.decisions import visible
from adr.keys import manifest_key
from adr.ledgers import aws, journal, sqs
from adr.ledgers.packed import PackedDecisions
from adr.manifest import job_ids, manifest_bytes, read_manifest
from adr.worker import outbox
from adr.worker.policy import Policy
from benchmarks.batches import sample_job, sample_record

__all__ = [
    "Load",
    "Scenario",
    "in_flight",
    "journal_objects",
    "journal_written_bytes",
    "loads",
    "proving",
    "sizes",
]

#: Most keys of one listing.
PAGE = 1000


@dataclass(frozen=True)
class Scenario:
    """Say who does what."""

    workers: int
    jobs: int
    job_s: float
    slots: int = 2
    #: Results of each job.
    results: int = 1
    #: Time within which all workers start.
    start_s: float = 60.0
    rtt_s: float = 0.03
    bundle_bytes: int = 100 << 20

    @property
    def name(self) -> str:
        """Name it."""
        return f"{self.workers:,} x {self.slots}, {self.jobs:,} x {self.job_s:g} s"


@dataclass(frozen=True)
class Load:
    """Count one kind of call in one place."""

    what: str
    #: ``sqs``, ``put``, ``list`` or ``get``.
    kind: str
    #: What the keys begin with; the queue where empty.
    prefix: str
    total: float
    #: Calls a second while it lasts.
    per_s: float
    #: ``start``, ``work``, ``end`` or ``client``.
    phase: str


def _default(function: Callable[..., object], name: str) -> float:
    return float(inspect.signature(function).parameters[name].default)


HEARTBEAT_S = (roster.HEARTBEAT_S / 3, roster.HEARTBEAT_S)
ORDERS_S = _default(runner._open_aws, "orders_s")
SETTLE_S = aws.AwsLedger.settle_within_s


@lru_cache
def sizes() -> dict[str, float]:
    """Make a few of everything, and see how large they are and how long it takes to read them."""
    job, record, number = sample_job(), sample_record(), 2000
    line = json.dumps(record.to_dict(), separators=(",", ":"))
    lines = b"".join(
        json.dumps(replace(record, index=at).to_dict(), separators=(",", ":")).encode() + b"\n"
        for at in range(1, number + 1)
    )
    body = manifest_bytes(
        [
            replace(job, index=at, label=f"case{at:06d}", fingerprint=secrets.token_hex(32))
            for at in range(1, number + 1)
        ],
        root="/",
        created=0,
        bundle_bytes=0,
        unpacked_bytes=0,
    )

    def decide() -> PackedDecisions:
        return PackedDecisions().with_lines(lines, record.batch)

    def status() -> object:
        packed = decide()
        jobs = list(job_ids([read_manifest(body, manifest_key(job.batch))]))
        return packed, visible(packed.decisions(record.batch)), jobs

    def prove() -> object:
        packed = decide()
        return packed, {each.index: each.generation for each in packed.decisions(record.batch)}

    return {
        "record": len(line) + 1,
        "message": len(json.dumps(job.to_dict())),
        "manifest": len(body) / number,
        "decide_s": _seconds(decide) / number,
        "status_s": _seconds(status) / number,
        "status": _bytes(status) / number,
        "proof": _bytes(prove) / number,
    }


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _bytes(work: Callable[[], object]) -> int:
    """Return how much memory is held by what is returned."""
    tracemalloc.start()
    kept = work()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return held


@lru_cache
def _leasing(slots: int, job_s: float) -> tuple[float, int]:
    """Return how many jobs a worker leases by one call, and how many it has ahead at most."""
    now = 1000.0
    asked = Policy(None, None, stop_on_empty=False, clock=lambda: now)  # type: ignore[arg-type]
    asked.ended(job_s)
    ready = ahead = asked.wanted(slots, [now] * slots, 0)
    # Once one slot is free, it takes one of those that wait; then more are leased, or not yet.
    for _ in range(10 * (ahead + 1)):
        wanted = asked.wanted(slots, [now] * slots, ready)
        if ready <= 0:
            return 1.0, ahead
        if wanted > 0 and ready < ahead:
            return float(min(wanted, sqs._ENTRIES)), ahead
        ready -= 1
    return 1.0, ahead


def loads(case: Scenario) -> list[Load]:
    """Count all calls of a scenario."""
    workers, jobs = case.workers, case.jobs
    rate = case.slots / case.job_s
    per_receive, _ = _leasing(case.slots, case.job_s)
    last_s = jobs / (workers * rate)
    flush = max(rate / (1 + rate * SETTLE_S), rate / outbox._GROUP)
    deletes = flush * math.ceil(rate / flush / sqs._ENTRIES - 1e-9)
    shortest_s, usual_s = HEARTBEAT_S
    beat_s = min(usual_s, max(shortest_s, case.job_s / case.slots))
    every_s = aws.VISIBILITY_S / 2
    # Those that a wave of workers has left, and those that have just begun.
    heartbeats = workers * 1.5
    live, control = "_workers/live/", "_control/"
    objects = journal_objects(case)
    arrivals = workers / case.start_s
    found: list[Load] = []

    def steady(what: str, kind: str, prefix: str, rate_of_worker: float) -> None:
        per_s = workers * rate_of_worker
        found.append(Load(what, kind, prefix, per_s * last_s, per_s, "work"))

    def start(what: str, kind: str, prefix: str, of_worker: float) -> None:
        found.append(Load(what, kind, prefix, workers * of_worker, arrivals * of_worker, "start"))

    def end(what: str, kind: str, prefix: str, of_worker: float) -> None:
        # All find the queue empty by their next long poll.
        per_s = workers * of_worker / aws.AwsLedger.poll_s
        found.append(Load(what, kind, prefix, workers * of_worker, per_s, "end"))

    def prove(what: str, kind: str, prefix: str, of_reader: float) -> None:
        readers, reading_s = proving(case)
        total = readers * of_reader
        found.append(Load(what, kind, prefix, total, total / reading_s, "end"))

    def client(what: str, kind: str, prefix: str, total: float, per_s: float) -> None:
        found.append(Load(what, kind, prefix, total, per_s, "client"))

    senders = sqs._SENDERS / case.rtt_s
    client("send", "sqs", "", jobs / sqs._ENTRIES, senders)
    start("find the queue", "sqs", "", 1)
    start("orders", "list", control, 2)
    start("heartbeat", "put", live, 1)
    pages = 1 if heartbeats < roster._PAGE else 2
    start("who else", "list", live, pages)
    # Of more than a page only a part is listed, and so only that read.
    parts = 1 if pages == 1 else len(roster._SHARES)
    silent = min(roster._SWEPT, workers / 2 / parts)
    start("sweep", "get", live, silent * min(1.0, roster._SWEPT / heartbeats))
    start("bundle", "get", "<batch>.zip", 1)
    steady("receive", "sqs", "", rate / per_receive)
    steady("results", "put", "<batch>/", rate * case.results)
    steady("journal", "put", "_journal/<batch>/", flush)
    steady("delete", "sqs", "", deletes)
    if case.job_s > every_s:
        # Those that run side by side have begun at any time, and are extended together.
        steady("extend", "sqs", "", math.ceil(case.slots / sqs._ENTRIES) / every_s)
    steady("heartbeat", "put", live, 1 / beat_s)
    steady("orders", "get", control, 1 / ORDERS_S)
    steady("orders", "list", control, 1 / ORDERS_S / orders._LOOKS)
    # All ask, less and less often, until one of them has read the records and noted it for all.
    _, reading_s = proving(case)
    asked = 2 + math.log2(1 + 2 * reading_s)
    end("depth", "sqs", "", asked)
    end("is it over: batches", "list", "_batches/", 2 * asked)
    end("is it over: orders", "list", control, asked)
    end("is it over: note", "list", "_journal/decided/", asked)
    end("is it over: manifest", "get", "_batches/", 1)
    end("how many others", "list", live, pages)
    end("last heartbeat", "put", live, 1)
    prove("is it over: records", "list", "_journal/<batch>/", max(1.0, objects / PAGE))
    prove("is it over: records", "get", "_journal/<batch>/", objects)
    reading = journal._READERS / case.rtt_s
    client("status: journal", "get", "_journal/<batch>/", objects, reading)
    client("status: who lives", "get", live, workers, roster._READERS / case.rtt_s)
    client("download", "get", "<batch>/", jobs * case.results, 16 / case.rtt_s)
    return found


def proving(case: Scenario) -> tuple[float, float]:
    """Return how many workers read all records to prove the end, and how long that takes one."""
    reading_s = journal_objects(case) * case.rtt_s / journal._READERS
    reading_s += case.jobs * sizes()["decide_s"]
    longest_s = case.jobs / survey._READ_JOBS_PER_S * case.workers
    if longest_s < survey._SHORTEST_SPREAD_S:
        return float(case.workers), reading_s
    # Those whose turn comes while the first one reads.
    return min(float(case.workers), 1 + case.workers * reading_s / longest_s), reading_s


def journal_objects(case: Scenario) -> int:
    """Return how many objects the journal has in the end."""
    per_worker = case.jobs / case.workers * sizes()["record"]
    return case.workers * max(1, math.ceil(per_worker / journal._PAGE_BYTES))


def journal_written_bytes(case: Scenario) -> float:
    """Return how much is uploaded for the journal, each flush writing its object anew."""
    rate = case.slots / case.job_s
    flush = max(rate / (1 + rate * SETTLE_S), rate / outbox._GROUP)
    records = case.jobs / case.workers
    # An object grows from nothing to its full size.
    full = min(records * sizes()["record"], journal._PAGE_BYTES)
    return case.workers * records / (rate / flush) * full / 2


def in_flight(case: Scenario, ahead: bool = True) -> float:
    """Return how many messages are hidden at a time: at work, ahead, and waiting to be settled.

    Where SQS lends no more, nothing is leased ahead.
    """
    _, most_ahead = _leasing(case.slots, case.job_s)
    of_worker = case.slots + case.slots / case.job_s * SETTLE_S
    return case.workers * (of_worker + ahead * most_ahead)
