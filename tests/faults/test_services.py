"""SQS and S3 as they are on a bad day, and away for a while."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import adr
from adr.errors import PartialFailure
from tests.faults import storms
from tests.proxy import Proxy
from tests.scene import Process, Scene

#: How long services are away: longer than `SHORT` leases, heartbeats, and calls tried again.
AWAY_S = 60
#: Times of workers that hold their leases meanwhile, which are those of every worker.
LASTING = {"visibility_s": 120, "dead_after_s": 100}


@pytest.fixture
def second(
    aws: Scene, tmp_path: Path, descendants_with_env: Callable[[str, str], list[int]]
) -> Iterator[Scene]:
    """Return another scene on the same services."""
    folder = tmp_path / "second"
    folder.mkdir()
    scene = Scene("aws", folder, descendants_with_env)
    scene.create()
    try:
        yield scene
    finally:
        scene.clean_up()


def test_storm_over_sqs(aws: Scene, proxy: Proxy, chance: random.Random) -> None:
    # given a queue with all of its faults, for whoever queues and for three workers
    storm = storms.over_sqs(proxy, chance, 0.03)
    # and jobs of which two are longer than a lease
    aws.hold(1, 2)
    batch = aws.queue(150)
    workers = [aws.worker(slots=2, times={"visibility_s": 3}) for _ in range(3)]
    aws.await_ends(40)
    aws.keep_warm(*workers)
    for job in (1, 2):
        aws.await_run(job)
    extended = proxy.count("sqs.ChangeMessageVisibilityBatch")
    aws.wait(lambda: proxy.count("sqs.ChangeMessageVisibilityBatch") >= extended + 3)
    aws.let_go(1, 2)
    # when all is done, in this weather
    aws.await_empty(60)
    for worker in workers:
        worker.end()
    storm.stop()
    # then all faults have happened, and nothing has come of it
    assert all(storm.hits), storm.hits
    aws.check(batch)


def test_storm_over_s3(aws: Scene, proxy: Proxy) -> None:
    # given a store with all of its faults, for whoever queues, three workers and the reader
    storm = storms.over_s3(proxy, 0.04)
    batch = aws.queue(150)
    workers = [aws.worker(slots=2) for _ in range(3)]
    aws.await_ends(40)
    aws.keep_warm(*workers)
    aws.await_empty(60)
    for worker in workers:
        worker.end()
    # then nothing has come of it, also where results are fetched in this weather
    aws.check(batch)
    assert all(storm.hits), storm.hits
    assert aws.all_runs() == [1] * len(aws.jobs)


def test_extensions_and_deletions_that_fail_are_made_good(aws: Scene, proxy: Proxy) -> None:
    # given jobs that are longer than a lease
    batch = aws.queue(12)
    aws.hold(*aws.jobs)
    worker = aws.worker(slots=12, times={"visibility_s": 3})
    aws.wait(lambda: aws.all_runs() == [1] * 12)
    # when every other extension is refused at first
    others = itertools.cycle([True, False])
    name = "sqs.ChangeMessageVisibilityBatch"
    refused, _ = storms.fail_in_part(proxy, name, lambda: next(others), times=2)
    aws.wait(lambda: proxy.count(name) >= 5)
    assert refused.hits == 2
    # and, when they are done, every other deletion, at first
    storms.fail_in_part(proxy, "sqs.DeleteMessageBatch", lambda: next(others), times=2)
    aws.let_go(*aws.jobs)
    aws.await_empty()
    worker.end()
    # then each has run once, and is recorded once
    assert "could not extend" in worker.output()
    assert "stays until its next delivery" in worker.output()
    assert aws.all_runs() == [1] * 12
    assert len(aws.records(batch)) == 12
    assert not any(record.late for record in aws.records(batch))
    aws.check(batch)


def test_downloads_that_are_cut_off_or_changed_are_tried_again_and_never_delivered(
    aws: Scene, proxy: Proxy
) -> None:
    # given a bundle that arrives cut off, changed, and whole only then
    cut = proxy.truncate("s3.GetObject", 2, key=r"\.zip$")
    changed = proxy.corrupt("s3.GetObject", 1, key=r"\.zip$")
    batch = aws.queue(3)
    aws.finish()
    # then its jobs run, once
    assert (cut.hits, changed.hits) == (2, 1)
    assert aws.all_runs() == [1, 1, 1]
    # and of results that never arrive whole, none is delivered
    faults = [
        proxy.corrupt("s3.GetObject", key="-000001/.*proof.txt$"),
        proxy.truncate("s3.GetObject", key="-00000[23]/.*proof.txt$"),
    ]
    target = aws.folder / "target"
    with pytest.raises(PartialFailure, match="3 of 3 files"):
        adr.download(aws.runner, target)
    assert [path for path in target.rglob("*") if path.is_file()] == []
    for fault in faults:
        fault.stop()
        assert fault.hits > 3
    # and all are, where one more try helps
    proxy.corrupt("s3.GetObject", 2, key="/proof.txt$")
    proxy.truncate("s3.GetObject", 2, key="/proof.txt$")
    aws.check(batch)


def test_services_are_away_for_longer_than_any_lease_and_come_back(
    aws: Scene, second: Scene, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker whose leases outlive what is to come, in the middle of its last two jobs,
    # and workers whose leases do not, in the middle of a batch
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    aws.hold(1, 2)
    lasting, passing = aws.queue(20), second.queue(100)
    steady = aws.worker(slots=4, times=LASTING)
    aws.await_ends(18)
    for job in (1, 2):
        aws.await_run(job)
    hasty = [second.worker(slots=2) for _ in range(2)]
    # One that has only just been started needs them to begin.
    pids = {worker.pid for worker in hasty}
    second.wait(lambda: pids <= {info.pid for info in second.roster.alive()})
    second.await_ends(20)
    # when the services go away
    proxy.down()
    aws.let_go(1, 2)
    workers = (steady, *hasty)
    before = [_cpu_s(worker) for worker in workers]
    threading.Event().wait(AWAY_S)
    # then workers compute what they have, and wait for the services without being busy
    assert aws.ends(1) == aws.ends(2) == 1
    assert all(worker.is_running for worker in workers)
    used = [_cpu_s(worker) for worker in workers]
    assert all(after - at_first < AWAY_S / 4 for at_first, after in zip(before, used, strict=True))
    # and they report when the services are back, and do the rest
    proxy.up()
    aws.await_empty()
    second.await_empty(60)
    for worker in workers:
        worker.end()
    assert aws.all_runs() == [1] * len(aws.jobs)
    assert not any(record.late for record in aws.records(lasting))
    aws.check(lasting)
    second.check(passing)


def _cpu_s(worker: Process) -> float:
    """Return the CPU time of a worker, without that of its children (proc(5))."""
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
