"""Downloading many small results at a distance."""

from __future__ import annotations

from benchmarks.cloud import opened
from benchmarks.inputs import emptied
from benchmarks.measure import Run, Setting, adr_command, call, run, take_turns
from benchmarks.table import Goal, Table, race_table

__all__ = ["tables"]

_THREADS = 16


def tables(setting: Setting) -> list[Table]:
    """Measure."""
    number, few = setting.size(10_000, 500), setting.size(200, 40)
    folder = setting.folder
    counts = {"adr download": number, "boto3, 16 threads": number, "boto3, one by one": few}
    calls: dict[str, int] = {}
    with opened() as cloud:
        with cloud.near():
            runner_id = call("benchmarks.downloading:prepare", number, env=cloud.env).result

        def counted(who: str, step: Run) -> Run:
            calls[who] = sum(cloud.calls().values())
            return step

        def adr() -> Run:
            words = ["--quiet", f"--runner={runner_id}", str(emptied(folder / "adr") / "results")]
            cloud.reset()
            return counted("adr download", run(adr_command("download", *words), env=cloud.env))

        def peer(who: str, threads: int) -> Run:
            target = str(emptied(folder / "boto3"))
            cloud.reset()
            return counted(
                who,
                call(
                    "benchmarks.downloading:boto3_threads",
                    runner_id,
                    target,
                    counts[who],
                    threads,
                    env=cloud.env,
                ),
            )

        race = take_turns(
            {
                "adr download": adr,
                "boto3, 16 threads": lambda: peer("boto3, 16 threads", _THREADS),
                "boto3, one by one": lambda: peer("boto3, one by one", 1),
            },
            setting.rounds,
        )
    table = race_table(
        f"downloading {number:,} small results at {cloud.rtt_ms:g} ms",
        race,
        counts,
        "boto3, 16 threads",
        unit="files",
        calls=calls,
    )
    mine = "adr download" in race.runs
    rate = number / race.median("adr download", lambda run: run.wall_s) if mine else None
    table.goals += [
        Goal("files/s, start and status included", rate, least=500),
        Goal("calls a file", calls["adr download"] / number if mine else None, most=1.05),
    ]
    table.notes.append(
        "boto3: download_file, which asks for the size first; keys are listed beforehand"
    )
    return [table]


def prepare(number: int) -> str:
    """Make a runner with a batch whose results are there; return its id."""
    from benchmarks.batches import decided_batch, new_runner

    runner_id = new_runner(None)
    decided_batch(runner_id, number, results=True)
    return runner_id


def boto3_threads(bucket: str, target: str, number: int, threads: int) -> None:
    """Download results with boto3 alone."""
    from concurrent.futures import ThreadPoolExecutor
    from itertools import islice

    import boto3
    from botocore.config import Config

    s3 = boto3.client("s3", config=Config(max_pool_connections=threads + 10))
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="2026")
    keys = list(islice((each["Key"] for page in pages for each in page["Contents"]), number))

    def one(key: str) -> None:
        s3.download_file(bucket, key, f"{target}/{key.replace('/', '-')}")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, keys))
