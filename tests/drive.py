"""Run a worker, or any command of adr, in this process: with small times, or to a sudden end.

    python -m tests.drive SETTINGS worker RUNNER WORKINGDIR
    python -m tests.drive SETTINGS adr WORDS...

SETTINGS is a JSON object. For a worker: ``slots``, ``stop_on_empty``, ``limits`` (fields of
`adr.worker.slot.Limits`), ``options`` (others of `adr.worker.loop.Worker`), ``times`` (seconds,
for `adr.runner.open_runner`) and ``poll_s``. A lease counts from the moment it was asked for, so
polls have to be shorter than leases. For both, ``die`` tells at which call the process kills
itself the way ``kill -9`` does: ``at`` names a method, ``module:Class.method``; ``key`` is a
regular expression that has to match in its arguments, ``nth`` counts the calls that do, from 1;
``after`` lets the call be made first. ``busy_s`` is how long to wait for a locked database.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from adr.console import main
from adr.ledgers.database import Database
from adr.models import new_id
from adr.runner import open_runner
from adr.worker.loop import Worker
from adr.worker.signals import stopping
from adr.worker.slot import Limits


def die(at: str, key: str = "", nth: int = 1, after: bool = False) -> None:
    module, _, path = at.partition(":")
    owner, _, name = path.partition(".")
    holder = getattr(importlib.import_module(module), owner)
    method = getattr(holder, name)
    calls = 0

    @functools.wraps(method)
    def deadly(*args: Any, **options: Any) -> Any:
        nonlocal calls
        counts = re.search(key, " ".join(str(each) for each in args)) is not None
        calls += counts
        if counts and calls == nth:
            if after:
                method(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args, **options)

    is_static = isinstance(inspect.getattr_static(holder, name), staticmethod)
    setattr(holder, name, staticmethod(deadly) if is_static else deadly)


def work(runner_id: str, workingdir: str, settings: dict[str, Any]) -> None:
    worker = new_id()
    runner = open_runner(runner_id, worker=worker, **settings.get("times", {}))
    runner.ledger.poll_s = settings.get("poll_s", runner.ledger.poll_s)
    work = Worker(
        runner,
        worker,
        Path(workingdir),
        slots=settings.get("slots", 1),
        stop_on_empty=settings.get("stop_on_empty", False),
        limits=Limits(**settings.get("limits", {})),
        **settings.get("options", {}),
    )
    with stopping(work.stop):
        work.run()


def drive(words: list[str]) -> int:
    """Do what the words of a command line say; return the exit status."""
    given, command, *rest = words
    settings = json.loads(given)
    if "die" in settings:
        die(**settings["die"])
    if "busy_s" in settings:
        Database.busy_s = settings["busy_s"]
    if command == "adr":
        return main(rest)
    work(*rest, settings)
    return 0


if __name__ == "__main__":
    sys.exit(drive(sys.argv[1:]))
