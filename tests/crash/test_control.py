"""Jobs are called off and held up while real workers run them, and waited for."""

from __future__ import annotations

import json
import signal

import adr
from adr.models import JobState
from adr.waiting import WaitState
from tests.proxy import Proxy
from tests.scene import Scene

SOON = {"orders_s": 0.5}


def states(scene: Scene) -> list[str]:
    return [str(view.state) for view in adr.status(scene.runner).jobs]


def test_cancelled_jobs_read_so_at_once_and_their_runs_are_ended(scene: Scene) -> None:
    # given a batch that is called off while nobody works
    usual, scene.command = scene.command, "true {}"
    early = scene.queue(2)
    scene.command = usual
    report = adr.cancel(scene.runner, batch=early)
    assert (len(report.waiting), report.running, report.decided) == (2, (), 0)
    assert states(scene) == ["cancelled"] * 2
    assert adr.wait(scene.runner).state is WaitState.FAILED

    # and jobs of another, of which one has succeeded, two run and take no TERM, and three wait
    scene.hold(2, 3)
    batch = scene.queue(6)
    worker = scene.worker(slots=2, limits={"term_s": 1}, times=SOON)
    scene.await_ends(1)
    (scene.side / "stubborn").touch()
    scene.wait(lambda: states(scene)[2:5] == ["succeeded", "running", "running"])

    # when all is called off
    shown = adr.cancel(scene.runner, everything=True, dry_run=True)
    assert states(scene)[3:5] == ["running"] * 2, "only shown"
    report = adr.cancel(scene.runner, everything=True)

    # then it reads so at once, but for what had succeeded, and there is nothing to wait for
    assert report == shown
    assert (len(report.waiting), len(report.running), report.decided) == (3, 2, 3)
    assert states(scene) == ["cancelled"] * 2 + ["succeeded"] + ["cancelled"] * 5
    assert adr.wait(scene.runner).totals.undecided == 0

    # and the worker ends what runs, begins nothing more, and records all of it
    scene.await_empty()
    assert {index: each.state for index, each in scene.visible(batch).items()} == {
        1: JobState.SUCCEEDED,
        **dict.fromkeys(range(2, 7), JobState.CANCELLED),
    }
    assert {each.state for each in scene.visible(early).values()} == {JobState.CANCELLED}
    assert scene.all_ends() == 1
    assert [scene.runs(job) for job in (4, 5, 6)] == [0, 0, 0]
    again = adr.cancel(scene.runner, [f"{batch}/case-*"])
    assert (again.waiting, again.running, again.decided) == ((), (), 6)

    # and one that is queued again is not touched by any of it
    adr.retry(scene.runner, [f"{batch}/case-4"])
    scene.wait(lambda: scene.visible(batch)[4].state is JobState.SUCCEEDED)
    assert states(scene)[5] == "succeeded"
    worker.end()
    scene.await_no_process()


def test_while_a_runner_is_paused_workers_finish_what_they_run(scene: Scene) -> None:
    # given a job that runs, and some that are leased ahead of it since jobs are short
    scene.hold(6)
    batch = scene.queue(30)
    first = scene.worker(times=SOON)
    scene.await_run(6)

    # when the runner is paused
    report = adr.pause(scene.runner)
    assert (report.paused, report.changed, report.workers) == (True, True, 1)
    assert not adr.pause(scene.runner).changed

    # then what has not begun is given back, what runs goes on to its end, and nothing begins
    scene.wait(lambda: scene.ledger.depth().in_flight == 1)
    scene.wait(lambda: "the runner is paused" in first.output())
    begun = sum(scene.all_runs())
    assert begun < 30
    scene.let_go(6)
    scene.wait(lambda: scene.decided(batch) == begun)
    assert adr.status(scene.runner).to_dict()["paused"] is True

    # and who comes now with little patience leaves without a job, whatever waits
    second = scene.worker(times=SOON, options={"idle_s": 0.1})
    assert second.ended() == 0
    assert sum(scene.all_runs()) == begun

    # and who waits is told why, and may give up and wait again
    waiting = scene.start("adr", "wait", f"--runner={scene.runner}")
    scene.wait(lambda: "adr resume" in waiting.output())
    waiting.signal(signal.SIGINT)
    assert waiting.ended() == 130
    assert "the jobs go on" in waiting.output()

    # when it goes on
    assert adr.resume(scene.runner).changed
    assert not adr.resume(scene.runner).changed
    waiting = scene.start("adr", "wait", f"--runner={scene.runner}", "--json", "--quiet")

    # then all jobs are run, each once
    assert waiting.ended() == 0
    report = json.loads(waiting.output())
    assert (report["state"], report["totals"]["succeeded"]) == ("succeeded", 30)
    first.end()
    assert scene.all_runs() == [1] * 30
    scene.check(batch)


def test_one_that_is_to_leave_when_all_is_done_leaves_also_a_paused_runner(local: Scene) -> None:
    # given a paused runner with a job
    batch = local.queue(1)
    adr.pause(local.runner)
    worker = local.worker(stop_on_empty=True)
    local.wait(lambda: "adr resume --runner=" in worker.output())
    assert adr.wait(local.runner, timeout=0.1).state is WaitState.TIMEOUT

    # when that job is decided after all
    adr.cancel(local.runner, batch=batch)
    adr.resume(local.runner)

    # then
    assert worker.ended() == 0
    assert local.runs(1) == 0
    # and the next one finds nothing to do, paused or not
    adr.pause(local.runner)
    assert local.worker(stop_on_empty=True).ended() == 0


def test_a_further_look_costs_few_calls_and_reads_no_manifest_again(
    aws: Scene, proxy: Proxy
) -> None:
    # given two batches, one of them done
    aws.queue(3)
    aws.finish()
    adr.pause(aws.runner)
    aws.queue(5)
    looks = adr.watch(aws.runner)
    next(looks)

    # when
    proxy.reset()
    look = next(looks)

    # then
    assert (look.status.totals.succeeded, look.status.totals.queued) == (3, 2)
    assert proxy.total <= 8, proxy.calls
    assert proxy.count("s3.GetObject", r"_batches|_journal") == 0, proxy.calls
    assert look.pause_s >= 0.5


def test_watching_goes_on_where_the_service_is_away(aws: Scene, proxy: Proxy) -> None:
    # given somebody who watches
    aws.queue(2)
    words = ["--watch", "--json", "--interval=0.2", f"--runner={aws.runner}"]
    watching = aws.start("adr", "status", *words)
    aws.wait(lambda: watching.output().count("\n") >= 2)

    # when the service answers nothing but errors for a while
    rule = proxy.fail(lambda call: True, 500, "InternalError")
    aws.wait(lambda: "adr: " in watching.output())
    rule.stop()
    before = watching.output().count('"totals"')
    aws.wait(lambda: watching.output().count('"totals"') > before + 1)

    # then it went on, and Ctrl-C is its usual end
    watching.signal(signal.SIGINT)
    assert watching.ended() == 0
    lines = [line for line in watching.output().splitlines() if not line.startswith("adr: ")]
    assert {json.loads(line)["totals"]["queued"] for line in lines} == {2}
