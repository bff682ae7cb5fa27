"""What is particular to the ledger on SQS and S3: redelivery, cards, the ceiling, and its calls."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from adr.aws import Connection
from adr.clock import boot_time
from adr.decisions import visible
from adr.errors import ServiceError, UsageError
from adr.keys import card_key
from adr.ledgers.aws import AwsLedger
from adr.ledgers.base import Ledger
from adr.ledgers.sqs import MessageQueue
from adr.models import SCHEMA, Job, JobState
from adr.roster import Roster
from adr.stores.s3 import S3Store
from adr.workerinfo import WorkerInfo
from tests.contract.jobs import BATCH, a_job, indexes, outcome_of, run_all, some_jobs
from tests.contract.test_ledger import again_and_again
from tests.proxy import Answer, Call, Proxy

CARD = card_key(BATCH, 1)


class Place:
    """An AWS runner, its workers, and what they do not see of it."""

    def __init__(self, proxy: Proxy) -> None:
        self.id = str(uuid.uuid4())
        # One for all of them: making clients takes longer than most of these tests.
        self._connection = Connection(self.id)
        self.sqs: Any = self._connection.sqs
        self.store = S3Store(self._connection)
        self.store.create()
        self.sender = AwsLedger(MessageQueue(self._connection), self.store, Roster(self.store))
        self.sender.create()
        self.url = self._connection.queue_url
        self._handles: dict[str, str] = {}
        #: How many messages were received by anybody.
        self.deliveries = 0
        proxy.after("sqs.ReceiveMessage", self._note, key=self.id)
        proxy.reset()

    def _note(self, call: Call) -> None:
        assert call.answer
        for message in call.answer.json().get("Messages", ()):
            self._handles[message["MessageId"]] = message["ReceiptHandle"]
            self.deliveries += 1

    def worker(self, name: str, **times: float) -> Ledger:
        """Return the ledger of a living worker."""
        roster = Roster(self.store, dead_after_s=times.pop("dead_after_s", 60))
        roster.beat(WorkerInfo(name, "host", 1, 1, time.time(), "1"))
        queue = MessageQueue(self._connection)
        return AwsLedger(queue, self.store, roster, name, **{"visibility_s": 60, **times})

    def kill(self, name: str) -> None:
        Roster(self.store).leave(WorkerInfo(name, "host", 1, 1, time.time(), "1"))

    def show(self) -> None:
        """Let SQS show all messages that are in flight, as if their time were over."""
        entries = [
            {"Id": str(n), "ReceiptHandle": handle, "VisibilityTimeout": 0}
            for n, handle in enumerate(self._handles.values())
        ]
        for first in range(0, len(entries), 10):
            some = entries[first : first + 10]
            # Some of them may be deleted by now, which fails for these alone.
            self.sqs.change_message_visibility_batch(QueueUrl=self.url, Entries=some)
        self._handles.clear()

    def put(self, *bodies: str) -> None:
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.url, MessageBody=body)

    def card(self) -> dict[str, Any]:
        return json.loads(self.store.read(CARD).body)  # type: ignore[no-any-return]


@pytest.fixture
def place(proxy: Proxy) -> Iterator[Place]:
    made = Place(proxy)
    yield made
    made.sender.destroy()


def refuse(proxy: Proxy, which: str, times: int | None = None, key: str | None = None) -> Any:
    """Let calls fail in a way that nobody tries again."""
    return proxy.fail(which, 400, "InvalidRequest", times, key=key)


def unusual_lease(place: Place, ledger: Ledger) -> Any:
    """Return the lease of a job that has begun and has a card, since it had been given back."""
    place.sender.send([a_job()])
    ledger.release(ledger.receive(1, 5))
    [lease] = ledger.receive(1, 5)
    assert ledger.start([lease]) == [lease]
    return lease


class TestRedelivery:
    def test_a_decided_job_is_deleted_without_a_run(self, place: Place, proxy: Proxy) -> None:
        # given a worker that was killed between its record and the removal of the job
        first = place.worker("first")
        first.send([a_job()])
        [lease] = first.receive(1, 5)
        refuse(proxy, "sqs.DeleteMessageBatch", times=1)
        with pytest.raises(ServiceError):
            first.settle([outcome_of(lease)])
        place.show()

        assert place.worker("second").receive(10, 1) == []

        assert first.depth().empty
        assert len(first.records([BATCH])) == 1

    def test_what_was_settled_here_is_known_without_a_look(
        self, place: Place, proxy: Proxy
    ) -> None:
        ledger = place.worker("first")
        ledger.send([a_job()])
        place.put(json.dumps(a_job().to_dict()))
        [lease] = ledger.receive(1, 5)
        ledger.settle([outcome_of(lease)])
        proxy.reset()

        assert ledger.receive(10, 1) == []

        assert proxy.counts == {"sqs.ReceiveMessage": 1, "sqs.DeleteMessageBatch": 1}
        assert ledger.depth().empty

    def test_a_job_of_a_living_worker_stays_hidden(self, place: Place) -> None:
        first, second = place.worker("first"), place.worker("second")
        lease = unusual_lease(place, first)
        place.show()

        assert second.receive(10, 1) == []

        assert (second.depth().waiting, second.depth().in_flight) == (0, 1)
        first.settle([outcome_of(lease)])
        assert not first.records([BATCH])[0].late

    def test_a_job_of_a_dead_worker_is_leased_as_lost_once_more(self, place: Place) -> None:
        first, second = place.worker("first"), place.worker("second")
        unusual_lease(place, first)
        place.kill("first")
        place.show()

        [lease] = second.receive(10, 1)

        assert (lease.lost, lease.failures) == (1, 0)

    def test_a_heartbeat_that_is_too_old_is_that_of_a_dead_worker(
        self, place: Place, wait_for: Callable[..., bool]
    ) -> None:
        unusual_lease(place, place.worker("first"))
        wait_for(lambda: not Roster(place.store, dead_after_s=0.5).is_alive("first"))
        place.show()

        [lease] = place.worker("second", dead_after_s=0.5).receive(10, 1)

        assert lease.lost == 1

    def test_a_living_worker_goes_on_with_a_newer_receipt(self, place: Place) -> None:
        ledger = place.worker("first")
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        ledger.start([lease])
        place.show()

        assert ledger.receive(10, 1) == []

        ledger.settle([outcome_of(lease)])
        assert ledger.depth().empty
        assert ledger.records([BATCH]) == [outcome_of(lease).record]

    def test_an_older_generation_is_no_job_any_more(self, place: Place) -> None:
        ledger = place.worker("first")
        ledger.send([a_job(generation=1)])
        run_all(ledger)
        ledger.send([a_job()], again=True)

        assert ledger.receive(10, 1) == []
        assert ledger.depth().empty

    def test_the_longer_its_holder_lives_the_longer_a_message_is_hidden(
        self, place: Place, proxy: Proxy
    ) -> None:
        first, second = place.worker("first"), place.worker("second")
        unusual_lease(place, first)
        asked: list[int] = []
        proxy.after(
            "sqs.ChangeMessageVisibilityBatch",
            lambda call: asked.extend(e["VisibilityTimeout"] for e in call.json()["Entries"]),
        )

        for _ in range(15):
            place.show()
            assert second.receive(1, 1) == []

        # The first two receives were the holder's own; `show` asks for 0.
        assert [seconds for seconds in asked if seconds] == [120, 120]

    def test_a_stale_release_does_not_show_another_workers_message(self, place: Place) -> None:
        first, second = place.worker("first", visibility_s=1), place.worker("second")
        first.send([a_job()])
        [stale] = first.receive(1, 5)
        [lease] = second.receive(1, 5)

        first.release([stale])

        assert first.receive(10, 1) == []
        second.settle([outcome_of(lease)])
        assert [record.attempt for record in second.records([BATCH])] == [lease.attempt]


class TestCards:
    def test_an_ordinary_job_costs_no_card(self, place: Place, proxy: Proxy) -> None:
        ledger = place.worker("first")
        ledger.send(some_jobs(10))
        proxy.reset()

        run_all(ledger)

        assert proxy.count("s3.PutObject", "_cards/") == 0
        assert proxy.count("s3.GetObject") == 0
        assert proxy.count("s3.ListObjectsV2") == 0

    def test_an_old_job_gets_a_card(self, place: Place, proxy: Proxy) -> None:
        ledger = place.worker("first", card_after_s=0)
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        ledger.start([lease])

        assert ledger.extend([lease]) == [lease]
        assert ledger.extend([lease]) == [lease]

        assert proxy.count("s3.PutObject", "_cards/") == 1
        card = place.card()
        assert (card["holder"], card["attempt"], card["starts"]) == ("first", lease.attempt, 1)

    def test_an_attempt_is_counted_once_it_has_begun_however_old_it_is(self, place: Place) -> None:
        # given a lease whose job takes long to prepare
        first, second = place.worker("first", card_after_s=0), place.worker("second")
        first.send(some_jobs(2))
        leases = first.receive(2, 5)
        assert first.extend(leases) == leases
        assert place.card()["starts"] == 0

        assert first.start(leases[:1]) == leases[:1]

        place.kill("first")
        place.show()
        assert {each.job.index: each.lost for each in second.receive(2, 5)} == {1: 1, 2: 0}

    def test_an_old_job_that_another_one_holds_is_lost(self, place: Place) -> None:
        # given the same job twice, one of whose workers has a card
        first, second = place.worker("first", card_after_s=0), place.worker("second")
        first.send([a_job()])
        [old] = first.receive(1, 5)
        place.show()
        [lease] = second.receive(1, 5)
        second.start([lease])

        assert first.extend([old]) == []

        assert place.card()["holder"] == "second"

    def test_giving_back_ends_the_card(self, place: Place) -> None:
        first, second = place.worker("first"), place.worker("second")
        lease = unusual_lease(place, first)

        first.release([lease])

        card = place.card()
        assert (card["holder"], card["starts"], card["releases"]) == (None, 0, 1)
        [again] = second.receive(1, 1)
        assert second.start([again]) == [again]

    def test_a_note_costs_a_card_and_only_where_there_is_one(
        self, place: Place, proxy: Proxy
    ) -> None:
        ledger = place.worker("first")
        ledger.send(some_jobs(2))
        one, two = ledger.receive(2, 5)
        ledger.start([one, two])
        proxy.reset()

        ledger.release([one])
        assert proxy.counts == {"sqs.ChangeMessageVisibilityBatch": 1}
        ledger.release([two], note="interrupted")

        assert proxy.count("s3.PutObject", "^_cards/") == 1
        assert proxy.total == 4

    def test_two_that_take_up_a_job_at_once_do_not_both_begin(self, place: Place) -> None:
        first, second = place.worker("first"), place.worker("second")
        first.send([a_job()], again=True)
        [one] = first.receive(1, 5)
        place.show()
        [two] = second.receive(1, 5)

        assert second.start([two]) == [two]
        assert first.start([one]) == []

    def test_a_card_of_a_newer_adr_stops_only_its_own_job(
        self, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        place.store.write(CARD, json.dumps({"schema": SCHEMA + 1}).encode())
        ledger = place.worker("first")
        ledger.send(some_jobs(3), again=True)

        assert indexes(ledger.receive(10, 5)) == [2, 3]

        assert "upgrade adr" in caplog.text
        assert ledger.depth().in_flight == 3


class TestTheCeiling:
    def test_a_job_beyond_it_stays_with_its_worker(self, place: Place, proxy: Proxy) -> None:
        queues = proxy.ceiling(4)
        times = {"visibility_s": 2, "ceiling_s": 4, "card_after_s": 0.5}
        first, second = place.worker("first", **times), place.worker("second", **times)
        first.send([a_job()])
        [lease] = first.receive(1, 5)
        first.start([lease])

        with again_and_again(lambda: first.extend([lease])) as kept:
            began = time.monotonic()
            while time.monotonic() < began + 4.5:
                assert second.receive(1, 1) == []

        assert all(kept)
        assert place.deliveries > 1
        assert queues.refused == 0
        assert place.card()["starts"] == 1
        first.settle([outcome_of(lease)])
        place.show()
        assert second.receive(1, 0) == []
        assert [record.late for record in first.records([BATCH])] == [False]
        assert first.depth().empty

    def test_a_ceiling_that_comes_early_is_as_good(self, place: Place, proxy: Proxy) -> None:
        queues = proxy.ceiling(2)
        first, second = place.worker("first", visibility_s=2), place.worker("second")
        first.send([a_job()])
        [lease] = first.receive(1, 5)
        first.start([lease])

        with again_and_again(lambda: first.extend([lease])) as kept:
            assert second.receive(1, 3) == []

        assert all(kept)
        assert queues.refused == 1
        first.settle([outcome_of(lease)])
        assert [record.late for record in first.records([BATCH])] == [False]

    def test_its_worker_may_get_the_message_back_itself(self, place: Place, proxy: Proxy) -> None:
        proxy.ceiling(2)
        ledger = place.worker("first", visibility_s=2, ceiling_s=2)
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        ledger.start([lease])

        with again_and_again(lambda: ledger.extend([lease])) as kept:
            assert ledger.receive(1, 3) == []

        assert all(kept)
        ledger.settle([outcome_of(lease)])
        assert ledger.depth().empty
        assert [record.late for record in ledger.records([BATCH])] == [False]

    def test_a_job_taken_over_meanwhile_is_settled_late(self, place: Place, proxy: Proxy) -> None:
        # given a worker that rests on its card, and was cut off from the store for long
        proxy.ceiling(2)
        first, second = place.worker("first", visibility_s=2, ceiling_s=2), place.worker("second")
        first.send([a_job()])
        [lease] = first.receive(1, 5)
        first.start([lease])
        with again_and_again(lambda: first.extend([lease])):
            assert second.receive(1, 3) == []
        place.kill("first")
        place.show()
        [taken] = second.receive(1, 5)
        second.start([taken])

        first.settle([outcome_of(lease)])

        assert [record.late for record in first.records([BATCH])] == [True]
        assert taken.lost == 1


class TestDoubleDelivery:
    def test_two_workers_leave_one_visible_outcome(self, place: Place, proxy: Proxy) -> None:
        queues = proxy.duplicate_deliveries()
        first, second = place.worker("first"), place.worker("second")
        first.send(some_jobs(5))
        mine, theirs = first.receive(10, 5), second.receive(10, 5)
        assert indexes(mine) == indexes(theirs) == [1, 2, 3, 4, 5]
        assert len(queues.duplicated) == 5

        first.settle([outcome_of(lease) for lease in first.start(mine)])
        second.settle([outcome_of(lease, JobState.FAILED) for lease in second.start(theirs)])

        outcomes = visible(second.records([BATCH]))
        assert sorted(index for _, index in outcomes) == [1, 2, 3, 4, 5]
        assert {record.state for record in outcomes.values()} == {JobState.SUCCEEDED}
        place.show()
        assert second.receive(10, 1) == []
        assert second.depth().empty

    def test_a_worker_that_gets_a_job_twice_runs_it_once(self, place: Place, proxy: Proxy) -> None:
        proxy.duplicate_deliveries()
        ledger = place.worker("first")
        ledger.send(some_jobs(5))

        leases = [*ledger.receive(10, 5), *ledger.receive(10, 1)]

        assert indexes(leases) == [1, 2, 3, 4, 5]
        ledger.settle([outcome_of(lease) for lease in leases])
        assert ledger.depth().empty


class TestForeignMessages:
    @pytest.mark.parametrize("body", ["hello", "[1]", '"text"', "{}", '{"schema": 1}', "null"])
    def test_what_is_not_a_job_is_left(
        self, place: Place, caplog: pytest.LogCaptureFixture, body: str
    ) -> None:
        ledger = place.worker("first")
        place.put(body)
        ledger.send([a_job()])

        [lease] = ledger.receive(10, 5)

        assert lease.job == a_job()
        assert "left a message that is not a job" in caplog.text
        ledger.settle([outcome_of(lease)])
        assert ledger.depth().in_flight == 1

    def test_a_job_of_a_newer_adr_is_left(
        self, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        ledger = place.worker("first")
        place.put(json.dumps({**a_job().to_dict(), "schema": SCHEMA + 1}))

        assert ledger.receive(10, 1) == []

        assert [r.levelno for r in caplog.records if "upgrade adr" in r.message] == [
            logging.WARNING
        ]
        assert ledger.depth().in_flight == 1


class TestSending:
    def test_refused_entries_are_sent_again_alone(self, place: Place, proxy: Proxy) -> None:
        sizes: list[int] = []

        def refuse_two(call: Call) -> Answer:
            data = call.json()
            good, bad = data["Entries"][2:], data["Entries"][:2]
            body = json.dumps({**data, "Entries": good}).encode()
            answer = proxy.send(Call(call.method, call.target, call.headers, body)).json()
            failed = [{"Id": e["Id"], "Code": "InternalError", "SenderFault": False} for e in bad]
            return Answer(
                200,
                json.dumps({**answer, "Failed": failed}).encode(),
                [("Content-Type", "application/x-amz-json-1.0")],
            )

        proxy.before("sqs.SendMessageBatch", lambda call: sizes.append(len(call.json()["Entries"])))
        proxy.before("sqs.SendMessageBatch", refuse_two, times=1)
        ledger = place.worker("first")

        ledger.send(some_jobs(10))

        assert sizes == [10, 2]
        assert sorted(job.index for job in run_all(ledger)) == list(range(1, 11))
        assert ledger.depth().empty

    def test_a_refused_job_is_an_error(self, place: Place, proxy: Proxy) -> None:
        failed = [{"Id": "0", "Code": "InvalidMessageContents", "SenderFault": True}]
        proxy.before(
            "sqs.SendMessageBatch",
            lambda call: Answer(
                200,
                json.dumps({"Failed": failed}).encode(),
                [("Content-Type", "application/x-amz-json-1.0")],
            ),
        )

        with pytest.raises(ServiceError, match="InvalidMessageContents"):
            place.sender.send([a_job()])

        assert proxy.counts["sqs.SendMessageBatch"] == 1

    def test_a_lost_answer_leads_to_no_second_run(self, place: Place, proxy: Proxy) -> None:
        lost = proxy.lose_answer("sqs.SendMessageBatch", times=1)
        ledger = place.worker("first")

        ledger.send(some_jobs(10))

        assert lost.hits == 1
        assert ledger.depth().waiting == 20
        run = run_all(ledger)
        assert sorted(job.index for job in run) == list(range(1, 11))
        assert ledger.depth().empty

    def test_a_lost_answer_leaves_one_outcome_of_two_workers(
        self, place: Place, proxy: Proxy
    ) -> None:
        proxy.lose_answer("sqs.SendMessageBatch", times=1)
        first, second = place.worker("first"), place.worker("second")
        first.send(some_jobs(10))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda ledger: run_all(ledger, 1), [first, second]))

        outcomes = visible(first.records([BATCH]))
        assert sorted(index for _, index in outcomes) == list(range(1, 11))
        assert first.depth().empty

    def test_a_second_message_of_a_job_that_runs_is_removed(
        self, place: Place, proxy: Proxy
    ) -> None:
        first, second = place.worker("first"), place.worker("second")
        first.send([a_job()])
        [lease] = first.receive(1, 5)
        first.send([a_job()], again=True)

        assert first.receive(10, 1) == []

        assert (first.depth().waiting, first.depth().in_flight) == (0, 1)
        # and the message of the lease is still there for whoever comes after us
        place.show()
        assert indexes(second.receive(10, 1)) == [1]
        assert lease.job == a_job()

    def test_many_large_jobs_go_in_batches_that_sqs_takes(self, place: Place, proxy: Proxy) -> None:
        jobs = [Job(BATCH, n, 11, str(n), "x" * 200_000) for n in range(1, 12)]

        place.sender.send(jobs)

        assert proxy.counts["sqs.SendMessageBatch"] == 3
        assert place.sender.depth().waiting == 11

    def test_a_job_too_large_for_sqs_is_refused_before_any_is_sent(
        self, place: Place, proxy: Proxy
    ) -> None:
        jobs = [a_job(), Job(BATCH, 2, 2, "large", "x" * (1 << 20))]

        with pytest.raises(UsageError, match="large is too large"):
            place.sender.send(jobs)

        assert proxy.counts["sqs.SendMessageBatch"] == 0


class TestCalls:
    def test_a_hundred_jobs(self, place: Place, proxy: Proxy) -> None:
        ledger = place.worker("first")
        ledger.depth()
        proxy.reset()

        ledger.send(some_jobs(100))
        leases = [lease for _ in range(10) for lease in ledger.receive(10, 5)]
        begun = ledger.start(leases)
        ledger.extend(begun)
        ledger.settle([outcome_of(lease) for lease in begun])

        assert proxy.counts == {
            "sqs.SendMessageBatch": 10,
            "sqs.ReceiveMessage": 10,
            "s3.PutObject": 1,
            "sqs.DeleteMessageBatch": 10,
        }
        assert ledger.depth().empty

    def test_many_are_received_by_several_calls_of_which_none_waits(
        self, place: Place, proxy: Proxy
    ) -> None:
        ledger = place.worker("first")
        ledger.send(some_jobs(45))
        waits: list[int] = []
        proxy.before(
            "sqs.ReceiveMessage", lambda call: waits.append(call.json()["WaitTimeSeconds"])
        )

        def brought(most: int) -> tuple[int, list[int]]:
            waits.clear()
            return len(ledger.receive(most, 1)), list(waits)

        # until one has shown that there is plenty, and for less than two tens, one call is made
        assert brought(99) == (10, [1])
        assert brought(19) == (10, [1])
        assert brought(29) == (20, [0, 0])
        # where that is less than was asked for, one that waits is next
        assert brought(99) == (5, [0] * 5)
        assert brought(99) == (0, [1])

    def test_what_one_of_several_calls_brings_is_leased_whatever_becomes_of_the_others(
        self, place: Place, proxy: Proxy
    ) -> None:
        ledger = place.worker("first")
        ledger.send(some_jobs(40))
        ledger.receive(10, 5)
        refuse(proxy, "sqs.ReceiveMessage", times=1)

        assert len(ledger.receive(20, 1)) == 10

        ledger.receive(10, 1)
        # and where none of them works, it is the one that waits that tells of it
        refuse(proxy, "sqs.ReceiveMessage")
        with pytest.raises(ServiceError):
            ledger.receive(20, 1)

    def test_jobs_that_come_back_cost_one_look_at_the_records_for_all_of_a_receive(
        self, place: Place, proxy: Proxy
    ) -> None:
        # given jobs of a worker that died between the records of ten and their removal
        dead, other, ledger = (place.worker(name) for name in ("dead", "other", "first"))
        place.sender.send(some_jobs(30))
        outcomes = [outcome_of(lease) for _ in range(3) for lease in dead.receive(10, 5)]
        refuse(proxy, "sqs.DeleteMessageBatch", times=1)
        with pytest.raises(ServiceError):
            dead.settle(outcomes[:10])
        place.show()
        leased: list[int] = []

        def looks() -> tuple[int, int]:
            proxy.reset()
            leased.extend(indexes(ledger.receive(10, 5)))
            assert proxy.count("s3.GetObject", "^_cards/") == 10
            return proxy.count("s3.ListObjectsV2"), proxy.count("s3.GetObject", "^_journal/")

        # when another one receives them by tens
        assert looks() == (1, 1)
        # then what was read before is not read again
        assert looks() == (1, 0)
        # but for what is new
        other.settle(outcomes[:1])
        assert looks() == (1, 1)
        assert sorted(leased) == sorted(each.record.index for each in outcomes[10:])

    def test_giving_back_is_done_in_tens(self, place: Place, proxy: Proxy) -> None:
        ledger = place.worker("first")
        ledger.send(some_jobs(20))
        leases = [*ledger.receive(10, 5), *ledger.receive(10, 5)]
        proxy.reset()

        ledger.release(leases)

        assert proxy.counts == {"sqs.ChangeMessageVisibilityBatch": 2}

    def test_leases_are_extended_in_tens_when_half_their_time_is_over(
        self, place: Place, proxy: Proxy, wait_for: Callable[..., bool]
    ) -> None:
        ledger = place.worker("first", visibility_s=4)
        ledger.send(some_jobs(20))
        leases = [*ledger.receive(10, 5), *ledger.receive(10, 5)]
        proxy.reset()
        assert len(ledger.extend(leases)) == 20
        assert proxy.total == 0

        # The second ten were received a little later.
        wait_for(
            lambda: all(
                new.deadline > old.deadline
                for new, old in zip(ledger.extend(leases), leases, strict=True)
            )
        )

        assert set(proxy.counts) == {"sqs.ChangeMessageVisibilityBatch"}

    def test_leases_that_are_soon_due_are_extended_with_the_first_that_is(
        self, place: Place, proxy: Proxy, wait_for: Callable[..., bool]
    ) -> None:
        # given leases that were had one after the other
        ledger = place.worker("first", visibility_s=9)
        ledger.send(some_jobs(3))
        leases = []
        for _ in range(3):
            leases += ledger.receive(1, 5)
        proxy.reset()
        # when half the time of the first is over
        wait_for(lambda: len(ledger.extend(leases)) == 3 and proxy.total)
        # then one call has been for all of them
        kept = ledger.extend(leases)
        assert len({lease.deadline for lease in kept}) == 1
        assert proxy.counts == {"sqs.ChangeMessageVisibilityBatch": 1}


class TestTrouble:
    def test_a_lost_answer_to_a_removal_is_no_second_outcome(
        self, place: Place, proxy: Proxy
    ) -> None:
        lost = proxy.lose_answer("sqs.DeleteMessageBatch", times=1)
        ledger = place.worker("first")
        ledger.send(some_jobs(3))

        run_all(ledger)

        assert lost.hits == 1
        assert len(ledger.records([BATCH])) == 3
        assert ledger.depth().empty

    def test_settling_is_repeated_after_an_error_without_a_second_record(
        self, place: Place, proxy: Proxy
    ) -> None:
        ledger = place.worker("first")
        ledger.send(some_jobs(3))
        outcomes = [outcome_of(lease) for lease in ledger.receive(10, 5)]
        refuse(proxy, "sqs.DeleteMessageBatch", times=1)
        with pytest.raises(ServiceError):
            ledger.settle(outcomes)

        ledger.settle(outcomes)

        assert len(ledger.records([BATCH])) == 3
        assert ledger.depth().empty

    def test_no_job_is_removed_before_its_record_is_durable(
        self, place: Place, proxy: Proxy
    ) -> None:
        ledger = place.worker("first")
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        refuse(proxy, "s3.PutObject", key="^_journal/")

        with pytest.raises(ServiceError):
            ledger.settle([outcome_of(lease)])

        assert proxy.counts["sqs.DeleteMessageBatch"] == 0
        assert ledger.depth().in_flight == 1

    def test_a_release_that_failed_half_way_frees_the_job_for_its_next_delivery(
        self, place: Place, proxy: Proxy
    ) -> None:
        ledger = place.worker("first", visibility_s=1)
        ledger.send(some_jobs(2))
        one, two = ledger.receive(2, 5)
        refuse(proxy, "s3.PutObject", times=1, key="^_cards/")

        with pytest.raises(ServiceError):
            ledger.release([one, two], failed=True)

        failures = {}
        while len(failures) < 2:
            for lease in ledger.receive(10, 5):
                failures[lease.job] = lease.failures
        assert failures == {one.job: 0, two.job: 1}

    def test_a_release_that_failed_is_made_up_for_by_another(
        self, place: Place, proxy: Proxy
    ) -> None:
        first, second = place.worker("first"), place.worker("second")
        first.send(some_jobs(2))
        leases = first.receive(2, 5)
        refuse(proxy, "sqs.ChangeMessageVisibilityBatch", times=1)
        with pytest.raises(ServiceError):
            first.release(leases, failed=True)

        first.release(leases, failed=True)
        first.release(leases, failed=True)

        # at once, and what has failed once has failed once
        again = second.receive(10, 5)
        assert {lease.job.index: lease.failures for lease in again} == {1: 1, 2: 1}
        assert proxy.count("sqs.ChangeMessageVisibilityBatch") == 2

    def test_a_release_that_a_card_kept_from_is_made_up_for_by_another(
        self, place: Place, proxy: Proxy
    ) -> None:
        # given two ends that no card was told of, and two whose cards were written unheard
        first, second = place.worker("first"), place.worker("second")
        first.send(some_jobs(2))
        first.send([a_job(3), a_job(4)], again=True)
        leases = first.receive(10, 5)
        assert len(first.start(leases)) == 4
        refused = refuse(proxy, "s3.PutObject", key="^_cards/.*[13]$")
        unheard = proxy.lose_answer("s3.PutObject", key="^_cards/.*[24]$")
        with pytest.raises(ServiceError):
            first.release(leases, failed=True, note="no disk")
        refused.stop()
        unheard.stop()

        first.release(leases, failed=True, note="no disk")
        first.release(leases, failed=True, note="no disk")

        # at once, and each has failed once
        again = second.receive(10, 5)
        told = {each.job.index: (each.failures, each.lost, each.notes) for each in again}
        assert told == dict.fromkeys(range(1, 5), (1, 0, ("no disk",)))
        assert proxy.count("sqs.ChangeMessageVisibilityBatch") == 1

    def test_a_card_does_not_go_on_naming_who_could_not_tell_it_in_time(
        self, place: Place, proxy: Proxy, wait_for: Callable[..., bool]
    ) -> None:
        ledger = place.worker("first", visibility_s=1)
        ledger.send([a_job()], again=True)
        [lease] = ledger.receive(1, 5)
        ledger.start([lease])
        refused = refuse(proxy, "s3.PutObject", key="^_cards/")
        wait_for(lambda: boot_time() > lease.deadline)
        with pytest.raises(ServiceError):
            ledger.release([lease])
        refused.stop()

        ledger.release([lease])

        card = place.card()
        assert (card["holder"], card["starts"]) == (None, 0)

    def test_another_release_shows_only_what_was_not_shown(
        self, place: Place, proxy: Proxy
    ) -> None:
        # given a release by three calls, of which the first to come fails
        first, second = place.worker("first"), place.worker("second")
        first.send(some_jobs(30))
        leases = [lease for _ in range(3) for lease in first.receive(10, 5)]
        refuse(proxy, "sqs.ChangeMessageVisibilityBatch", times=1)
        with pytest.raises(ServiceError):
            first.release(leases)
        # and another worker that has what was shown
        shown = [*second.receive(10, 5), *second.receive(10, 5)]

        first.release(leases)

        assert proxy.count("sqs.ChangeMessageVisibilityBatch") == 4
        left = second.receive(10, 5)
        assert sorted(indexes(shown) + indexes(left)) == list(range(1, 31))

    def test_a_receive_that_failed_half_way_frees_its_jobs(
        self, place: Place, proxy: Proxy
    ) -> None:
        ledger = place.worker("first")
        ledger.send([a_job(1)], again=True)
        ledger.send([a_job(2)])
        refuse(proxy, "s3.ListObjectsV2", times=1)
        with pytest.raises(ServiceError):
            ledger.receive(10, 1)

        place.show()

        assert indexes(ledger.receive(10, 5)) == [1, 2]

    def test_a_job_that_lost_too_many_is_recorded_at_the_next_delivery_if_not_at_this(
        self, place: Place, proxy: Proxy
    ) -> None:
        card = {"schema": SCHEMA, "generation": 0, "holder": "x", "attempt": "y", "starts": 5}
        place.store.write(CARD, json.dumps(card).encode())
        ledger = place.worker("first")
        ledger.send([a_job()], again=True)
        refuse(proxy, "s3.PutObject", times=1, key="^_journal/")
        with pytest.raises(ServiceError):
            ledger.receive(10, 1)
        assert ledger.records([BATCH]) == []
        place.show()

        assert ledger.receive(10, 1) == []

        [record] = ledger.records([BATCH])
        assert record.reason == "lost its worker 5 times"
        assert ledger.depth().empty

    def test_a_removal_that_fails_costs_no_lease(self, place: Place, proxy: Proxy) -> None:
        ledger = place.worker("first")
        ledger.send([a_job(1)])
        run_all(ledger)
        place.put(json.dumps(a_job(1).to_dict()), json.dumps(a_job(2).to_dict()))
        refuse(proxy, "sqs.DeleteMessageBatch", times=1)

        assert indexes(ledger.receive(10, 5)) == [2]

    def test_trouble_with_cards_costs_no_lease(self, place: Place, proxy: Proxy) -> None:
        first = place.worker("first", visibility_s=2, card_after_s=0)
        second = place.worker("second")
        first.send(some_jobs(3))
        leases = first.receive(10, 5)
        refuse(proxy, "s3.PutObject", key="^_cards/")

        def extend() -> None:
            with pytest.raises(ServiceError):
                first.extend(leases)

        with again_and_again(extend):
            assert second.receive(10, 3) == []

        first.settle([outcome_of(lease) for lease in leases])
        assert not any(record.late for record in first.records([BATCH]))

    def test_an_extension_that_was_answered_too_late_is_none(
        self, place: Place, proxy: Proxy
    ) -> None:
        ledger = place.worker("first", visibility_s=2)
        ledger.send([a_job()])
        [lease] = ledger.receive(1, 5)
        proxy.before("sqs.ChangeMessageVisibilityBatch", lambda call: time.sleep(1.5), times=1)

        with again_and_again(lambda: ledger.extend([lease])) as kept:
            assert place.worker("second").receive(1, 6)

        assert kept[-1] == []

    def test_a_store_that_is_away_does_not_cost_the_count(self, place: Place, proxy: Proxy) -> None:
        # given a start whose card was written, and whose answers were all lost
        first, second = place.worker("first"), place.worker("second")
        first.send([a_job()], again=True)
        [lease] = first.receive(1, 5)
        lost = proxy.lose_answer("s3.PutObject", key="^_cards/")
        with pytest.raises(ServiceError):
            first.start([lease])
        lost.stop()

        first.release([lease])

        [again] = second.receive(1, 1)
        assert again.lost == 0
        assert second.start([again]) == [again]
