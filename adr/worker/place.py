"""Where a worker works: a directory of its own, removed when it ends, and how many slots fit."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adr.cores import cores
from adr.errors import UsageError
from adr.worker.jobuser import JobUser
from adr.worker.launcher import Launcher
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
    user : JobUser, optional
        Another user, who gets through to what jobs need and to nothing else.

    Raises
    ------
    UsageError
        If no directory can be made there, or jobs cannot run there as that user.
    """

    def __init__(self, workingdir: Path, worker: str, user: JobUser | None = None) -> None:
        self.path = workingdir.absolute() / f"{_NAME}{worker}"
        self._inner = -1
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
            #: Where bundles are to be kept.
            self.bundles = self.path / "bundles"
            for each in (self.bundles, self.path / "outbox"):
                each.mkdir(mode=0o700)
            if user:
                self._open_to_jobs()
        except OSError as error:
            raise UsageError(
                f"cannot work in {workingdir}: {error.strerror}: "
                f"choose another directory with --workingdir"
            ) from error
        if user and (problem := _problem(self.path, user)):
            self.remove()
            raise UsageError(f"jobs cannot run as the user {user.name} in {workingdir}: {problem}")

    def _open_to_jobs(self) -> None:
        """Let other users through to the slots, by name.

        A thread with the rights of such a user has to read bundles, which jobs must not: it
        goes by a handle of this process, past the directory that is closed to all others.
        """
        inner = self.bundles / "open"
        inner.mkdir()
        inner.chmod(0o711)
        self._inner = os.open(inner, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.bundles = Path(f"/proc/self/fd/{self._inner}")
        self.path.chmod(0o711)

    def remove(self) -> None:
        """Remove the directory."""
        if self._inner >= 0:
            os.close(self._inner)
        with suppress(FileNotFoundError), _alone(self.path.parent):
            discard_tree(self.path)
        os.close(self._lock)


def _problem(directory: Path, user: JobUser) -> str:
    """Say why a job cannot run in a directory as that user; empty where it can."""
    try:
        with user.rights():
            os.stat(directory / "lock")
    except OSError as error:
        return (
            f"that user cannot get there ({error.strerror}): let others pass through each "
            f"directory on the way with chmod o+x, or choose another one with --workingdir"
        )
    launcher = Launcher(user)
    try:
        return launcher.run(
            ["bash", "-c", "exit"],
            cwd=directory,
            env={os.fsencode(name): os.fsencode(each) for name, each in user.environment().items()},
            log_path=os.devnull,
            timeout_s=None,
        ).error
    finally:
        launcher.close()


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
