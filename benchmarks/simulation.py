"""What thousands of workers and millions of jobs ask of SQS and S3, and what that costs.

A model and no measurement: it counts the calls of workers in steady work, at their start and at
their end, second by second, from the constants of the code, which it imports. Where it needs to
know how large a record is or how long it takes to read one, it makes one and looks.

It says which limits of AWS are reached first, and by how many workers.
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

from adr import orders, roster, runner
from adr.ledgers import aws, journal, sqs
from adr.manifest import manifest_bytes
from adr.models import Job, JobRecord
from adr.survey import JobView
from adr.worker import outbox, policy
from adr.worker.policy import Policy
from benchmarks.batches import sample_job, sample_record
from benchmarks.measure import Setting
from benchmarks.table import Table

__all__ = ["Scenario", "tables"]

#: USD, us-east-1, as published in June 2026: S3 and SQS standard queues. DELETE costs nothing.
#: Frankfurt: S3 is 8 % dearer.
PRICES_AS_OF = "June 2026, us-east-1"
PRICES = {"sqs": 0.40e-6, "put": 5.0e-6, "list": 5.0e-6, "get": 0.4e-6}

#: As AWS documents: messages of a standard queue in flight; calls a second and partitioned
#: prefix, which S3 divides further only under load that lasts, after half an hour or so.
IN_FLIGHT = 120_000
PUTS_PER_S = 3500
GETS_PER_S = 5500
#: Most keys of one listing.
PAGE = 1000
_MANY_BYTES = 8 << 30

#: What the original did for each job: two calls to queue it, five to run it, two to download.
ORIGINAL = {"sqs": 5.0, "put": 1.0, "get": 3.0}


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
def _sizes() -> dict[str, float]:
    """Make a few of everything, and see how large they are and how long it takes to read them."""
    job, record, number = sample_job(), sample_record(), 2000
    line = json.dumps(record.to_dict(), separators=(",", ":"))
    body = manifest_bytes(
        [
            replace(job, index=at, label=f"case{at:06d}", fingerprint=secrets.token_hex(32))
            for at in range(number)
        ],
        root="/",
        created=0,
        bundle_bytes=0,
        unpacked_bytes=0,
    )
    message = json.dumps(job.to_dict())
    tracemalloc.start()
    kept = [
        JobView(
            Job.from_dict(json.loads(message)), record.state, JobRecord.from_dict(json.loads(line))
        )
        for _ in range(number)
    ]
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    began = time.process_time()
    for _ in range(number):
        JobRecord.from_dict(json.loads(line))
    read_s = (time.process_time() - began) / number
    began = time.process_time()
    for _ in range(number):
        Job.from_dict(json.loads(message))
    return {
        "record": len(line) + 1,
        "message": len(message),
        "manifest": len(body) / number,
        "memory": memory / len(kept),
        "read_record_s": read_s,
        "read_job_s": (time.process_time() - began) / number,
    }


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
        # All find the queue empty by their next long poll, and read as fast as their threads do.
        fastest = journal._READERS / case.rtt_s
        per_s = min(workers * of_worker / aws.AwsLedger.poll_s, workers * fastest)
        found.append(Load(what, kind, prefix, workers * of_worker, per_s, "end"))

    def client(what: str, kind: str, prefix: str, total: float, per_s: float) -> None:
        found.append(Load(what, kind, prefix, total, per_s, "client"))

    senders = sqs._SENDERS / case.rtt_s
    client("send", "sqs", "", jobs / sqs._ENTRIES, senders)
    start("find the queue", "sqs", "", 1)
    start("orders", "list", control, 2)
    start("heartbeat", "put", live, 1)
    start("who else", "list", live, max(1.0, heartbeats / PAGE))
    start(
        "sweep",
        "get",
        live,
        min(roster._SWEPT, workers) * min(1.0, roster._SWEPT / heartbeats),
    )
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
    end("depth", "sqs", "", 1)
    end("batches, orders", "list", "_batches/", 2)
    end("manifest", "get", "_batches/", 1)
    end("journal", "list", "_journal/<batch>/", max(1.0, objects / PAGE))
    end("journal", "get", "_journal/<batch>/", objects)
    reading = journal._READERS / case.rtt_s
    client("status: journal", "get", "_journal/<batch>/", objects, reading)
    client("status: who lives", "get", live, workers, roster._READERS / case.rtt_s)
    client("download", "get", "<batch>/", jobs * case.results, 16 / case.rtt_s)
    return found


def journal_objects(case: Scenario) -> int:
    """Return how many objects the journal has in the end."""
    per_worker = case.jobs / case.workers * _sizes()["record"]
    return case.workers * max(1, math.ceil(per_worker / journal._PAGE_BYTES))


def journal_written_bytes(case: Scenario) -> float:
    """Return how much is uploaded for the journal, each flush writing its object anew."""
    rate = case.slots / case.job_s
    flush = max(rate / (1 + rate * SETTLE_S), rate / outbox._GROUP)
    records = case.jobs / case.workers
    # An object grows from nothing to its full size.
    full = min(records * _sizes()["record"], journal._PAGE_BYTES)
    return case.workers * records / (rate / flush) * full / 2


def in_flight(case: Scenario) -> float:
    """Return how many messages are hidden at a time: at work, ahead, and waiting to be settled."""
    _, ahead = _leasing(case.slots, case.job_s)
    return case.workers * (case.slots + ahead + case.slots / case.job_s * SETTLE_S)


def money(some: list[Load]) -> float:
    """Price calls."""
    return sum(PRICES[load.kind] * load.total for load in some)


def tables(setting: Setting) -> list[Table]:
    """Compute everything; takes a second, however large."""
    del setting
    cases = [
        Scenario(10, 1_000_000, 0.1),
        Scenario(100, 1_000_000, 60),
        Scenario(1000, 1_000_000, 60),
        Scenario(1000, 10_000_000, 1),
        Scenario(10_000, 10_000_000, 60),
        Scenario(10_000, 10_000_000, 0.1, start_s=300),
        Scenario(10_000, 10_000_000, 600, slots=16, start_s=300),
    ]
    last = cases[4]
    short = replace(last, job_s=1.0)
    return [_overview(cases), _detail(last), _limits(cases[2]), _limits(short), _costs()]


def _overview(cases: list[Scenario]) -> Table:
    sizes = _sizes()
    columns = [
        "workers x slots, jobs", "hours", "calls/job", "USD", "USD/million", "of it idle",
        "in flight", "journal GB", "objects", "written GB", "status s", "status GB",
    ]  # fmt: skip
    table = Table(f"scale; prices of {PRICES_AS_OF}", columns)
    for case in cases:
        some = [load for load in loads(case) if not load.what.startswith("status")]
        idle = [load for load in some if load.what in ("heartbeat", "orders")]
        objects = journal_objects(case)
        reading_s = (objects / journal._READERS + case.workers / roster._READERS) * case.rtt_s
        computing_s = case.jobs * (sizes["read_record_s"] + sizes["read_job_s"])
        table.rows.append(
            [
                case.name,
                case.jobs * case.job_s / case.workers / case.slots / 3600,
                sum(load.total for load in some) / case.jobs,
                money(some),
                money(some) / case.jobs * 1e6,
                f"{money(idle) / money(some):.0%}",
                in_flight(case),
                case.jobs * sizes["record"] / 1e9,
                objects,
                journal_written_bytes(case) / 1e9,
                reading_s + computing_s,
                case.jobs * sizes["memory"] / 1e9,
            ]
        )
    table.notes += [
        f"a record has {sizes['record']:.0f} bytes, a message {sizes['message']:.0f}, a job in a "
        f"manifest {sizes['manifest']:.0f}; reading a record takes "
        f"{1e6 * sizes['read_record_s']:.0f} us of CPU here, a job {1e6 * sizes['read_job_s']:.0f}",
        "idle: heartbeats and looks at the orders; written: the journal, anew with each flush; "
        "status: time and memory of one adr status",
    ]
    return table


def _detail(case: Scenario) -> Table:
    columns = ["call", "when", "prefix", "total", "per job", "peak/s", "USD"]
    table = Table(f"calls: {case.name}", columns)
    for load in loads(case):
        table.rows.append(
            [
                f"{load.what} ({load.kind})",
                load.phase,
                load.prefix or "queue",
                round(load.total),
                load.total / case.jobs,
                load.per_s,
                PRICES[load.kind] * load.total,
            ]
        )
    read_bytes = case.jobs * (_sizes()["record"] + _sizes()["manifest"])
    table.notes += [
        f"all workers start within {case.start_s:g} s; each fetches the bundle of "
        f"{case.bundle_bytes / 1e6:,.0f} MB",
        f"end: each worker reads {read_bytes / 1e9:.1f} GB to know that all is decided, all of "
        f"them {case.workers * read_bytes / 1e12:,.1f} TB",
        f"one job that is delivered again: {journal_objects(case):,} GET by the worker that gets "
        f"it, for the records that may have decided it",
    ]
    return table


def _limits(case: Scenario) -> Table:
    """Say how many workers reach which limit, each with as many jobs as in this scenario."""
    per_worker = case.jobs / case.workers

    def sized(workers: int) -> Scenario:
        return replace(case, workers=workers, jobs=max(1, round(workers * per_worker)))

    def peak(phase: str, kind: str, prefix: str) -> Callable[[int], float]:
        kinds = (kind, "list") if kind == "get" else (kind,)

        def found(workers: int) -> float:
            return sum(
                load.per_s
                for load in loads(sized(workers))
                if (load.phase, load.prefix) == (phase, prefix) and load.kind in kinds
            )

        return found

    live, records = "_workers/live/", "_journal/<batch>/"
    limits: list[tuple[str, Callable[[int], float], float]] = [
        ("messages in flight", lambda n: in_flight(sized(n)), IN_FLIGHT),
        ("start: GET of heartbeats/s", peak("start", "get", live), GETS_PER_S),
        ("start: GET of the bundle/s", peak("start", "get", "<batch>.zip"), GETS_PER_S),
        (
            "work: PUT of results/s, until S3 divides them",
            peak("work", "put", "<batch>/"),
            PUTS_PER_S,
        ),
        ("work: PUT of journal/s, until S3 divides it", peak("work", "put", records), PUTS_PER_S),
        ("work: PUT of heartbeats/s", peak("work", "put", live), PUTS_PER_S),
        ("work: GET and LIST of orders/s", peak("work", "get", "_control/"), GETS_PER_S),
        ("idle: GET and LIST of heartbeats/s", _staying, GETS_PER_S),
        ("end: GET of journal/s, by all of all", peak("end", "get", records), GETS_PER_S),
        (
            "end: GB read by a worker to prove the end",
            lambda n: sized(n).jobs * _sizes()["memory"],
            _MANY_BYTES,
        ),
    ]
    columns = ["limit", "at most", f"at {case.workers:,} workers", "reached by workers"]
    title = f"limits; {per_worker:,.0f} jobs of {case.job_s:g} s a worker with {case.slots} slots"
    table = Table(title, columns)
    found = [(_reached(of, most), what, most, of(case.workers)) for what, of, most in limits]
    for workers, what, most, now in sorted(found, key=lambda each: each[0] or math.inf):
        table.rows.append([what, most, now, workers or "over a million"])
    table.notes += [
        "idle: once workers have had nothing to do for as long as --idle says, while others work",
        "at first: S3 divides what begins with random ids, as results and journal do within their "
        "batch, once it is asked too much for long; until then it answers 503 to some, who try "
        "again",
    ]
    return table


def _staying(workers: int) -> float:
    """Return what idle workers read a second to know whether to stay, where all of them ask.

    Each reads heartbeats in the order of their ids until it has found so many idle ones: the
    fewer are idle the farther it reads, but the fewer read.
    """
    stay = min(policy._MOST_STAY, policy._STAY + math.ceil(policy._STAY_PART * workers))
    read = workers * min(workers, stay + roster._READERS)
    return (read + workers * math.ceil(workers / PAGE)) / policy._BETWEEN_QUESTIONS_S


def _reached(of: Callable[[int], float], most: float) -> int | None:
    low, high = 1, 1
    while of(high) < most:
        low, high = high, high * 2
        if high > 1_000_000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle) < most else (low, middle)
    return high


def _costs() -> Table:
    """Price a million jobs, from queueing to downloading."""
    columns = ["", "SQS", "PUT+LIST", "GET", "calls/job", "USD"]
    table = Table(f"a million jobs with one result each; prices of {PRICES_AS_OF}", columns)
    for workers, job_s in ((10, 0.1), (100, 60), (100, 3600)):
        case = Scenario(workers, 1_000_000, job_s)
        some = [load for load in loads(case) if not load.what.startswith("status")]
        calls = {kind: sum(load.total for load in some if load.kind == kind) for kind in PRICES}
        table.rows.append(
            [
                f"adr, {case.workers:,} workers, jobs of {case.job_s:g} s",
                round(calls["sqs"]),
                round(calls["put"] + calls["list"]),
                round(calls["get"]),
                sum(calls.values()) / case.jobs,
                money(some),
            ]
        )
    own = {kind: many * 1e6 for kind, many in ORIGINAL.items()}
    table.rows.append(
        [
            "the original, by its calls",
            round(own["sqs"]),
            round(own["put"]),
            round(own["get"]),
            sum(ORIGINAL.values()),
            sum(PRICES[kind] * many for kind, many in own.items()),
        ]
    )
    return table
