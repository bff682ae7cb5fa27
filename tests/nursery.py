"""Start processes of adr by forking one that has imported everything.

    python -m tests.nursery

Workers are started by the hundred here, and each would take half a second of a core to import
boto3. What is forked is a process like any other: it leads a session of its own, has its own
environment and output, and ends as it would have. Only ``/proc/<pid>/environ`` does not tell of
it, see `tests.scene.Scene.pids`.

The nursery reads requests from its standard input, one JSON object a line, and answers each
with the process id; when a child has ended it says so, with its exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
#: What workers and commands import where they use it.
_USED = (
    "adr.commands.jobs",
    "adr.ledgers.aws",
    "adr.ledgers.sqlite",
    "adr.stores.directory",
    "adr.stores.s3",
    "adr.worker.loop",
    "rich.progress",
    "tests.drive",
)


class Nursery:
    """The side of the tests; see `nursery`. Thread-safe."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery"], cwd=_ROOT, stdin=theirs
            )
        self._stream = ours.makefile("rwb", buffering=0)
        self._socket = ours
        self._lock = threading.Lock()
        self._ends: dict[int, Future[int]] = {}
        self._born: Future[int] = Future()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self, words: Sequence[str], log: Path, env: dict[str, str]
    ) -> tuple[int, Future[int]]:
        """Start ``python -m tests.drive WORDS``; return its id, and its exit status to come."""
        request = {"words": list(words), "log": str(log), "env": env}
        with self._lock:
            self._born = Future()
            self._stream.write(json.dumps(request).encode() + b"\n")
            pid = self._born.result(30)
            return pid, self._ends[pid]

    def close(self) -> None:
        """Let it end; what it has started goes on."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait()

    def _listen(self) -> None:
        for line in self._stream:
            pid, status = json.loads(line)
            if status is None:
                self._ends[pid] = Future()
                self._born.set_result(pid)
            else:
                self._ends.pop(pid).set_result(status)


@functools.cache
def nursery() -> Nursery:
    """Return the nursery of this session of tests; started with the first process."""
    made = Nursery()
    atexit.register(made.close)
    return made


def _serve() -> int:
    """Fork for each request; return only in the child, what it is to exit with."""
    import boto3
    import botocore.session

    for name in _USED:
        importlib.import_module(name)
    # Each session would find and read the descriptions of S3 and SQS anew.
    botocore.session.create_loader = functools.cache(botocore.session.create_loader)
    for service in ("s3", "sqs"):
        boto3.Session("nobody", "nothing", region_name="eu-central-1").client(service)
    channel = socket.socket(fileno=os.dup(0))
    stream = channel.makefile("rwb", buffering=0)
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    gc.freeze()
    while True:
        for key, _ in selector.select():
            if key.data is not None:
                selector.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(key.data, 0)
                said: Any = [key.data, os.waitstatus_to_exitcode(status)]
            elif line := stream.readline():
                request = json.loads(line)
                pid = os.fork()
                if not pid:
                    return _be_born(request, [channel.fileno(), *selector.get_map()])
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                said = [pid, None]
            else:
                return 0
            stream.write(json.dumps(said).encode() + b"\n")


def _be_born(request: dict[str, Any], inherited: Sequence[int]) -> int:
    from tests import drive

    os.setsid()
    for handle in set(inherited):
        with contextlib.suppress(OSError):
            os.close(handle)
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["env"])
    return drive.drive(request["words"])


if __name__ == "__main__":
    sys.exit(_serve())
