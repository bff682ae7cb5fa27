"""What thousands of workers and millions of jobs ask of SQS and S3, and what that costs.

From the model in `benchmarks.protocol`: what many workers and jobs cost, and which limits of AWS
are reached first, by how many workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from adr import roster
from adr.ledgers import journal
from adr.worker import policy
from benchmarks.measure import Setting
from benchmarks.protocol import (
    Load,
    Scenario,
    in_flight,
    journal_objects,
    journal_written_bytes,
    loads,
    proving,
    sizes,
)
from benchmarks.table import Table

__all__ = ["tables"]

#: USD, us-east-1, as published in June 2026: S3 and SQS standard queues. DELETE costs nothing.
#: Frankfurt: S3 is 8 % dearer.
PRICES_AS_OF = "June 2026, us-east-1"
PRICES = {"sqs": 0.40e-6, "put": 5.0e-6, "list": 5.0e-6, "get": 0.4e-6}

#: As AWS documents: messages of a standard queue in flight; calls a second and partitioned
#: prefix, which S3 divides further only under load that lasts, after half an hour or so.
IN_FLIGHT = 120_000
PUTS_PER_S = 3500
GETS_PER_S = 5500
_MANY_BYTES = 8 << 30

#: What the original did for each job: two calls to queue it, five to run it, two to download.
ORIGINAL = {"sqs": 5.0, "put": 1.0, "get": 3.0}


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
        computing_s = case.jobs * sizes()["status_s"]
        table.rows.append(
            [
                case.name,
                case.jobs * case.job_s / case.workers / case.slots / 3600,
                sum(load.total for load in some) / case.jobs,
                money(some),
                money(some) / case.jobs * 1e6,
                f"{money(idle) / money(some):.0%}",
                in_flight(case),
                case.jobs * sizes()["record"] / 1e9,
                objects,
                journal_written_bytes(case) / 1e9,
                reading_s + computing_s,
                case.jobs * sizes()["status"] / 1e9,
            ]
        )
    table.notes += [
        f"a record has {sizes()['record']:.0f} bytes, a message {sizes()['message']:.0f}, a job in "
        f"a manifest {sizes()['manifest']:.0f}; for the status a job takes "
        f"{1e6 * sizes()['status_s']:.0f} us of CPU here",
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
    read_bytes = case.jobs * sizes()["record"]
    readers, reading_s = proving(case)
    table.notes += [
        f"all workers start within {case.start_s:g} s; each fetches the bundle of "
        f"{case.bundle_bytes / 1e6:,.0f} MB",
        f"end: {readers:.0f} of them read {read_bytes / 1e9:.1f} GB each, in {reading_s:.0f} s, to "
        f"know that all is decided; the others see the note of the first",
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
        ("messages in flight", lambda n: in_flight(sized(n), ahead=False), IN_FLIGHT),
        ("start: GET and LIST of heartbeats/s", peak("start", "get", live), GETS_PER_S),
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
        ("end: LIST of batches/s", peak("end", "get", "_batches/"), GETS_PER_S),
        ("end: GET of journal/s", peak("end", "get", records), GETS_PER_S),
        (
            "end: bytes a worker holds to prove it",
            lambda n: sized(n).jobs * sizes()["proof"],
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
    # One page has enough of them.
    return (read + workers) / policy._BETWEEN_QUESTIONS_S


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
    for workers, job_s in ((10, 0.1), (100, 60), (1000, 60), (100, 3600)):
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
