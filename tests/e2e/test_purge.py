"""Nothing is left of a batch that was purged, whoever still works on it."""

from __future__ import annotations

import pytest

from adr import destroy, list_runners, plan, queue_plan, status
from adr.errors import UsageError
from adr.keys import followed_key, followed_prefix
from adr.models import JobRecord, JobState, Outcome, new_id
from adr.orders import order_following
from adr.runner import create_runner, open_runner


@pytest.fixture(params=["aws", "local"])
def runner(request):
    """Make a runner, and open it for a worker."""
    if request.param == "aws":
        request.getfixturevalue("aws_env")
    made = create_runner(local=request.param == "local")
    return open_runner(made.id, worker=new_id())


@pytest.fixture
def queued(runner, tmp_path):
    """Queue a batch of three jobs; returns a function that does so, and the batch."""
    inputs = [tmp_path / f"{name}.txt" for name in "abc"]
    for path in inputs:
        path.write_text(path.name)

    def queue():
        return queue_plan(runner.id, plan(inputs, command="true"), rerun=True).batch

    return queue


def outcome(lease):
    job = lease.job
    return Outcome(
        lease,
        JobRecord(job.batch, job.index, job.label, 0, lease.attempt, JobState.SUCCEEDED),
    )


def settled(runner):
    lease, *_ = runner.ledger.receive(1, 5)
    runner.ledger.settle([outcome(lease)])


def test_nothing_is_left_of_a_purged_batch(runner, queued):
    # given a batch of which one job is done
    batch = queued()
    settled(runner)
    # and another that somebody follows
    [lease, *_] = runner.ledger.receive(1, 5)
    order_following(runner.store, lease.job, "ab")
    prefix = followed_prefix(batch, lease.job.index, "ab")
    runner.store.write(followed_key(prefix, lease.attempt, 0), b"so far")
    # when
    destroy(runner.id, batch=batch, purge=True)
    # then
    assert status(runner.id).batches == []
    assert open_runner(runner.id).ledger.records([batch]) == []
    left = [entry.key for entry in runner.store.list("") if batch in entry.key]
    assert left == [f"_control/destroyed-batch/{batch}"]
    if runner.kind == "local":
        [info] = list_runners(local=True)
        assert (info.waiting, info.running) == (0, 0)


def test_other_batches_stay(runner, queued):
    # given
    first, second = queued(), queued()
    settled(runner)
    settled(runner)
    # when
    destroy(runner.id, batch=first, purge=True)
    # then
    [left] = status(runner.id).batches
    assert (left.batch, left.jobs) == (second, 3)
    kept = len(runner.ledger.records([second]))
    assert kept == left.succeeded
    if runner.kind == "local":
        assert runner.ledger.depth().waiting == 3 - kept


def test_what_workers_wrote_meanwhile_is_removed_by_purging_again(runner, queued):
    # given a worker that had a job, and results of it, as the batch was purged
    batch = queued()
    [lease] = runner.ledger.receive(1, 5)
    destroy(runner.id, batch=batch, purge=True)
    runner.store.write(f"{batch}/{lease.attempt}-000001/out.csv", b"1")
    runner.ledger.settle([outcome(lease)])
    # when
    destroy(runner.id, batch=batch, purge=True)
    # then
    left = [entry.key for entry in runner.store.list("") if batch in entry.key]
    assert left == [f"_control/destroyed-batch/{batch}"]
    assert open_runner(runner.id).ledger.records([batch]) == []


@pytest.mark.parametrize("runner", ["local"], indirect=True)
def test_a_local_runner_takes_nothing_of_a_purged_batch_any_more(runner, queued):
    # given a worker that had a job
    batch = queued()
    [lease] = runner.ledger.receive(1, 5)
    # when
    destroy(runner.id, batch=batch, purge=True)
    # then the lease is lost, and neither its outcome nor the rest of the batch is taken
    assert runner.ledger.extend([lease]) == []
    runner.ledger.settle([outcome(lease)])
    runner.ledger.send([lease.job], again=True)
    assert runner.ledger.records([batch]) == []
    assert runner.ledger.depth().empty


def test_a_batch_that_never_was_cannot_be_purged(runner):
    with pytest.raises(UsageError, match="there is no batch nothing"):
        destroy(runner.id, batch="nothing", purge=True)
