"""The user that jobs run as, where that is another one than the worker's.

Such a worker starts its launchers as that user (`adr.worker.launcher`), and lends that user's
rights to its own threads for as long as they work where jobs have been. So a link that a job
has laid out leads a worker nowhere that the job could not go itself, and what is unpacked and
put back belongs to that user without being given away file by file. The alternative, to work
there with the rights of the worker and change owners, costs a walk and trusts what jobs left.

Rests on setfsuid(2) and capset(2), which concern the calling thread alone.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adr.errors import AdrError, UsageError

__all__ = ["JobUser"]

#: Numbers of capabilities(7), and what each of them is for.
_NEEDED = {
    "CAP_CHOWN": 0,  # give an empty directory and a log away, take results back
    "CAP_DAC_OVERRIDE": 1,  # read results that are closed, remove what a dead worker has left
    "CAP_FOWNER": 3,  # the same, in directories that are closed or sticky
    "CAP_KILL": 5,  # end what a killed launcher has left
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
}
# Of capget(2): its version, and the place of the effective ones among the three sets of each half.
_VERSION = 0x20080522
_EFFECTIVE = (0, 3)
_NOBODY = 0xFFFFFFFF


@dataclass(frozen=True)
class JobUser:
    """Hold what a process of that user has, and act for him."""

    name: str
    uid: int
    gid: int
    #: All groups, the first one included.
    groups: tuple[int, ...]
    home: str
    #: Whether jobs get the ``AWS_*`` variables of the worker.
    aws: bool = False

    @classmethod
    def find(cls, name: str, *, aws: bool = False) -> JobUser:
        """Look a user up whom this process may act for.

        Raises
        ------
        UsageError
            If there is no such user, he is root or the worker's own, or this process lacks a
            privilege.
        """
        try:
            entry = pwd.getpwnam(name)
        except (KeyError, ValueError):
            raise UsageError(
                f"there is no user {name!r} on this machine to run jobs as: "
                f"make one with useradd, or name another with --job-user"
            ) from None
        if entry.pw_uid in (0, os.geteuid()):
            kind = "root" if entry.pw_uid == 0 else "the user of the worker itself"
            raise UsageError(
                f"jobs cannot run as {name}, who is {kind}: name another user with --job-user"
            )
        has = _capabilities()[0]
        missing = [each for each, number in _NEEDED.items() if not has >> number & 1]
        if missing:
            raise UsageError(
                f"running jobs as the user {name} needs root or ambient capabilities, of which "
                f"this process lacks {', '.join(missing)}: start it with them, or leave out "
                f"--job-user"
            )
        groups = tuple(os.getgrouplist(name, entry.pw_gid))
        return cls(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, aws)

    def environment(self) -> dict[str, str]:
        """Return the environment of this process as that user's processes get it."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if self.aws or not name.startswith("AWS_")
        }
        return {**kept, "HOME": self.home, "USER": self.name, "LOGNAME": self.name}

    @contextmanager
    def rights(self) -> Iterator[None]:
        """Let this thread do with files what the user may; what it makes is his.

        Groups are those of the worker, apart from the first one. Must not be nested.
        """
        before = _capabilities()
        without = type(before)(*before)
        for place in _EFFECTIVE:
            without[place] = 0
        try:
            _act_as(self.uid, self.gid)
            _set_capabilities(without)
            yield
        finally:
            # Allowed without any: these are among the ids of the process.
            _act_as(os.geteuid(), os.getegid())
            _set_capabilities(before)

    def give(self, path: Path) -> None:
        """Make the user the owner of something that lies where jobs cannot reach it."""
        os.chown(path, self.uid, self.gid)

    def take(self, path: Path) -> None:
        """Make the worker the owner of a file of the user's, out of the reach of jobs.

        Raises
        ------
        AdrError
            If it is no regular file, or another's: a hard link is all that a job needs to
            pass off what it may not read.
        """
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != self.uid:
            raise AdrError("one of them is no regular file, or belongs to another user")
        os.chown(path, os.geteuid(), os.getegid())


def _capabilities() -> ctypes.Array[ctypes.c_uint32]:
    """Return effective, permitted and inheritable capabilities of this thread, in two halves."""
    sets = (ctypes.c_uint32 * 6)()
    _call("capget", (ctypes.c_uint32 * 2)(_VERSION, 0), sets)
    return sets


def _set_capabilities(sets: ctypes.Array[ctypes.c_uint32]) -> None:
    _call("capset", (ctypes.c_uint32 * 2)(_VERSION, 0), sets)


def _call(name: str, *values: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*values):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _act_as(uid: int, gid: int) -> None:
    """Set the ids by which the kernel judges this thread's access to files."""
    libc = ctypes.CDLL(None)
    for name, number in (("setfsgid", gid), ("setfsuid", uid)):
        call = getattr(libc, name)
        call.argtypes, call.restype = [ctypes.c_uint32], ctypes.c_uint32
        call(number)
        # It tells of no failure: only the next call says what is in force.
        if call(_NOBODY) != number:
            raise PermissionError(f"{name} to {number} was refused")
