"""What the tests of the worker share: jobs, a small disk, a runner."""

from __future__ import annotations

import os
import threading
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import adr
from adr.models import new_id
from adr.runner import open_runner
from adr.survey import Survey
from adr.worker.loop import Worker

_Usage = namedtuple("_Usage", "total used free")


def queue_jobs(runner: str, folder: Path, command: str, jobs: int, **options: Any) -> str:
    """Queue so many jobs over a new folder of inputs; return the batch."""
    folder.mkdir()
    files = []
    for number in range(1, jobs + 1):
        path = folder / f"case-{number}.txt"
        path.write_text(f"{folder.name} {number}\n")
        files.append(path)
    return adr.queue(runner, files, command=f"{command}\n: {{}}", **options)


def launchers() -> int:
    """Count the launcher processes of this process."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            count += parent == os.getpid() and b"launcher_child" in (
                path.with_name("cmdline").read_bytes()
            )
        except OSError:
            continue
    return count


class Disk:
    """Stand in for a disk that has room for so many workspaces, wherever it is asked.

    Parameters
    ----------
    *folders : Path
        Folders of slots, which may come to be later.
    """

    _NEED_BYTES = 100 << 20

    def __init__(self, *folders: Path) -> None:
        self._folders: Sequence[Path] = folders
        self.room = 100

    def workspaces(self) -> list[str]:
        """Return the names of the workspaces there are."""
        return [
            path.name
            for folder in self._folders
            if folder.is_dir()
            for path in folder.iterdir()
            if path.is_dir()
        ]

    def usage(self, _path: Any) -> _Usage:
        """Answer for `shutil.disk_usage`."""
        used = len(self.workspaces())
        need = self._NEED_BYTES
        return _Usage(self.room * need, used * need, max(0, self.room - used) * need)


class Through:
    """Pass every call on to a ledger or store; the base of those that note or refuse some."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Site:
    """A local runner, and workers for it in this process.

    Parameters
    ----------
    folder : Path
        For everything that comes to be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workingdir = folder / "work"
        self.workingdir.mkdir()
        self.runner = adr.create(local=True, directory=str(folder / "runner"))
        self.survey = Survey(open_runner(self.runner))
        self._queued = 0
        self._running: list[tuple[Worker, threading.Thread]] = []

    def queue(self, command: str, jobs: int = 1, **options: Any) -> str:
        """Queue so many jobs; return the batch."""
        self._queued += 1
        inputs = self.folder / f"inputs-{self._queued}"
        return queue_jobs(self.runner, inputs, command, jobs, **options)

    def worker(
        self,
        ledger: Callable[[Any], Any] = Through,
        store: Callable[[Any], Any] = Through,
        **options: Any,
    ) -> Worker:
        """Make a worker; `ledger` and `store` wrap those of its runner."""
        worker = new_id()
        runner = open_runner(self.runner, worker=worker)
        runner = replace(runner, ledger=ledger(runner.ledger), store=store(runner.store))
        return Worker(runner, worker, self.workingdir, **options)

    def start(self, worker: Worker) -> threading.Thread:
        """Run a worker in a thread."""
        thread = threading.Thread(target=worker.run)
        thread.start()
        self._running.append((worker, thread))
        return thread

    def states(self) -> list[str]:
        """Return the state of every job, in order."""
        return [str(view.state) for view in self.survey.status().jobs]

    def clean_up(self) -> None:
        """End the workers that still run."""
        for worker, thread in self._running:
            worker.stop()
            thread.join(20)
            assert not thread.is_alive()
