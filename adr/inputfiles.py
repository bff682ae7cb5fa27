"""The contents of the files of a bundle, read as long as they are those that were chosen."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from adr.errors import AdrError
from adr.members import Member, unreadable
from adr.progress import Progress

__all__ = ["are_small", "digests", "read_member"]

_CHUNK_BYTES = 1 << 20
_HASHERS = 4
_FILES_PER_TASK = 64
#: A file takes as long to open as that much takes to read, about.
_SMALL_BYTES = 64 << 10


def are_small(number: int, size_bytes: int) -> bool:
    """Tell whether files are so small that threads would mostly wait for each other's Python.

    Parameters
    ----------
    number : int
        How many there are.
    size_bytes : int
        Size of all.
    """
    return size_bytes < number * _SMALL_BYTES


def read_member(root: str | os.PathLike[str], member: Member) -> Iterator[bytes]:
    """Yield the content of a file, and make sure that it is the file that was chosen.

    Raises
    ------
    UsageError
        If it cannot be read.
    AdrError
        If it vanished or changed since it was chosen, or while it was read.
    """
    path = os.path.join(root, member.name)
    try:
        # A file may have become a pipe, whose opening would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            _check_unchanged(path, member, os.fstat(descriptor))
            left = member.size_bytes
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk
            _check_unchanged(path, member, os.fstat(descriptor))
    except FileNotFoundError as error:
        raise AdrError(
            f"{path} vanished while the inputs were read: try again when nothing changes them"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _check_unchanged(path: str, member: Member, status: os.stat_result) -> None:
    now = (stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns)
    if now != (stat.S_IFMT(member.mode), member.size_bytes, member.mtime_ns):
        raise AdrError(
            f"{path} changed while the inputs were read: try again when nothing changes them"
        )


def digests(
    root: str | os.PathLike[str], files: Sequence[Member], progress: Progress
) -> Iterator[tuple[Member, bytes]]:
    """Yield each file with the SHA-256 of its content, which a link has none of."""

    def hashed(start: int) -> list[tuple[Member, bytes]]:
        found = []
        for member in files[start : start + _FILES_PER_TASK]:
            if not stat.S_ISREG(member.mode):
                found.append((member, b""))
                continue
            digest = hashlib.sha256()
            for chunk in read_member(root, member):
                digest.update(chunk)
                progress.advance(len(chunk))
            found.append((member, digest.digest()))
        return found

    size_bytes = sum(member.size_bytes for member in files)
    starts = iter(range(0, len(files), _FILES_PER_TASK))
    progress.start("reading", size_bytes, "bytes")
    try:
        is_near = are_small(len(files), size_bytes)
        while is_near and (start := next(starts, None)) is not None:
            began, worked = time.monotonic(), time.thread_time()
            found = hashed(start)
            # Where the disk lets wait, or others use the core, several threads wait less.
            is_near = time.monotonic() - began < 2 * (time.thread_time() - worked)
            yield from found
        with ThreadPoolExecutor(_HASHERS) as pool:
            for found in pool.map(hashed, starts):
                yield from found
    finally:
        progress.finish()
