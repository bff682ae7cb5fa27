"""Looking at a runner again and again: how often, what is said, and where it ends."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import adr
from adr import sending, survey, waiting
from adr.choosing import choose_jobs
from adr.errors import Denied, Unavailable, UsageError
from adr.launching import demand
from adr.models import Job, JobState
from adr.runner import open_runner
from adr.views import JobView
from adr.waiting import WaitState
from adr.workerinfo import SlotInfo, WorkerInfo
from tests.unit.workers import Site, Through


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.clean_up()


class Clock:
    """Stand in for the time between two looks: it passes at once, and is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = time.monotonic()
        self.slept: list[float] = []
        #: Called at each sleep.
        self.meanwhile: Callable[[], Any] = lambda: None
        # Only there: workers in this process need theirs.
        monkeypatch.setattr(waiting, "time", self)

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._now += seconds
        self.meanwhile()

    def pass_by(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def open_with(monkeypatch: pytest.MonkeyPatch, **wrappers: Callable[[Any], Any]) -> None:
    """Let what waits see the runner through these."""
    real = waiting.open_runner

    def opened(*args: Any) -> Any:
        runner = real(*args)
        parts = {name: wrap(getattr(runner, name)) for name, wrap in wrappers.items()}
        return replace(runner, **parts)

    monkeypatch.setattr(waiting, "open_runner", opened)


def test_without_anything_to_wait_for_it_says_so(site: Site) -> None:
    with pytest.raises(UsageError, match="adr queue"):
        adr.wait(site.runner)
    with pytest.raises(UsageError, match="no batch nickling"):
        adr.wait(site.runner, batch="nickling")


def test_looks_become_rarer_and_the_last_is_at_the_time_out(site: Site, clock: Clock) -> None:
    site.queue("true", 3)

    report = adr.wait(site.runner, timeout=20)

    assert report.state is WaitState.TIMEOUT
    assert report.totals.queued == 3
    assert clock.slept[0] == 0.5
    assert max(clock.slept) == 1.0
    assert sum(clock.slept) == pytest.approx(20), "not a second longer"


def test_a_look_that_takes_long_is_not_made_often(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.queue("true")

    class Slow(Through):
        def decided(self, batches: Any) -> Any:
            clock.pass_by(3)
            return self.inner.decided(batches)

    open_with(monkeypatch, ledger=Slow)

    adr.wait(site.runner, timeout=100)

    assert clock.slept == [30, 30, 30]


def test_services_that_fail_meanwhile_are_asked_again(
    site: Site,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given a store that fails from the second look on, for three of them
    site.queue("true")
    answers = iter([None, Unavailable("S3 is away"), Denied("expired"), Unavailable("S3"), None])

    class Flaky(Through):
        def list(self, prefix: str) -> Any:
            if prefix == "_control/":
                answer = next(answers, None)
                if answer is None:
                    site.worker(stop_on_empty=True).run() if clock.slept else None
                else:
                    raise answer
            return self.inner.list(prefix)

    open_with(monkeypatch, store=Flaky)

    # when
    report = adr.wait(site.runner)

    # then it was said once, and it went on
    assert report.state is WaitState.SUCCEEDED
    said = [record.getMessage() for record in caplog.records if record.name == "adr.waiting"]
    assert said == ["1 job waits and no worker runs", "S3 is away; asking again until it answers"]


def test_a_first_look_that_fails_is_an_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(Through):
        def list(self, prefix: str) -> Any:
            raise Unavailable("S3 is away")

    open_with(monkeypatch, store=Away)

    with pytest.raises(Unavailable, match="S3 is away"):
        adr.wait(site.runner)


def test_what_holds_jobs_up_is_said_when_it_begins(
    site: Site, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # given a runner that is paused, goes on without a worker, and is paused again
    site.queue("true", 3)
    adr.pause(site.runner)
    steps = iter([adr.resume, None, lambda runner: site.queue("true"), adr.pause, None])

    def step() -> None:
        if action := next(steps, None):
            action(site.runner)

    clock.meanwhile = step

    # when
    adr.wait(site.runner, timeout=5)

    # then each was said when it began, and not again because a number was another
    said = [record.getMessage() for record in caplog.records if record.name == "adr.waiting"]
    paused = "the runner is paused, and nothing begins: adr resume"
    assert said == [paused, "3 jobs wait and no worker runs", paused]


def test_it_ends_when_nothing_is_left_but_lost_jobs(
    site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a job that is done, and two of which the queue knows nothing any more
    site.queue("true")
    site.worker(stop_on_empty=True).run()
    site.queue("true", 2)
    with sqlite3.connect(Path(site.runner, "ledger.db")) as db:
        db.execute("DELETE FROM jobs")
    db.close()
    monkeypatch.setattr(survey.Survey.__init__, "__defaults__", (0,))

    # when
    report = adr.wait(site.runner)

    # then
    assert report.state is WaitState.LOST
    assert (report.totals.succeeded, report.totals.lost) == (1, 2)


def test_batches_that_were_destroyed_do_not_count(site: Site, clock: Clock) -> None:
    gone, kept = site.queue("true", 2), site.queue("true", 3)
    adr.destroy(site.runner, batch=gone)

    assert adr.wait(site.runner, timeout=1).totals.jobs == 3
    assert adr.wait(site.runner, batch=gone).totals.cancelled == 2
    adr.cancel(site.runner, batch=kept)
    assert adr.wait(site.runner).state is WaitState.FAILED


class Steps:
    """A progress that notes where it was."""

    def __init__(self) -> None:
        self.at: list[tuple[int, int]] = []
        self._done = self._total = 0

    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self._done, self._total = done, total
        self.at.append((done, total))

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        self.at.append((self._done, self._total))

    def note(self, **counts: int) -> None:
        self.notes = counts

    def finish(self) -> None:
        self.at.append((-1, -1))


def test_progress_follows_jobs_that_are_queued_meanwhile(site: Site, clock: Clock) -> None:
    # given two jobs that are done, and three that wait
    site.queue("true", 2)
    site.worker(stop_on_empty=True).run()
    site.queue("true; exit 3", 3)
    steps = iter([lambda: site.queue("true"), site.worker(stop_on_empty=True).run])
    clock.meanwhile = lambda: next(steps)()

    # when
    progress = Steps()
    report = adr.wait(site.runner, progress=progress)

    # then
    assert report.state is WaitState.FAILED
    assert progress.at == [(2, 5), (2, 6), (6, 6), (-1, -1)]
    assert progress.notes == {"done": 3, "failed": 3, "running": 0}


def test_a_job_that_is_called_off_is_decided_only_as_it_was_meant(site: Site) -> None:
    # given two jobs, of which one is called off
    batch = site.queue("true", 2)
    (first, second) = (view.job for view in site.survey.status(batch).jobs)
    adr.cancel(site.runner, [f"{batch}/{first.label}"])

    def state(job: Job) -> str:
        views = site.survey.status(batch).jobs
        return next(str(view.state) for view in views if view.job.index == job.index)

    # then
    assert [state(first), state(second)] == ["cancelled", "queued"]
    assert not site.survey.is_decided()
    # and who counts what waits counts it not, though its message is there
    assert demand(open_runner(site.runner)).waiting == 1
    assert adr.pause(site.runner).waiting == 1
    assert adr.resume(site.runner).waiting == 1
    adr.cancel(site.runner, [str(second.index)])
    assert site.survey.is_decided()
    assert adr.cancel(site.runner, everything=True).decided == 2


def test_a_number_names_a_job_only_where_no_job_is_called_so(site: Site) -> None:
    # given jobs that are called by other numbers than they have
    views = [
        JobView(Job("b", index, 3, label, "true"), JobState.QUEUED, None)
        for index, label in ((1, "0"), (2, "1"), (3, "2"))
    ]

    def chosen(*names: str) -> list[str]:
        return [view.job.label for view in choose_jobs(views, names)]

    # then
    assert chosen("1") == ["1"]
    assert chosen("3") == ["2"]
    assert chosen("2", "b/0") == ["0", "2"]
    assert chosen() == ["0", "1", "2"]


def test_who_waits_does_so_until_workers_have_ended_what_was_called_off(
    site: Site, clock: Clock
) -> None:
    # given a job that is called off, while a worker says that it runs it
    batch = site.queue("true", 1)
    (job,) = (view.job for view in site.survey.status(batch).jobs)
    roster = open_runner(site.runner, worker="ab").roster
    slot = SlotInfo(*job.id, "attempt", time.time())
    info = WorkerInfo("ab", "here", 1, 1, time.time(), "0", running=(slot,))
    roster.hold("ab")
    roster.beat(info)
    adr.cancel(site.runner, everything=True)
    assert site.survey.status().ending == 1
    assert adr.wait(site.runner, timeout=5).state is WaitState.FAILED
    assert sum(clock.slept) >= 5
    # when it has ended it
    clock.slept.clear()
    clock.meanwhile = lambda: roster.beat(replace(info, running=()))
    assert adr.wait(site.runner).totals.cancelled == 1
    assert len(clock.slept) == 1
    roster.leave(info)


def test_what_is_called_off_does_not_count_as_having_waited(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two jobs of which one was called off twelve days ago, and the other is retried today
    batch = site.queue("true", 2)
    first, second = (view.job for view in site.survey.status(batch).jobs)
    adr.cancel(site.runner, [first.name, second.name])
    later = SimpleNamespace(time=lambda: time.time() + 12 * 24 * 3600, monotonic=time.monotonic)
    monkeypatch.setattr(sending, "time", later)
    monkeypatch.setattr(survey, "time", later)
    looking = survey.Survey(replace(open_runner(site.runner), retention_s=14 * 24 * 3600))
    adr.retry(site.runner, [second.name])
    # then nothing has waited for long
    assert not [note for note in looking.status().notes if "days" in note]
    # but where it was queued then
    adr.cancel(site.runner, everything=True)
    monkeypatch.setattr(sending, "time", time)
    adr.retry(site.runner, [second.name])
    assert [note for note in looking.status().notes if "waited for 12 days" in note]
