"""Short jobs on this machine: ``adr run`` against starting the same processes bare, and peers.

Each contender runs so many times ``true`` in bash, two at a time. The limit is two threads of
Python that start bash and wait for it, and keep nothing.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.inputs import emptied, input_files
from benchmarks.measure import Run, Setting, adr_command, call, run, take_turns
from benchmarks.table import Goal, Table, race_table

__all__ = ["tables"]

_SLOTS = 2
_LIMIT = "bare bash"


def tables(setting: Setting) -> list[Table]:
    """Measure."""
    number = setting.size(2000, 200)
    folder = setting.folder
    names = input_files(folder / "inputs", number)
    words = folder / "words"
    words.write_text("".join(f"{name}\n" for name in names), "utf-8")
    script = folder / "run.sh"
    script.write_text("true\n", "ascii")
    race = take_turns(
        {
            _LIMIT: lambda: call("benchmarks.jobs:bare", str(script), number),
            "xargs -P2": lambda: run(["xargs", "-P2", "-n1", "bash", "-c", "true"], stdin=words),
            "adr run": lambda: _adr(folder, names),
            "huey": lambda: call(
                "benchmarks.jobs:huey", str(script), number, str(emptied(folder / "huey"))
            ),
            "task-queue": lambda: call(
                "benchmarks.jobs:taskqueue", str(script), number, str(emptied(folder / "tq"))
            ),
            "HyperQueue": lambda: call(
                "benchmarks.jobs:hyperqueue", str(script), number, str(emptied(folder / "hq"))
            ),
            "GNU parallel": lambda: _parallel(folder, words),
        },
        setting.rounds,
    )
    table = race_table(
        f"{number:,} jobs of `true`, {_SLOTS} at a time",
        race,
        number,
        _LIMIT,
        wall_s=lambda run: run.result["jobs_s"] if isinstance(run.result, dict) else run.wall_s,
    )
    speed = race.ratio("adr run", _LIMIT, lambda run: 1 / run.wall_s)
    table.goals.append(Goal("adr run, part of the limit", speed, least=0.7))
    table.notes.append(
        "adr run and xargs include their start; huey, task-queue and HyperQueue start before"
    )
    return [table]


def _adr(folder: Path, names: list[str]) -> Run:
    to = emptied(folder / "adr")
    options = ["--quiet", "--command=true", f"--slots={_SLOTS}", f"--to={to}"]
    return run(adr_command("run", *options, "--", *names), cwd=folder)


def _parallel(folder: Path, words: Path) -> Run:
    kept = emptied(folder / "parallel")
    options = ["--will-cite", f"-j{_SLOTS}", f"--joblog={kept}/log", f"--results={kept}/results"]
    return run(["parallel", *options, "bash", "-c", "true", "{}"], cwd=folder, stdin=words)


def bare(script: str, number: int) -> None:
    """Start bash so often, from two threads."""
    rest = iter(range(number))

    def work() -> None:
        for _ in rest:
            subprocess.Popen(["bash", script], stdin=subprocess.DEVNULL).wait()

    threads = [threading.Thread(target=work) for _ in range(_SLOTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def huey(script: str, number: int, folder: str) -> dict[str, Any]:
    """Run tasks of huey: SQLite, one process with two threads, results are kept."""
    import logging

    from huey import SqliteHuey
    from huey.signals import SIGNAL_COMPLETE

    logging.getLogger("huey").setLevel(logging.ERROR)
    queue = SqliteHuey(filename=f"{folder}/huey.db")
    left, over, guard = [number], threading.Event(), threading.Lock()

    @queue.task()
    def job() -> int:
        return subprocess.run(["bash", script], check=True).returncode

    @queue.signal(SIGNAL_COMPLETE)
    def completed(*_: Any) -> None:
        with guard:
            left[0] -= 1
            if not left[0]:
                over.set()

    for _ in range(number):
        job()
    consumer = queue.create_consumer(
        workers=_SLOTS, periodic=False, initial_delay=0.001, max_delay=0.01
    )
    began = time.perf_counter()
    consumer.start()
    over.wait()
    jobs_s = time.perf_counter() - began
    consumer.stop()
    return {"jobs_s": jobs_s}


def taskqueue(script: str, number: int, folder: str) -> dict[str, Any]:
    """Run tasks of task-queue: a queue of files, two processes."""
    from benchmarks import tasks

    url = f"fq://{folder}/queue"
    todo = [partial(tasks.shell, "bash", script) for _ in range(number)]
    tasks.opened(url).insert(todo, total=number)
    return {"jobs_s": tasks.poll_side_by_side(url, _SLOTS, number)}


def hyperqueue(script: str, number: int, folder: str) -> dict[str, Any]:
    """Run tasks of HyperQueue: a server and a worker of two cores, output to files."""
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    os.chdir(folder)
    # Its annotation says Path, and it takes text alone.
    with LocalCluster(folder, WorkerConfig(cores=_SLOTS)) as cluster:
        job = Job()
        for _ in range(number):
            job.program(["bash", script])
        client = cluster.client()
        began = time.perf_counter()
        client.wait_for_jobs([client.submit(job)])
        jobs_s = time.perf_counter() - began
    return {"jobs_s": jobs_s}
