"""SQS and S3 at their worst: double delivery, late writes, outages, leases that pass."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from typing import Any

import pytest

from adr.models import JobState
from tests.proxy import Call, Proxy
from tests.scene import Scene

JOURNAL = "^_journal/"


def test_two_workers_and_every_message_delivered_twice(aws: Scene, proxy: Proxy) -> None:
    # given a queue that delivers each message again at once
    queues = proxy.duplicate_deliveries(1.0, times=1)
    batch = aws.queue(5)
    # and a worker in the middle of a job, and one in the middle of all jobs
    aws.hold(*aws.jobs)
    first = aws.worker(times={"visibility_s": 20})
    aws.wait(lambda: sum(aws.all_runs()) == 1)
    second = aws.worker(slots=5, times={"visibility_s": 20})
    aws.wait(lambda: sum(aws.all_runs()) == 6)
    # when both come to their end
    aws.let_go(*aws.jobs)
    aws.await_empty()
    first.end()
    second.end()
    # then both runs of a job are recorded, with results of their own, and one is visible
    assert sum(queues.duplicated.values()) == 5
    runs = {job: aws.runs(job) for job in aws.jobs}
    assert set(runs.values()) <= {1, 2}
    for job, times in runs.items():
        records = [record for record in aws.records(batch) if record.index == job]
        assert len({(record.worker, record.attempt) for record in records}) == times
        for record in records:
            assert record.state is JobState.SUCCEEDED
            assert proxy.count("s3.PutObject", f"^{batch}/{record.attempt}-[0-9]+/proof.txt$") == 1
    aws.check(batch)


@pytest.mark.parametrize("condition", ["if-none-match", "if-match"])
def test_journal_write_whose_answer_was_lost_lands_late(
    aws: Scene, proxy: Proxy, condition: str
) -> None:
    # given a worker whose first write of its journal, or first rewrite, gets no answer
    late = proxy.delay_late(
        lambda call: call.name == "s3.PutObject" and condition in call.lower, key=JOURNAL
    )
    batch = aws.queue(2)
    aws.hold(2)
    worker = aws.worker()
    aws.wait(lambda: aws.decided(batch) == 1)
    aws.let_go(2)
    late.wait_held()
    # when that write arrives after the worker has tried again and gone on
    aws.await_empty()
    worker.end()
    before = aws.visible(batch)
    (answer,) = late.release()
    # then S3 refuses it, and no record is lost
    assert answer.status == 412
    assert aws.visible(batch) == before
    assert aws.all_runs() == [1, 1]
    assert len(aws.records(batch)) == 2
    aws.check(batch)


def test_record_of_a_dead_worker_lands_late(aws: Scene, proxy: Proxy) -> None:
    # given a worker that is killed while its record is under way
    batch = aws.queue(1)
    late = proxy.delay_late("s3.PutObject", key=JOURNAL)
    worker = aws.worker(times={"visibility_s": 2})
    late.wait_held()
    worker.kill()
    # and a second one that has run its job anew
    aws.finish()
    assert aws.runs(1) == 2
    # when the record arrives
    (answer,) = late.release()
    # then both are there and one is visible
    assert answer.status == 200
    assert len({record.attempt for record in aws.records(batch)}) == 2
    aws.check(batch)


def test_worker_computes_on_while_the_services_are_away(
    aws: Scene, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker in the middle of a job
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    batch = aws.queue(3)
    aws.hold(1)
    worker = aws.worker(times={"visibility_s": 120, "dead_after_s": 120})
    aws.await_run(1)
    # when all services go away, and the job comes to its end meanwhile
    proxy.down()
    aws.let_go(1)
    aws.wait(lambda: aws.ends(1) == 1)
    aws.wait(lambda: "trying again" in worker.output())
    # and come back
    proxy.up()
    # then the worker reports what it has done, and goes on
    aws.await_empty()
    worker.end()
    assert aws.all_runs() == [1, 1, 1]
    assert len(aws.records(batch)) == 3
    aws.check(batch)


def test_jobs_longer_than_any_visibility_run_once(aws: Scene, proxy: Proxy) -> None:
    # given a queue that hides no message for longer than 4 s, and counts what it delivers
    queues = proxy.ceiling(4)
    delivered: Counter[str] = Counter()
    proxy.after("sqs.ReceiveMessage", lambda call: _count(call, delivered))
    batch = aws.queue(2)
    aws.hold(1, 2)
    times = {"visibility_s": 2, "card_after_s": 0.5, "heartbeat_s": 0.6, "dead_after_s": 5}
    # and workers with long jobs, of which one knows the ceiling and the other does not
    knowing = aws.worker(times={**times, "ceiling_s": 4})
    aws.wait(lambda: sum(aws.all_runs()) == 1)
    unknowing = aws.worker(times=times)
    aws.wait(lambda: sum(aws.all_runs()) == 2)
    # and one that polls all the time
    idle = aws.worker(times=times)
    # when both messages come back, more than once
    aws.wait(lambda: len(delivered) == 2 and min(delivered.values()) >= 2)
    aws.wait(lambda: queues.refused)
    # then nobody else runs the jobs
    assert aws.all_runs() == [1, 1]
    aws.let_go(1, 2)
    aws.await_empty()
    for worker in (knowing, unknowing, idle):
        worker.end()
    assert aws.all_runs() == [1, 1]
    assert len(aws.records(batch)) == 2
    assert not any(record.late for record in aws.records(batch))
    aws.check(batch)


def test_holder_of_a_long_job_that_dies_after_the_ceiling_is_replaced(
    aws: Scene, proxy: Proxy
) -> None:
    # given a job that only its card holds any more
    proxy.ceiling(2)
    batch = aws.queue(1)
    aws.hold(1)
    times = {"visibility_s": 2, "card_after_s": 0.2, "dead_after_s": 2, "ceiling_s": 2}
    holder = aws.worker(times=times)
    aws.await_run(1)
    aws.wait(lambda: proxy.count("s3.PutObject", "^_cards/"))
    # when its worker dies
    holder.kill()
    aws.let_go(1)
    # then another worker runs it
    other = aws.worker(times=times)
    aws.await_empty()
    other.end()
    assert aws.runs(1) == 2
    aws.check(batch)


@pytest.mark.parametrize("moment", ["while the other runs", "after the other"])
def test_stopped_worker_that_goes_on_changes_nothing(aws: Scene, moment: str) -> None:
    # given a worker that stands still in the middle of a job until its lease has passed
    batch = aws.queue(1)
    aws.hold(1)
    first = aws.worker(times={"visibility_s": 2})
    aws.await_run(1)
    first.signal(signal.SIGSTOP)
    # and a second one that has got the job
    second = aws.worker(times={"visibility_s": 20})
    aws.await_run(1, 2)
    if moment == "after the other":
        aws.let_go(1)
        aws.wait(lambda: aws.decided(batch))
        aws.wait(lambda: aws.ends(1) == 2)
        before = aws.visible(batch)
    # when it goes on
    first.signal(signal.SIGCONT)
    if moment == "while the other runs":
        # then it ends its own run
        aws.wait(lambda: "was lost" in first.output())
        aws.let_go(1)
        aws.wait(lambda: aws.decided(batch))
        assert aws.ends(1) == 1
        before = aws.visible(batch)
    first.end()
    aws.await_empty()
    second.end()
    # and what is visible stays
    assert aws.visible(batch) == before
    assert len([record for record in aws.records(batch) if not record.late]) == 1
    aws.check(batch)


def test_local_worker_that_is_stopped_keeps_its_job(local: Scene) -> None:
    # given a worker that stands still in the middle of a job
    batch = local.queue(2)
    local.hold(1)
    first = local.worker()
    local.await_run(1)
    first.signal(signal.SIGSTOP)
    # and a second one that has looked for its leases
    second = local.worker(stop_on_empty=True)
    local.wait(lambda: local.decided(batch) == 1)
    threading.Event().wait(1.2)
    # when the first goes on
    first.signal(signal.SIGCONT)
    local.let_go(1)
    # then its job was its own all the time
    assert second.ended() == 0
    first.end()
    assert local.all_runs() == [1, 1]
    local.check(batch)


def _count(call: Call, delivered: Counter[str]) -> None:
    assert call.answer
    messages: list[dict[str, Any]] = call.answer.json().get("Messages") or []
    delivered.update(message["MessageId"] for message in messages)
