"""A directory that job after job of a batch runs in, put back as it was after each.

`Workspace.changes` tells what a job did to the directory, which is also what can be a result;
`Workspace.restore` undoes it at the cost of what changed. `adr.worker.slot` calls both when
no process of the job is left, so nothing moves underneath. `adr.worker.contents` does the same
across processes.

Only what `adr.worker.watch` names is looked at, and the whole directory where it does not
know. A file counts as changed where its size, times or inode differ; contents are never
read. Not looked at: times of directories, owners, access lists.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from adr.errors import AdrError
from adr.worker.baseline import Baseline, Names
from adr.worker.tree import (
    LISTED,
    OPEN,
    Entry,
    open_tree,
    opened,
    remove,
    remove_tree,
    set_modes,
    walk,
)
from adr.worker.watch import Watch

__all__ = ["Changes", "Workspace"]

# The clock of file times, for which Python has no name, and the longest wait for its tick.
_CLOCK_REALTIME_COARSE = 5
_TICK_S = 0.05


@dataclass(frozen=True)
class Changes:
    """Tell what has happened to a workspace.

    Names are relative to its directory, as `os.fsdecode` gives them. `created` and `changed`
    are what can be results: regular files, and links to regular files inside.
    """

    #: Files that are new, also those in new directories.
    created: list[str] = field(default_factory=list)
    #: Originals that have other content, or may have: other size, times, inode or target.
    changed: list[str] = field(default_factory=list)
    #: Originals of any kind that are gone, or replaced by something that is no file.
    removed: list[str] = field(default_factory=list)
    #: Originals of which the permissions alone have changed; ``""`` is the directory itself.
    altered: list[str] = field(default_factory=list)
    #: All that is new, of any kind; of a new directory only its own name.
    made: list[str] = field(default_factory=list)


class Workspace:
    """Put a directory back as it was, again and again.

    Not thread-safe.

    Parameters
    ----------
    directory : Path
        An existing directory.
    restore : callable
        Puts the original file of a name back, where nothing is.
    rights : callable, optional
        Gives a context in which the directory is worked on; see `adr.worker.jobuser`.
    names : Names, optional
        Shared by workspaces with the same contents.
    """

    def __init__(
        self,
        directory: Path,
        restore: Callable[[str], None],
        rights: Callable[[], AbstractContextManager[None]] = nullcontext,
        names: Names | None = None,
    ) -> None:
        self.directory = directory
        self._restore = restore
        self._rights = rights
        self._names = Names() if names is None else names
        #: What `restore` goes back to, by name; ``""`` is the directory itself.
        self.baseline = Baseline(self._names)
        #: Permissions of the directories that their owner may not change; None: not sought yet.
        self._closed: dict[str, int] | None = None
        self._watch: Watch | None = None

    def snapshot(self) -> None:
        """Take the present contents as what `restore` goes back to."""
        forced: dict[str, int] = {}
        baseline = Baseline(self._names)
        newest_ns = 0
        with self._rights():
            baseline[""] = Entry.of(os.lstat(self.directory))
            with open_tree(self.directory) as root:
                for path, entry in walk(root, forced):
                    baseline[path] = entry
                    newest_ns = max(newest_ns, entry.ctime_ns)
                set_modes(root, {**forced, "": baseline[""].permissions})
            self.baseline, self._closed = baseline, None
            self._watch_anew()
        _outlast(newest_ns)

    def changes(self) -> Changes:
        """Compare the directory with the last snapshot.

        Directories that their owner may not list are opened up on the way. Where the
        directory itself is gone, all originals are removed.
        """
        touched = self._watch.touched() if self._watch else None
        if touched is not None and not touched:
            return Changes()
        with self._rights():
            return self._all_changes() if touched is None else self._changes_among(touched)

    def _changes_among(self, touched: set[str]) -> Changes:
        """Compare some names, none of them a new directory; all there is if one is a hard link."""
        changes = Changes()
        seen: set[str] = set()
        with open_tree(self.directory) as root:
            for path in sorted(touched):
                folder, _, base = path.rpartition("/")
                with opened(root, folder) as fd:
                    try:
                        status = os.stat(base or ".", dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                        # It may be one of the originals that was written by this name.
                        return self._all_changes()
                    link = stat.S_ISLNK(status.st_mode)
                    entry = Entry.of(status, os.readlink(base, dir_fd=fd) if link else "")
                self._compare(changes, seen, path, entry)
        changes.removed.extend(sorted((touched & self.baseline.keys()) - seen))
        return changes

    def _all_changes(self) -> Changes:
        """Compare the whole directory."""
        changes = Changes()
        seen: set[str] = set()
        try:
            top = Entry.of(os.lstat(self.directory))
        except FileNotFoundError:
            top = Entry(0)
        if top.is_dir:
            self._compare(changes, seen, "", top)
            forced = {"": top.permissions} if top.permissions & LISTED != LISTED else {}
            with open_tree(self.directory) as root:
                for path, entry in walk(root, forced):
                    self._compare(changes, seen, path, entry)
            changes.altered.extend(sorted(forced.keys() & seen - set(changes.altered)))
        if len(seen) != len(self.baseline):
            changes.removed.extend(sorted(self.baseline.keys() - seen))
        return changes

    def restore(self, changes: Changes) -> None:
        """Undo what `changes` has just found; results may have been moved away meanwhile.

        Works whatever was done. Where the directory itself is gone, all of it is built anew.

        Raises
        ------
        OSError, AdrError
            If that is not possible (a full disk, an immutable file, an original that cannot
            be had again). The directory is then of no use; unpack it anew.
        """
        if self._watch and not self._watch.is_lost and changes == Changes():
            return
        with self._rights():
            try:
                if changes != Changes():
                    self._undo(changes)
            finally:
                # What was undone touched names as well.
                if self._watch is None or self._watch.touched() is None:
                    self._watch_anew()

    def close(self) -> None:
        """Watch the directory no more, which is to be removed; idempotent."""
        if self._watch:
            self._watch.close()

    def _watch_anew(self) -> None:
        self._watch = Watch(self.directory, (name for name, _ in self.baseline.folders()))

    def _undo(self, changes: Changes) -> None:
        if "" in changes.removed:
            remove_tree(self.directory)
            self.directory.mkdir(OPEN)
        altered_files = [name for name in changes.altered if not self.baseline[name].is_dir]
        replaced = [*changes.changed, *altered_files]
        missing = {*changes.removed, *replaced}
        if self._closed is None:
            # Once, not at every restoring: there may be many entries, and few of these.
            self._closed = {
                name: entry.permissions
                for name, entry in self.baseline.folders()
                if entry.permissions & OPEN != OPEN
            }
        # Directories that were closed, before or by the job, stay open while this goes on.
        modes = self._closed | {
            name: self.baseline[name].permissions
            for name in changes.altered
            if self.baseline[name].is_dir
        }
        with open_tree(self.directory) as root:
            opening = {name: mode | OPEN for name, mode in modes.items() if name not in missing}
            set_modes(root, opening, outermost_first=True)
            _clear(root, [*changes.made, *replaced])
            # Sorted, a directory comes before what it holds.
            for name in sorted(missing):
                self._bring_back(root, name)
                if self.baseline[name].is_dir:
                    modes[name] = self.baseline[name].permissions
            set_modes(root, modes)
        _outlast(max((self.baseline[name].ctime_ns for name in missing), default=0))

    def _compare(self, changes: Changes, seen: set[str], path: str, entry: Entry) -> None:
        """Enter one name of the directory into `changes` and, unless it is gone, `seen`."""
        old = self.baseline.get(path)
        if old == entry:
            seen.add(path)
            return
        if old is not None and old.is_dir and entry.is_dir:
            seen.add(path)
            changes.altered.append(path)
        elif old is not None and _differs_by_chmod(old, entry):
            # Nearly always a mere chmod, and so no result. Yet `cp -p` of another file of
            # the same size and time looks alike: the content is put back nevertheless.
            seen.add(path)
            changes.altered.append(path)
        elif entry.is_file or (entry.is_link and self._leads_to_file(path)):
            if old is not None:
                seen.add(path)
                changes.changed.append(path)
            else:
                changes.created.append(path)
                self._note_made(changes, path)
        else:
            self._note_made(changes, path)

    def _note_made(self, changes: Changes, path: str) -> None:
        folder = self.baseline.get(path.rpartition("/")[0])
        if folder is not None and folder.is_dir:
            changes.made.append(path)

    def _leads_to_file(self, path: str) -> bool:
        try:
            top = os.path.realpath(self.directory)
            target = os.path.realpath(os.path.join(top, path), strict=True)
            return target.startswith(top + "/") and stat.S_ISREG(os.lstat(target).st_mode)
        except OSError:
            return False

    def _bring_back(self, root: int, name: str) -> None:
        """Make an original that is missing."""
        old = self.baseline[name]
        folder, _, base = name.rpartition("/")
        if old.is_dir:
            if name:
                with opened(root, folder) as fd:
                    os.mkdir(base, OPEN, dir_fd=fd)
        elif old.is_link:
            with opened(root, folder) as fd:
                os.symlink(old.target, base, dir_fd=fd)
        else:
            self._restore(name)
            with opened(root, folder) as fd:
                os.chmod(base, old.permissions, dir_fd=fd)
                new = Entry.of(os.stat(base, dir_fd=fd, follow_symlinks=False))
            if (new.mode, new.size) != (old.mode, old.size):
                raise AdrError(f"what was put back as {name} in {self.directory} differs from it")
            self.baseline[name] = new


def _differs_by_chmod(old: Entry, new: Entry) -> bool:
    return (
        old.is_file
        and new.is_file
        and old.mode != new.mode
        and (old.size, old.mtime_ns, old.inode) == (new.size, new.mtime_ns, new.inode)
    )


def _clear(root: int, names: Iterable[str]) -> None:
    for folder, group in groupby(names, lambda name: name.rpartition("/")[0]):
        with opened(root, folder) as fd:
            for name in group:
                with suppress(FileNotFoundError):
                    remove(fd, name.rpartition("/")[2])


def _outlast(newest_ns: int) -> None:
    """Wait until the clock of file times has passed this one, some 4 ms at most.

    A change within the same tick could leave all times of a file as they are.
    """
    deadline = time.monotonic() + _TICK_S
    while (
        time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= newest_ns and time.monotonic() < deadline
    ):
        time.sleep(0.001)
