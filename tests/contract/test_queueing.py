"""What is queued where some of it is there already."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adr import plan, queue_plan, status
from adr.errors import RunnerGone
from adr.keys import seal_key, unaccounted_key
from adr.models import JobState, Lease, Outcome, SlotInfo, WorkerInfo
from adr.orders import order_cancelling, order_destruction
from adr.queueing import QueueReport
from adr.runner import Runner, create_runner, open_runner
from tests.contract.jobs import outcome_of
from tests.proxy import Proxy

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
    # then those that have no future are, with their inputs alone
    assert labels(second) == ["case2", "case3", "case4"]
    assert known(second) == (1, 1, 1)
    assert second.new is not None
    names = [member.name for member in second.new.plan.files]
    assert names == ["case2.txt", "case3.txt", "case4.txt", "shared.dat"]
    # and then nothing is, and the batch is the newest that holds some of it
    third = site.queue()
    assert (third.batch, third.jobs, third.new, known(third)) == (second.batch, 0, None, (1, 4, 1))
    assert [each.batch for each in status(site.id).batches] == [first.batch, second.batch]
    # when jobs are to run otherwise than those that wait, or are to run whatever there is
    assert labels(site.queue(CASES[:2], timeout=60)) == ["case2"]
    assert labels(site.queue(CASES[:2], retry_on=[3], rerun=True)) == ["case1", "case2"]
    # or do something else
    (site.folder / "shared.dat").write_text("no wind\n")
    assert known(site.queue()) == (0, 0, 0)


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
    assert labels(second) == ["case1", "case2"]
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
    # and what was called off is queued anew
    store.delete([seal_key(first.batch)])
    third = site.queue(CASES[:3])
    assert (third.resumed, third.jobs, labels(third)) == ((first.batch,), 3, ["case3"])
    assert [each.sealed for each in status(site.id).batches] == [True, True]
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
    # then the manifests are read, and the records of one
    assert proxy.count("s3.PutObject") == proxy.count("sqs.SendMessageBatch") == 0
    assert proxy.count("s3.GetObject") == 6 + 1
    assert proxy.total <= 14, proxy.counts
    # and who asks for a job that waits looks at heartbeats and queue as well
    proxy.reset()
    report = site.queue(CASES[1:2])
    assert report.known.to_dict() == {"succeeded": 0, "waiting": 1, "running": 0}
    assert proxy.total <= 20, proxy.counts
