"""Where a worker works: a directory of its own, removed when it ends, and how many slots fit."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adr.cores import cores
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
            workingdir.mkdir(parents=True, exist_ok=True)
            # A directory that is just being made has no lock yet, and looks like a dead one's.
            with _alone(workingdir):
                for other in workingdir.absolute().glob(f"{_NAME}*"):
                    _sweep(other)
                self.path.mkdir(mode=0o700)
                lock = self.path / "lock"
                self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            for name in ("bundles", "outbox"):
                (self.path / name).mkdir()
        except OSError as error:
            raise UsageError(
                f"cannot work in {workingdir}: {error.strerror}: "
                f"choose another directory with --workingdir"
            ) from error

    def remove(self) -> None:
        """Remove the directory."""
        with suppress(FileNotFoundError), _alone(self.path.parent):
            discard_tree(self.path)
        os.close(self._lock)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other workers from beginning, and ending, in a directory."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove the directory of a worker that is dead."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # Its worker was killed between its first and second step, or its last ones.
        discard_tree(path)
        return
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
