"""The worker where something is wrong: with the disk, the queue, the services."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from adr.errors import AdrError, RunnerGone, Unavailable
from adr.models import Lease, Outcome
from adr.worker import leases
from adr.worker.slot import Limits
from tests.unit.workers import Disk, Site, Through, launchers


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.clean_up()


class FullAtFirst(Disk):
    """A disk that has no room when it is first asked by two at once."""

    def __init__(self, *folders: Path) -> None:
        super().__init__(*folders)
        self._both = threading.Barrier(2)
        self._asked = threading.Semaphore(2)

    def usage(self, path: Any) -> Any:
        if self._asked.acquire(blocking=False):
            self._both.wait(20)
            return super().usage(path)._replace(free=0)
        return super().usage(path)


def test_of_slots_that_find_no_room_at_once_the_last_one_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two slots that both find the disk full
    site.queue("sleep 0.1", 4)
    monkeypatch.setattr(shutil, "disk_usage", FullAtFirst().usage)

    # when they run what there is
    report = site.worker(slots=2, stop_on_empty=True).run()

    # then one of them does it all, and no job has failed for it
    assert report.succeeded == 4
    assert report.failed == 0


def test_a_slot_that_retires_leaves_no_process(
    site: Site, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., bool]
) -> None:
    # given two slots that both have run a job, since either job waits for the other
    side = site.folder / "side"
    side.mkdir()
    both = f"touch {side}/{{#}}; until [ -e {side}/1 -a -e {side}/2 ]; do sleep 0.02; done"
    site.queue(both, 2)
    worker = site.worker(slots=2)
    site.start(worker)
    wait_for(lambda: worker.report.succeeded == 2)
    assert launchers() == 2

    # when the disk turns out to hold one workspace only
    (place,) = site.workingdir.iterdir()
    disk = Disk(place / "slot-1", place / "slot-2")
    disk.room = 1
    monkeypatch.setattr(shutil, "disk_usage", disk.usage)
    site.queue(f"until [ -e {side}/go ]; do sleep 0.02; done")

    # then one slot does the rest, and the other has ended its launcher by then
    wait_for(lambda: launchers() == 1)
    (side / "go").touch()
    wait_for(lambda: worker.report.succeeded == 3)
    assert worker.report.failed == 0


def test_while_a_long_job_runs_jobs_are_not_leased_ahead_again_and_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., bool]
) -> None:
    # given a long job after short ones, of which many are leased at a time
    monkeypatch.setattr(leases, "_UNSTARTED_S", 0.3)
    go = site.folder / "go"
    site.queue(f"if [ {{#}} = 6 ]; then until [ -e {go} ]; do sleep 0.02; done; fi", 40)

    class Noting(Through):
        released: ClassVar[list[str]] = []
        looks = 0

        def release(self, leases: Sequence[Lease], **options: Any) -> None:
            self.released.extend(lease.job.name for lease in leases)
            self.inner.release(leases, **options)

        def extend(self, leases: Sequence[Lease]) -> list[Lease]:
            Noting.looks += 1
            return self.inner.extend(leases)

    worker = site.worker(Noting, slots=1)
    site.start(worker)
    wait_for(lambda: Noting.released)

    # when the worker has looked several times at what it holds
    looks = Noting.looks
    wait_for(lambda: Noting.looks >= looks + 4)

    # then none was leased in vain after that, but by the call that was under way
    assert max(Counter(Noting.released).values()) <= 2
    go.touch()
    wait_for(lambda: worker.report.succeeded == 40)


def test_the_end_of_short_jobs_is_not_held_up_by_a_wait_for_more(site: Site) -> None:
    # given a queue that shows itself to be empty while the last job runs, which ends then
    seen = site.folder / "seen"
    wait = f"for each in $(seq 500); do [ -e {seen} ] && exit; sleep 0.02; done; exit 1"
    site.queue(f"if [ {{#}} = 3 ]; then {wait}; fi", 3)
    in_vain = []

    class Noting(Through):
        def receive(self, most: int, wait_s: float) -> list[Lease]:
            found = self.inner.receive(most, wait_s)
            if not found:
                in_vain.append(wait_s)
                seen.touch()
            return found

    # when a worker is to leave then
    report = site.worker(Noting, slots=1, stop_on_empty=True).run()

    # then it has looked once, without waiting for jobs that do not come
    assert (report.succeeded, in_vain) == (3, [0])


def test_what_cannot_be_read_is_one_sentence_and_another_try(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    # given a queue that has something which this worker does not understand, and then no more
    site.queue("true")
    refusals = iter([AdrError("the job message was written by a newer adr: upgrade adr")])

    class Refusing(Through):
        def receive(self, most: int, wait_s: float) -> list[Lease]:
            for refusal in refusals:
                raise refusal
            return self.inner.receive(most, wait_s)

    # when a worker leases from it
    report = site.worker(Refusing, slots=1, stop_on_empty=True).run()

    # then it has said so, and gone on
    assert report.succeeded == 1
    (warning,) = caplog.records
    assert warning.getMessage().startswith("the job message was written by a newer adr")
    assert warning.exc_info is None


@pytest.mark.parametrize("what", ["ledger", "store"])
def test_a_stop_does_not_wait_for_ever_for_what_cannot_be_settled(
    site: Site, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    # given jobs that are done, and a service that keeps nothing of it
    site.queue("echo 1 > result", 3)
    refused = threading.Event()

    class Refusing(Through):
        def settle(self, *_: Any, **__: Any) -> None:
            refused.set()
            raise Unavailable("the disk is full")

        upload = settle

    worker = site.worker(slots=1, limits=Limits(settle_s=0.1), **{what: Refusing})
    thread = site.start(worker)
    assert refused.wait(20)

    # when it is to stop
    worker.stop()
    thread.join(20)

    # then it does, says what is lost, and the jobs can be run by others
    assert not thread.is_alive()
    assert "will run again: their outcomes could not be recorded" in caplog.text
    assert site.worker(slots=1, stop_on_empty=True).run().succeeded == 3


def test_what_is_done_is_settled_before_a_stop_if_that_is_possible(site: Site) -> None:
    # given a job that is done, and a service that takes its record at the third try
    site.queue("true")
    refused = threading.Event()
    refusals = iter([Unavailable("away")] * 2)

    class Refusing(Through):
        def settle(self, outcomes: Sequence[Outcome]) -> None:
            for refusal in refusals:
                refused.set()
                raise refusal
            self.inner.settle(outcomes)

    worker = site.worker(Refusing, slots=1)
    thread = site.start(worker)
    assert refused.wait(20)

    # when the worker is to stop meanwhile
    worker.stop()
    thread.join(20)

    # then it has tried again
    assert worker.report.succeeded == 1


def test_a_worker_leaves_a_destroyed_runner_without_a_word_of_its_jobs(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    # given jobs that are done just when their runner is destroyed
    site.queue("echo 1 > result", 3)

    class Gone(Through):
        def settle(self, _outcomes: Sequence[Outcome]) -> None:
            raise RunnerGone("destroyed")

        def release(self, leases: Sequence[Lease], **options: Any) -> None:
            raise AssertionError

    # when the worker notices
    report = site.worker(Gone, slots=1).run()

    # then it has left by itself, and promises nothing
    assert report.succeeded == 0
    assert "run again" not in caplog.text
