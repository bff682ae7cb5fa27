"""The hidden directory in which files arrive, before they get their names in the target.

It is locked as long as its process lives, so the next download knows and removes what an
interrupted one left. What arrives there, and when it is whole, is known to `adr.transfer`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adr.errors import UsageError

__all__ = ["ARRIVALS", "arrivals_in"]

_log = logging.getLogger(__name__)

#: What these directories are called, before a random part.
ARRIVALS = ".adr-download-"
_LOCK = "lock"
#: One whose lock cannot be tried is dead after so long.
_STALE_AFTER_S = 24 * 3600.0


@contextmanager
def arrivals_in(target: Path) -> Iterator[Path]:
    """Make and lock a hidden directory for arriving files; remove those of the dead.

    Parameters
    ----------
    target : Path
        Where the files go to; made where missing.

    Raises
    ------
    UsageError
        If it cannot be written to.
    """
    try:
        if target.exists() and not target.is_dir():
            raise UsageError(f"cannot download to {target}: it is a file, give a directory")
        target.mkdir(parents=True, exist_ok=True)
        for left in target.glob(ARRIVALS + "*"):
            _remove_if_dead(left)
        made = None
        while made is None:
            made = _locked_directory(target)
    except OSError as error:
        raise UsageError(
            f"cannot download to {target}: {error.strerror or error}; "
            f"give a directory that can be written to"
        ) from error
    arrivals, lock = made
    try:
        yield arrivals
    finally:
        shutil.rmtree(arrivals, ignore_errors=True)
        os.close(lock)


def _locked_directory(target: Path) -> tuple[Path, int] | None:
    """Make a directory with a locked file in it; None where another download took it for dead."""
    made = Path(tempfile.mkdtemp(prefix=ARRIVALS, dir=target))
    try:
        lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        # A file system without locks: then nobody can take this directory for dead either.
        return made, lock
    if not os.fstat(lock).st_nlink:
        os.close(lock)
        return None
    return made, lock


def _remove_if_dead(left: Path) -> None:
    """Remove a directory of arriving files whose process is no more."""
    try:
        lock = os.open(left / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        # Being made or removed at this moment, unless it is old.
        with suppress(OSError):
            if time.time() - left.lstat().st_mtime > _STALE_AFTER_S:
                shutil.rmtree(left)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left)
    except OSError:
        _log.debug("%s belongs to another download", left)
    finally:
        os.close(lock)
