"""Look at, open up and remove directory trees that a job has left, whatever it did to them.

Directories are opened relative to one another and never through a link, so that a link that
leads out of the tree is no danger, nor is a tree deeper than the kernel's longest path, a
directory without permissions, or a name of any bytes. Nothing may move in the tree meanwhile.
Used by `adr.worker.workspace`.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "LISTED",
    "OPEN",
    "Entry",
    "discard_tree",
    "open_tree",
    "opened",
    "remove",
    "remove_tree",
    "set_modes",
    "walk",
]

_log = logging.getLogger(__name__)

#: What the owner needs to look into a directory.
LISTED = stat.S_IRUSR | stat.S_IXUSR
#: What the owner needs to change it, too.
OPEN = stat.S_IRWXU

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Characters, of at most 4 bytes each: Linux takes paths of 4,096 bytes.
_LONGEST = 1000


class Entry(NamedTuple):
    """Tell one state of a name from another; what says nothing for its type is 0."""

    mode: int
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    target: str = ""

    @property
    def is_dir(self) -> bool:
        """Tell whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Tell whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Tell whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def permissions(self) -> int:
        """Return what chmod sets."""
        return stat.S_IMODE(self.mode)

    @classmethod
    def of(cls, status: os.stat_result, target: str = "") -> Entry:
        """Make an entry of what lstat and readlink say."""
        if stat.S_ISREG(status.st_mode):
            return cls(
                status.st_mode,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_ino,
            )
        return cls(status.st_mode, target=target)


@contextmanager
def open_tree(directory: Path) -> Iterator[int]:
    """Open the top of a tree, for the other functions here."""
    mode = os.lstat(directory).st_mode
    if stat.S_ISDIR(mode) and mode & LISTED != LISTED:
        os.chmod(directory, stat.S_IMODE(mode) | OPEN)
    root = os.open(directory, _FLAGS)
    try:
        yield root
    finally:
        os.close(root)


@contextmanager
def opened(root: int, folder: str) -> Iterator[int]:
    """Open a directory of a tree; a path longer than the kernel takes is gone in parts."""
    fd = root
    rest = folder or "."
    try:
        while rest:
            end = len(rest) if len(rest) <= _LONGEST else rest.rindex("/", 0, _LONGEST)
            step, rest = rest[:end], rest[end + 1 :]
            above, fd = fd, os.open(step, _FLAGS, dir_fd=fd)
            if above != root:
                os.close(above)
        yield fd
    finally:
        if fd != root:
            os.close(fd)


def set_modes(root: int, modes: Mapping[str, int], *, outermost_first: bool = False) -> None:
    """Set the permissions of files and directories, by default from the inside out."""
    for name in sorted(modes, reverse=not outermost_first):
        if name:
            folder, _, base = name.rpartition("/")
            with opened(root, folder) as fd:
                os.chmod(base, modes[name], dir_fd=fd)
        else:
            os.fchmod(root, modes[name])


def walk(root: int, forced: dict[str, int]) -> Iterator[tuple[str, Entry]]:
    """Yield what is in a tree, a directory before what is in it.

    Directories that their owner may not list are opened up; their names and permissions
    are added to `forced`.
    """
    folders = [("", OPEN)]
    while folders:
        folder, mode = folders.pop()
        if mode & LISTED != LISTED:
            forced[folder] = mode
            set_modes(root, {folder: mode | OPEN})
        prefix = folder and folder + "/"
        with opened(root, folder) as fd, os.scandir(fd) as listing:
            for each in listing:
                status = each.stat(follow_symlinks=False)
                kind = stat.S_IFMT(status.st_mode)
                target = os.readlink(each.name, dir_fd=fd) if kind == stat.S_IFLNK else ""
                if kind == stat.S_IFDIR:
                    folders.append((prefix + each.name, stat.S_IMODE(status.st_mode)))
                yield prefix + each.name, Entry.of(status, target)


def remove_tree(path: Path) -> None:
    """Remove whatever is at `path`; nothing there is no error."""
    with suppress(FileNotFoundError):
        remove(None, os.fspath(path))


def discard_tree(path: Path) -> None:
    """Remove whatever is at `path`, as far as that is possible."""
    try:
        remove_tree(path)
    except OSError as error:
        _log.warning("%s stays behind: %s", path, error)


def remove(parent: int | None, name: str) -> None:
    """Remove whatever has that name in an open directory, or is at that path.

    Inner directories are first moved to the top of the tree and emptied there, so the depth
    of the tree does not matter.

    Raises
    ------
    OSError
        If something is immutable, a mount point, or not ours. What can be removed is gone.
    """
    mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        os.unlink(name, dir_fd=parent)
        return
    top = _opened_up(name, parent)
    try:
        folders = _empty(top)
        while folders:
            folder = folders.pop()
            fd = os.open(folder, _FLAGS, dir_fd=top)
            try:
                for inner in _empty(fd):
                    moved = secrets.token_hex(8)
                    os.rename(inner, moved, src_dir_fd=fd, dst_dir_fd=top)
                    folders.append(moved)
            finally:
                os.close(fd)
            os.rmdir(folder, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(fd: int) -> list[str]:
    """Remove all but directories from a directory; return those, opened up."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(fd) as listing:
        for each in listing:
            # Names alone: of a hundred thousand entries all the rest would take 20 MB.
            (folders if each.is_dir(follow_symlinks=False) else files).append(each.name)
    for name in files:
        os.unlink(name, dir_fd=fd)
    for name in folders:
        if os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode & OPEN != OPEN:
            os.close(_opened_up(name, fd))
    return folders


def _opened_up(name: str, parent: int | None) -> int:
    """Open a directory to be emptied, and allow its owner everything.

    Who may open it as it is, root above all, changes nothing by name: that follows links.
    """
    try:
        fd = os.open(name, _FLAGS, dir_fd=parent)
    except PermissionError:
        os.chmod(name, OPEN, dir_fd=parent)
        fd = os.open(name, _FLAGS, dir_fd=parent)
    try:
        if os.fstat(fd).st_mode & OPEN != OPEN:
            os.fchmod(fd, OPEN)
    except BaseException:
        os.close(fd)
        raise
    return fd
