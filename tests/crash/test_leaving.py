"""Workers that leave by themselves, as real processes: done, or before EC2 takes their machine."""

from __future__ import annotations

import re

import pytest

from adr.models import JobState
from tests.scene import Scene
from tests.unit.metadata import Metadata

#: Longer than any of these tests: what is leased again sooner was given back.
LONG = {"visibility_s": 300, "dead_after_s": 300}
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def test_workers_leave_when_all_is_done_and_not_before(scene: Scene) -> None:
    # given a worker in the middle of a job, and one that has nothing to do any more
    batch = scene.queue(3)
    scene.hold(1)
    workers = [scene.worker(times=LONG, options={"idle_s": 1000}) for _ in range(2)]
    scene.wait(lambda: scene.decided(batch) == 2)
    assert all(worker.is_running for worker in workers)
    # when the job is done
    scene.let_go(1)
    # then both leave
    for worker in workers:
        assert worker.ended() == 0, worker.output()
    assert scene.all_runs() == [1, 1, 1]
    scene.check(batch)


def test_a_job_whose_machine_is_taken_away_goes_on_elsewhere(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = Metadata()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
    with metadata.serving():
        # given a worker in the middle of a job on an instance, and one elsewhere
        batch = scene.queue(2)
        scene.hold(1)
        options = {"host": "i-0123", "watch_notice": True}
        doomed = scene.worker(times=LONG, options=options)
        scene.await_run(1)
        other = scene.worker(times=LONG)
        scene.wait(lambda: scene.decided(batch) == 1)
        # when EC2 says that it takes the instance away
        metadata.announce(120)
        # then its worker leaves long before, and the job is run by the other one, uncounted
        assert doomed.ended() == 0, doomed.output()
        scene.await_run(1, 2)
        scene.let_go(1)
        scene.await_empty()
        other.end()
    record = scene.visible(batch)[1]
    assert record.state is JobState.SUCCEEDED
    [note] = record.notes
    assert re.fullmatch(rf"interrupted at {MOMENT} on i-0123 \(spot\)", note)
    scene.check(batch)
