"""Queue and workers as state machines, driven by chance, over both backends, against a model.

Hypothesis chooses who does what next: several workers lease, begin, hold on to, give back and
settle jobs, fall asleep, and die; time passes; messages come twice, calls fail, and answers are
lost. After each step the model says what must hold. ``ADR_FAULT_SEED`` chooses other runs.
"""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import pytest
from hypothesis import strategies as st

from adr.aws import Connection
from adr.decisions import visible
from adr.errors import ServiceError
from adr.keys import JOURNAL, card_key, heartbeat_key
from adr.ledgers.aws import AwsLedger
from adr.ledgers.base import Ledger
from adr.ledgers.sqlite import SqliteLedger
from adr.ledgers.sqs import MessageQueue
from adr.models import Job, JobId, JobRecord, JobState, Lease, Outcome
from adr.roster import Roster, WorkerLocks
from adr.stores.s3 import S3Store
from adr.workerinfo import WorkerInfo
from tests.contract.jobs import BATCH, a_job, outcome_of
from tests.faults.small_aws import Fault, SmallAws, small_aws

#: Times of AWS in seconds. A heartbeat is written every 25 s.
VISIBILITY_S, CARD_AFTER_S, CEILING_S, DEAD_AFTER_S, BEAT_S = 120, 200, 400, 100, 25
CRASH_LIMIT = 2
MOST_JOBS = 9

OPERATIONS = [
    "SendMessageBatch",
    "ReceiveMessage",
    "ChangeMessageVisibilityBatch",
    "DeleteMessageBatch",
    "GET",
    "PUT",
]


class Clock:
    """Stand in for the module `time`: it moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1.8e9

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass(eq=False)
class Worker:
    name: str
    ledger: Ledger
    asleep: bool = False


@dataclass(eq=False)
class Hold:
    """What a worker knows of a lease."""

    worker: Worker
    lease: Lease
    began: bool = False
    #: It was told that the lease is lost; it may have an outcome all the same.
    lost: bool = False
    #: Its worker has received since, which may have renewed the lease.
    renewed: bool = False


class Place(Protocol):
    """A runner without jobs, and what is behind it."""

    #: Whether nothing is delivered twice and nothing counted approximately.
    exact: bool

    def worker(self, name: str) -> Ledger: ...

    def die(self, name: str) -> None: ...

    def beat(self, name: str) -> None: ...

    def waits(self, job: JobId) -> bool:
        """Tell whether the queue still has a job."""

    def records(self) -> list[JobRecord]: ...

    def is_valid(self, hold: Hold) -> bool:
        """Tell whether the lease of a worker that is awake stands, as far as it can know."""

    def close(self) -> None: ...


class Local:
    exact = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder / uuid.uuid4().hex
        (self._folder / "workers").mkdir(parents=True)
        self._path = self._folder / "ledger.db"
        self._locks: dict[str, WorkerLocks] = {}
        self._reader = SqliteLedger(self._path, WorkerLocks(self._folder / "workers"))
        self._reader.create()
        self._db = sqlite3.connect(self._path)

    def worker(self, name: str) -> Ledger:
        self._locks[name] = WorkerLocks(self._folder / "workers")
        return SqliteLedger(self._path, self._locks[name], name)

    def die(self, name: str) -> None:
        self._locks.pop(name).drop(name)

    def beat(self, name: str) -> None:
        pass

    def waits(self, job: JobId) -> bool:
        return self._ask("batch = ? AND position = ? AND generation = ?", *job)

    def records(self) -> list[JobRecord]:
        return self._reader.records([BATCH])

    def is_valid(self, hold: Hold) -> bool:
        return self._ask("worker = ? AND attempt = ?", hold.worker.name, hold.lease.attempt)

    def _ask(self, condition: str, *values: object) -> bool:
        return bool(self._db.execute(f"SELECT 1 FROM jobs WHERE {condition}", values).fetchone())

    def close(self) -> None:
        for name in list(self._locks):
            self.die(name)
        self._db.close()


class OnAws:
    exact = False

    def __init__(self, aws: SmallAws, connection: Connection, clock: Clock) -> None:
        self.aws = aws
        aws.clear()
        self._clock = clock
        self._connection = connection
        self._store = S3Store(connection)
        self._roster = Roster(self._store, dead_after_s=DEAD_AFTER_S)
        self._beats: dict[str, bytes] = {}

    def worker(self, name: str) -> Ledger:
        body = WorkerInfo(name, "host", 1, 1, self._clock.now, "1").to_dict()
        self._beats[name] = json.dumps(body).encode()
        self.beat(name)
        return AwsLedger(
            MessageQueue(self._connection),
            self._store,
            self._roster,
            name,
            visibility_s=VISIBILITY_S,
            card_after_s=CARD_AFTER_S,
            ceiling_s=CEILING_S,
        )

    def die(self, name: str) -> None:
        del self._beats[name]

    def beat(self, name: str) -> None:
        self.aws.objects[heartbeat_key(name)] = self._beats[name], self._clock.now

    def waits(self, job: JobId) -> bool:
        return any(Job.from_dict(json.loads(each)).id == job for each in self.aws.left())

    def records(self) -> list[JobRecord]:
        return [
            JobRecord.from_dict(json.loads(line))
            for key, (body, _) in self.aws.objects.items()
            if key.startswith(JOURNAL)
            for line in body.splitlines()
        ]

    def is_valid(self, hold: Hold) -> bool:
        if self._clock.now < hold.lease.deadline < float("inf"):
            return True
        body, _ = self.aws.objects.get(card_key(BATCH, hold.lease.job.index), (b"{}", 0))
        return json.loads(body).get("attempt") == hold.lease.attempt

    def close(self) -> None:
        pass


@dataclass
class Told:
    """Count what is known to have been said of a job, and what may have been."""

    certain: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)


class Interleaving:
    """Let workers of one runner do anything in any order, and compare with what must come of it.

    The actions take two numbers, which choose who does what and how. Where there is nobody to
    do it, nothing is done.
    """

    def __init__(self, place: Place, clock: Clock) -> None:
        self.place = place
        self.clock = clock
        self.workers: list[Worker] = []
        self.holds: list[Hold] = []
        self.newest: dict[int, Job] = {}
        #: Jobs that SQS may hand out twice at a time, against which nothing can be done.
        self.doubled: set[JobId] = set()
        self.outcomes: dict[str, Outcome] = {}
        self.seen: set[tuple[Any, ...]] = set()
        self.decided: dict[int, JobRecord] = {}
        self.told: dict[JobId, Told] = defaultdict(Told)
        self.names = count()
        for _ in range(3):
            self.hire()

    def do_nothing(self, number: int, more: int) -> None:
        """Stand where a step is not needed for a failure."""

    def hire(self) -> Worker:
        name = f"worker{next(self.names)}"
        worker = Worker(name, self.place.worker(name))
        self.workers.append(worker)
        return worker

    def awake(self, number: int) -> Worker | None:
        some = [worker for worker in self.workers if not worker.asleep]
        return some[number % len(some)] if some else None

    def held_by(self, worker: Worker | None) -> list[Hold]:
        return [hold for hold in self.holds if hold.worker is worker]

    def chosen(self, number: int, which: Callable[[Hold], bool]) -> Hold | None:
        some = [hold for hold in self.holds if not hold.worker.asleep and which(hold)]
        return some[number % len(some)] if some else None

    def send(self, number: int, more: int) -> None:
        """Queue new jobs; what fails is sent again, as whoever queues does."""
        first = len(self.newest) + 1
        indexes = range(first, min(MOST_JOBS, first + number % 3) + 1)
        jobs = [replace(a_job(index), crash_limit=CRASH_LIMIT) for index in indexes]
        self._send(jobs, again=more == 0)

    def send_once_more(self, number: int, more: int) -> None:
        """Queue a job that was queued already, as one does whose answer was lost."""
        if self.newest:
            self._send([self._job(number)], again=True)

    def retry(self, number: int, more: int) -> None:
        some = [job for job in self.newest.values() if self._is_decided(job)]
        if some:
            job = some[number % len(some)]
            self._send([replace(job, generation=job.generation + 1)], again=False)

    def _job(self, number: int) -> Job:
        return list(self.newest.values())[number % len(self.newest)]

    def _send(self, jobs: Sequence[Job], again: bool) -> None:
        sender = self.place.worker("sender") if not self.place.exact else self.workers[0].ledger
        may_fail = bool(self._faults())
        for _ in range(20):
            try:
                sender.send(jobs, again=again)
                break
            except ServiceError:
                again = True
        for job in jobs:
            self.newest[job.index] = job
            if again or may_fail:
                self.doubled.add(job.id)

    def receive(self, number: int, more: int) -> None:
        worker = self.awake(number)
        if worker is None:
            return
        over, before = self._over(), len(self.holds)
        for hold in self.held_by(worker):
            hold.renewed = True
        with suppress(ServiceError):
            leases = worker.ledger.receive(1 + more % 4, 0)
            assert len(leases) <= 1 + more % 4
            for lease in leases:
                self._look_at(lease, over)
                self.holds.append(Hold(worker, lease))
        # Most often what is leased begins soon.
        for hold in self.holds[before:] if number % 3 else ():
            self._start(hold)

    def _over(self) -> set[JobId]:
        return {each.id for each in self.place.records() if not each.late}

    def _look_at(self, lease: Lease, over: set[JobId]) -> None:
        """Check a new lease: its job is to be run, and what was said of it is known."""
        job, told = lease.job, self.told[lease.job.id]
        assert lease.attempt not in self.outcomes
        if self.place.exact or job.id not in self.doubled:
            assert job.id not in over, "a decided job was leased"
        if job.id == self.newest[job.index].id and (self.place.exact or job.id not in self.doubled):
            said = Counter({"lost": lease.lost, "failed": lease.failures, **Counter(lease.notes)})
            assert said >= told.certain, (lease, told)
            assert said <= told.tried, (lease, told)
            if self.place.exact:
                assert told.certain == told.tried == said
                assert lease.lost < CRASH_LIMIT

    def start(self, number: int, more: int) -> None:
        hold = self.chosen(number, lambda hold: not hold.began and not hold.lost)
        if hold is not None:
            self._start(hold)

    def _start(self, hold: Hold) -> None:
        told = self.told[hold.lease.job.id]
        told.tried["lost"] += 1
        may_begin = self.place.is_valid(hold) or hold.renewed
        try:
            begun = hold.worker.ledger.start([hold.lease])
        except ServiceError:
            # As the worker does: whether it has begun is not known.
            self._release(hold, 5, failed=False, note="")
            return
        if begun:
            assert may_begin, "an attempt began whose lease had passed"
            hold.began = True
        else:
            told.tried["lost"] -= 1
            self.holds.remove(hold)

    def extend(self, number: int, more: int) -> None:
        self._extend(self.awake(number))

    def _extend(self, worker: Worker | None) -> None:
        mine = self.held_by(worker)
        if worker is None or not mine:
            return
        try:
            kept = {each.attempt: each for each in worker.ledger.extend([h.lease for h in mine])}
        except ServiceError:
            return
        for hold in mine:
            if hold.lease.attempt in kept:
                hold.lease = kept[hold.lease.attempt]
            else:
                hold.lost = True

    def release(self, number: int, more: int) -> None:
        """Give a job back; only one that has begun has failed, or has anything to say."""
        how, delay_s = ("", "failed", "n")[more % 3], (0, 40)[more % 2]
        hold = self.chosen(number, lambda hold: hold.began or not how)
        if hold is not None:
            note = f"note {self.clock.now}" if how == "n" else ""
            self._release(hold, delay_s, how == "failed", note)

    def _release(self, hold: Hold, delay_s: float, failed: bool, note: str) -> None:
        told, lease = self.told[hold.lease.job.id], hold.lease
        self.holds.remove(hold)
        was_valid = self.place.is_valid(hold)
        said = [*(["failed"] if failed else []), *([note] if note else [])]
        told.tried.update(said)
        try:
            hold.worker.ledger.release([lease], delay_s=delay_s, failed=failed, note=note)
        except ServiceError:
            return
        if was_valid and not hold.lost:
            told.certain.update(said)
            told.tried["lost"] -= hold.began

    def settle(self, number: int, more: int) -> None:
        """Settle jobs of one worker that have run, also those whose lease is lost by now."""
        first = self.chosen(number, lambda hold: hold.began)
        if first is None:
            return
        holds = [hold for hold in self.held_by(first.worker) if hold.began]
        holds.remove(first)
        state = JobState.FAILED if more % 2 else JobState.SUCCEEDED
        mine = [
            outcome_of(hold.lease, state, first.worker.name)
            for hold in (first, *holds[: more // 4])
        ]
        self.outcomes.update({each.lease.attempt: each for each in mine})
        self.holds = [hold for hold in self.holds if hold.lease.attempt not in self.outcomes]
        for each in mine:
            self.told[each.lease.job.id].tried["lost"] -= self.place.exact
        passed = {
            hold.lease.attempt
            for hold in (first, *holds[: more // 4])
            if not self.place.is_valid(hold) and not hold.renewed
        }
        if more == 3:
            self._die_settling(first.worker, mine)
        else:
            self._settle(first.worker, mine)
        late = {record.attempt for record in self.place.records() if record.late}
        written = {record.attempt for record in self.place.records()}
        assert passed & written <= late, "an outcome came in time whose lease had passed"

    def settle_again(self, number: int, more: int) -> None:
        if not self.outcomes:
            return
        outcome = list(self.outcomes.values())[number % len(self.outcomes)]
        worker = next((w for w in self.workers if w.name == outcome.record.worker), None)
        if worker is not None and not worker.asleep:
            self._settle(worker, [outcome])

    def _die_settling(self, worker: Worker, outcomes: Sequence[Outcome]) -> None:
        """Kill a worker after its records were written and before, on AWS, the jobs are removed."""
        self._faults().append(Fault("DeleteMessageBatch", "before"))
        with suppress(ServiceError):
            worker.ledger.settle(outcomes)
        self._replace(worker)

    def _settle(self, worker: Worker, outcomes: Sequence[Outcome]) -> None:
        for _ in range(20):
            try:
                worker.ledger.settle(outcomes)
                return
            except ServiceError:
                self.clock.sleep(0.5)
        raise AssertionError("what fails now and then succeeds in the end")

    def die(self, number: int, more: int) -> None:
        """Kill a worker; another one takes its place."""
        self._replace(self.workers[number % len(self.workers)])

    def _replace(self, worker: Worker) -> None:
        self.workers.remove(worker)
        self._bury(worker)
        self.hire()

    def take_over(self, number: int, more: int) -> None:
        """Stop a worker for so long that others get its jobs, and let it go on as if nothing was.

        All in one, since chance alone hardly finds a way that long.
        """
        worker = self.workers[number % len(self.workers)]
        worker.asleep = True
        self._pass(300)
        for action in ("receive", "start", "settle")[: 1 + more % 3]:
            getattr(self, action)(number, 3 if action == "receive" else 0)
            self.check()
        worker.asleep = False
        self.place.beat(worker.name)
        action = ("start", "settle", "extend", "release")[more // 3]
        self.workers.remove(worker)
        self.workers.insert(0, worker)
        self.holds.sort(key=lambda hold: hold.worker is not worker)
        getattr(self, action)(0, number)

    def _bury(self, worker: Worker) -> None:
        for hold in self.held_by(worker):
            self.holds.remove(hold)
            lost = hold.began and (self.place.exact or self._is_counted(hold))
            self.told[hold.lease.job.id].certain["lost"] += lost
        self.place.die(worker.name)

    def _is_counted(self, hold: Hold) -> bool:
        """Tell whether a loss is noticed on AWS, where an ordinary job begins without a word."""
        return not hold.lease.ordinary and not hold.lost and self.place.is_valid(hold)

    def fall_asleep(self, number: int, more: int) -> None:
        self.workers[number % len(self.workers)].asleep = True

    def wake_up(self, number: int, more: int) -> None:
        worker = self.workers[number % len(self.workers)]
        worker.asleep = False
        self.place.beat(worker.name)

    def pass_time(self, number: int, more: int) -> None:
        self._pass((1, 20, 70, 130, 300)[number % 5])

    def _pass(self, seconds: float) -> None:
        while seconds > 0:
            step_s = min(BEAT_S, seconds)
            seconds -= step_s
            self.clock.now += step_s
            for worker in self.workers:
                if not worker.asleep:
                    self.place.beat(worker.name)

    def compute(self, number: int, more: int) -> None:
        """Hold on to all leases of a worker for a long time, as jobs that run for long need it."""
        worker = self.awake(number)
        for _ in range(more):
            self._pass(45)
            self._extend(worker)
            self.check()

    def deliver_again(self, number: int, more: int) -> None:
        if isinstance(self.place, OnAws) and self.newest:
            job = self._job(number)
            self.doubled |= {replace(job, generation=each).id for each in range(job.generation + 1)}
            self.place.aws.show(job.index)

    def fail(self, number: int, more: int) -> None:
        when = ("before", "after", "entries")[more % 3]
        self._faults().append(Fault(OPERATIONS[number % len(OPERATIONS)], when))

    def _faults(self) -> list[Fault]:
        return self.place.aws.faults if isinstance(self.place, OnAws) else []

    def _is_decided(self, job: Job) -> bool:
        record = self.decided.get(job.index)
        return record is not None and record.generation == job.generation

    def check(self) -> None:
        self.nothing_is_undone()
        self.nothing_is_lost()
        self.nobody_runs_what_another_runs()

    def nothing_is_undone(self) -> None:
        records = self.place.records()
        found = {(each.id, each.attempt, each.state, each.late) for each in records}
        assert found >= self.seen, "a record is gone"
        self.seen = found
        for record in records:
            mine = self.outcomes.get(record.attempt)
            if mine is None:
                lost = re.fullmatch(r"lost its worker (\d+) times", record.reason)
                assert lost, record
                assert int(lost[1]) >= CRASH_LIMIT
                assert int(lost[1]) == CRASH_LIMIT or not self.place.exact
            else:
                assert replace(record, late=False) == mine.record
        in_time = Counter(each[0] for each in {(r.id, r.attempt) for r in records if not r.late})
        assert {id_ for id_, number in in_time.items() if number > 1} <= self.doubled
        shown = {index: record for (_, index), record in visible(records).items()}
        for index, before in self.decided.items():
            now = shown[index]
            assert now.generation >= before.generation
            if now.generation > before.generation or before.late:
                continue
            assert not now.late
            if before.id not in self.doubled:
                assert now.attempt == before.attempt
            assert before.state is not JobState.SUCCEEDED or now.state is JobState.SUCCEEDED
        self.decided = shown

    def nothing_is_lost(self) -> None:
        for job in self.newest.values():
            assert self._is_decided(job) or self.place.waits(job.id), job

    def nobody_runs_what_another_runs(self) -> None:
        running = Counter(
            hold.lease.job.id
            for hold in self.holds
            if hold.began and not hold.lost and not hold.worker.asleep and self.place.is_valid(hold)
        )
        assert {id_ for id_, number in running.items() if number > 1} <= self.doubled

    def drain(self) -> None:
        """Let all die, and one more worker finish what is left."""
        self._faults().clear()
        while self.workers:
            self._bury(self.workers.pop())
        last = self.hire()
        for _ in range(40):
            over = self._over()
            while leases := last.ledger.receive(10, 0):
                for lease in leases:
                    self._look_at(lease, over)
                mine = [outcome_of(each, worker=last.name) for each in last.ledger.start(leases)]
                self.outcomes.update({each.lease.attempt: each for each in mine})
                last.ledger.settle(mine)
                over = self._over()
            if last.ledger.depth().empty:
                break
            self._pass(130)
        self.nothing_is_undone()
        assert last.ledger.depth().empty
        assert all(self._is_decided(job) for job in self.newest.values())
        assert len(visible(last.ledger.records([BATCH]))) == len(self.newest)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put one clock under both ledgers, and ids that hypothesis can choose again."""
    made = Clock()
    for module in ("aws", "holds"):
        monkeypatch.setattr(f"adr.ledgers.{module}.boot_time", made.time)
    for module in ("holds", "sqs", "sqlite"):
        monkeypatch.setattr(f"adr.ledgers.{module}.time", made)
    for module in ("holds", "sqlite"):
        monkeypatch.setattr(
            f"adr.ledgers.{module}.new_id", lambda: f"{random.getrandbits(64):016x}"
        )
    return made


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Callable[[], Place]:
    connection, served = small_aws(monkeypatch, clock.time, CEILING_S)
    return lambda: OnAws(served, connection, clock)


def _new_id() -> str:
    return f"{random.getrandbits(64):016x}"


#: Finding the shortest way to a failure takes minutes, which only somebody who waits for it has.
PHASES = [
    hypothesis.Phase.generate,
    *([hypothesis.Phase.shrink] if "ADR_FAULT_SEED" in os.environ else []),
]

#: How often which action is chosen.
ACTIONS: Mapping[str, int] = {
    "do_nothing": 1,
    "send": 5,
    "send_once_more": 1,
    "retry": 3,
    "receive": 9,
    "start": 4,
    "extend": 4,
    "release": 4,
    "settle": 4,
    "settle_again": 1,
    "die": 3,
    "fall_asleep": 2,
    "wake_up": 2,
    "pass_time": 6,
    "compute": 2,
    "take_over": 3,
    "deliver_again": 1,
    "fail": 3,
}

STEPS = st.lists(
    st.tuples(
        st.sampled_from([name for name, times in ACTIONS.items() for _ in range(times)]),
        st.integers(0, 11),
        st.integers(0, 11),
    ),
    min_size=40,
    max_size=80,
)


def run(seed: int, make: Callable[[], Place], clock: Clock, examples: int) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        phases=PHASES,
        deadline=None,
        print_blob=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(STEPS)
    def interleave(steps: list[tuple[str, int, int]]) -> None:
        place = make()
        try:
            machine = Interleaving(place, clock)
            machine.send(2, 1)
            for action, number, more in steps:
                getattr(machine, action)(number, more)
                machine.check()
            machine.drain()
        finally:
            place.close()

    interleave()


def test_workers_of_a_local_runner_in_any_order(seed: int, tmp_path: Path, clock: Clock) -> None:
    run(seed, lambda: Local(tmp_path), clock, 60)


def test_workers_of_an_aws_runner_in_any_order(
    seed: int, aws: Callable[[], Place], clock: Clock
) -> None:
    run(seed, aws, clock, 120)
