"""Processing at a distance: one worker of two slots, jobs with one small result each."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

from benchmarks.cloud import REGION, Cloud, opened
from benchmarks.inputs import emptied, input_files
from benchmarks.measure import Race, Run, Setting, adr_command, call, run, take_turns
from benchmarks.table import Goal, Table, race_table

__all__ = ["tables"]

_SLOTS = 2
_COMMAND = "echo 0.5 > result-{#}.csv"


def tables(setting: Setting) -> list[Table]:
    """Measure."""
    number, few = setting.size(3000, 150), setting.size(200, 30)
    folder = setting.folder
    input_files(folder / "inputs", number)
    counts = {"adr process": number, "task-queue": few, "boto3, one by one": few}
    calls: dict[str, dict[str, int]] = {}

    with opened() as cloud:

        def adr() -> Run:
            with cloud.near():
                runner_id = _queued(cloud, folder / "inputs")
            cloud.reset()
            words = ["--slots", str(_SLOTS), "--stop-on-empty", "--quiet"]
            done = run(
                adr_command(
                    "process", *words, f"--workingdir={emptied(folder / 'work')}", runner_id
                ),
                env=cloud.env,
            )
            calls["adr process"] = cloud.calls()
            found = call("benchmarks.processing:between", runner_id, env=cloud.env).result
            return Run(done.wall_s, done.cpu_s, done.peak_bytes, found)

        def peer(who: str, name: str) -> Run:
            with cloud.near():
                target = call(f"benchmarks.processing:new_{name}", few, env=cloud.env).result
            cloud.reset()
            done = call(f"benchmarks.processing:{name}", few, target, env=cloud.env)
            calls[who] = cloud.calls()
            return done

        race = take_turns(
            {
                "adr process": adr,
                "task-queue": lambda: peer("task-queue", "taskqueue"),
                "boto3, one by one": lambda: peer("boto3, one by one", "boto3_alone"),
            },
            setting.rounds,
        )
    table = race_table(
        f"processing {number:,} jobs at {cloud.rtt_ms:g} ms, one worker, {_SLOTS} slots",
        race,
        counts,
        "task-queue" if "task-queue" in race.runs else "adr process",
        calls={who: sum(some.values()) for who, some in calls.items()},
    )
    _tell(table, race, calls, number)
    return [table]


def _tell(table: Table, race: Race, calls: dict[str, dict[str, int]], number: int) -> None:
    if "adr process" not in race.runs:
        return
    whole = number / race.median("adr process", lambda run: run.wall_s)
    steady = number / race.median("adr process", lambda run: run.result["jobs_s"])
    made = calls["adr process"]
    table.goals += [
        Goal("jobs/s, start and proof of the end included", whole, least=250),
        Goal("calls a job", sum(made.values()) / number, most=1.35),
    ]
    kinds = ", ".join(
        f"{name} {many} ({many / number:.3f})"
        for name, many in sorted(made.items(), key=lambda each: -each[1])
    )
    table.notes += [
        f"adr from the first start of a job to the last record: {steady:.1f} jobs/s",
        f"adr, calls (per job): {kinds}",
        "task-queue and boto3 store nothing beside results: no record, no output, no exit code; "
        "task-queue not even results",
    ]


def _queued(cloud: Cloud, inputs: Path) -> str:
    runner_id = call("benchmarks.queueing:new_adr_sqs", env=cloud.env).result
    files = sorted(str(path) for path in inputs.iterdir())
    words = ["--quiet", f"--command={_COMMAND}", f"--runner={runner_id}", "--", *files]
    run(adr_command("queue", *words), env=cloud.env)
    return str(runner_id)


def between(runner_id: str) -> dict[str, float]:
    """Tell how long it took from the first start of a job to the last stored result."""
    from adr.runner import open_runner
    from adr.survey import Survey

    survey = Survey(open_runner(runner_id))
    records = [view.record for view in survey.with_records(survey.outcomes()) if view.record]
    starts = [record.started_at for record in records if record.started_at]
    ends = [record.stored_at for record in records if record.stored_at]
    return {"jobs": len(records), "jobs_s": max(ends) - min(starts)}


def new_taskqueue(number: int) -> str:
    """Make a queue with tasks of task-queue."""
    from benchmarks import queueing, tasks

    url = f"sqs://{queueing.new_taskqueue_sqs()}"
    todo = [partial(tasks.shell, "bash", "-c", f": {at}") for at in range(number)]
    tasks.opened(url).insert(todo, total=number)
    return url


def taskqueue(number: int, url: str) -> None:
    """Run them in two processes."""
    from benchmarks import tasks

    tasks.poll_side_by_side(url, _SLOTS, number // _SLOTS)


def new_boto3_alone(number: int) -> str:
    """Make a bucket and a queue with messages."""
    import boto3

    from benchmarks import queueing

    url = queueing.new_boto3_sqs()
    name = url.rpartition("/")[2]
    boto3.client("s3").create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    queueing.boto3_sqs(number, url)
    return url


def boto3_alone(number: int, url: str) -> None:
    """Receive, run, store and delete, one after the other."""
    import boto3

    sqs, s3 = boto3.client("sqs"), boto3.client("s3")
    name = url.rpartition("/")[2]
    for at in range(number):
        message = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1)["Messages"][0]
        done = subprocess.run(["bash", "-c", "echo 0.5"], check=True, capture_output=True)
        s3.put_object(Bucket=name, Key=f"results/{at}.csv", Body=done.stdout)
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
