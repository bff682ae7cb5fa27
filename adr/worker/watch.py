"""Which names in a directory tree were touched since the last look, as the kernel tells it.

Rests on inotify(7): each directory of the tree is watched, and the names in its events are
those that have to be looked at; all others are as they were. So a look costs what was
touched, not what is there. Written memory maps count as well, since the file was opened for
writing and is reported when it is closed.

A write is told by the one name it was made through, and the making of a hard link by the
name of the link alone (measured: the file's own name gets no IN_ATTRIB through the watch of
its directory). A link that is still there can be recognised by who looks at its name: more
than one link leads to that file. One that came and went cannot; nor can one in a new
directory, which is not watched. Both look like any other file or directory, so each name that
came and went, and each new directory, makes the answer None: look at everything. To watch
every single file would tell more and costs about 1 kB of kernel memory each, out of what all
programs of the user share; to look at everything costs some 3 us a file.

None is the answer as well where the kernel does not say (no inotify, too many directories or
events) or a directory was moved, removed or given other permissions. Not seen is a change
through a hard link whose name lies outside of the tree.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Watch"]

# Of inotify(7), the same on all architectures of Linux.
_CHANGES = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200  # MODIFY … DELETE
_SELF = 0x400 | 0x800  # DELETE_SELF, MOVE_SELF
_CAME = 0x80 | 0x100  # MOVED_TO, CREATE
_WENT = 0x40 | 0x200  # MOVED_FROM, DELETE
_NO_DIRECTORY_MAY = 0x4 | 0x40 | 0x80 | 0x100  # ATTRIB, MOVED_FROM, MOVED_TO, CREATE
_LOST = _SELF | 0x2000 | 0x4000 | 0x8000  # UNMOUNT, Q_OVERFLOW, IGNORED
_IS_DIR = 0x40000000
_ONLY_DIR = 0x01000000
_DONT_FOLLOW = 0x02000000
_HEAD = struct.Struct("iIII")
_BUFFER_BYTES = 1 << 16


class Watch:
    """Watch the directories of one tree.

    Not thread-safe.

    Parameters
    ----------
    top : Path
        Top of the tree.
    folders : iterable of str
        Its directories, relative to the top; ``""`` is the top.
    """

    def __init__(self, top: Path, folders: Iterable[str]) -> None:
        self._folders: dict[int, str] = {}
        self._fd = -1
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "inotify_init1"):
            return
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            return
        mask = _CHANGES | _SELF | _ONLY_DIR | _DONT_FOLLOW
        for folder in folders:
            path = os.fsencode(top / folder)
            number = libc.inotify_add_watch(self._fd, path, mask)
            if number < 0:
                self.close()
                return
            self._folders[number] = folder

    def touched(self) -> set[str] | None:
        """Return the names that were touched since the last call; None where that is unknown.

        Once it is unknown it stays so: make another watch.
        """
        names: set[str] = set()
        came: set[str] = set()
        while self._fd >= 0:
            try:
                data = os.read(self._fd, _BUFFER_BYTES)
            except BlockingIOError:
                return names
            except OSError:
                break
            if not self._note(data, names, came):
                break
        self.close()
        return None

    @property
    def is_lost(self) -> bool:
        """Tell whether nothing is known any more."""
        return self._fd < 0

    def close(self) -> None:
        """Watch no more; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def _note(self, data: bytes, names: set[str], came: set[str]) -> bool:
        """Add the names of some events; return whether they tell everything."""
        at = 0
        while at < len(data):
            number, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            unclear = mask & _IS_DIR and mask & _NO_DIRECTORY_MAY
            if mask & _LOST or unclear or number not in self._folders:
                return False
            folder = self._folders[number]
            path = f"{folder}/{name}" if folder and name else folder or name
            if path in came and mask & (_CAME | _WENT):
                return False
            if mask & _CAME:
                came.add(path)
            names.add(path)
        return True
