"""``adr queue`` that is killed half-way, and repeated, neither loses nor doubles work."""

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
MANIFEST, SEAL = r"^_batches/.*\.jsonl\.gz$", r"^_batches/.*\.seal$"
#: More than fit into two calls of SQS.
JOBS = 23


@pytest.mark.parametrize(
    ("die", "resumed"),
    [
        ({"at": STORE, "key": r"_batches/\S*\.gz"}, False),
        ({"at": STORE, "key": r"_batches/\S*\.gz", "after": True}, True),
        ({"at": STORE, "key": r"_batches/\S*\.seal"}, True),
        ({"at": STORE, "key": r"_batches/\S*\.seal", "after": True}, False),
    ],
    ids=["before the manifest", "after the manifest", "before the seal", "after the seal"],
)
def test_local_queue_killed_and_repeated(local: Scene, die: dict[str, Any], resumed: bool) -> None:
    # given a command that dies at some point of queueing
    words = ["queue", "--quiet", "--json", f"--runner={local.runner}", *local.make(5)]
    assert local.start("adr", *words, die=die).ended() == -signal.SIGKILL
    # when it is repeated, also where all was done but for the answer
    batch = _repeated(local, words, resumed)
    # then each job is there once
    local.finish()
    assert local.all_runs() == [1] * 5
    local.check(batch)


def test_aws_queue_killed_among_its_calls_and_repeated(aws: Scene, proxy: Proxy) -> None:
    # given a command that dies when SQS has taken some jobs and the answer is on its way
    words = ["queue", "--quiet", "--json", f"--runner={aws.runner}", *aws.make(JOBS)]
    first = aws.start("adr", *words)
    order = itertools.count()
    others = proxy.before("sqs.SendMessageBatch", lambda call: DROP if next(order) else FORWARD)
    proxy.after("sqs.SendMessageBatch", killing(first.pid), times=1)
    assert first.ended() == -signal.SIGKILL
    others.stop()
    batch = status(aws.runner).batches[0].batch
    # and a worker that has run those meanwhile
    worker = aws.worker(slots=4)
    aws.wait(lambda: aws.decided(batch) >= JOBS % 10)
    # when the command is repeated
    assert _repeated(aws, words, True) == batch
    # then the worker goes on with the others, and each has been run once
    aws.await_empty()
    worker.end()
    assert aws.all_runs() == [1] * JOBS
    aws.check(batch)


@pytest.mark.parametrize("moment", ["after the manifest", "before the seal"])
def test_aws_queue_killed_and_repeated(aws: Scene, proxy: Proxy, moment: str) -> None:
    # given a command that dies before the first job is sent, or after the last
    words = ["queue", "--quiet", "--json", f"--runner={aws.runner}", *aws.make(JOBS)]
    first = aws.start("adr", *words)
    if moment == "after the manifest":
        kill = proxy.after("s3.PutObject", killing(first.pid), key=MANIFEST, times=1)
    else:
        kill = proxy.before("s3.PutObject", killing(first.pid), key=SEAL, times=1)
    kill.wait()
    assert first.ended() == -signal.SIGKILL
    assert proxy.count("sqs.SendMessageBatch") == (0 if moment == "after the manifest" else 3)
    # when it is repeated
    batch = _repeated(aws, words, True)
    # then each job is run once, also where all are in the queue twice
    aws.finish()
    assert aws.all_runs() == [1] * JOBS
    aws.check(batch)


def test_batch_that_was_cut_off_and_destroyed_is_neither_resumed_nor_waited_for(
    aws: Scene, proxy: Proxy
) -> None:
    # given a batch whose queueing was cut off, and that was destroyed
    words = ["queue", "--quiet", "--json", f"--runner={aws.runner}", *aws.make(3)]
    first = aws.start("adr", *words)
    proxy.before("s3.PutObject", killing(first.pid), key=SEAL, times=1)
    assert first.ended() == -signal.SIGKILL
    (cut_off,) = status(aws.runner).batches
    adr.destroy(aws.runner, batch=cut_off.batch)
    # when the command is repeated
    batch = _repeated(aws, words, False)
    # then it makes another batch, and a worker leaves once that one is decided
    worker = aws.worker(stop_on_empty=True)
    assert worker.ended(20) == 0, worker.output()
    assert aws.all_runs() == [1] * 3
    assert aws.decided(batch) == 3
    assert {view.state for view in status(aws.runner, batch=cut_off.batch).jobs} == {
        JobState.CANCELLED
    }


def _repeated(scene: Scene, words: list[str], resumed: bool) -> str:
    again = scene.start("adr", *words)
    assert again.ended() == 0, again.output()
    report = json.loads(again.output())
    assert report["resumed"] is resumed
    assert report["jobs"] + report["known"]["waiting"] == len(scene.jobs)
    return str(report["batch"])
