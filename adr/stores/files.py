"""What both stores do with files of this machine: make, copy, and name what went wrong.

Here and not in either store, since backends do not import each other.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adr.errors import ServiceError, Unavailable

__all__ = ["copy_contents", "naming", "new_file", "open_regular", "write_all"]

_COPY_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}
#: What copy_file_range(2) answers where it cannot copy between these two files.
_CANNOT_COPY_INSIDE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@contextmanager
def naming(operation: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` within into one sentence that names `path`.

    Raises
    ------
    Unavailable
        If the disk is full: it need not stay so.
    ServiceError
        Instead of any other `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Unavailable(
                f"cannot {operation} {path}: {error.strerror}: make room there"
            ) from error
        raise ServiceError(f"cannot {operation} {path}: {error.strerror or error}") from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Make an unbuffered file that must not exist, mode 0600; removed again if the body raises."""
    with naming("write", path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(handle, "wb", buffering=0) as file:
                yield file
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or device, on which a read could wait, is refused.

    Raises
    ------
    OSError
        Its subclass `IsADirectoryError` for a directory.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # Of a directory this raises what we promise.
    file = open(handle, "rb", buffering=0)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write the whole of `data` to an unbuffered file, which may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def copy_contents(source: BinaryIO, target: BinaryIO) -> None:
    """Copy the rest of one unbuffered file to another, within the kernel where it can.

    A file system that shares blocks (btrfs, XFS) then stores nothing twice.
    """
    while hasattr(os, "copy_file_range"):
        try:
            if not os.copy_file_range(source.fileno(), target.fileno(), _COPY_BYTES):
                break
        except OSError as error:
            if error.errno not in _CANNOT_COPY_INSIDE:
                raise
            break
    while chunk := source.read(_CHUNK_BYTES):
        write_all(target, chunk)
