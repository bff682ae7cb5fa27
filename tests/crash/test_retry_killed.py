"""``adr retry`` that is killed half-way, and repeated, neither loses nor doubles work."""

from __future__ import annotations

import itertools
import json
import signal
from typing import Any

import pytest

import adr
from adr.adr import status
from adr.models import JobState
from tests.proxy import DROP, FORWARD, Proxy
from tests.scene import Scene, killing

STORE = "adr.stores.directory:DirectoryStore.write"
#: More than fit into two calls of SQS.
JOBS = 23


@pytest.mark.parametrize(
    ("die", "resumed"),
    [
        ({"at": STORE, "key": r"~1\.jsonl\.gz"}, 0),
        ({"at": STORE, "key": r"~1\.jsonl\.gz", "after": True}, 5),
        ({"at": STORE, "key": r"~1\.seal"}, 5),
        ({"at": STORE, "key": r"~1\.seal", "after": True}, None),
    ],
    ids=["before the manifest", "after the manifest", "before the seal", "after the seal"],
)
def test_local_retry_killed_and_repeated(
    local: Scene, die: dict[str, Any], resumed: int | None
) -> None:
    # given jobs that have failed, and a command that dies at some point of their retry
    batch = _failed(local, 5)
    words = ["retry", "--quiet", "--json", f"--runner={local.runner}"]
    assert local.start("adr", *words, die=die).ended() == -signal.SIGKILL
    # when it is repeated, then each job is there once
    found = _repeated(local, words)
    assert (len(found["jobs"]), found["resumed"]) == (
        (5, resumed) if resumed is not None else (0, 0)
    )
    local.finish()
    assert local.all_runs() == [2] * 5
    local.check(batch)


@pytest.mark.parametrize("finished_by", ["queue", "retry"])
def test_queue_killed_in_a_retry_is_finished_by_the_same_and_by_retry(
    local: Scene, finished_by: str
) -> None:
    # given jobs that have failed, and a queue of the same that dies when it has noted its retry
    batch = _failed(local, 5)
    runner = f"--runner={local.runner}"
    words = ["queue", "--quiet", "--json", runner, *local.make(5)]
    die = {"at": STORE, "key": r"~1\.jsonl\.gz", "after": True}
    assert local.start("adr", *words, die=die).ended() == -signal.SIGKILL
    # when it is repeated, or they are retried
    found = _repeated(local, words if finished_by == "queue" else ["retry", *words[1:4]])
    # then each job is there once, in the batch it was in
    assert found["resumed"] == (True if finished_by == "queue" else 5)
    again = _repeated(local, words)
    assert (again["batch"], again["known"]["waiting"], again["jobs"]) == (batch, 5, 0)
    local.finish()
    assert local.all_runs() == [2] * 5
    local.check(batch)


def test_aws_retry_killed_among_its_calls_and_repeated(aws: Scene, proxy: Proxy) -> None:
    # given a command that dies when SQS has taken some jobs and the answer is on its way
    batch = _failed(aws, JOBS)
    words = ["retry", "--quiet", "--json", f"--runner={aws.runner}"]
    first = aws.start("adr", *words)
    order = itertools.count()
    others = proxy.before("sqs.SendMessageBatch", lambda call: DROP if next(order) else FORWARD)
    proxy.after("sqs.SendMessageBatch", killing(first.pid), times=1)
    assert first.ended() == -signal.SIGKILL
    others.stop()
    # when it is repeated, then each job is run once, also where it is in the queue twice
    found = _repeated(aws, words)
    assert (len(found["jobs"]), found["resumed"]) == (JOBS, JOBS)
    aws.finish()
    assert aws.all_runs() == [2] * JOBS
    aws.check(batch)


def test_a_job_that_is_called_off_while_it_runs_can_be_retried_at_once(scene: Scene) -> None:
    # given a job that runs
    scene.hold(1)
    batch = scene.queue(2)
    worker = scene.worker(slots=2, times={"orders_s": 0.5} if scene.kind == "aws" else None)
    scene.await_run(1)
    scene.await_ends(1)
    # when it is called off and retried, before its worker can know
    adr.cancel(scene.runner, ["case-1"])
    (job,) = adr.retry(scene.runner, ["case-1"]).jobs
    # then the run that was called off is ended, and the other one is not
    scene.await_run(1, times=2)
    scene.wait(lambda: any(each.index == 1 for each in scene.records(batch)))
    scene.let_go(1)
    scene.await_empty()
    worker.end()
    states = {(each.generation, each.state) for each in scene.records(batch) if each.index == 1}
    assert states == {(0, JobState.CANCELLED), (1, JobState.SUCCEEDED)}
    assert job.generation == 1
    scene.check(batch)


def _failed(scene: Scene, jobs: int) -> str:
    """Let so many jobs fail, each of which would succeed from now on."""
    scene.command = 'bash job.sh {} && test -e "$SIDE/well"'
    batch = scene.queue(jobs)
    scene.finish()
    assert {view.state for view in status(scene.runner).jobs} == {JobState.FAILED}
    (scene.side / "well").touch()
    return batch


def _repeated(scene: Scene, words: list[str]) -> Any:
    again = scene.start("adr", *words)
    assert again.ended() == 0, again.output()
    return json.loads(again.output())
