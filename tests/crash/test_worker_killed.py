"""A worker that is killed at the worst moments loses nothing and doubles nothing."""

from __future__ import annotations

import signal

import pytest

from adr.models import JobState
from tests.proxy import Proxy
from tests.scene import Scene, killing

SQLITE = "adr.ledgers.sqlite:SqliteLedger"


def test_worker_killed_in_the_middle_of_a_job_loses_only_that_attempt(scene: Scene) -> None:
    # given a worker that has finished one job and is in the middle of the next
    batch = scene.queue(3)
    scene.hold(2)
    worker = scene.worker(times={"visibility_s": 2})
    scene.await_run(2)
    scene.wait(lambda: scene.decided(batch) == 1)
    # when it is killed
    worker.kill()
    # then its job dies with it, and is run again by the next worker, which clears up
    scene.await_no_process()
    scene.let_go(2)
    scene.finish()
    assert scene.all_runs() == [1, 2, 1]
    scene.check(batch)


def test_slots_killed_with_their_worker_all_come_back(local: Scene) -> None:
    # given a worker with three slots, each in the middle of a job
    batch = local.queue(3)
    local.hold(1, 2, 3)
    worker = local.worker(slots=3)
    for job in local.jobs:
        local.await_run(job)
    # when it is killed
    worker.kill()
    # then no job is left running and all are run again
    local.await_no_process()
    local.let_go(1, 2, 3)
    local.finish()
    assert local.all_runs() == [2, 2, 2]
    local.check(batch)


@pytest.mark.parametrize("moment", ["before the records", "within the transaction", "after it"])
def test_local_worker_killed_about_settling(local: Scene, moment: str) -> None:
    # given a worker that dies about the settling of the first of two jobs, run and stored
    batch = local.queue(2)
    local.hold(2)
    deaths = {
        "before the records": {"at": f"{SQLITE}.settle"},
        "within the transaction": {"at": f"{SQLITE}._write_records", "after": True},
        "after it": {"at": f"{SQLITE}.settle", "after": True},
    }
    worker = local.worker(die=deaths[moment])
    assert worker.ended() == -signal.SIGKILL, worker.output()
    # then record and removal are both there or both not
    decided = local.decided(batch)
    assert decided == (moment == "after it")
    # and the next worker runs just what is not decided
    local.let_go(2)
    local.finish()
    assert local.runs(1) == 2 - decided
    assert len(local.records(batch)) == 2
    local.check(batch)


def test_aws_worker_killed_between_upload_and_record(aws: Scene, proxy: Proxy) -> None:
    # given a worker that dies when its record is on the way to the journal
    batch = aws.queue(1)
    worker = aws.worker(times={"visibility_s": 2})
    kill = proxy.before("s3.PutObject", killing(worker.pid), key="^_journal/", times=1)
    kill.wait()
    assert worker.ended() == -signal.SIGKILL
    # then its results lie in the store, and nobody sees them
    assert proxy.count("s3.PutObject", f"^{batch}/") == 1
    assert aws.decided(batch) == 0
    # and the job is run again under another attempt
    aws.finish()
    assert aws.runs(1) == 2
    assert proxy.count("s3.PutObject", f"^{batch}/") == 2
    assert len(aws.records(batch)) == 1
    aws.check(batch)


def test_aws_worker_killed_between_record_and_removal(aws: Scene, proxy: Proxy) -> None:
    # given a worker that dies when it is about to delete the message of a recorded job
    batch = aws.queue(2)
    aws.hold(2)
    worker = aws.worker(times={"visibility_s": 2})
    kill = proxy.before("sqs.DeleteMessageBatch", killing(worker.pid), times=1)
    kill.wait()
    assert worker.ended() == -signal.SIGKILL
    decided = aws.visible(batch)
    assert list(decided) == [1]
    # when its messages come back
    aws.let_go(2)
    aws.finish()
    # then what was recorded is not run again, and its record stays what it was
    assert aws.runs(1) == 1
    assert aws.visible(batch)[1] == decided[1]
    aws.check(batch)


def test_job_that_loses_five_workers_has_failed(local: Scene) -> None:
    # given a job that never comes to its end
    batch = local.queue(1)
    local.hold(1)
    for lost in range(5):
        worker = local.worker()
        local.await_run(1, lost + 1)
        # when worker after worker is lost while it runs
        worker.kill()
    # then it has failed and takes no more workers
    local.finish()
    assert local.runs(1) == 5
    record = local.visible(batch)[1]
    assert (record.state, record.reason) == (JobState.FAILED, "lost its worker 5 times")
    local.await_no_process()
    assert list(local.workingdir.iterdir()) == []
