"""Who lives: by the lock of a process, or by the age of a heartbeat."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from adr.aws import Connection
from adr.keys import heartbeat_key
from adr.models import new_id
from adr.roster import Roster, WorkerLocks
from adr.stores.base import Document, ObjectInfo, ObjectStore
from adr.stores.directory import DirectoryStore
from adr.stores.s3 import S3Store
from adr.workerinfo import SlotInfo, WorkerInfo
from tests.proxy import Proxy

HOLDER = """
import sys, time
from pathlib import Path
from adr.roster import WorkerLocks
locks = WorkerLocks(Path(sys.argv[1]))
locks.hold(sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


class Counting(DirectoryStore):
    """A store that notes what is read, and how many objects are listed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read_keys: list[str] = []
        self.listed = 0

    def list(self, prefix: str, *, flat: bool = False) -> Iterator[ObjectInfo]:
        for entry in super().list(prefix, flat=flat):
            self.listed += 1
            yield entry

    def read(self, key: str) -> Document:
        self.read_keys.append(key)
        return super().read(key)


@contextmanager
def process_that_holds(directory: Path, worker: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(directory), worker]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def info(worker: str = "w", started_at: float = 1.0, host: str = "host") -> WorkerInfo:
    slot = SlotInfo("b", 1, 0, "a", 2.5)
    return WorkerInfo(worker, host, 7, 2, started_at, "1.0", 3, (slot,))


class TestLocks:
    def test_a_worker_lives_while_it_holds_its_lock(self, tmp_path: Path) -> None:
        mine, others = WorkerLocks(tmp_path), WorkerLocks(tmp_path)

        mine.hold("w")
        mine.hold("w")

        assert mine.is_held("w")
        assert others.is_held("w")
        mine.drop("w")
        mine.drop("w")
        assert not mine.is_held("w")
        assert not others.is_held("w")
        assert list(tmp_path.iterdir()) == []

    def test_a_worker_nobody_has_heard_of_is_dead(self, tmp_path: Path) -> None:
        locks = WorkerLocks(tmp_path)

        assert not locks.is_held("nobody")
        with locks.if_dead("nobody") as dead:
            assert dead

    def test_asking_does_not_disturb(self, tmp_path: Path) -> None:
        mine, others = WorkerLocks(tmp_path), WorkerLocks(tmp_path)
        mine.hold("w")

        for locks in (mine, others):
            with locks.if_dead("w") as dead:
                assert not dead

        assert others.is_held("w")

    def test_a_killed_process_holds_nothing(
        self, tmp_path: Path, wait_for: Callable[..., bool]
    ) -> None:
        locks = WorkerLocks(tmp_path)
        with process_that_holds(tmp_path, "w") as process:
            assert locks.is_held("w")
            with locks.if_dead("w") as dead:
                assert not dead

            process.send_signal(signal.SIGKILL)
            process.wait()

            with locks.if_dead("w") as dead:
                assert dead
        assert list(tmp_path.iterdir()) == []

    def test_only_one_deals_with_the_dead_at_a_time(self, tmp_path: Path) -> None:
        with process_that_holds(tmp_path, "w") as process:
            process.kill()
        one, two = WorkerLocks(tmp_path), WorkerLocks(tmp_path)

        with one.if_dead("w") as mine, two.if_dead("w") as theirs:
            assert (mine, theirs) == (True, False)

        with two.if_dead("w") as dead:
            assert dead

    def test_a_child_does_not_inherit_a_lock(self, tmp_path: Path) -> None:
        mine, others = WorkerLocks(tmp_path), WorkerLocks(tmp_path)
        mine.hold("w")
        command = [sys.executable, "-c", "print('up', flush=True); input()"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
        ) as child:
            assert child.stdout
            child.stdout.readline()

            mine.drop("w")

            assert not others.is_held("w")
            child.kill()

    def test_threads_may_take_it_at_once(self, tmp_path: Path) -> None:
        together = threading.Barrier(8)

        def hold(locks: WorkerLocks) -> None:
            together.wait(10)
            locks.hold("w")

        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                locks = WorkerLocks(tmp_path)
                for future in [pool.submit(hold, locks) for _ in range(8)]:
                    future.result()
                locks.drop("w")


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    made: ObjectStore
    if request.param == "directory":
        made = DirectoryStore(tmp_path / "store")
    else:
        request.getfixturevalue("aws_env")
        made = S3Store(Connection(str(uuid.uuid4())))
    made.create()
    return made


class TestHeartbeats:
    def test_a_heartbeat_is_read_as_it_was_written(self, store: ObjectStore) -> None:
        roster = Roster(store)

        roster.beat(info())

        assert roster.alive() == [info()]
        assert roster.is_alive("w")

    def test_one_who_leaves_is_dead(self, store: ObjectStore) -> None:
        roster = Roster(store)
        roster.beat(info())

        roster.leave(info())
        roster.leave(info())

        assert not roster.is_alive("w")
        assert roster.alive() == []
        assert not Roster(store).is_alive("w")

    def test_one_who_never_came_is_dead(self, store: ObjectStore) -> None:
        assert not Roster(store).is_alive("w")
        assert Roster(store).alive() == []

    def test_one_whose_heart_has_stopped_is_dead_until_it_beats_again(
        self, store: ObjectStore, wait_for: Callable[..., bool]
    ) -> None:
        roster, strict = Roster(store), Roster(store, dead_after_s=1)
        roster.beat(info())
        wait_for(lambda: not strict.is_alive("w"))

        assert strict.alive() == []
        assert roster.alive() == [info()]

        roster.beat(info())
        assert strict.is_alive("w")

    def test_workers_come_in_the_order_of_their_start(self, store: ObjectStore) -> None:
        roster = Roster(store)
        for worker, started_at in (("a", 3.0), ("b", 1.0), ("d", 2.0), ("c", 2.0)):
            roster.beat(info(worker, started_at))

        assert [each.worker for each in roster.alive()] == ["b", "c", "d", "a"]

    def test_workers_that_died_long_ago_are_forgotten_when_another_starts(
        self, store: ObjectStore
    ) -> None:
        for worker in ("a", "b"):
            Roster(store).beat(info(worker))
        assert len(Roster(store).alive()) == 2, "those that died lately are not"
        roster = Roster(store, dead_after_s=0, forget_after_s=0)

        roster.beat(info("c"))
        roster.sweep("c")

        keys = [entry.key for entry in store.list("_workers/live/")]
        assert keys == ["_workers/live/c.json"]

    def test_those_who_have_left_are_cleared_away_when_another_starts(
        self, store: ObjectStore
    ) -> None:
        for worker in ("a", "b"):
            Roster(store).beat(info(worker))
        Roster(store).leave(info("a"))

        Roster(store).beat(info("c"))
        Roster(store, dead_after_s=0).sweep("c")

        keys = [entry.key for entry in store.list("_workers/live/")]
        assert keys == ["_workers/live/b.json", "_workers/live/c.json"]
        Roster(store).leave(info("b"))
        Roster(store, dead_after_s=0).sweep()
        assert [entry.key for entry in store.list("_workers/live/")] == keys[1:]

    def test_one_who_leaves_says_why(self, store: ObjectStore) -> None:
        Roster(store).beat(info())

        Roster(store).leave(replace(info(), note="interrupted"))

        heartbeat = json.loads(store.read(heartbeat_key("w")).body)
        assert (heartbeat["left"], heartbeat["note"]) == (True, "interrupted")
        assert heartbeat["running"] == []

    def test_of_a_runner_that_is_gone_nothing_is_left(self, store: ObjectStore) -> None:
        roster = Roster(store)
        roster.beat(info())

        roster.forget("w")
        roster.forget("w")

        assert list(store.list("_workers/live/")) == []

    def test_one_who_may_not_clear_away_is_not_troubled(
        self, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given a worker that may not delete, as those on instances, and something to clear away
        store = S3Store(Connection(str(uuid.uuid4())))
        store.create()
        Roster(store).beat(info("a"))
        Roster(store).leave(info("a"))
        denied = proxy.fail("s3.DeleteObjects", 403, "AccessDenied")

        # when it starts and leaves
        Roster(store).beat(info())
        Roster(store, dead_after_s=0).sweep("w")
        assert Roster(store).is_alive("w")
        Roster(store).leave(info())

        # then it does, without a word
        assert not Roster(store).is_alive("w")
        assert denied.hits == 1
        assert caplog.text == ""

    def test_of_many_that_start_together_few_look_at_others(self, tmp_path: Path) -> None:
        # given a hundred and fifty that were heard of lately, and as many that were not
        store = Counting(tmp_path / "store")
        store.create()
        for number in range(300):
            key = heartbeat_key(f"{number:03}")
            store.write(key, json.dumps(info(f"{number:03}").to_dict()).encode())
            if number % 2:
                os.utime(tmp_path / "store" / "objects" / key, (1.0, 1.0))

        # when as many start
        for number in range(100):
            Roster(store, forget_after_s=math.inf).sweep(f"{number:03}")

        # then about one of three has looked, at a hundred of the silent ones
        assert {int(key[-6:-5]) % 2 for key in store.read_keys} == {1}
        assert len(store.read_keys) % 100 == 0
        assert 1_000 < len(store.read_keys) < 6_000

    def test_of_very_many_only_a_part_is_listed(self, tmp_path: Path) -> None:
        # given more than one listing tells of, of whom one part has left
        store = Counting(tmp_path / "store")
        store.create()
        for number in range(1100):
            left = number % 2 == 0
            told = {**replace(info(new_id()), running=()).to_dict(), "left": left}
            store.write(heartbeat_key(told["worker"]), json.dumps(told).encode())
        roster = Roster(store)

        # when another starts, then it knows about how many there are
        assert 500 < sum(roster.about() for _ in range(10)) / 10 < 1700
        assert store.listed < 10 * 1050

        # and clears away after no more
        store.listed = 0
        roster.sweep("w")
        assert store.listed < 1050

        # and who asks for a few idle ones need not list all
        store.listed = 0
        number, idle = roster.idle()
        assert (number, store.listed) == (1000, 1000)
        assert len(list(itertools.islice(idle, 20))) == 20
        assert store.listed == 1000
        assert len({*idle}) == 550 - 20

    def test_of_very_many_dead_ones_none_is_counted(self, tmp_path: Path) -> None:
        # given very many that died long ago, not all at once, and one that lives
        store = Counting(tmp_path / "store")
        store.create()
        for number in range(1100):
            key = heartbeat_key(f"{number % 256:02x}{number:04}")
            store.write(key, b"{}")
            os.utime(tmp_path / "store" / "objects" / key, (1.0 + number, 1.0 + number))
        Roster(store).beat(info("00ff"))

        # then each share of them has at most that one
        counts = {Roster(store).about() for _ in range(20)}
        assert 0 in counts
        assert counts <= {0, 256}

    def test_idle_ones_are_read_only_as_far_as_they_are_asked_for(self, tmp_path: Path) -> None:
        # given workers of which every second one runs something, and one that was silent for long
        store = Counting(tmp_path / "store")
        store.create()
        for number in range(100):
            idle = replace(info(f"{number:03}"), running=())
            Roster(store).beat(idle if number % 2 else info(f"{number:03}"))
        os.utime(tmp_path / "store" / "objects" / heartbeat_key("001"), (1.0, 1.0))
        store.read_keys.clear()

        # when
        number, idle_ones = Roster(store).idle()
        first = list(itertools.islice(idle_ones, 3))

        # then
        assert (number, first) == (99, ["003", "005", "007"])
        assert len(store.read_keys) == 16
        assert len(list(idle_ones)) == 46

    def test_many_are_read_side_by_side(self, tmp_path: Path) -> None:
        together = threading.Barrier(5)

        class Slow(DirectoryStore):
            def read(self, key: str) -> Document:
                together.wait(10)
                return super().read(key)

        plain, slow = DirectoryStore(tmp_path / "store"), Slow(tmp_path / "store")
        plain.create()
        for worker in "abcde":
            plain.write(heartbeat_key(worker), json.dumps(info(worker).to_dict()).encode())

        assert len(Roster(slow).alive()) == 5


class TestLocalWorkers:
    def test_locks_and_heartbeats_of_the_dead_are_removed_together(self, tmp_path: Path) -> None:
        store = DirectoryStore(tmp_path / "store")
        store.create()
        places = tmp_path / "locks"
        places.mkdir()
        mine, others = WorkerLocks(places), WorkerLocks(places)
        others.hold("alive")
        for worker in ("dead", "without-heartbeat"):
            (places / f"{worker}.lock").touch()
        for worker in ("alive", "dead"):
            Roster(store, others).beat(info(worker))
        assert len(list(places.iterdir())) == 3, "those that died lately are not"

        Roster(store, mine).beat(info("new"))
        Roster(store, mine, forget_after_s=0).sweep("new")

        assert [path.name for path in places.iterdir()] == ["alive.lock"]
        keys = [entry.key for entry in store.list("_workers/live/")]
        assert keys == ["_workers/live/alive.json", "_workers/live/new.json"]

    def test_the_lock_decides_and_not_the_heartbeat(self, tmp_path: Path) -> None:
        store = DirectoryStore(tmp_path / "store")
        store.create()
        mine, others = WorkerLocks(tmp_path), WorkerLocks(tmp_path)
        roster = Roster(store, others, dead_after_s=0)
        mine.hold("w")
        for worker in ("w", "dead"):
            roster.beat(info(worker, time.time()))

        assert [each.worker for each in roster.alive()] == ["w"]
        assert (roster.is_alive("w"), roster.is_alive("dead")) == (True, False)

    def test_one_who_leaves_lets_go_of_its_lock(self, tmp_path: Path) -> None:
        store = DirectoryStore(tmp_path / "store")
        store.create()
        mine = WorkerLocks(tmp_path)
        mine.hold("w")

        Roster(store, mine).leave(info())

        assert not WorkerLocks(tmp_path).is_held("w")
        assert Roster(store, WorkerLocks(tmp_path)).alive() == []
