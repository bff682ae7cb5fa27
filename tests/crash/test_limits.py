"""Time limits, repeated attempts, and workers that leave by themselves."""

from __future__ import annotations

import time

from adr.models import JobState
from tests.scene import Scene

#: Succeeds at its third try.
FLAKY = """\
echo "$ADR_ATTEMPT" >> "$SIDE/$ADR_BATCH"
cp {} copy.txt
test $(wc -l < "$SIDE/$ADR_BATCH") -ge 3
"""


def test_time_limits_and_attempts_are_kept_to(scene: Scene) -> None:
    # given jobs with a time limit, of which one never ends and has a child of its own
    limited = _queued(scene, "if [ {#} = 1 ]; then sleep 1000 & wait; fi", 2, "--timeout=0.5")
    # and jobs that succeed at the third try, with three tries and with two
    three = _queued(scene, FLAKY, 1, "--attempts=3")
    two = _queued(scene, FLAKY, 1, "--attempts=2")
    # when a worker runs them until nothing is left
    worker = scene.worker(slots=2, stop_on_empty=True)
    assert worker.ended() == 0, worker.output()
    # then the one has failed for that reason, and nothing of it is left
    first, second = (scene.visible(limited)[job] for job in (1, 2))
    assert (first.state, second.state) == (JobState.FAILED, JobState.SUCCEEDED)
    assert first.reason == "ran longer than its time limit of 0.5 s"
    assert first.ended_at - first.started_at < 5
    assert scene.pids() == []
    # and three tries are enough: one record, with the results of the last try only
    (record,) = scene.records(three)
    assert (record.state, record.exit_code) == (JobState.SUCCEEDED, 0)
    assert [each.name for each in record.results] == ["copy.txt"]
    tries = (scene.side / three).read_text().splitlines()
    assert len(set(tries)) == 3
    assert record.attempt == tries[-1]
    # and two are not
    (record,) = scene.records(two)
    assert (record.state, record.exit_code) == (JobState.FAILED, 1)
    assert len((scene.side / two).read_text().splitlines()) == 2


def test_worker_leaves_when_nothing_is_left_and_only_if_it_was_asked_to(local: Scene) -> None:
    # given a worker in the middle of a job, and two that have nothing to do meanwhile
    batch = local.queue(1)
    local.hold(1)
    busy = local.worker()
    local.await_run(1)
    leaving = local.worker(stop_on_empty=True)
    staying = local.worker()
    local.wait(lambda: len(list(local.workingdir.iterdir())) == 3)
    # when they have looked several times
    time.sleep(0.6)
    # then both stay, to take over if that worker dies
    assert leaving.is_running
    # and one of them leaves once the job is decided
    local.let_go(1)
    assert leaving.ended(5) == 0
    time.sleep(0.3)
    assert staying.is_running
    staying.end()
    busy.end()
    local.check(batch)


def _queued(scene: Scene, command: str, jobs: int, *options: str) -> str:
    words = scene.make(jobs)[1:]
    queue = ["queue", "--quiet", f"--runner={scene.runner}", f"--command={command}", *options]
    process = scene.start("adr", *queue, *words)
    assert process.ended() == 0, process.output()
    return process.output().strip()
