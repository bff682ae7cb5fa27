"""Tasks of task-queue, by the module and name under which its workers find them.

Imported by contenders only, since task-queue imports much.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import time

from taskqueue import TaskQueue, queueable
from taskqueue.taskqueue import QueueEmptyError

__all__ = ["nothing", "opened", "poll", "poll_side_by_side", "shell"]


@queueable
def shell(*argv: str) -> None:
    """Run a program."""
    subprocess.run(argv, check=True)


@queueable
def nothing(name: str) -> None:
    """Do nothing."""


def opened(url: str) -> TaskQueue:
    """Open a queue, of files or on SQS."""
    from benchmarks.cloud import REGION

    about = {"region_name": REGION} if url.startswith("sqs:") else {}
    return TaskQueue(url, progress=False, **about)


def poll(url: str, most: int) -> None:
    """Run so many tasks, or what there is."""
    queue = opened(url)
    queue.n_threads = 1
    for _ in range(most):
        try:
            task = queue.lease(seconds=600)
        except QueueEmptyError:
            return
        task.execute()
        queue.delete(task)


def poll_side_by_side(url: str, workers: int, most: int) -> float:
    """Run so many tasks in each of some processes, and return how long that takes."""
    # Forked, since importing task-queue takes a second, which would count for its jobs.
    fork = multiprocessing.get_context("fork")
    began = time.perf_counter()
    running = [fork.Process(target=poll, args=(url, most)) for _ in range(workers)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    if any(each.exitcode for each in running):
        raise RuntimeError("a worker of task-queue failed")
    return time.perf_counter() - began
