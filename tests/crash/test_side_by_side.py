"""Workers on one machine, in one working directory, do not disturb each other."""

from __future__ import annotations

import fcntl
import os

from adr.models import JobState
from tests.scene import Scene


def test_two_workers_share_the_work_and_nothing_else(scene: Scene) -> None:
    # given two workers in one directory, each in the middle of a job
    batch = scene.queue(9)
    scene.hold(*scene.jobs)
    first = scene.worker()
    scene.wait(lambda: sum(scene.all_runs()) == 1)
    second = scene.worker()
    scene.wait(lambda: sum(scene.all_runs()) == 2)
    assert len(list(scene.workingdir.iterdir())) == 2
    # when one of them ends
    scene.let_go(*scene.jobs)
    scene.await_empty()
    first.end()
    # then it has cleared away its own directory only
    assert len(list(scene.workingdir.iterdir())) == 1
    second.end()
    # and every job was run once, by one of the two
    assert scene.all_runs() == [1] * 9
    assert len({record.worker for record in scene.records(batch)}) == 2
    assert {record.state for record in scene.records(batch)} == {JobState.SUCCEEDED}
    scene.check(batch)


def test_what_dead_workers_left_is_cleared_away_and_what_living_ones_use_is_not(
    local: Scene,
) -> None:
    # given directories of a worker that was killed at work, of one killed before it had a
    # lock, and of one that lives
    for name in ("adr-worker-dead", "adr-worker-young", "adr-worker-alive"):
        (local.workingdir / name / "slot-1").mkdir(parents=True)
        (local.workingdir / name / "slot-1" / "file").touch()
    (local.workingdir / "adr-worker-dead" / "lock").touch()
    (local.workingdir / "something else").touch()
    alive = os.open(local.workingdir / "adr-worker-alive" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(alive, fcntl.LOCK_EX)
    # when another one has begun, worked and ended
    local.queue(1)
    local.finish()
    # then only what nobody uses is gone
    assert {path.name for path in local.workingdir.iterdir()} == {
        "adr-worker-alive",
        "something else",
    }
    os.close(alive)


def test_worker_waits_while_another_one_makes_its_directory(local: Scene) -> None:
    # given a worker that has made its directory and has no lock on it yet
    directory = os.open(local.workingdir, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    young = local.workingdir / "adr-worker-young"
    young.mkdir()
    batch = local.queue(1)
    # when another worker starts in the same moment
    other = local.worker()
    local.wait(lambda: _waits_for_lock(other.pid))
    # then it does not take the directory for a dead one's
    lock = os.open(young / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.close(directory)
    local.wait(lambda: local.decided(batch))
    assert young.exists()
    other.end()
    os.close(lock)


def _waits_for_lock(pid: int) -> bool:
    # proc(5): a process that waits has a line with an arrow.
    with open("/proc/locks") as locks:
        return any("->" in line and f" {pid} " in line for line in locks)
