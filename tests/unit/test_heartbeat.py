"""A worker that cannot tell that it lives hears all the same what it is to do."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from adr.errors import Unavailable
from adr.orders import Orders, order_pause
from adr.runner import create_runner
from adr.worker import heartbeat
from adr.worker.heartbeat import Heartbeat
from adr.workerinfo import WorkerInfo
from tests.unit.workers import Through


class Broken(Through):
    """A roster of which nothing can be cleared away."""

    def sweep(self, worker: str) -> None:
        raise PermissionError(f"{worker} is not to look at locks")


class Refusing(Through):
    """A roster that takes one heartbeat and no more."""

    beats = 0

    def beat(self, info: WorkerInfo) -> None:
        self.beats += 1
        if self.beats > 1:
            raise Unavailable("the bucket is read-only today")
        self.inner.beat(info)


def test_orders_are_read_while_no_heartbeat_can_be_written(
    tmp_path: Path, monkeypatch: Any
) -> None:
    # given a worker whose heartbeats fail after the first
    monkeypatch.setattr(heartbeat, "_AFTER_TROUBLE_S", 0.05)
    monkeypatch.setattr(heartbeat, "_TICK_S", 0.01)
    made = create_runner(local=True, directory=tmp_path / "runner")
    roster = Refusing(made.roster)
    runner = replace(made, roster=roster, orders_s=0.01, heartbeat_s=(0.01, 0.01))
    order_pause(made.store)
    info = WorkerInfo("ab", "here", 1, 1, 0.0, "0")
    heard, over = threading.Event(), threading.Event()

    def obey(orders: Orders) -> None:
        # Only after one has failed.
        if orders.paused and roster.beats > 1:
            heard.set()

    beating = Heartbeat(runner, lambda: info, obey, lambda error: None)
    beating.begin()
    # then it is known to live, though it has leased nothing
    assert [each.worker for each in made.roster.alive()] == ["ab"]
    # when another one has left before
    made.roster.leave(WorkerInfo("cd", "there", 1, 1, 0.0, "0"))
    thread = threading.Thread(target=beating.go_on, args=(over,))
    thread.start()
    # then
    try:
        assert heard.wait(20)
        assert not beating.is_heard
        # and what that one has left is cleared away
        assert made.roster.heard_of() == {"here"}
    finally:
        over.set()
        thread.join()


def test_orders_are_read_where_nothing_can_be_cleared_away(
    tmp_path: Path, monkeypatch: Any
) -> None:
    # given a roster that fails in an unforeseen way when others are to be cleared away
    monkeypatch.setattr(heartbeat, "_TICK_S", 0.01)
    made = create_runner(local=True, directory=tmp_path / "runner")
    runner = replace(made, roster=Broken(made.roster), orders_s=0.01)
    heard, over = threading.Event(), threading.Event()
    info = WorkerInfo("ab", "here", 1, 1, 0.0, "0")
    beating = Heartbeat(runner, lambda: info, lambda orders: heard.set(), lambda error: None)
    beating.begin()
    # when
    thread = threading.Thread(target=beating.go_on, args=(over,))
    thread.start()
    # then
    try:
        assert heard.wait(20)
    finally:
        over.set()
        thread.join()
