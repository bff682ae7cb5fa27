"""The contract of every ledger."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import pytest

from adr.aws import Connection
from adr.decisions import Decision, visible
from adr.errors import RunnerGone
from adr.ledgers.aws import AwsLedger
from adr.ledgers.base import Ledger
from adr.ledgers.sqlite import SqliteLedger
from adr.ledgers.sqs import MessageQueue
from adr.models import Depth, Job, JobState, Lease
from adr.roster import Roster, WorkerLocks
from adr.runner import open_runner
from adr.stores.s3 import S3Store
from adr.workerinfo import WorkerInfo
from tests.contract.jobs import BATCH, a_job, indexes, outcome_of, run_all, some_jobs
from tests.proxy import Call, Proxy


class Backend(Protocol):
    """One runner, whose workers live and die in this process."""

    #: Losses of an ordinary job that nobody notices: SQS tells receives, not starts.
    uncounted: int
    #: Time after which a lease that is not extended has passed, where it is made short.
    short_lease_s: float

    def worker(self, name: str, lease_s: int = 60) -> Ledger:
        """Return the ledger of a living worker, whose leases last for `lease_s` at least."""

    def anew(self) -> Ledger:
        """Return the ledger of somebody who knows nothing yet and leases nothing."""

    def lapse(self, name: str) -> None:
        """Let all leases of a worker pass that goes on living."""

    def die(self, name: str) -> None:
        """Kill a worker and let its leases pass."""


class LocalBackend:
    uncounted = 0
    short_lease_s = 0.3

    def __init__(self, path: Path) -> None:
        self._path = path
        self._locks: dict[str, WorkerLocks] = {}
        (path / "workers").mkdir()
        SqliteLedger(path / "ledger.db", WorkerLocks(path / "workers")).create()

    def worker(self, name: str, lease_s: int = 60) -> Ledger:
        # Locks of their own, as in processes of their own.
        self._locks[name] = WorkerLocks(self._path / "workers")
        return SqliteLedger(self._path / "ledger.db", self._locks[name], name)

    def anew(self) -> Ledger:
        return SqliteLedger(self._path / "ledger.db", WorkerLocks(self._path / "workers"))

    def lapse(self, name: str) -> None:
        self._locks[name].drop(name)

    die = lapse


class AwsBackend:
    uncounted = 1
    short_lease_s = 2.0

    def __init__(self, proxy: Proxy) -> None:
        self.id = str(uuid.uuid4())
        # One for all of them: making clients takes longer than most of these tests.
        self._connection = Connection(self.id)
        self._store = S3Store(self._connection)
        self._roster = Roster(self._store)
        self._store.create()
        MessageQueue(self._connection).create(60)
        self._leases: dict[str, int] = {}
        self._handles: dict[str, str] = {}
        proxy.after("sqs.ReceiveMessage", self._note, key=self.id)

    def _note(self, call: Call) -> None:
        assert call.answer
        for message in call.answer.json().get("Messages", ()):
            self._handles[message["MessageId"]] = message["ReceiptHandle"]

    def worker(self, name: str, lease_s: int = 60) -> Ledger:
        self._roster.beat(WorkerInfo(name, "host", 1, 1, time.time(), "1"))
        self._leases[name] = lease_s
        queue = MessageQueue(self._connection)
        return AwsLedger(queue, self._store, self._roster, name, visibility_s=lease_s)

    def anew(self) -> Ledger:
        return open_runner(self.id).ledger

    def lapse(self, name: str) -> None:
        time.sleep(self._leases[name])

    def die(self, name: str) -> None:
        """Die, and spare us to wait until SQS shows the messages again."""
        self._roster.leave(WorkerInfo(name, "host", 1, 1, time.time(), "1"))
        sqs, url = self._connection.sqs, self._connection.queue_url
        for handle in self._handles.values():
            sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)
        self._handles.clear()


@pytest.fixture(params=["sqlite", "aws"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "sqlite":
        yield LocalBackend(tmp_path)
    else:
        made = AwsBackend(request.getfixturevalue("proxy"))
        yield made
        made.anew().destroy()


@pytest.fixture
def ledger(backend: Backend) -> Ledger:
    return backend.worker("first")


@pytest.fixture
def other(backend: Backend) -> Ledger:
    return backend.worker("second")


@contextmanager
def again_and_again(step: Callable[[], object]) -> Iterator[list[object]]:
    """Call `step` from another thread, and collect what it returns."""
    over, results = threading.Event(), list[object]()

    def repeat() -> None:
        while not over.wait(0.1):
            results.append(step())

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(repeat)
        try:
            yield results
        finally:
            over.set()
        future.result()


def in_all(depth: Depth) -> int:
    return depth.waiting + depth.in_flight + depth.delayed


class TestLife:
    def test_a_job_goes_from_the_queue_to_its_record(self, ledger: Ledger) -> None:
        ledger.send([a_job()])
        waiting = ledger.depth()
        before = time.time()

        [lease] = ledger.receive(1, 5)
        begun = ledger.start([lease])
        leased = ledger.depth()
        ledger.settle([outcome_of(lease, worker="first")])

        assert (waiting.waiting, waiting.in_flight) == (1, 0)
        assert (lease.job, lease.failures, lease.lost) == (a_job(), 0, 0)
        assert before - 1 <= lease.leased_at <= time.time()
        assert begun == [lease]
        assert (leased.waiting, leased.in_flight) == (0, 1)
        assert ledger.depth().empty
        assert ledger.records([BATCH]) == [outcome_of(lease, worker="first").record]

    def test_a_job_arrives_as_it_was_sent(self, ledger: Ledger) -> None:
        job = Job(
            BATCH,
            7,
            9,
            "caf\udce9",
            "cat '\udcff\u20ac' | \"wc\"\n",
            input="in/\udcff",
            preprocessing="a",
            postprocessing="b",
            store=(r"a|b\.zip$", "\udc80"),
            env=(("A", "1"), ("B", "\udcff")),
            timeout_s=1.5,
            attempts=3,
            generation=2,
            fingerprint="f" * 64,
        )

        ledger.send([job])

        assert [lease.job for lease in ledger.receive(10, 5)] == [job]

    def test_a_record_is_read_as_it_was_written(self, ledger: Ledger) -> None:
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        outcome = outcome_of(lease, JobState.FAILED, reason="exit code 3 \udcff")

        ledger.settle([outcome])

        assert ledger.records([BATCH]) == [outcome.record]

    def test_whoever_sends_hears_how_far_it_is(self, ledger: Ledger) -> None:
        told: list[int] = []

        ledger.send(some_jobs(25), sent=told.append)

        assert told == sorted(told)
        assert told[-1] == 25

    def test_a_receive_takes_no_more_than_asked_for(self, ledger: Ledger) -> None:
        ledger.send(some_jobs(5))

        assert len(ledger.receive(3, 5)) == 3
        assert ledger.depth().waiting == 2

    def test_an_empty_queue_is_waited_for(self, ledger: Ledger) -> None:
        began = time.monotonic()

        assert ledger.receive(10, 1) == []

        assert 0.9 <= time.monotonic() - began < 5

    def test_a_job_that_comes_ends_the_waiting(self, ledger: Ledger, other: Ledger) -> None:
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            future = pool.submit(ledger.receive, 1, 15)
            other.send([a_job()])
            [lease] = future.result()

        assert lease.job == a_job()
        assert time.monotonic() - began < 10

    def test_only_the_records_asked_for_are_returned(self, ledger: Ledger) -> None:
        foreign = Job("another", 1, 1, "x", "y")
        ledger.send([a_job(), foreign])
        run_all(ledger)

        assert [record.batch for record in ledger.records([BATCH])] == [BATCH]
        assert sorted(r.batch for r in ledger.records(["another", BATCH])) == [BATCH, "another"]
        assert ledger.records(["20261120"]) == []
        assert ledger.records([]) == []
        assert list(ledger.decided([])) == []

    def test_what_records_decide_is_read_without_them(self, backend: Backend) -> None:
        # given records of two batches, and a late one
        ledger, reader = backend.worker("first", lease_s=1), backend.worker("second")
        ledger.send([*some_jobs(5), Job("another", 1, 1, "x", "y")])
        lost = ledger.receive(6, 5)
        while len(lost) < 6:
            lost += ledger.receive(6, 5)
        ledger.settle([outcome_of(lease, JobState.FAILED) for lease in lost[1:]])
        backend.lapse("first")
        ledger.settle([outcome_of(lost[0])])

        # then
        for batches in ([BATCH], ["another", BATCH], ["20261120"]):
            records = reader.records(batches)
            decided = list(reader.decided(batches))
            assert sorted(decided) == sorted(
                Decision(*each.id, each.attempt, each.state, each.late) for each in records
            )
        # and it finds those of the records that somebody wants
        chosen = [each for each in reader.decided([BATCH]) if each.index in (2, 4)]
        assert sorted(record.index for record in reader.records([BATCH], chosen)) == [2, 4]
        assert backend.anew().records([BATCH], chosen[:1])[0].attempt == chosen[0].attempt
        assert reader.records([BATCH], []) == []

    def test_many_outcomes_are_settled_at_once(self, ledger: Ledger) -> None:
        ledger.send(some_jobs(25))
        leases = [lease for _ in range(3) for lease in ledger.receive(10, 5)]

        ledger.settle([outcome_of(lease) for lease in leases])

        assert sorted(r.index for r in ledger.records([BATCH])) == list(range(1, 26))
        assert ledger.depth().empty

    def test_settling_twice_is_settling_once(self, ledger: Ledger) -> None:
        ledger.send(some_jobs(3))
        outcomes = [outcome_of(lease) for lease in ledger.receive(3, 5)]
        ledger.settle(outcomes)

        ledger.settle(outcomes)

        records = ledger.records([BATCH])
        assert sorted(record.index for record in records) == [1, 2, 3]
        assert not any(record.late for record in records)
        assert ledger.depth().empty

    def test_a_higher_generation_is_a_job_of_its_own(self, ledger: Ledger) -> None:
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        ledger.settle([outcome_of(lease, JobState.FAILED)])

        ledger.send([a_job(generation=1)])
        [again] = ledger.receive(1, 5)
        ledger.settle([outcome_of(again)])

        assert again.job.generation == 1
        assert (again.failures, again.lost) == (0, 0)
        [record] = visible(ledger.records([BATCH])).values()
        assert (record.generation, record.state) == (1, JobState.SUCCEEDED)


class TestSendingAgain:
    def test_each_job_is_decided_once_whatever_had_become_of_it(
        self, backend: Backend, ledger: Ledger, other: Ledger
    ) -> None:
        # given one job decided, one that runs, and others that wait
        jobs = some_jobs(12)
        ledger.send(jobs[:10])
        [done] = ledger.receive(1, 5)
        ledger.settle([outcome_of(done)])
        [running] = other.receive(1, 5)

        ledger.send(jobs, again=True)

        # the worker that runs one comes across its second message, and goes on
        assert running.job not in run_all(other)
        other.settle([outcome_of(running)])
        run_all(ledger)
        records = ledger.records([BATCH])
        assert sorted(record.index for record in records) == list(range(1, 13))
        assert ledger.depth().empty


class TestLeases:
    def test_nothing_is_received_twice(self, ledger: Ledger, other: Ledger) -> None:
        ledger.send(some_jobs(3))

        leases = ledger.receive(10, 5)

        assert indexes(leases) == [1, 2, 3]
        assert len({lease.attempt for lease in leases}) == 3
        assert other.receive(10, 0) == []
        assert ledger.receive(10, 0) == []

    def test_what_is_given_back_is_had_at_once(self, ledger: Ledger, other: Ledger) -> None:
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        ledger.start([lease])

        ledger.release([lease])

        [again] = other.receive(1, 0)
        assert again.job == lease.job
        assert again.attempt != lease.attempt
        assert (again.failures, again.lost) == (0, 0)

    def test_what_is_given_back_with_a_delay_comes_after_it(
        self, ledger: Ledger, other: Ledger
    ) -> None:
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        released_at = time.monotonic()

        ledger.release([lease], delay_s=2)

        assert ledger.receive(1, 0) == []
        assert not ledger.depth().empty
        [again] = other.receive(1, 10)
        assert 1.5 < time.monotonic() - released_at < 8
        assert again.failures == 0

    def test_only_a_failure_is_counted_as_one(self, ledger: Ledger, other: Ledger) -> None:
        ledger.send([a_job()])
        failures = []

        for failed in (True, False, True, False):
            [lease] = ledger.receive(1, 5)
            assert ledger.start([lease]) == [lease]
            ledger.release([lease], failed=failed)
            failures.append(lease.failures)

        [lease] = other.receive(1, 5)
        assert [*failures, lease.failures] == [0, 1, 1, 2, 2]
        assert lease.lost == 0

    @pytest.mark.parametrize("started", [True, False])
    def test_notes_travel_to_the_next_leases_and_count_as_nothing(
        self, ledger: Ledger, other: Ledger, started: bool
    ) -> None:
        ledger.send([a_job()])

        for noted in ((), ("interrupted at noon",)):
            [lease] = ledger.receive(1, 5)
            assert lease.notes == noted
            if started:
                assert ledger.start([lease]) == [lease]
            ledger.release([lease], note=f"interrupted at {'one' if noted else 'noon'}")
        # One who has nothing to say leaves them as they are.
        [lease] = ledger.receive(1, 5)
        ledger.start([lease])
        ledger.release([lease])

        [lease] = other.receive(1, 5)
        assert lease.job == a_job()
        assert lease.notes == ("interrupted at noon", "interrupted at one")
        assert (lease.failures, lease.lost) == (0, 0)

    def test_only_jobs_that_are_held_get_a_note(self, backend: Backend) -> None:
        ledger, other = backend.worker("first", lease_s=1), backend.worker("second")
        ledger.send(some_jobs(2))
        leases = {lease.job.index: lease for lease in ledger.receive(2, 5)}
        backend.lapse("first")
        taken = {lease.job.index: lease for lease in other.receive(2, 5)}
        other.start(list(taken.values()))

        ledger.release(list(leases.values()), note="too late")
        other.release([taken[1]], note="in time")

        [again] = other.receive(1, 5)
        assert (again.job.index, again.notes) == (1, ("in time",))
        other.release([taken[2]])
        [again] = other.receive(1, 5)
        assert again.notes == ()

    def test_a_released_lease_is_no_lease(self, ledger: Ledger, other: Ledger) -> None:
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        ledger.release([lease])

        assert ledger.extend([lease]) == []
        assert ledger.start([lease]) == []
        ledger.release([lease], failed=True)

        [again] = other.receive(1, 5)
        assert again.failures == 0

    def test_an_extended_lease_lasts(self, backend: Backend) -> None:
        ledger, other = backend.worker("first", lease_s=2), backend.worker("second")
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)

        with again_and_again(lambda: ledger.extend([lease])) as kept:
            assert other.receive(1, backend.short_lease_s + 1) == []

        assert all(kept)
        assert kept[-1][0].attempt == lease.attempt  # type: ignore[index]
        ledger.settle([outcome_of(lease)])
        [record] = ledger.records([BATCH])
        assert not record.late

    def test_a_lapsed_lease_is_another_workers(self, backend: Backend) -> None:
        ledger, other = backend.worker("first", lease_s=1), backend.worker("second")
        ledger.send([a_job()])
        [lost] = ledger.receive(1, 5)
        backend.lapse("first")
        [taken] = other.receive(1, 5)

        # the first worker does not know yet
        ledger.release([lost], failed=True)
        assert ledger.receive(1, 0) == []
        assert ledger.extend([lost]) == []
        assert ledger.start([lost]) == []
        ledger.settle([outcome_of(lost)])

        assert ledger.depth() == Depth(0, 1, 0, exact=ledger.depth().exact)
        assert other.start([taken]) == [taken]
        other.settle([outcome_of(taken, JobState.FAILED)])
        late = {record.attempt: record.late for record in other.records([BATCH])}
        assert late == {lost.attempt: True, taken.attempt: False}
        [record] = visible(other.records([BATCH])).values()
        assert record.attempt == taken.attempt
        assert other.depth().empty

    def test_a_late_outcome_leaves_the_job_where_it_is(self, backend: Backend) -> None:
        ledger, other = backend.worker("first", lease_s=1), backend.worker("second")
        ledger.send([a_job()])
        [lost] = ledger.receive(1, 5)
        backend.lapse("first")
        [taken] = other.receive(1, 5)

        ledger.settle([outcome_of(lost)])
        ledger.settle([outcome_of(lost)])

        assert in_all(other.depth()) == 1
        assert other.extend([taken]) == [taken]


class TestDeaths:
    def test_the_job_of_a_dead_worker_is_had_again(
        self, backend: Backend, ledger: Ledger, other: Ledger
    ) -> None:
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        ledger.start([lease])

        backend.die("first")

        [again] = other.receive(1, 5)
        assert again.job == lease.job
        assert again.failures == 0

    def test_a_job_that_lost_five_workers_has_failed(self, backend: Backend) -> None:
        backend.worker("sender").send([a_job()])

        for n in range(5 + backend.uncounted):
            ledger = backend.worker(f"worker{n}")
            [lease] = ledger.receive(1, 5)
            assert lease.lost == max(0, n - backend.uncounted)
            assert ledger.start([lease]) == [lease]
            if n == 3:
                ledger.release([lease], note="interrupted")
                [lease] = ledger.receive(1, 5)
                ledger.start([lease])
            backend.die(f"worker{n}")

        last = backend.worker("last")
        assert last.receive(1, 1) == []
        [record] = last.records([BATCH])
        assert record.state is JobState.FAILED
        assert record.reason == "lost its worker 5 times"
        assert record.notes == ("interrupted",)
        assert last.depth().empty

    def test_a_job_says_itself_how_many_workers_it_may_lose(self, backend: Backend) -> None:
        backend.worker("sender").send([replace(a_job(), crash_limit=1)])

        for n in range(1 + backend.uncounted):
            ledger = backend.worker(f"worker{n}")
            [lease] = ledger.receive(1, 5)
            ledger.start([lease])
            backend.die(f"worker{n}")

        last = backend.worker("last")
        assert last.receive(1, 1) == []
        [record] = last.records([BATCH])
        assert record.reason == "lost its worker 1 time"

    def test_what_had_not_begun_is_never_counted_as_lost(self, backend: Backend) -> None:
        backend.worker("sender").send([a_job()])

        for n in range(7):
            ledger = backend.worker(f"worker{n}")
            [lease] = ledger.receive(1, 5)
            assert lease.lost == 0
            backend.die(f"worker{n}")

        assert run_all(backend.worker("last")) == [a_job()]

    def test_giving_back_is_not_counted_as_lost(self, backend: Backend, ledger: Ledger) -> None:
        ledger.send([a_job()])

        for _ in range(7):
            [lease] = ledger.receive(1, 5)
            assert (lease.lost, lease.failures) == (0, 0)
            assert ledger.start([lease]) == [lease]
            ledger.release([lease])

        assert run_all(ledger) == [a_job()]

    def test_a_loss_is_remembered_over_a_release(self, backend: Backend) -> None:
        # given a job that has lost two workers, the first of which SQS cannot know
        backend.worker("sender").send([a_job()])
        for n in range(1 + backend.uncounted):
            ledger = backend.worker(f"worker{n}")
            ledger.start(ledger.receive(1, 5))
            backend.die(f"worker{n}")
        living = backend.worker("living")

        [lease] = living.receive(1, 5)
        living.start([lease])
        living.release([lease], failed=True)

        [again] = living.receive(1, 5)
        assert (again.lost, again.failures) == (1, 1)


class TestCompetition:
    def test_two_workers_share_the_jobs_and_decide_each_once(
        self, backend: Backend, ledger: Ledger, other: Ledger
    ) -> None:
        ledger.send(some_jobs(200))
        # Each has begun before either can take all.
        both = threading.Barrier(2)

        def work(mine: Ledger, name: str) -> None:
            given_back = set[int]()
            leases = mine.receive(10, 5)
            both.wait(30)
            while leases:
                back = [
                    lease
                    for lease in leases
                    if lease.job.index % 9 == 0 and lease.job.index not in given_back
                ]
                given_back |= {lease.job.index for lease in back}
                mine.release(back)
                begun = mine.start([lease for lease in leases if lease not in back])
                mine.extend(begun)
                mine.settle([outcome_of(lease, worker=name) for lease in begun])
                leases = mine.receive(10, 1)

        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(work, ledger, "a"), pool.submit(work, other, "b")]:
                future.result()

        records = ledger.records([BATCH])
        assert Counter(record.index for record in records) == Counter(range(1, 201))
        assert {record.worker for record in records} == {"a", "b"}
        assert not any(record.late for record in records)
        assert ledger.depth().empty

    def test_the_threads_of_one_worker_share_its_ledger(self, ledger: Ledger) -> None:
        ledger.send(some_jobs(60))

        with ThreadPoolExecutor(4) as pool:
            run = [job for jobs in pool.map(lambda _: run_all(ledger, 1), range(4)) for job in jobs]

        assert Counter(job.index for job in run) == Counter(range(1, 61))
        assert Counter(r.index for r in ledger.records([BATCH])) == Counter(range(1, 61))


def test_who_waits_at_a_local_ledger_hears_that_the_last_job_is_settled(tmp_path: Path) -> None:
    ledger = LocalBackend(tmp_path).worker("a")
    ledger.send(some_jobs(2))
    first, second = ledger.receive(2, 5)
    heard: SimpleQueue[list[Lease]] = SimpleQueue()
    threading.Thread(target=lambda: heard.put(ledger.receive(1, 1000)), daemon=True).start()

    ledger.settle([outcome_of(first)])
    ledger.settle([outcome_of(second)])

    assert heard.get(timeout=60) == []


class TestTheEnd:
    def test_a_destroyed_ledger_takes_and_gives_nothing(
        self, backend: Backend, ledger: Ledger, other: Ledger
    ) -> None:
        ledger.send(some_jobs(2))
        [lease] = ledger.receive(1, 5)

        other.destroy()

        for step in (
            lambda: backend.anew().send([]),
            lambda: ledger.send([a_job(3)]),
            lambda: ledger.receive(1, 0),
            lambda: ledger.depth(),
        ):
            with pytest.raises(RunnerGone):
                step()
        with pytest.raises(RunnerGone):
            ledger.release([lease])

    def test_records_outlive_the_ledger(
        self, backend: Backend, ledger: Ledger, other: Ledger
    ) -> None:
        ledger.send(some_jobs(2))
        [lease] = ledger.receive(1, 5)
        ledger.settle([outcome_of(lease)])

        other.destroy()
        other.destroy()

        assert ledger.records([BATCH]) == [outcome_of(lease).record]
        assert backend.anew().records([BATCH]) == [outcome_of(lease).record]

    def test_creating_again_changes_nothing(self, ledger: Ledger) -> None:
        ledger.send([a_job()])

        ledger.create()

        assert run_all(ledger) == [a_job()]
