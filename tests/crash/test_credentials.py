"""A worker whose credentials have ended waits for new ones, and loses nothing meanwhile."""

from __future__ import annotations

import signal

from tests.proxy import Proxy
from tests.rules import Rule
from tests.scene import Scene

#: Longer than any of these tests: no lease ends while there are no credentials.
LONG = {"visibility_s": 300, "dead_after_s": 300}


def _expire(proxy: Proxy) -> Rule:
    """Refuse every call as AWS does once the token of temporary credentials has ended."""
    said = "The security token included in the request is expired"
    return proxy.fail(lambda call: True, 403, "ExpiredToken", message=said)


def test_what_ended_without_credentials_is_settled_with_new_ones(aws: Scene, proxy: Proxy) -> None:
    # given a worker in the middle of the first of three jobs
    batch = aws.queue(3)
    aws.hold(1)
    worker = aws.worker(times=LONG)
    aws.await_run(1)
    # when its credentials end, and then the job
    expired = _expire(proxy)
    aws.let_go(1)
    aws.wait(lambda: aws.ends(1) == 1)
    for trouble in ("cannot receive", "cannot store", "cannot write _workers/live"):
        aws.wait(lambda trouble=trouble: worker.output().count(trouble) >= 2)
    # then it goes on, and begins nothing else
    assert worker.is_running
    assert aws.all_runs() == [1, 0, 0]
    # and with new ones it stores what was done, and does the rest
    expired.stop()
    aws.await_empty(60)
    worker.end()
    assert aws.all_runs() == [1, 1, 1]
    assert len(aws.records(batch)) == 3
    assert not any(record.late for record in aws.records(batch))
    aws.check(batch)


def test_who_has_no_credentials_can_still_be_told_to_end(aws: Scene, proxy: Proxy) -> None:
    # given a worker that is done with a job, and has no credentials any more
    batch = aws.queue(1)
    aws.hold(1)
    worker = aws.worker(times={"visibility_s": 2}, limits={"settle_s": 1})
    aws.await_run(1)
    expired = _expire(proxy)
    aws.let_go(1)
    aws.wait(lambda: aws.ends(1) == 1)
    # when it is told to end
    worker.signal(signal.SIGTERM)
    # then it does, and the job is run again by another one
    assert worker.ended(20) == 0, worker.output()
    expired.stop()
    aws.finish()
    assert aws.runs(1) == 2
    aws.check(batch)
