"""What a worker stores for those who follow its jobs, and what they make of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import adr
from adr import following
from adr.errors import Denied
from adr.keys import FOLLOWED, FOLLOWS, followed_key, followed_prefix
from adr.models import Job, JobRecord, JobState, Lease, Outcome
from adr.orders import Follow, order_cancelling, order_following
from adr.runner import open_runner
from adr.stores.directory import DirectoryStore
from adr.survey import Survey
from adr.views import JobView
from adr.worker.following import Following
from tests.proxy import Proxy
from tests.unit.workers import queue_jobs

MIB = 1 << 20
LIMIT = 14 * MIB


class Noting(DirectoryStore):
    """A store that notes what is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.written: list[str] = []

    def write(self, key: str, body: bytes, **options: Any) -> str:
        self.written.append(key)
        return super().write(key, body, **options)


class Desk:
    """A worker that runs job 1, as far as following it goes, and an order to follow it."""

    def __init__(self, folder: Path) -> None:
        self.store = Noting(folder)
        self.store.create()
        self.log = folder / "log"
        self.log.touch()
        #: What the worker says at each look that it runs, the last time again and again.
        self.running = [[(_lease(1), self.log)]]
        self.now = 1000.0
        self.following = Following(self.store, self._logs, LIMIT, 0.01, lambda: self.now)

    def _logs(self) -> list[tuple[Lease, Path]]:
        return self.running.pop(0) if len(self.running) > 1 else self.running[0]

    def end(self) -> None:
        """Let the job end."""
        self.running = [[]]

    def order(self, etag: str = "1", index: int = 1, order: str = "a1") -> Follow:
        return Follow("b", index, order, etag)

    def say(self, text: bytes) -> None:
        with self.log.open("ab") as file:
            file.write(text)

    def is_open(self) -> bool:
        """Tell whether this process has the log open."""
        found = False
        for each in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                found = found or each.readlink() == self.log
        return found

    def stored(self, order: str = "a1") -> dict[str, bytes]:
        """Return what is stored for an order, by its name."""
        prefix = followed_prefix("b", 1, order)
        keys = [each.key for each in self.store.list(prefix)]
        return {key.removeprefix(prefix): self.store.read(key).body for key in keys}

    def heard(self, order: str = "a1") -> bytes:
        """Return what is stored for an order, put together; offsets have to fit."""
        heard = b""
        for name, body in self.stored(order).items():
            assert name.endswith(".end") or name == f"cafe-{len(heard):012d}"
            heard += body
        return heard


def _lease(index: int) -> Lease:
    return Lease(Job("b", index, 2, str(index), "true"), "cafe", "", 0.0, 0.0)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.following.close(gone=True)


def test_an_order_counts_as_long_as_it_changes(desk: Desk, wait_for: Callable[..., Any]) -> None:
    # given a fresh order
    desk.say(b"one")
    desk.following.heed([desk.order()])
    wait_for(lambda: desk.heard() == b"one")
    # when it has not changed for almost a minute, it still counts
    desk.now += 59
    desk.following.heed([desk.order()])
    desk.say(b"two")
    wait_for(lambda: desk.heard() == b"onetwo")
    # and a little later it does not
    desk.now += 2
    desk.following.heed([desk.order()])
    desk.say(b"three")
    desk.following.heed([desk.order(), desk.order(order="b2")])
    wait_for(lambda: desk.heard("b2") == b"onetwothree")
    assert desk.heard() == b"onetwo"
    # and who comes back gets what is missing, and no more
    desk.following.heed([desk.order("2")])
    wait_for(lambda: desk.heard() == b"onetwothree")
    assert list(desk.stored()) == [f"cafe-{offset:012d}" for offset in (0, 3, 6)]


def test_an_order_that_concerns_nobody_here_costs_nothing(
    desk: Desk, wait_for: Callable[..., Any]
) -> None:
    desk.say(b"one")
    # given an order to follow a job that others run
    desk.following.heed([desk.order(index=2, order="c3")])
    # and one to follow a job that runs here, and says nothing more
    desk.following.heed([desk.order(index=2, order="c3"), desk.order()])
    wait_for(desk.heard)
    # when that one goes
    desk.following.heed([desk.order(index=2, order="c3")])
    desk.say(b"two")
    desk.following.heed([desk.order(index=2, order="c3"), desk.order(order="b2")])
    wait_for(lambda: desk.heard("b2") == b"onetwo")
    # then each that was asked for was stored once
    assert len(desk.store.written) == 2
    assert not any("/000002/" in key for key in desk.store.written)
    # and without any order there is no thread
    desk.following.heed([])
    wait_for(lambda: not _threads())


def _threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "follow"]


def test_the_end_is_told_whatever_becomes_of_the_file(
    desk: Desk, wait_for: Callable[..., Any]
) -> None:
    # given a job that is followed
    desk.say(b"one")
    desk.following.heed([desk.order()])
    wait_for(desk.heard)
    # when it ends, and its log is removed at once
    rest = os.urandom(3 * MIB)
    desk.say(rest)
    desk.log.unlink()
    desk.end()
    wait_for(lambda: any(name.endswith(".end") for name in desk.stored()))
    # then all of it is there, and told how much it is
    *parts, end = desk.stored().items()
    assert b"".join(body for _, body in parts) == b"one" + rest
    assert all(len(body) <= MIB for _, body in parts)
    assert end == (f"cafe-{3 + 3 * MIB:012d}.end", b"")


def test_a_log_that_is_replaced_before_the_job_begins_is_not_taken_for_its_own(
    desk: Desk, wait_for: Callable[..., Any]
) -> None:
    # given what the last job has left, which is open to be followed when the launcher comes
    desk.following.heed([desk.order()])
    wait_for(desk.is_open)
    # when that makes another one, since this one is in use
    desk.log.unlink()
    desk.say(b"one")
    # then what the job writes is heard
    wait_for(lambda: desk.heard() == b"one")
    desk.end()
    wait_for(lambda: list(desk.stored()) == [f"cafe-{0:012d}", f"cafe-{3:012d}.end"])


def test_of_a_job_that_ends_before_its_log_is_found_the_record_tells_all(
    desk: Desk, wait_for: Callable[..., Any]
) -> None:
    # given what the last job has left, which is open
    desk.following.heed([desk.order()])
    wait_for(desk.is_open)
    # when it is replaced, and the job has ended at once
    desk.log.unlink()
    desk.end()
    desk.following.close()
    # then nobody is told that there was no output
    assert desk.stored() == {}


def test_of_a_flood_that_was_not_kept_up_with_the_record_has_the_rest(
    desk: Desk, wait_for: Callable[..., Any]
) -> None:
    # given a job that has written more than allowed, and ends after a look at it
    desk.say(bytes(LIMIT + 9))
    desk.running = [desk.running[0], desk.running[0], []]
    # when it is followed
    desk.following.heed([desk.order()])
    wait_for(lambda: any(name.endswith(".end") for name in desk.stored()))
    # then a bounded part of it is stored, and told how long it will be
    assert len(desk.heard()) == 12 * MIB
    assert list(desk.stored())[-1] == f"cafe-{LIMIT:012d}.end"


def test_a_worker_that_ends_stores_the_rest(desk: Desk, wait_for: Callable[..., Any]) -> None:
    desk.following.heed([desk.order()])
    desk.say(b"one")
    wait_for(desk.heard)
    # when
    desk.say(b"two")
    desk.end()
    desk.following.close()
    # then
    assert list(desk.stored())[-1] == "cafe-000000000006.end"
    # and nothing more comes, whatever is ordered
    desk.following.heed([desk.order("2", order="b2")])
    assert not desk.stored("b2")


def test_a_runner_that_is_gone_gets_nothing_more(desk: Desk, wait_for: Callable[..., Any]) -> None:
    desk.following.heed([desk.order()])
    desk.say(b"one")
    wait_for(desk.heard)
    desk.following.close(gone=True)
    desk.say(b"two")
    desk.end()
    wait_for(lambda: not _threads())
    assert desk.heard() == b"one"


# Who follows


class Hall:
    """A local runner with a job that is leased, and somebody who follows it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        made = adr.create(local=True, directory=str(folder / "runner"))
        queue_jobs(made, folder / "inputs", "true", 1)
        self.runner = open_runner(made, worker="worker")
        [self.lease] = self.runner.ledger.receive(1, 1)
        self.job = self.lease.job
        self.store = self.runner.store
        self.told: list[str] = []
        self.output = following.follow(self.runner, Survey(self.runner), self.job, self.told.append)
        self._patch = patch

    def between_looks(self, *steps: Callable[[], None]) -> None:
        """Let these happen while whoever follows sleeps, one after the other."""
        left = chain(steps, repeat(partial(time.sleep, 0.05)))
        clocks = SimpleNamespace(sleep=lambda _: next(left)(), monotonic=time.monotonic)
        self._patch.setattr(following, "time", clocks)

    def put(self, offset: int, body: bytes, end: bool = False) -> None:
        """Store a part as the worker of the job does."""
        [order] = self.store.list(FOLLOWS)
        prefix = FOLLOWED + order.key.removeprefix(FOLLOWS) + "/"
        self.store.write(followed_key(prefix, self.lease.attempt, offset, end=end), body)

    def settle(self, lease: Lease, state: JobState, **about: Any) -> None:
        """Record what became of a job."""
        record = JobRecord.of(lease.job, lease.attempt, state, **about)
        self.runner.ledger.settle([Outcome(lease, record)])

    def left(self) -> list[str]:
        return [each.key for top in (FOLLOWS, FOLLOWED) for each in self.store.list(top)]


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hall:
    return Hall(tmp_path, monkeypatch)


def test_what_overlaps_is_heard_once_and_what_is_missing_comes_from_the_record(hall: Hall) -> None:
    # given parts, of which one is missing
    def parts() -> None:
        for offset, body in ((0, b"abc"), (3, b"def"), (9, b"jkl")):
            hall.put(offset, body)

    # and a worker that has forgotten the order, and begins at the front
    def again() -> None:
        hall.put(0, b"abcdefgh")

    # and the end
    def end() -> None:
        hall.put(16, b"", end=True)
        hall.store.write("_logs/whole", b"abcdefghijklmnop")
        hall.settle(hall.lease, JobState.FAILED, reason="exit code 3", log="_logs/whole")

    hall.between_looks(parts, again, end)
    # when
    heard = list(hall.output)
    # then
    assert heard == [b"abc", b"def", b"gh", b"ijklmnop"]
    assert hall.told == [f"{hall.job.name} has failed: exit code 3"]
    # and who comes later is told the same, if that is to be followed
    for follow in (True, False):
        told: list[str] = []
        found = adr.logs(hall.runner.id, hall.job.name, follow=follow, tell=told.append)
        assert b"".join(found) == b"".join(heard)
        assert told == (hall.told if follow else [])
    assert hall.left() == []


def test_a_job_that_was_queued_again_meanwhile_is_heard_to_its_end(hall: Hall) -> None:
    # given a job that fails and is queued again before anybody has looked at its record
    def fail() -> None:
        hall.put(0, b"abc")
        hall.put(4, b"", end=True)
        hall.settle(hall.lease, JobState.FAILED, tail="abcd")
        adr.retry(hall.runner.id)

    hall.between_looks(fail)
    # when
    heard = b"".join(hall.output)
    # then
    assert heard == b"abcd"
    first, _ = hall.told
    assert first == f"{hall.job.name} has been queued again: adr logs -f follows its next run"


def test_the_next_run_of_a_job_that_will_have_no_record_is_followed_as_well(hall: Hall) -> None:
    # given a job that is cancelled and queued again at once
    def again() -> None:
        hall.put(0, b"abc")
        hall.put(3, b"", end=True)
        order_cancelling(hall.store, [hall.job])
        adr.retry(hall.runner.id, cancelled=True)

    # and run once more
    def settle() -> None:
        [lease] = hall.runner.ledger.receive(1, 1)
        hall.settle(lease, JobState.SUCCEEDED, tail="once more")

    hall.between_looks(again, settle)
    # when
    heard = list(hall.output)
    # then
    assert heard == [b"abc", b"once more"]
    first, second = hall.told
    assert first == f"{hall.job.name} has been queued again: its next run is followed as well"
    assert "is repeated: attempt" in second


def test_why_a_job_has_no_output_is_said_only_where_none_is_to_come() -> None:
    job = Job("b", 1, 1, "case", "true")
    record = JobRecord.of(job, "cafe", JobState.CANCELLED, "cancelled")

    def why(state: JobState, *, recorded: bool = False, runs: bool = False) -> str:
        return following.why_silent(JobView(job, state, record if recorded else None), runs=runs)

    assert why(JobState.LOST, runs=True) == "b/case is lost: adr retry --lost queues it again"
    never = "b/case was cancelled before it ran: it has no output"
    assert why(JobState.CANCELLED) == never
    assert why(JobState.CANCELLED, runs=True) == ""
    kept = "b/case was cancelled: no output of it is kept"
    assert {why(JobState.CANCELLED, recorded=True, runs=runs) for runs in (True, False)} == {kept}
    others = set(JobState) - {JobState.LOST, JobState.CANCELLED}
    assert {why(state, recorded=recorded) for state in others for recorded in (True, False)} == {""}


def test_what_killed_readers_have_left_is_swept_and_nothing_of_others(
    hall: Hall, tmp_path: Path
) -> None:
    # given orders and parts, and parts without orders, some of them old
    for order in ("aa01", "aa02"):
        order_following(hall.store, hall.job, order)
    for order in ("aa01", "aa02", "aa03", "aa04"):
        prefix = followed_prefix(hall.job.batch, 1, order)
        hall.store.write(followed_key(prefix, "cafe", 0), b"part")
    for path in (tmp_path / "runner" / "objects").rglob("*"):
        if path.is_file() and ("aa01" in str(path) or "aa03" in str(path)):
            os.utime(path, (0, time.time() - 601))

    # when somebody follows a job, and is interrupted
    def interrupt() -> None:
        raise KeyboardInterrupt

    hall.between_looks(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(hall.output)
    # then
    assert {order for key in hall.left() for order in key.split("/") if order[:2] == "aa"} == {
        "aa02",
        "aa04",
    }
    assert len(hall.left()) == 3


def test_who_may_only_read_is_told_so(proxy: Proxy, tmp_path: Path) -> None:
    runner = adr.create()
    queue_jobs(runner, tmp_path / "inputs", "true", 1)
    proxy.fail("s3.PutObject", 403, "AccessDenied", key="^_control/")

    with pytest.raises(Denied) as raised:
        list(adr.logs(runner, "1", follow=True))

    said = str(raised.value)
    assert "/case-1 can be followed only by who may write orders: cannot write _control/" in said
    assert "AWS denies PutObject to these credentials" in said
