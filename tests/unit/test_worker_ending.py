"""How a worker ends by itself: idle, at its limit, and before its machine is taken away."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adr.clock import boot_time
from adr.errors import Denied, Unavailable, UsageError
from adr.keys import LIVE
from adr.models import JobRecord, Lease
from adr.runner import open_runner
from adr.worker import ending, notice
from adr.worker.loop import Worker
from adr.worker.slot import Limits
from adr.workerinfo import WorkerInfo
from tests.unit.metadata import Metadata
from tests.unit.workers import Site, Through

#: A job that says when it has begun, and then waits for longer than any of these tests.
LONG = "touch {side}/began-{{#}}; sleep 1000 & wait"
SOON = Limits(term_s=0.2)
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    (tmp_path / "side").mkdir()
    yield made
    made.clean_up()


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    monkeypatch.setattr(notice, "_EVERY_S", 0.05)
    made = Metadata()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", made.url)
    with made.serving():
        yield made


def heartbeats(site: Site) -> list[WorkerInfo]:
    """Return the heartbeats of all workers, also of those that have left."""
    store = open_runner(site.runner).store
    bodies = [store.read(entry.key).body for entry in store.list(LIVE)]
    return [WorkerInfo.from_dict(json.loads(body)) for body in bodies]


def records(site: Site) -> dict[int, JobRecord]:
    views = site.survey.status().jobs
    return {view.job.index: view.record for view in views if view.record}


def began(site: Site, *jobs: int) -> Callable[[], bool]:
    return lambda: all((site.folder / "side" / f"began-{job}").exists() for job in jobs)


def ended(thread: threading.Thread) -> bool:
    thread.join(20)
    return not thread.is_alive()


def test_a_worker_is_called_as_it_was_told(site: Site) -> None:
    site.queue("true")

    site.worker(slots=1, stop_on_empty=True, host="i-0123").run()

    assert records(site)[1].host == "i-0123"
    assert [info.host for info in heartbeats(site)] == ["i-0123"]


class TestIdleness:
    def test_it_leaves_when_all_jobs_are_decided(self, site: Site) -> None:
        site.queue("true", 3)

        report = site.worker(slots=2, idle_s=1000).run()

        assert report.succeeded == 3
        assert not report.interrupted
        assert [info.left for info in heartbeats(site)] == [True]
        assert open_runner(site.runner).roster.alive() == []

    def test_it_waits_for_a_first_batch_for_its_time(self, site: Site) -> None:
        assert site.worker(slots=1, idle_s=0.5).run().succeeded == 0

        thread = site.start(worker := site.worker(slots=1, idle_s=1000))
        site.queue("true")

        assert ended(thread)
        assert worker.report.succeeded == 1

    def test_a_few_stay_while_others_run_jobs(
        self, site: Site, wait_for: Callable[..., bool]
    ) -> None:
        # given a worker at a long job
        go = site.folder / "go"
        site.queue(f"touch {site.folder}/side/began-1; until [ -e {go} ]; do sleep 0.02; done")
        busy = site.start(site.worker(slots=1, idle_s=2))
        wait_for(began(site, 1))

        # when three others have nothing to do for long enough
        idle = [site.start(site.worker(slots=1, idle_s=2)) for _ in range(3)]

        # then two of them stay, until the job is decided
        wait_for(lambda: [thread.is_alive() for thread in idle].count(False) == 1)
        assert busy.is_alive()
        go.touch()
        assert all(ended(thread) for thread in (*idle, busy))
        assert records(site)[1].reason == ""


class Closed(Through):
    """A queue that gives nothing away, as where a permission is missing."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.asked = threading.Semaphore(0)

    def receive(self, *_: Any) -> list[Lease]:
        self.asked.release()
        raise Denied("not allowed to receive")

    def wait_asked(self, times: int) -> None:
        assert all(self.asked.acquire(timeout=20) for _ in range(times))


class Outcome:
    """How a worker ends that runs in a thread of its own."""

    def __init__(self, worker: Worker) -> None:
        self.error: UsageError | None = None
        self.worker = worker
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except UsageError as error:
            self.error = error


class TestAClosedQueue:
    def test_a_worker_that_can_lease_nothing_leaves_and_says_why(self, site: Site) -> None:
        site.queue("true")

        with pytest.raises(UsageError, match="no job could be leased: not allowed to receive"):
            site.worker(Closed, slots=1, idle_s=0.4).run()

        assert [info.left for info in heartbeats(site)] == [True]

    def test_it_stays_until_what_is_done_is_settled(self, site: Site) -> None:
        # given a worker with a job that is done, whose queue is closed then, for results as well
        site.queue("true")
        opened = threading.Event()

        class Closing(Closed):
            given = False

            def receive(self, *options: Any) -> list[Lease]:
                if self.given:
                    return super().receive(*options)
                leases: list[Lease] = self.inner.receive(*options)
                self.given = bool(leases)
                return leases

            def settle(self, *options: Any) -> None:
                if not opened.is_set():
                    raise Denied("not allowed to settle")
                self.inner.settle(*options)

        ledgers: list[Closing] = []
        made = lambda inner: ledgers.append(Closing(inner)) or ledgers[0]  # noqa: E731
        outcome = Outcome(site.worker(made, slots=1, idle_s=0.1))

        # when it has had nothing to do for longer than it is to wait
        ledgers[0].wait_asked(3)

        # then it is still there, and leaves once the outcome is kept
        assert outcome.thread.is_alive()
        opened.set()
        assert ended(outcome.thread)
        assert outcome.error is not None
        assert records(site)[1].state == "succeeded"

    def test_it_stays_while_the_store_cannot_be_used_either(self, site: Site) -> None:
        class Away(Through):
            beats = 0

            def beat(self, info: WorkerInfo) -> None:
                if self.beats:
                    raise Unavailable("away")
                self.beats += 1
                self.inner.beat(info)

        runner = open_runner(site.runner, worker="worker")
        queue = Closed(runner.ledger)
        runner = replace(runner, ledger=queue, roster=Away(runner.roster), heartbeat_s=(0.1, 0.1))
        outcome = Outcome(Worker(runner, "worker", site.workingdir, slots=1, idle_s=1.5))

        queue.wait_asked(4)

        assert outcome.thread.is_alive()
        outcome.worker.stop()
        assert ended(outcome.thread)
        assert outcome.error is None


class TestTheLimit:
    def test_a_job_that_it_cuts_has_failed_with_what_it_left(self, site: Site) -> None:
        # given two jobs without an end, which may be repeated
        command = "echo partial > result; echo said; " + LONG.format(side=site.folder / "side")
        site.queue(command, 2, attempts=3)

        # when a worker of limited time runs what it can
        report = site.worker(slots=1, max_s=5, limits=SOON).run()

        # then one has failed for that reason and is not repeated, and the other one waits
        assert (report.succeeded, report.failed) == (0, 1)
        assert sorted(site.states()) == ["failed", "queued"]
        [record] = records(site).values()
        assert record.reason == "exceeded --max-hours"
        assert record.signal is not None or record.exit_code
        assert [result.name for result in record.results] == ["result"]
        assert record.tail == "said\n"
        # and those who looked were told
        [info] = heartbeats(site)
        assert (info.note, info.left) == ("draining: --max-hours", True)

    def test_without_a_job_it_just_leaves(self, site: Site) -> None:
        assert site.worker(slots=1, max_s=1, limits=SOON).run().failed == 0

    def test_nothing_is_leased_that_has_no_time(self, site: Site) -> None:
        site.queue("true")

        report = site.worker(slots=1, max_s=0.1, limits=SOON).run()

        assert report.succeeded == 0
        assert site.states() == ["queued"]

    def test_it_does_not_wait_for_services_that_are_away(self, site: Site) -> None:
        # given a job that is done, and a service that keeps nothing of it
        site.queue("true")

        class Refusing(Through):
            def settle(self, *_: Any) -> None:
                raise Unavailable("away")

        # when the time of the worker is over
        thread = site.start(site.worker(Refusing, slots=1, max_s=2, limits=SOON))

        # then it leaves, and the job can be run by others
        assert ended(thread)
        assert site.worker(slots=1, stop_on_empty=True).run().succeeded == 1


class TestInterruption:
    def start(self, site: Site, **options: Any) -> tuple[Worker, threading.Thread]:
        worker = site.worker(host="i-0123", watch_notice=True, **options)
        return worker, site.start(worker)

    def test_jobs_are_given_back_and_say_so_in_their_records(
        self, site: Site, metadata: Metadata, wait_for: Callable[..., bool]
    ) -> None:
        # given a worker with two jobs, whose TERM makes one save and the other fail, and a third
        side = site.folder / "side"
        site.queue(
            "if [ {#} = 1 ]; then trap 'sleep 0.3; echo saved > result; exit 0' TERM;"
            f" else trap 'exit 3' TERM; fi; [ -e {side}/again ] || {{ {LONG.format(side=side)}; }}",
            3,
        )
        worker, thread = self.start(site, slots=2)
        wait_for(began(site, 1, 2))

        # when EC2 takes its machine away
        metadata.announce(120)

        # then it leaves at once, and only what has succeeded is decided
        assert ended(thread)
        assert (worker.report.succeeded, worker.report.failed) == (1, 0)
        saved = records(site)[1]
        assert [result.name for result in saved.results] == ["result"]
        [note] = saved.notes
        assert re.fullmatch(f"ended at {MOMENT} on an instance under interruption notice", note)
        [info] = heartbeats(site)
        assert re.fullmatch(rf"interrupted by EC2 at {MOMENT} \(spot\)", info.note)
        # and another worker does the rest, of which what had begun says why it is late
        (side / "again").touch()
        assert site.worker(slots=1, stop_on_empty=True).run().succeeded == 2
        [note] = records(site)[2].notes
        assert re.fullmatch(rf"interrupted at {MOMENT} on i-0123 \(spot\)", note)
        assert records(site)[3].notes == ()

    def test_who_does_not_listen_is_killed_when_there_is_no_time_left(
        self,
        site: Site,
        metadata: Metadata,
        wait_for: Callable[..., bool],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(notice, "_LEAST_S", 0.3)
        site.queue("trap '' TERM; " + LONG.format(side=site.folder / "side"))
        _, thread = self.start(site, slots=1, limits=Limits(term_s=1000))
        wait_for(began(site, 1))

        metadata.announce(30)

        assert ended(thread)
        assert site.states() == ["queued"]

    @pytest.fixture
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ending, "_LEAST_S", 0.5)
        monkeypatch.setattr(ending, "_GIVE_UP_S", 14.5)

    @pytest.mark.usefixtures("short")
    def test_results_that_the_store_does_not_take_are_given_up_before_the_end(
        self, site: Site, metadata: Metadata
    ) -> None:
        # given a job that is done, and a store that is away
        site.queue("echo 1 > result")
        refused = threading.Event()

        class Refusing(Through):
            def upload(self, *_: Any, **__: Any) -> None:
                refused.set()
                raise Unavailable("away")

        worker, thread = self.start(site, store=Refusing, slots=1)
        assert refused.wait(20)

        # when EC2 takes the machine away
        metadata.announce(1)

        # then the worker has left, and the job waits for another one
        assert ended(thread)
        assert worker.report.succeeded == 0
        assert site.worker(slots=1, stop_on_empty=True).run().succeeded == 1

    @pytest.mark.usefixtures("short")
    def test_an_upload_that_is_too_slow_is_not_waited_for(
        self, site: Site, metadata: Metadata
    ) -> None:
        # given a job that is done, and an upload that does not end
        site.queue("echo 1 > result")
        began, go = threading.Event(), threading.Event()

        class Slow(Through):
            def upload(self, *options: Any, **more: Any) -> None:
                began.set()
                go.wait(20)
                self.inner.upload(*options, **more)

        worker, thread = self.start(site, store=Slow, slots=1)
        assert began.wait(20)

        # when EC2 takes the machine away
        metadata.announce(1)

        # then another worker is given the job, and told why
        [lease] = open_runner(site.runner, worker="other").ledger.receive(1, 20)
        [note] = lease.notes
        assert "on i-0123 (spot)" in note
        # and what the first one stores after that decides nothing
        assert thread.is_alive()
        go.set()
        assert ended(thread)
        assert worker.report.succeeded == 0
        assert records(site) == {}

    def test_a_signal_ends_sooner_what_the_notice_would_wait_for(
        self, site: Site, metadata: Metadata, wait_for: Callable[..., bool]
    ) -> None:
        # given a job that takes all the time it is given after a notice
        side = site.folder / "side"
        site.queue(f"trap 'touch {side}/told' TERM; while :; do {LONG.format(side=side)}; done")
        worker, thread = self.start(site, slots=1, limits=SOON)
        wait_for(began(site, 1))
        metadata.announce(1000)
        wait_for(lambda: (side / "told").exists())

        # when the system is shut down, as EC2 does it in the end
        worker.stop()

        # then it is given back all the same, with a note
        assert ended(thread)
        lease = open_runner(site.runner, worker="other").ledger.receive(1, 5)[0]
        assert len(lease.notes) == 1
        assert (lease.failures, lease.lost) == (0, 0)

    def test_the_notice_is_seen_by_others_at_once(
        self, site: Site, metadata: Metadata, wait_for: Callable[..., bool]
    ) -> None:
        side = site.folder / "side"
        site.queue(f"trap 'touch {side}/told' TERM; while :; do {LONG.format(side=side)}; done")
        _, thread = self.start(site, slots=1, limits=SOON)
        wait_for(began(site, 1))
        roster = open_runner(site.runner).roster

        metadata.announce(1000)

        wait_for(lambda: [info.note for info in roster.alive() if info.note])
        assert thread.is_alive()


class TestBeingAlive:
    def test_each_beat_is_noted_for_the_timer_of_the_system(
        self, site: Site, wait_for: Callable[..., bool]
    ) -> None:
        path = site.folder / "alive"
        path.write_text("123456789012.34\n")
        before = boot_time()

        site.start(site.worker(slots=1, alive=path))

        wait_for(lambda: before - 0.01 <= float(path.read_text()) <= boot_time())
        assert re.fullmatch(r"\d+\.\d\d\n", path.read_text())
        first = float(path.read_text())
        site.queue("true")
        wait_for(lambda: float(path.read_text()) > first)

    def test_a_file_that_cannot_be_written_is_said_once_and_stops_nothing(
        self, site: Site, caplog: pytest.LogCaptureFixture, wait_for: Callable[..., bool]
    ) -> None:
        path = site.folder / "missing" / "alive"
        worker = site.worker(slots=1, alive=path)
        site.start(worker)
        site.queue("sleep 0.6", 3)
        wait_for(lambda: worker.report.succeeded == 3)

        assert caplog.text.count("cannot note in") == 1
        path.parent.mkdir()
        wait_for(path.exists)
        shutil.rmtree(path.parent)
