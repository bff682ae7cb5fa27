"""Workers that die, are told to leave, stand still or lose their machine, again and again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

from adr.models import Lease, new_id
from adr.runner import open_runner
from tests.scene import SHORT, Scene

#: A killed worker's jobs come back after 2 s, and nobody waits for it any longer.
SOON = {"visibility_s": 2, "dead_after_s": 2}
#: Longer than any of these tests: what is leased again sooner was given back.
LONG = {"visibility_s": 300, "dead_after_s": 300}


def test_workers_killed_at_random_moments_and_then_all_at_once(
    scene: Scene, chance: random.Random
) -> None:
    # given three workers at a batch
    kills = 20 if scene.kind == "local" else 10
    # One of them may be what runs at five of the kills, and that is no fault of it.
    batch = scene.queue(6 * kills + 40, crash_limit=1000)
    workers = [scene.worker(slots=2, times=SOON) for _ in range(3)]
    # when many times one of them is killed, and replaced
    for kill in range(kills):
        scene.await_ends(6 * kill)
        time.sleep(chance.uniform(0, 0.1))
        workers.pop(chance.randrange(3)).kill()
        workers.append(scene.worker(slots=2, times=SOON))
    # and in the end all of them at once, before all is done
    scene.await_ends(6 * kills + 10)
    for worker in workers:
        worker.signal(signal.SIGKILL)
    assert [worker.ended() for worker in workers] == [-signal.SIGKILL] * 3
    scene.await_no_process()
    # then one more worker does what is left
    scene.finish()
    scene.check(batch)


def test_job_whose_workers_are_all_told_to_end_is_given_back_each_time(scene: Scene) -> None:
    # given a batch whose first job never ends
    batch = scene.queue(60)
    scene.hold(1)
    # when its workers are told to end, oftener than a job may lose one
    for times in range(1, 7):
        worker = scene.worker(slots=2, times=LONG)
        scene.await_run(1, times)
        worker.end()
    # then it was given back each time, at once and without being counted
    scene.let_go(1)
    scene.finish()
    assert scene.runs(1) == 7
    assert scene.ends(1) == 1
    scene.check(batch)


def test_storm_of_terms_loses_nothing(local: Scene, chance: random.Random) -> None:
    # given workers that are told to end several times each, so that some leave at once
    batch = local.queue(100)
    for storm in range(5):
        workers = [local.worker(slots=2) for _ in range(2)]
        local.await_ends(15 * storm + 10)
        for _ in range(6):
            chance.choice(workers).signal(signal.SIGTERM)
            time.sleep(chance.uniform(0, 0.05))
        for worker in workers:
            worker.signal(signal.SIGTERM)
        # The last one may find a worker that has stopped to listen.
        how = {0, 128 + signal.SIGTERM, -signal.SIGTERM}
        assert {worker.ended() for worker in workers} <= how
        local.await_no_process()
    local.finish()
    local.check(batch)


def test_stopped_workers_that_go_on_after_all_was_done_change_nothing(
    aws: Scene, chance: random.Random
) -> None:
    # given three workers, of which two stand still in the middle of a batch
    batch = aws.queue(100)
    workers = [aws.worker(slots=2, times=SOON) for _ in range(3)]
    aws.await_ends(40)
    stopped = chance.sample(workers, 2)
    for worker in stopped:
        time.sleep(chance.uniform(0, 0.1))
        worker.signal(signal.SIGSTOP)
    # and a third one that does all the rest, when their leases are lost
    aws.await_empty()
    aws.wait(lambda: aws.decided(batch) == len(aws.jobs))
    before = aws.visible(batch)
    # when they go on
    for worker in stopped:
        worker.signal(signal.SIGCONT)
    for worker in workers:
        worker.end()
    # then what is visible stays, and what they had not recorded in time is marked as late
    assert aws.visible(batch) == before
    in_time = {(each.index, each.attempt) for each in aws.records(batch) if not each.late}
    assert len(in_time) == len({index for index, _ in in_time})
    aws.check(batch)


def test_suspended_laptop_goes_on_with_its_run(local: Scene, chance: random.Random) -> None:
    # given a run on a laptop
    run = local.start("adr", *local.run_words(200, slots=2))
    local.await_ends(40)
    local.keep_warm(run)
    # when everything stands still for a while
    local.await_ends(80)
    time.sleep(chance.uniform(0, 0.1))
    frozen = _freeze(local)
    stood = local.all_ends()
    time.sleep(2)
    assert local.all_ends() == stood
    for pid in frozen:
        _signal(pid, signal.SIGCONT)
    local.await_ends(180)
    run.memory()
    # then it goes on, and runs each job once
    assert run.ended() == 0, run.output()
    assert local.all_runs() == [1] * len(local.jobs)
    local.check_published()


def test_only_the_job_that_takes_its_machine_along_is_counted(scene: Scene) -> None:
    # given a job that kills its machine, the 21st that begins: by then jobs are known to be short
    scene.command = (
        'if [ "$(ls "$SIDE" | grep -c runs-)" = 20 ]; '
        'then touch "$SIDE/hold-{#}" "$SIDE/deadly-{#}"; fi; bash job.sh {}'
    )
    batch = scene.queue(31)
    for death in (1, 2):
        # when a worker is lost with it, twice, the first of which had leased ten others ahead
        worker = scene.worker(times={"visibility_s": 3, "dead_after_s": 2})
        scene.wait(scene.deadly)
        (killer,) = scene.deadly()
        scene.await_run(killer, death)
        scene.wait(lambda death=death: _is_settled(scene, leased=death == 1))
        begun = scene.all_runs()
        scene.let_go(killer)
        assert worker.ended() == -signal.SIGKILL
        scene.await_no_process()
        # then it alone is counted: on AWS an ordinary delivery is no reason to look closer
        lost = _lost(scene)
        assert lost.pop(killer) == death - (scene.kind == "aws")
        assert set(lost.values()) <= {0}
        assert len(lost) == 10 or death == 2
        scene.hold(killer)
    # and the others run once
    assert max(begun) == begun[killer - 1] == 2
    scene.spare(killer)
    scene.let_go(killer)
    scene.finish()
    assert scene.all_runs() == [3 if job == killer else 1 for job in scene.jobs]
    scene.check(batch)


def test_jobs_that_run_beside_one_that_kills_its_workers_do_not_fail_with_it(local: Scene) -> None:
    # given jobs that begin together again and again, the first of which kills its worker
    jobs = 6
    local.command = (
        'touch "$SIDE/began-{#}"; while [ "$(ls "$SIDE" | grep -c began-)" -lt 3 ] '
        '&& [ ! -e "$SIDE/alone" ]; do sleep 0.02; done; '
        'if [ {#} != 1 ] && [ ! -e "$SIDE/alone" ]; then sleep 60; fi; bash job.sh {}'
    )
    batch = local.queue(jobs)
    (local.side / "deadly-1").touch()
    for death in range(1, 6):
        if death == 4:
            # when it has done so three times, and is under suspicion with those beside it
            (local.side / "alone").touch()
        worker = local.worker(slots=3)
        assert worker.ended() == -signal.SIGKILL
        local.await_no_process()
        for path in local.side.glob("began-*"):
            path.unlink()
    local.finish()
    # then it alone has failed
    local.check(batch, failed={1: "lost its worker 5 times"})


def _freeze(scene: Scene) -> set[int]:
    """Stop all processes of a scene, also those that are born meanwhile."""
    frozen: set[int] = set()
    while born := set(scene.pids()) - frozen:
        for pid in born:
            _signal(pid, signal.SIGSTOP)
        # A process that is in the kernel goes on until it returns from there.
        scene.wait(lambda born=born: all(map(_stands_still, born)))
        frozen |= born
    return frozen


def _stands_still(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rpartition(")")[2].split()[0] in "TtZX"


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_settled(scene: Scene, leased: bool) -> bool:
    """Tell whether all that has ended is out of the queue, and all else is leased if it has to."""
    depth = scene.ledger.depth()
    left = len(scene.jobs) - scene.all_ends()
    return depth.in_flight + depth.waiting == left and not (leased and depth.waiting)


def _lost(scene: Scene) -> dict[int, int]:
    """Return how many workers each undecided job has lost: leases them and gives them back."""
    worker = new_id()
    runner = open_runner(scene.runner, worker=worker, **({} if scene.kind == "local" else SHORT))
    left = len(scene.jobs) - scene.all_ends()
    leases: list[Lease] = []
    while len({lease.job.index for lease in leases}) < left:
        leases += runner.ledger.receive(10, 1)
    runner.ledger.release(leases)
    runner.roster.forget(worker)
    return {lease.job.index: lease.lost for lease in leases}
