"""Jobs that are queued one by one into a batch whose bundle was uploaded by itself."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3

from adr import queue_job
from adr.models import Job
from adr.queueing import queue_single
from adr.runner import create_runner, open_runner
from adr.survey import Survey
from tests.proxy import Proxy

JOB = Job(batch="20261120-0912-x-123456", index=1, count=1, label="1", command="true")


def numbers(runner_id: str) -> Sequence[int]:
    return [view.job.index for view in Survey(open_runner(runner_id)).status().jobs]


def test_many_at_once_get_a_number_each(tmp_path: Path) -> None:
    # given
    runner = create_runner(local=True, directory=tmp_path / "r")
    # when
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: queue_single(open_runner(runner.id), JOB).index, range(8)))
    # then
    assert sorted(got) == list(range(1, 9))
    assert sorted(numbers(runner.id)) == list(range(1, 9))
    assert runner.ledger.depth().waiting == 8


def test_a_manifest_whose_answer_was_lost_is_ours(proxy: Proxy) -> None:
    # given
    runner = create_runner()
    proxy.lose_answer("s3.PutObject", 1, key=r"\+1\.jsonl")
    # when
    queue_job(boto3.resource("sqs"), runner.id, JOB.batch, "true")
    # then it has not taken a second number
    assert numbers(runner.id) == [1]
