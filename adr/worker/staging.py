"""Results are taken out of a workspace, before the next job runs in it.

They go to a folder of their own, from which `adr.worker.outbox` stores them. Nobody can change
them there: no process of the job is left, and of a file that somebody else may still write to,
by another name or because it is open, it is a copy that is taken.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from adr.worker.jobuser import JobUser
from adr.worker.kernellease import lease_for_a_moment
from adr.worker.tree import OPEN, open_tree, opened
from adr.worker.workspace import Changes

__all__ = ["stage"]

#: Where a file lies in the folder of staged ones while it is copied.
_SHARED = "shared"


def stage(
    directory: Path,
    staging: Path,
    changes: Changes,
    patterns: Sequence[str],
    user: JobUser | None = None,
) -> tuple[tuple[Path, str], ...]:
    """Move new files, and copy changed inputs, to where jobs do not reach them.

    Parameters
    ----------
    directory : Path
        The workspace.
    staging : Path
        Folder of the worker's for these files, made if there are any.
    changes : Changes
        What a job did to the workspace.
    patterns : sequence of str
        Regular expressions of which one has to be found in a name; without any, all are taken.
    user : JobUser, optional
        Whom the workspace belongs to, if not to the worker, who owns the files afterwards.

    Returns
    -------
    tuple of (Path, str)
        Each file, and its name in the workspace.

    Raises
    ------
    OSError, AdrError
        If one of them cannot be taken.
    """
    if not (names := _chosen(changes, patterns)):
        return ()
    staging.mkdir()
    if user is None:
        return _taken(directory, staging, changes, names)
    handle = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Out of the reach of jobs all the same: only a thread of ours has this handle.
        os.fchmod(handle, 0o777)
        with user.rights():
            files = _taken(directory, Path(f"/proc/self/fd/{handle}"), changes, names)
    finally:
        os.close(handle)
    staged = tuple((staging / path.name, name) for path, name in files)
    for path, _ in staged:
        user.take(path)
    return staged


def _chosen(changes: Changes, patterns: Sequence[str]) -> list[str]:
    """Return the names of what is to be taken."""
    chosen = [re.compile(pattern) for pattern in patterns]
    return [
        name
        for name in sorted([*changes.created, *changes.changed])
        if not chosen or any(pattern.search(name) for pattern in chosen)
    ]


def _taken(
    directory: Path, staging: Path, changes: Changes, names: Sequence[str]
) -> tuple[tuple[Path, str], ...]:
    created = set(changes.created)
    staged = [(staging / str(number), name) for number, name in enumerate(names)]
    moved: list[tuple[Path, str]] = []
    with open_tree(directory) as root:
        for target, name in staged:
            with _source(root, name) as (source, _):
                if name in created and not source.is_symlink():
                    moved.append((target, name))
                else:
                    _copy(source, target)
        # Not before all links are copied, which may lead to these.
        for target, name in moved:
            with _source(root, name) as (source, folder):
                try:
                    source.rename(target)
                except PermissionError:
                    # The job has closed the directory; `Workspace.restore` sees to it.
                    os.fchmod(folder, stat.S_IMODE(os.fstat(folder).st_mode) | OPEN)
                    source.rename(target)
            _make_own(target, staging / _SHARED)
    return tuple(staged)


@contextmanager
def _source(root: int, name: str) -> Iterator[tuple[Path, int]]:
    """Yield a path of a file and the folder it is in; the whole path may be too long."""
    folder, _, base = name.rpartition("/")
    with opened(root, folder) as fd:
        yield Path(f"/proc/self/fd/{fd}", base), fd


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or the one that a link leads to, even if its owner may not read it."""
    mode = stat.S_IMODE(source.stat().st_mode)
    if mode & stat.S_IRUSR:
        shutil.copy2(source, target)
        return
    source.chmod(mode | stat.S_IRUSR)
    try:
        shutil.copy2(source, target)
    finally:
        source.chmod(mode)


def _make_own(path: Path, aside: Path) -> None:
    """Let a file be one that its owner can read, and that nobody else writes to."""
    status = path.lstat()
    if not status.st_mode & stat.S_IRUSR:
        # That fails for what belongs to another user, which is left to who takes it over.
        with suppress(PermissionError):
            path.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
    if status.st_nlink > 1 or _is_open(path):
        path.rename(aside)
        shutil.copy2(aside, path)
        aside.unlink()


def _is_open(path: Path) -> bool:
    """Tell whether somebody has a file open for writing, who does not find it by this name."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            lease_for_a_moment(fd, fcntl.F_RDLCK)
        finally:
            os.close(fd)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without leases, or the file of another user.
        return False
    return False
