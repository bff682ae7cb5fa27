"""What is retried, and what is left alone."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from adr import dead_letters, retry, status
from adr.errors import AdrError, RunnerGone, UsageError
from adr.keys import bundle_key, manifest_key, retry_name, seal_key
from adr.models import JobState, Lease
from adr.orders import order_cancelling, order_destruction
from adr.retrying import RetryReport
from adr.runner import create_runner, open_runner
from adr.views import JobView
from adr.workerinfo import WorkerInfo
from tests.contract.test_queueing import CASES, Site, site
from tests.proxy import FORWARD, Proxy

__all__ = ["site"]


def labels(report: RetryReport) -> list[str]:
    return [job.label for job in report.jobs]


def view(site: Site, label: str) -> JobView:
    (found,) = (each for each in status(site.id).jobs if each.job.label == label)
    return found


def ended(site: Site) -> dict[str, Lease]:
    """Queue six jobs: 1 succeeds, 2, 3 and 4 fail, 5 is cancelled, 6 is given back."""
    site.queue(timeout=60, attempts=2)
    leases = {lease.job.label: lease for lease in site.lease(6)}
    site.settle(leases["case1"])
    ends: dict[str, dict[str, Any]] = {
        "case2": {"exit_code": 3},
        "case3": {"exit_code": 139},
        "case4": {"signal": 11},
    }
    for label, end in ends.items():
        site.settle(leases[label], state=JobState.FAILED, **end)
    site.settle(leases["case5"], state=JobState.CANCELLED)
    site.runner.ledger.release([leases["case6"]])
    return leases


def test_jobs_are_chosen_by_name_and_kind(site: Site) -> None:
    # given
    ended(site)

    def chosen(*names: str, **kinds: Any) -> list[str]:
        report = retry(site.id, names, dry_run=True, **kinds)
        assert [job.generation for job in report.jobs] == [1] * len(report.jobs)
        return [label.removeprefix("case") for label in labels(report)]

    # then
    assert chosen() == chosen(failed=True) == ["2", "3", "4"]
    assert chosen(exit_code=139) == ["3", "4"]
    assert chosen(exit_code=3, cancelled=True) == ["2", "5"]
    assert chosen(lost=True) == []
    assert chosen("case*") == chosen("*") == ["2", "3", "4", "5"]
    assert chosen("case*", failed=True) == ["2", "3", "4"]
    assert chosen("2", "case5", "case1") == ["2", "5"]
    assert chosen("case*", failed=True, exit_code=3, cancelled=True) == ["2", "5"]
    assert chosen("case*", force=True) == ["1", "2", "3", "4", "5"]
    assert chosen("case*", force=True, exit_code=3) == ["1", "2"]
    assert chosen("1", force=True, failed=True) == ["1"]
    assert retry(site.id, ["case*"], dry_run=True).count_left() == {
        "succeeded": 1,
        "waiting": 1,
        "running": 0,
    }
    assert chosen(batch=view(site, "case1").job.batch) == ["2", "3", "4"]
    # and nothing has been done
    assert {each.job.generation for each in status(site.id).jobs} == {0}
    for options, said in (
        ({"jobs": ["none"]}, "no job is named like 'none'"),
        ({"batch": "none"}, "there is no batch none"),
        ({"force": True}, "only jobs that are named"),
        ({"exit_code": 256}, "exit_code is 256"),
        ({"attempts": 0}, "attempts is 0"),
        ({"timeout": 0}, "timeout is 0"),
        *(
            ({"dead": True, name: value}, "choose nothing else")
            for name, value in {"exit_code": 0, "attempts": 0, "timeout": 0, "batch": ""}.items()
        ),
        ({"dead": True, "force": True}, "choose nothing else"),
    ):
        with pytest.raises(UsageError, match=said):
            retry(site.id, **options)


def test_a_retry_is_a_generation_that_nothing_before_it_touches(site: Site) -> None:
    # given a job that ran when it was called off, one that failed, and one that has succeeded
    site.queue(CASES[:3], timeout=60, attempts=2)
    leases = {lease.job.label: lease for lease in site.lease(3)}
    order_cancelling(site.runner.store, [leases["case1"].job])
    site.settle(leases["case2"], state=JobState.FAILED)
    site.settle(leases["case3"])
    # when they are retried
    report = retry(site.id, ["case1", "case2"], timeout=5)
    assert labels(report) == ["case1", "case2"]
    # then they wait, and are not retried again
    assert {view(site, label).state for label in labels(report)} == {JobState.QUEUED}
    again = retry(site.id, ["*"])
    assert (again.jobs, again.count_left()) == (
        (),
        {"succeeded": 1, "waiting": 2, "running": 0},
    )
    # when the end of the first generation comes now, and another message of it
    site.settle(leases["case1"])
    site.runner.ledger.send([leases["case2"].job])
    assert view(site, "case1").state is JobState.QUEUED
    # then only the new one counts, with the limits it was given, whoever runs which
    site.runner = open_runner(site.id, worker="other")
    newer: dict[str, Lease] = {}
    stale: list[Lease] = []
    # A local runner takes nothing that is decided.
    while len(newer) + len(stale) < 2 + (site.runner.kind == "aws"):
        for lease in site.lease(1):
            if lease.job.generation:
                assert (lease.job.timeout_s, lease.job.attempts) == (5, 2)
                newer[lease.job.label] = lease
            else:
                stale.append(lease)
    site.settle(newer["case1"], state=JobState.FAILED)
    site.settle(newer["case2"])
    site.settle(*stale, state=JobState.FAILED)
    assert view(site, "case1").state is JobState.FAILED
    assert view(site, "case2").state is JobState.SUCCEEDED
    # and an order that comes later does not hide what was recorded before it
    order_cancelling(site.runner.store, [each.job for each in status(site.id).jobs])
    assert view(site, "case1").state is JobState.FAILED
    # and one that has succeeded can be forced, as often as one likes
    for generation in (1, 2):
        (job,) = retry(site.id, "case3", force=True, attempts=1).jobs
        assert (job.generation, job.attempts) == (generation, 1)
        (lease,) = site.lease(1)
        assert lease.job == job
        site.settle(lease)


def test_many_who_retry_at_once_retry_each_job_once(site: Site) -> None:
    # given
    site.queue()
    leases = site.lease(6)
    site.settle(*leases, state=JobState.FAILED)
    # when
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: retry(site.id), range(4)))
    # then, but for those that have finished what another was about to send
    made = [job for report in reports for job in report.jobs if job not in report.resumed]
    assert sorted(job.label for job in made) == [f"case{number}" for number in range(1, 7)]
    site.settle_all(6)
    assert site.runner.ledger.receive(10, 0) == []
    assert {(each.job.generation, each.state) for each in status(site.id).jobs} == {
        (1, JobState.SUCCEEDED)
    }


def test_what_was_cut_off_is_finished_first(site: Site) -> None:
    # given a retry whose jobs were sent, but for its seal
    ended(site)
    (job,) = retry(site.id, ["case2"]).jobs
    site.runner.store.delete([seal_key(retry_name(job.batch, 1))])
    assert view(site, "case2").state is JobState.QUEUED
    assert retry(site.id, dry_run=True).resumed == ()
    # when others are retried
    report = retry(site.id, ["case3"])
    # then both are there, and once
    assert (labels(report), report.resumed) == (["case2", "case3"], (job,))
    site.settle_all(3)
    assert site.runner.ledger.depth().empty
    assert all(not each.batch.count("~") for each in status(site.id).batches)
    assert status(site.id).batches[0].sealed


def test_jobs_without_inputs_are_left_out_or_refused(site: Site) -> None:
    # given a batch whose inputs are gone, one that was destroyed, and one that is whole
    gone = site.queue(CASES[:1]).batch
    destroyed = site.queue(CASES[1:2]).batch
    whole = site.queue(CASES[2:3]).batch
    site.settle(*site.lease(3), state=JobState.FAILED)
    site.runner.store.delete([bundle_key(gone)])
    order_destruction(site.runner.store, destroyed)
    # then
    for batch in (gone, destroyed):
        with pytest.raises(AdrError, match=f"inputs of {batch} have been removed: repeat the"):
            retry(site.id, batch=batch)
    assert retry(site.id, batch=whole, dry_run=True).gone == ()
    site.runner.store.delete([moved := bundle_key(whole)])
    said = f"inputs of {gone}, {destroyed}, {whole} have been removed: repeat the adr queue that"
    with pytest.raises(AdrError, match=said) as caught:
        retry(site.id)
    assert caught.value.exit_code == 1
    site.runner.store.write(moved, b"")
    report = retry(site.id)
    assert [job.batch for job in report.jobs] == [whole]
    assert {job.batch for job in report.gone} == {gone, destroyed}
    # and of a runner that was destroyed nothing is
    order_destruction(site.runner.store)
    for chosen in (None, whole):
        with pytest.raises(RunnerGone, match="has been destroyed"):
            retry(site.id, batch=chosen)


def test_lost_jobs_are_retried_when_asked_for(site: Site) -> None:
    batch = site.queue(CASES[:2]).batch
    site.lose(batch, 2)
    assert retry(site.id, dry_run=True).jobs == ()
    assert labels(retry(site.id, lost=True)) == ["case1", "case2"]
    site.settle_all(2)
    assert {each.state for each in status(site.id).jobs} == {JobState.SUCCEEDED}


def test_a_manifest_whose_answer_was_lost_is_ours(proxy: Proxy, tmp_path: Path) -> None:
    made = Site(create_runner(), tmp_path)
    made.queue(CASES[:1])
    made.settle(*made.lease(1), state=JobState.FAILED)
    lost = proxy.lose_answer("s3.PutObject", 1, key="~1")
    (job,) = retry(made.id).jobs
    assert lost.hits == 1
    names = [entry.key for entry in made.runner.store.list("_batches/") if "~" in entry.key]
    name = retry_name(job.batch, 1)
    assert sorted(names) == [manifest_key(name), seal_key(name)]


def test_a_job_of_two_who_retry_it_at_once_is_run_by_one_worker(
    proxy: Proxy, tmp_path: Path
) -> None:
    # given a retry that another takes for cut off while it sends
    made = Site(create_runner(), tmp_path)
    made.queue(CASES[:1])
    made.settle(*made.lease(1), state=JobState.FAILED)
    reports = []

    def finish(_: object) -> Any:
        reports.append(retry(made.id))
        return FORWARD

    proxy.before("sqs.SendMessageBatch", finish, times=1)
    (job,) = retry(made.id).jobs
    assert (reports[0].resumed, made.runner.ledger.depth().waiting) == ((job,), 2)
    # when a worker has begun with one of the messages
    made.runner.roster.beat(WorkerInfo("worker", "host", 1, 1, time.time(), "1"))
    (lease,) = made.runner.ledger.receive(1, 1)
    assert made.runner.ledger.start([lease]) == [lease]
    # then another lets be what comes with the other one
    other = open_runner(made.id, worker="other").ledger
    assert other.receive(10, 1) == []
    made.settle(lease)
    assert view(made, "case1").state is JobState.SUCCEEDED


def test_orders_are_read_as_often_for_many_batches(proxy: Proxy, tmp_path: Path) -> None:
    # given
    made = Site(create_runner(), tmp_path)
    for number in range(3):
        made.queue(CASES[:1], command=f"model{number} {{}}")
        order_cancelling(made.runner.store, [each.job for each in status(made.id).jobs])
    proxy.reset()
    # when, then once to tell what became of the jobs, and once to retry them
    assert len(retry(made.id, cancelled=True, dry_run=True).jobs) == 3
    assert proxy.count("s3.GetObject", key="_control/cancel") == 2 * 3


def test_dead_letters_are_listed_by_job_and_sent_again(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given jobs one of which SQS has moved aside, with a message that is no job
    made = Site(create_runner(), tmp_path)
    made.queue(CASES[:2])
    sqs = boto3.client("sqs")
    main, dead = (
        sqs.get_queue_url(QueueName=made.id + suffix)["QueueUrl"] for suffix in ("", "-dead")
    )
    (message,) = sqs.receive_message(QueueUrl=main)["Messages"]
    for body in (message["Body"], "no job"):
        sqs.send_message(QueueUrl=dead, MessageBody=body)
    sqs.delete_message(QueueUrl=main, ReceiptHandle=message["ReceiptHandle"])
    label = json.loads(message["Body"])["label"]
    # then the status says so for one call, and whoever looks leaves them where they are
    proxy.reset()
    found = status(made.id)
    assert proxy.count("sqs.GetQueueAttributes") == 2
    assert sum("has given up 2 messages" in note for note in found.notes) == 1
    for _ in range(2):
        letters = dead_letters(made.id)
        assert {each.job.label if each.job else each.job for each in letters} == {label, None}
        (unreadable,) = (each for each in letters if each.job is None)
        assert "the message is broken" in unreadable.trouble
    assert labels(retry(made.id, dead=True, dry_run=True)) == [label]
    # and looks come to an end where they take longer than the messages are hidden
    with monkeypatch.context() as patch:
        patch.setattr("adr.ledgers.deadletters._HIDDEN_S", 0.0)
        assert len(dead_letters(made.id)) == 2
    # when they are sent again
    report = retry(made.id, dead=True)
    # then the job is decided like others, once, and what is no job is left
    assert (labels(report), report.unreadable) == ([label], (unreadable,))
    assert made.runner.ledger.depth().waiting == 2
    made.settle_all(2)
    assert {each.state for each in status(made.id).jobs} == {JobState.SUCCEEDED}
    assert dead_letters(made.id) == [unreadable]
    with pytest.raises(UsageError, match="all and as they are"):
        retry(made.id, "case1", dead=True)


def test_a_local_runner_has_no_dead_letters(tmp_path: Path) -> None:
    made = create_runner(local=True, directory=tmp_path / "runner")
    assert dead_letters(made.id) == []
    assert retry(made.id, dead=True).jobs == ()
