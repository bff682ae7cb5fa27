"""A worker that cannot tell that it lives hears all the same what it is to do."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adr.errors import Unavailable
from adr.orders import Orders, order_pause
from adr.runner import create_runner
from adr.worker import heartbeat
from adr.worker.heartbeat import Heartbeat
from adr.workerinfo import WorkerInfo
from tests.unit.workers import Through


class Counting(Through):
    """A roster that counts heartbeats."""

    beats = 0

    def beat(self, info: WorkerInfo) -> None:
        self.beats += 1
        self.inner.beat(info)


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

    beating = Heartbeat(runner, lambda: info, obey, lambda: None)
    beating.begin()
    # then it is known to live, though it has leased nothing
    assert [each.worker for each in made.roster.alive()] == ["ab"]
    # when
    thread = threading.Thread(target=beating.go_on, args=(over,))
    thread.start()
    # then
    try:
        assert heard.wait(20)
        assert not beating.is_heard
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(("others", "beats"), [(1, 2), (10**9, 1)])
def test_what_one_of_many_does_is_not_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int, beats: int
) -> None:
    # given a worker of a fleet
    monkeypatch.setattr(heartbeat, "_TICK_S", 0.01)
    made = create_runner(local=True, directory=tmp_path / "runner")
    roster = Counting(made.roster)
    runner = replace(made, roster=roster, orders_s=0.001, heartbeat_s=(0.001, 1000.0))
    infos = [WorkerInfo("ab", "here", 1, 1, 0.0, "0")]
    over, looks = threading.Event(), itertools.count()

    def obey(orders: Orders) -> None:
        if next(looks) > 5:
            over.set()

    beating = Heartbeat(runner, lambda: infos[-1], obey, lambda: None)
    beating.begin()
    made.roster.others = others
    # when it begins a job
    infos.append(replace(infos[0], running=(SlotInfo("b", 1, 0, "a", 2.5),)))
    beating.go_on(over)
    # then it tells where it is one of few
    assert roster.beats == beats
