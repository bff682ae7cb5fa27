"""Where a worker works: a directory of its own, removed when it ends, and how many slots fit."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from adr.errors import UsageError
from adr.worker.tree import discard_tree

__all__ = ["Place", "cores"]

_NAME = "adr-worker-"


class Place:
    """Make a directory that no other worker uses, and clear away those of dead ones.

    A worker holds a lock on its directory for as long as it lives, so that what a killed
    worker has left behind is told from what another one is using.

    Parameters
    ----------
    workingdir : Path
        Where the directory is made.
    worker : str
        Id of the worker.

    Raises
    ------
    UsageError
        If no directory can be made there.
    """

    def __init__(self, workingdir: Path, worker: str) -> None:
        self.path = workingdir.absolute() / f"{_NAME}{worker}"
        try:
            self.path.mkdir(mode=0o700, parents=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            for name in ("bundles", "outbox"):
                (self.path / name).mkdir()
        except OSError as error:
            raise UsageError(
                f"cannot work in {workingdir}: {error.strerror}: "
                f"choose another directory with --workingdir"
            ) from error
        for other in self.path.parent.glob(f"{_NAME}*"):
            if other != self.path:
                _sweep(other)

    def remove(self) -> None:
        """Remove the directory."""
        discard_tree(self.path)
        os.close(self._lock)


def _sweep(path: Path) -> None:
    """Remove the directory of a worker that is dead."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        discard_tree(path)
    finally:
        os.close(lock)


def cores() -> int:
    """Return how many cores this process may use: those of its affinity, bounded by its cgroup."""
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    try:
        # cgroups(7), version 2: quota and period in microseconds, "max" for no limit.
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else max(1, min(usable, int(quota) // int(period)))
