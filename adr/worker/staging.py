"""Results are taken out of a workspace, before the next job runs in it.

They go to a folder of their own, from which `adr.worker.outbox` stores them.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from adr.worker.jobuser import JobUser
from adr.worker.tree import OPEN, open_tree, opened
from adr.worker.workspace import Changes

__all__ = ["stage"]


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
        Folder of the worker's for these files.
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
    if user is None:
        return _taken(directory, staging, changes, patterns)
    handle = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Out of the reach of jobs all the same: only a thread of ours has this handle.
        os.fchmod(handle, 0o777)
        with user.rights():
            files = _taken(directory, Path(f"/proc/self/fd/{handle}"), changes, patterns)
    finally:
        os.close(handle)
    staged = tuple((staging / path.name, name) for path, name in files)
    for path, _ in staged:
        user.take(path)
    return staged


def _taken(
    directory: Path, staging: Path, changes: Changes, patterns: Sequence[str]
) -> tuple[tuple[Path, str], ...]:
    chosen = [re.compile(pattern) for pattern in patterns]
    created = set(changes.created)
    names = [
        name
        for name in sorted([*changes.created, *changes.changed])
        if not chosen or any(pattern.search(name) for pattern in chosen)
    ]
    if not names:
        # The directory itself may be gone.
        return ()
    staged: list[tuple[Path, str]] = []
    with open_tree(directory) as root:
        for name in names:
            folder, _, base = name.rpartition("/")
            target = staging / str(len(staged))
            with opened(root, folder) as fd:
                # The whole path may be longer than the kernel takes.
                source = Path(f"/proc/self/fd/{fd}", base)
                if name in created and not source.is_symlink():
                    try:
                        source.rename(target)
                    except PermissionError:
                        # The job has closed the directory; `Workspace.restore` sees to it.
                        os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | OPEN)
                        source.rename(target)
                else:
                    shutil.copy2(source, target)
            staged.append((target, name))
    return tuple(staged)
