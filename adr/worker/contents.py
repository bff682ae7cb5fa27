"""Put a directory back as it was across processes: what it held is kept in a file beside it.

For users of the Python API; workers keep it in memory (`adr.worker.workspace`).
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from adr.errors import AdrError, UsageError
from adr.worker.baseline import Baseline
from adr.worker.tree import Entry
from adr.worker.workspace import Changes, Workspace

__all__ = ["cache_contents", "restore_contents"]

_log = logging.getLogger(__name__)

_CACHE_SCHEMA = 1


def cache_contents(
    path: str | os.PathLike[str], *, cache_path: str | os.PathLike[str] | None = None
) -> str:
    """Cache current contents of directory.

    Traverses a given directory and registers all contents in a hidden cache file.

    Parameters
    ----------
    path : str
        Path for which the contents need to be cached.
    cache_path : str, optional
        Cache file. By default ``.<name>.contents`` beside the directory, where what runs in
        the directory does not see it.

    Returns
    -------
    str
        Cache filename.

    Raises
    ------
    UsageError
        If there is no such directory, or the cache file would lie within it.

    See Also
    --------
    restore_contents
    """
    directory, cache = _places(path, cache_path)
    if not directory.is_dir():
        raise UsageError(f"cannot cache the contents of {directory}: it is not a directory")
    workspace = Workspace(directory, _cannot)
    workspace.snapshot()
    _write_cache(cache, workspace)
    return str(cache)


def restore_contents(
    path: str | os.PathLike[str],
    *,
    cache_path: str | os.PathLike[str] | None = None,
    restore: Callable[[str], None] | None = None,
) -> None:
    """Restore contents of directory based on cache file.

    Compares the current contents of a directory with the previously cached contents of that
    directory and removes any files and directories that have been added. Directories, links
    and permissions are put back as well.

    Parameters
    ----------
    path : str
        Path for which the contents need to be restored.
    cache_path : str, optional
        Cache file, if another than by default.
    restore : callable, optional
        Puts the original file of a relative name back, where nothing is. Without it, files
        that were changed or removed are left as they are, with a warning in the log.

    Raises
    ------
    UsageError
        If there is no cache file, or it is not one of ours.

    See Also
    --------
    cache_contents
    """
    directory, cache = _places(path, cache_path)
    workspace = Workspace(directory, restore or _cannot)
    workspace.baseline = _read_cache(cache)
    changes = workspace.changes()
    if changes != Changes():
        workspace.restore(changes if restore else _without_contents(workspace, changes))
        _write_cache(cache, workspace)


def _without_contents(workspace: Workspace, changes: Changes) -> Changes:
    """Leave out what only the original contents of files can undo."""
    baseline = workspace.baseline

    def rest(names: list[str]) -> list[str]:
        return [name for name in names if baseline[name].is_dir or baseline[name].is_link]

    kept = replace(
        changes,
        changed=rest(changes.changed),
        removed=rest(changes.removed),
        altered=rest(changes.altered),
    )
    for name in [*changes.changed, *changes.removed]:
        if name not in kept.changed and name not in kept.removed:
            _log.warning("%s in %s was changed or removed", name, workspace.directory)
    for name in changes.altered:
        if name not in kept.altered:
            file = os.path.join(workspace.directory, name)
            os.chmod(file, baseline[name].permissions)
            baseline[name] = Entry.of(os.lstat(file))
    return kept


def _cannot(name: str) -> None:
    raise AdrError(f"there is nothing to restore {name} from")


def _places(
    path: str | os.PathLike[str], cache_path: str | os.PathLike[str] | None
) -> tuple[Path, Path]:
    directory = Path(os.path.realpath(path))
    if cache_path is None:
        return directory, directory.with_name(f".{directory.name}.contents")
    cache = Path(os.path.realpath(cache_path))
    if directory in cache.parents:
        raise UsageError(f"the cache file {cache} lies within {directory}: name one outside of it")
    return directory, cache


def _write_cache(cache: Path, workspace: Workspace) -> None:
    beside = cache.with_name(f"{cache.name}.{os.getpid()}")
    text = json.dumps({"schema": _CACHE_SCHEMA, "entries": dict(workspace.baseline)})
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    beside.replace(cache)


def _read_cache(cache: Path) -> Baseline:
    try:
        data = json.loads(cache.read_text("ascii"))
        if data["schema"] == _CACHE_SCHEMA:
            baseline = Baseline()
            for name, values in data["entries"].items():
                baseline[name] = Entry(*values)
            return baseline
    except FileNotFoundError:
        raise UsageError(f"there is no {cache}: call cache_contents first") from None
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):
        pass
    raise UsageError(f"{cache} was not written by this cache_contents: call it anew")
