"""Queueing many jobs: into a local runner, and over a distance into SQS."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from benchmarks.cloud import opened
from benchmarks.inputs import emptied, input_files
from benchmarks.measure import Run, Setting, call, take_turns
from benchmarks.table import Goal, Table, race_table

__all__ = ["local_tables", "sqs_tables"]

_PHASE = "queueing alone"


def local_tables(setting: Setting) -> list[Table]:
    """Measure queueing into a local runner."""
    number = setting.size(100_000, 2000)
    folder = setting.folder
    input_files(folder / "inputs", number)
    inputs, few = str(folder / "inputs"), min(number, setting.size(5000, 500))
    counts = {"adr queue": number, "huey": few, "task-queue": few}
    race = take_turns(
        {
            "adr queue": lambda: call(
                "benchmarks.queueing:adr", inputs, str(emptied(folder / "runner"))
            ),
            "huey": lambda: call("benchmarks.queueing:huey", few, str(emptied(folder / "huey"))),
            "task-queue": lambda: call(
                "benchmarks.queueing:taskqueue", few, f"fq://{emptied(folder / 'tq')}/queue"
            ),
        },
        setting.rounds,
    )
    table = race_table(
        f"queueing {number:,} jobs, local; peers {few:,}", race, counts, "huey", wall_s=_alone_s
    )
    rate = number / race.median("adr queue", _alone_s) if "adr queue" in race.runs else None
    table.goals.append(Goal("jobs/s after bundling", rate, least=50_000))
    _tell_phases(table, race.runs.get("adr queue", []), number)
    return [table]


def sqs_tables(setting: Setting) -> list[Table]:
    """Measure queueing into SQS at a distance."""
    number = setting.size(20_000, 1000)
    few = setting.size(400, 40)
    folder = setting.folder
    input_files(folder / "inputs", number)
    inputs = str(folder / "inputs")
    counts = {"adr queue": number, "task-queue": number, "boto3, one by one": few}
    calls: dict[str, int] = {}
    with opened() as cloud:

        def contender(who: str, name: str, *args: Any) -> Run:
            with cloud.near():
                target = call(f"benchmarks.queueing:new_{name}", env=cloud.env).result
            cloud.reset()
            done = call(f"benchmarks.queueing:{name}", *args, target, env=cloud.env)
            calls[who] = sum(cloud.calls().values())
            return done

        race = take_turns(
            {
                "adr queue": lambda: contender("adr queue", "adr_sqs", inputs),
                "task-queue": lambda: contender("task-queue", "taskqueue_sqs", number),
                "boto3, one by one": lambda: contender("boto3, one by one", "boto3_sqs", few),
            },
            setting.rounds,
        )
    table = race_table(
        f"queueing {number:,} jobs on SQS at {cloud.rtt_ms:g} ms",
        race,
        counts,
        "task-queue" if "task-queue" in race.runs else "adr queue",
        wall_s=_alone_s,
        calls=calls,
    )
    mine = race.runs.get("adr queue", [])
    rate = number / race.median("adr queue", _alone_s) if mine else None
    table.goals += [
        Goal("jobs/s after bundling", rate, least=5000),
        Goal("calls a job", calls["adr queue"] / number if mine else None, most=0.11),
    ]
    _tell_phases(table, mine, number)
    return [table]


def _alone_s(run: Run) -> float:
    return run.result[_PHASE] if isinstance(run.result, dict) else run.wall_s


def _tell_phases(table: Table, runs: list[Run], number: int) -> None:
    for run in runs[-1:]:
        parts = ", ".join(f"{what} {took_s:.2f} s" for what, took_s in run.result.items())
        table.notes.append(f"adr, last run, {number:,} jobs: {parts}; in all {run.wall_s:.2f} s")


def adr(inputs: str, runner: str) -> dict[str, float]:
    """Queue all files of a folder into a new local runner, and tell how long each phase took."""
    from benchmarks.batches import new_runner

    return _queue(inputs, new_runner(runner))


def new_adr_sqs() -> str:
    """Make a runner."""
    from benchmarks.batches import new_runner

    return new_runner(None)


def adr_sqs(inputs: str, runner_id: str) -> dict[str, float]:
    """Queue all files of a folder, and tell how long each phase took."""
    return _queue(inputs, runner_id)


def _queue(inputs: str, runner_id: str) -> dict[str, float]:
    from pathlib import Path

    from adr.batch import plan_batch
    from adr.queueing import queue_batch
    from adr.runner import open_runner
    from benchmarks.batches import Phases

    began = time.perf_counter()
    files = sorted(str(path) for path in Path(inputs).iterdir())
    plan = plan_batch(files, command="true {}")
    planned = time.perf_counter()
    phases = Phases()
    queue_batch(open_runner(runner_id), plan, phases)
    over = time.perf_counter()
    return {
        "planning": planned - began,
        "reading and bundling": phases.ended_at["bundling"] - planned,
        _PHASE: over - phases.ended_at["bundling"],
    }


def huey(number: int, folder: str) -> None:
    """Queue tasks of huey."""
    from huey import SqliteHuey

    queue = SqliteHuey(filename=f"{folder}/huey.db")

    @queue.task()
    def job(name: str) -> None:
        """Do nothing."""

    for at in range(number):
        job(f"true case{at:06d}.txt")


def taskqueue(number: int, url: str) -> None:
    """Queue tasks of task-queue."""
    from benchmarks import tasks

    todo = [partial(tasks.nothing, f"true case{at:06d}.txt") for at in range(number)]
    tasks.opened(url).insert(todo, total=number)


def new_taskqueue_sqs() -> str:
    """Make a queue."""
    return new_boto3_sqs().rpartition("/")[2]


def taskqueue_sqs(number: int, name: str) -> None:
    """Queue tasks of task-queue to SQS."""
    taskqueue(number, f"sqs://{name}")


def new_boto3_sqs() -> str:
    """Make a queue."""
    import uuid

    import boto3

    return str(boto3.client("sqs").create_queue(QueueName=f"bench-{uuid.uuid4()}")["QueueUrl"])


def boto3_sqs(number: int, url: str) -> None:
    """Send one message after the other, as nothing cleverer would."""
    import boto3

    sqs = boto3.client("sqs")
    for at in range(number):
        sqs.send_message(QueueUrl=url, MessageBody=f"true case{at:06d}.txt")
