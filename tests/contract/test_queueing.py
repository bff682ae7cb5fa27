"""What is queued where some of it is there already."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adr import plan, queue_plan, retry, status
from adr.errors import RunnerGone
from adr.keys import bundle_key, retry_name, seal_key, unaccounted_key
from adr.models import JobState, Lease, Outcome
from adr.orders import order_cancelling, order_destruction
from adr.queueing import QueueReport
from adr.runner import Runner, create_runner, open_runner
from adr.workerinfo import SlotInfo, WorkerInfo
from tests.contract.jobs import outcome_of, run_all
from tests.proxy import Proxy

SUCCEEDED = JobState.SUCCEEDED
CASES = [f"case{number}.txt" for number in range(1, 7)]


class Site:
    """A runner, a folder of inputs, and a worker that does what the test says."""

    def __init__(self, runner: Runner, folder: Path) -> None:
        self.id = runner.id
        self.folder = folder
        self.runner = open_runner(runner.id, worker="worker")
        for name in CASES:
            (folder / name).write_text(f"of {name}\n")
        (folder / "shared.dat").write_text("wind\n")

    def queue(self, cases: Sequence[str] = CASES, rerun: bool = False, **options: Any) -> Any:
        files = [self.folder / name for name in cases]
        # What is bundled and no input is an input of all.
        others = [name for name in CASES if name not in cases]
        planned = plan(files, **{"command": "model {}", "exclude": others, **options})
        return queue_plan(self.id, planned, rerun=rerun)

    def lease(self, most: int) -> list[Lease]:
        leases: list[Lease] = []
        while len(leases) < most:
            leases += self.runner.ledger.receive(min(10, most - len(leases)), 1)
        return leases

    def settle(self, *leases: Lease, state: JobState = JobState.SUCCEEDED, **about: Any) -> None:
        outcomes = [outcome_of(lease, state) for lease in leases]
        self.runner.ledger.settle(
            [Outcome(each.lease, replace(each.record, **about)) for each in outcomes]
        )

    def settle_all(self, most: int) -> None:
        self.settle(*self.lease(most))

    def lose(self, batch: str, jobs: int) -> None:
        """Take jobs out of the queue as nobody should, and let that be long ago."""
        self.settle_all(jobs)
        # The journal, or the table of records, is what tells them from lost ones.
        if self.runner.kind == "local":
            import sqlite3

            with sqlite3.connect(Path(self.id, "ledger.db")) as db:
                db.execute("DELETE FROM records WHERE batch = ?", (batch,))
        else:
            store = self.runner.store
            store.delete([entry.key for entry in store.list(f"_journal/{batch}/")])
        since = {str(view.job.index): 0 for view in status(self.id, batch=batch).jobs}
        note = json.dumps({"schema": 1, "since": since}).encode()
        self.runner.store.write(unaccounted_key(batch), note)


@pytest.fixture(params=["local", "aws"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    if request.param == "aws":
        request.getfixturevalue("proxy")
    folder = tmp_path / "inputs"
    folder.mkdir()
    local = request.param == "local"
    runner = create_runner(local=local, directory=tmp_path / "runner" if local else None)
    return Site(runner, folder)


def known(report: QueueReport) -> tuple[int, int, int]:
    counts = report.known.to_dict()
    return counts["succeeded"], counts["waiting"], counts["running"]


def labels(report: QueueReport) -> list[str]:
    assert report.new is not None
    return [job.label for job in report.new.plan.jobs]


def test_only_what_is_not_there_is_queued(site: Site) -> None:
    # given a batch of which one job has succeeded, one failed, one runs, and two are called off,
    # one of them by an order alone
    first = site.queue()
    assert (first.jobs, known(first)) == (6, (0, 0, 0))
    leases = {lease.job.label: lease for lease in site.lease(6)}
    site.settle(leases["case1"])
    site.settle(leases["case2"], state=JobState.FAILED)
    site.settle(leases["case3"], state=JobState.CANCELLED)
    order_cancelling(site.runner.store, [leases["case4"].job])
    running = leases["case5"]
    site.runner.ledger.start([running])
    slot = SlotInfo(*running.job.id, running.attempt, time.time())
    info = WorkerInfo("worker", "host", 1, 1, time.time(), "1", running=(slot,))
    site.runner.roster.beat(info)
    site.runner.ledger.release([leases["case6"]])
    # when it is queued again
    second = site.queue()
    # then those that have no future are, where they are
    assert (second.batch, second.jobs, second.new) == (first.batch, 3, None)
    assert (second.retried, known(second)) == ({first.batch: 3}, (1, 1, 1))
    # and then nothing is, and the batch is the newest that holds some of it
    third = site.queue()
    assert (third.batch, third.jobs, third.new, known(third)) == (first.batch, 0, None, (1, 4, 1))
    assert [each.batch for each in status(site.id).batches] == [first.batch]
    # when jobs are to run otherwise than those that wait, then they do that as well
    otherwise = site.queue(CASES[:3], timeout=60)
    assert (labels(otherwise), otherwise.doubled) == (["case2", "case3"], {first.batch: 2})
    assert site.queue(CASES[:3], timeout=60).doubled == {}
    # or are to run whatever there is
    again = site.queue(CASES[:2], retry_on=[3], rerun=True)
    assert (labels(again), again.doubled) == (["case1", "case2"], {})
    # with their inputs alone
    assert again.new is not None
    names = [member.name for member in again.new.plan.files]
    assert names == ["case1.txt", "case2.txt", "shared.dat"]
    # or do something else
    (site.folder / "shared.dat").write_text("no wind\n")
    assert known(site.queue()) == (0, 0, 0)


def test_what_did_not_succeed_is_retried_with_the_new_limits_and_counts_no_more(
    site: Site,
) -> None:
    # given a batch that has failed, one that is called off, and one with other jobs as well
    failed = site.queue(CASES[:2], timeout=60)
    site.settle(*site.lease(2), state=JobState.FAILED)
    off = site.queue(CASES[2:3])
    order_cancelling(site.runner.store, [status(site.id, batch=off.batch).jobs[0].job])
    site.settle(*site.lease(1), state=JobState.CANCELLED)
    gone = site.queue(CASES[3:4])
    destroyed = site.queue(CASES[4:5])
    site.settle(*site.lease(2), state=JobState.FAILED)
    site.runner.store.delete([bundle_key(gone.batch)])
    order_destruction(site.runner.store, destroyed.batch)
    # when all of that and more is queued, otherwise limited
    report = site.queue(timeout=5, attempts=2, retry_on=[3], crash_limit=1)
    # then each is retried where its inputs are, and only the others make a new batch
    assert report.retried == {failed.batch: 2, off.batch: 1}
    assert (labels(report), report.jobs) == (["case4", "case5", "case6"], 6)
    leases = site.lease(6)
    assert {
        (job.timeout_s, job.attempts, job.retry_on, job.crash_limit)
        for job in (lease.job for lease in leases)
    } == {(5, 2, (3,), 1)}
    # when only one fails once more, then that one is retried, and that as often as one likes
    site.settle(*leases[1:])
    site.settle(leases[0], state=JobState.FAILED)
    again = site.queue(timeout=9)
    batch = leases[0].job.batch
    assert (again.retried, again.new, known(again)) == ({batch: 1}, None, (5, 0, 0))
    (lease,) = site.lease(1)
    assert (lease.job.timeout_s, lease.job.attempts) == (9, 1)
    site.settle(lease)
    # and no failure is left of what could be retried
    left = {view.job.batch for view in status(site.id).jobs if view.state is not SUCCEEDED}
    assert left == {gone.batch, destroyed.batch}
    # and what is to run whatever there is makes a batch of its own
    more = site.queue(CASES[:1], rerun=True)
    assert (labels(more), more.retried) == (["case1"], {})


def test_a_retry_that_was_cut_off_is_finished_by_the_same_queue(site: Site) -> None:
    # given a batch whose jobs failed and were queued again, but for the seal of that
    store = site.runner.store
    batch = site.queue(CASES[:2]).batch
    site.settle(*site.lease(2), state=JobState.FAILED)
    assert site.queue(CASES[:2], timeout=5).retried == {batch: 2}
    store.delete([seal_key(retry_name(batch, 1))])
    # when the same is queued, then the retry is finished, and each job is there once
    again = site.queue(CASES[:2], timeout=5)
    assert (again.resumed, again.jobs, again.new, again.retried) == ((batch,), 2, None, {})
    run_all(site.runner.ledger)
    assert {(each.job.generation, each.state) for each in status(site.id).jobs} == {(1, SUCCEEDED)}
    assert status(site.id).batches[0].sealed
    # given another one, when all is to be run anew, then it is let be
    assert retry(site.id, ["case1"], force=True).jobs
    store.delete([seal_key(retry_name(batch, 2))])
    rerun = site.queue(CASES[:1], rerun=True)
    assert (rerun.resumed, labels(rerun)) == ((), ["case1"])


def test_of_many_who_queue_again_at_once_each_job_is_queued_once(site: Site) -> None:
    # given
    batch = site.queue().batch
    site.settle(*site.lease(6), state=JobState.FAILED)
    # when
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: site.queue(), range(4)))
    # then, but for those that have finished what another was about to send
    assert sum(report.retried.get(batch, 0) for report in reports) == 6
    assert all(report.new is None and report.batch == batch for report in reports)
    assert all(report.jobs + sum(known(report)) == 6 for report in reports)
    run_all(site.runner.ledger)
    assert {(each.job.generation, each.state) for each in status(site.id).jobs} == {(1, SUCCEEDED)}


def test_jobs_that_do_the_same_are_told_apart_by_their_names(site: Site) -> None:
    # given
    for name in CASES[:3]:
        (site.folder / name).write_text("all the same\n")
    site.queue(CASES[:2], command="model {//}")
    # then one more of them is one more job, and not all of them are one
    assert labels(site.queue(CASES[:3], command="model {//}")) == ["case3"]
    assert known(site.queue(CASES[:3], command="model {//}")) == (0, 3, 0)


def test_lost_jobs_are_queued_again_and_unaccounted_ones_are_not(site: Site) -> None:
    # given
    batch = site.queue(CASES[:2]).batch
    site.lose(batch, 2)
    # when
    second = site.queue(CASES[:2])
    # then
    assert (second.retried, second.new) == ({batch: 2}, None)
    assert known(site.queue(CASES[:2])) == (0, 2, 0)


def test_what_was_cut_off_is_finished_and_the_rest_queued(site: Site) -> None:
    # given a batch that was sent whole, but for its seal
    store = site.runner.store
    first = site.queue(CASES[:3])
    store.delete([seal_key(first.batch)])
    # when more is queued
    second = site.queue()
    # then each is there once
    assert (second.resumed, second.jobs) == ((first.batch,), 6)
    assert labels(second) == ["case4", "case5", "case6"]
    site.settle_all(6)
    assert known(site.queue()) == (6, 0, 0)
    # given the same of a batch that does all of it again
    third = site.queue(rerun=True)
    store.delete([seal_key(third.batch)])
    # then it is not doubled
    fourth = site.queue(rerun=True)
    assert (fourth.resumed, fourth.jobs, fourth.new) == ((third.batch,), 6, None)
    # given one with jobs that are not asked for now, which nobody finishes
    store.delete([seal_key(third.batch)])
    order_destruction(store, second.batch)
    site.settle(*site.lease(6), state=JobState.FAILED)
    fifth = site.queue(CASES[:1])
    assert (fifth.resumed, known(fifth)) == ((), (1, 0, 0))


def test_what_was_cut_off_and_called_off_in_part_is_finished_without_that(site: Site) -> None:
    # given a batch without its seal, one of whose jobs has been called off
    store = site.runner.store
    first = site.queue(CASES[:3])
    store.delete([seal_key(first.batch)])
    order_cancelling(store, [view.job for view in status(site.id).jobs if view.job.index == 3])
    # when only the others are wanted, then nothing is doubled
    second = site.queue(CASES[:2])
    assert (second.resumed, second.jobs, second.new) == ((first.batch,), 2, None)
    # and what was called off is queued anew, where it is
    store.delete([seal_key(first.batch)])
    third = site.queue(CASES[:3])
    assert (third.resumed, third.jobs, third.new) == ((first.batch,), 3, None)
    assert third.retried == {first.batch: 1}
    assert [each.sealed for each in status(site.id).batches] == [True]
    assert known(site.queue(CASES[:3])) == (0, 3, 0)
    # given nothing that is not called off, then there is nothing to finish
    store.delete([seal_key(first.batch)])
    order_cancelling(store, [view.job for view in status(site.id).jobs])
    assert site.queue(CASES[:3]).resumed == ()


def test_a_destroyed_runner_takes_nothing(site: Site) -> None:
    site.queue(CASES[:1])
    order_destruction(site.runner.store)
    with pytest.raises(RunnerGone, match="has been destroyed"):
        site.queue()


def test_queueing_again_costs_few_calls_and_no_bundle(proxy: Proxy, tmp_path: Path) -> None:
    # given many batches, one of which has succeeded, and one that waits
    site = Site(create_runner(), tmp_path)
    for number in range(5):
        site.queue(CASES[:1], command=f"model{number} {{}}")
    site.settle_all(5)
    site.queue(CASES[1:2])
    proxy.reset()
    # when
    site.queue(CASES[:1], command="model3 {}")
    # then one manifest is read, the records of one batch, and the rest where this machine kept it
    assert proxy.count("s3.PutObject") == proxy.count("sqs.SendMessageBatch") == 0
    assert proxy.count("s3.GetObject") == 1 + 1
    assert proxy.total <= 14, proxy.counts
    # and who asks for a job that waits looks at heartbeats and queue as well
    proxy.reset()
    report = site.queue(CASES[1:2])
    assert report.known.to_dict() == {"succeeded": 0, "waiting": 1, "running": 0}
    assert proxy.total <= 20, proxy.counts
