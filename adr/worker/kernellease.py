"""Ask the kernel whether others have a file open, by a lease in the sense of ``fcntl(2)``.

For the child of a launcher as well, so it imports nothing of adr.
"""

from __future__ import annotations

import fcntl
import signal

__all__ = ["lease_for_a_moment"]


def lease_for_a_moment(fd: int, kind: int) -> None:
    """Take a lease on an open file, and let go of it.

    Parameters
    ----------
    kind : int
        ``F_RDLCK`` is granted if nobody has the file open for writing, ``F_WRLCK`` if nobody
        else has it open at all.

    Raises
    ------
    BlockingIOError
        If somebody has.
    OSError
        If the file system has no leases, or the file belongs to another user.
    """
    # Whoever opens it at this very moment makes the kernel send this signal, not SIGIO.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
