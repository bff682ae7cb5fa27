"""SIGTERM and Ctrl-C end a worker in good order, a second Ctrl-C at once."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tests.proxy import Proxy
from tests.scene import Scene

#: Longer than any of these tests: what is leased again sooner was given back.
LONG = {"visibility_s": 300, "dead_after_s": 300}


@pytest.mark.parametrize(
    ("scene", "number"),
    [("local", signal.SIGTERM), ("local", signal.SIGINT), ("aws", signal.SIGTERM)],
    indirect=["scene"],
)
def test_worker_that_is_told_to_end_gives_its_jobs_back_at_once(
    scene: Scene, number: signal.Signals
) -> None:
    # given a worker in the middle of a job
    batch = scene.queue(3)
    scene.hold(1)
    first = scene.worker(times=LONG)
    scene.await_run(1)
    # and a second worker that has done all the others
    second = scene.worker(times=LONG)
    scene.wait(lambda: scene.decided(batch) == 2)
    # when the first is told to end
    first.signal(number)
    # then it ends its job and leaves, and the second one runs the job soon
    assert first.ended(10) == 0, first.output()
    scene.await_run(1, 2, timeout=10)
    scene.let_go(1)
    scene.await_empty()
    second.end()
    assert scene.all_runs() == [2, 1, 1]
    assert scene.ends(1) == 1
    assert len(scene.records(batch)) == 3
    scene.check(batch)


def test_second_ctrl_c_leaves_at_once_and_takes_the_jobs_along(local: Scene) -> None:
    # given a worker whose job does not listen to TERM
    batch = local.queue(1)
    local.hold(1)
    (local.side / "stubborn").touch()
    worker = local.worker()
    local.await_run(1)
    # when Ctrl-C comes
    worker.signal(signal.SIGINT)
    local.wait(lambda: "once more" in worker.output())
    # and once more
    began = time.monotonic()
    worker.signal(signal.SIGINT)
    # then it leaves at once and no process stays
    assert worker.ended(5) == 128 + signal.SIGINT
    local.await_no_process(5)
    assert time.monotonic() - began < 5
    assert local.ends(1) == 0
    # and the job is run by the next worker
    (local.side / "stubborn").unlink()
    local.let_go(1)
    local.finish()
    assert local.runs(1) == 2
    local.check(batch)


def test_worker_that_ends_stores_what_was_done(aws: Scene, proxy: Proxy) -> None:
    # given a worker that runs its second job while the results of the first are on their way
    batch = aws.queue(2)
    aws.hold(2)
    on_its_way = threading.Event()
    proxy.before("s3.PutObject", lambda call: _wait(on_its_way), key=f"^{batch}/[0-9a-f]+-000001/")
    worker = aws.worker(times=LONG)
    aws.await_run(2)
    # when it is told to end
    worker.signal(signal.SIGTERM)
    aws.wait(lambda: "once more" in worker.output())
    on_its_way.set()
    assert worker.ended() == 0
    # then what was done is recorded, and the rest given back
    assert list(aws.visible(batch)) == [1]
    aws.let_go(2)
    aws.finish()
    assert aws.all_runs() == [1, 2]
    aws.check(batch)


def _wait(event: threading.Event) -> None:
    assert event.wait(20)
