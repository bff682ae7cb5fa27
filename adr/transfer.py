"""Copy many files at once between directories and a store.

Used by ``adr download`` and the workers. Names of results come from records that a job, and
so anybody, may have influenced: nothing here trusts them. Every directory below the target
is opened relative to its parent and without following links, which also serves paths
longer than the system takes in one piece.

Files arrive in one hidden directory of the target (`adr.arrivals`) and are renamed once their
checksum is right.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adr.arrivals import ARRIVALS, arrivals_in
from adr.errors import AdrError, PartialFailure
from adr.progress import SILENT, Progress
from adr.stores.base import ObjectStore

__all__ = ["Fetch", "FetchReport", "fetch", "file_digest", "remove_fetched", "store_files"]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

#: Where `adr run` keeps its runner in the folder that its results go to.
_OWN = ".adr"
_CHUNK_BYTES = 1 << 20
#: After so many failures in a row the cause is not a single file.
_GIVE_UP_AFTER = 20
#: So many failures are told one by one.
_TOLD = 10


@dataclass(frozen=True)
class Fetch:
    """Name one stored file and where it is wanted."""

    key: str
    #: Path relative to the target, as `os.fsdecode` gives it.
    name: str
    size_bytes: int
    sha256: str
    #: Permission bits.
    mode: int


@dataclass(frozen=True)
class FetchReport:
    """Count what `fetch` did."""

    #: Files that were copied.
    fetched: int
    #: Files that were there already, with the right content.
    unchanged: int
    #: Different files of that name that were left alone.
    kept: int
    #: Bytes that were copied.
    size_bytes: int
    #: Names of the files that were kept.
    kept_names: tuple[str, ...] = ()


def fetch(
    store: ObjectStore,
    items: Sequence[Fetch],
    target: Path,
    *,
    overwrite: bool = False,
    threads: int = 48,
    progress: Progress = SILENT,
) -> FetchReport:
    """Copy objects into a directory, several at a time.

    Idempotent: what is there already is recognised by its content and not copied again, so
    a call that was interrupted is resumed by another. A file appears under its name whole,
    verified and with its mode, or not at all.

    Parameters
    ----------
    items : sequence of Fetch
        What to copy; each name once.
    target : Path
        Directory, made where missing. Nothing is written outside it, whatever a name says.
    overwrite : bool, optional
        Replace existing files of other content, which are kept otherwise.
    threads : int, optional
        Number of objects copied at the same time.
    progress : Progress, optional
        Told the bytes of each file that is done with.

    Raises
    ------
    UsageError
        If `target` cannot be written to; nothing has been copied.
    PartialFailure
        If some items failed; all others have been done.
    """
    with arrivals_in(target) as arrivals:
        run = _Run(store, target, arrivals, overwrite, progress)
        progress.start("downloading", sum(item.size_bytes for item in items), "bytes")
        try:
            _in_parallel(run.one, items, threads)
        finally:
            progress.finish()
    return run.report(len(items))


def remove_fetched(target: Path, name: str, sha256: str) -> None:
    """Remove a file that `fetch` had put there, and folders that are empty then; idempotent.

    A file of other content is left alone, and so is everything beyond a link.
    """
    try:
        *folders, last = _segments(name)
        parent = _open_folders(target, folders, make=False)
    except (AdrError, OSError) as error:
        _log.debug("%s is not there any more: %s", name, error)
        return
    try:
        if not _has_content(parent, last, sha256):
            return
        os.unlink(last, dir_fd=parent)
    finally:
        os.close(parent)
    while folders:
        *folders, last = folders
        above = _open_folders(target, folders, make=False)
        try:
            os.rmdir(last, dir_fd=above)
        except OSError:
            return
        finally:
            os.close(above)


def store_files(
    store: ObjectStore, files: Sequence[tuple[Path, str]], *, move: bool = False, threads: int = 8
) -> None:
    """Upload files under their keys, several at a time.

    Parameters
    ----------
    files : sequence of (Path, str)
        Each file with its key.
    move : bool, optional
        See `adr.stores.base.ObjectStore.upload`.

    Raises
    ------
    AdrError
        The first error, once all other files have been tried.
    """
    _in_parallel(lambda each: store.upload(each[0], each[1], move=move), files, threads)


class _Run:
    """Hold what the threads of one `fetch` share."""

    def __init__(
        self, store: ObjectStore, target: Path, arrivals: Path, overwrite: bool, progress: Progress
    ) -> None:
        self._store = store
        self._target = target
        self._arrivals = arrivals
        self._overwrite = overwrite
        self._progress = progress
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._done: dict[str, list[str]] = {"fetched": [], "unchanged": [], "kept": []}
        self._size_bytes = 0
        self._failed: list[tuple[str, str]] = []
        self._failed_in_row = 0

    def one(self, item: Fetch) -> None:
        """Deal with one item; failures are noted, not raised."""
        try:
            with self._lock:
                if self._failed_in_row >= _GIVE_UP_AFTER:
                    raise AdrError("not tried after so many failures")
                if item.name in self._names:
                    raise AdrError("another file has the same name")
                self._names.add(item.name)
            what = self._bring(item)
        except (AdrError, OSError) as error:
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            with self._lock:
                self._failed.append((item.name, why))
                self._failed_in_row += 1
        else:
            with self._lock:
                self._done[what].append(item.name)
                self._size_bytes += item.size_bytes if what == "fetched" else 0
                self._failed_in_row = 0
        self._progress.advance(item.size_bytes)

    def report(self, total: int) -> FetchReport:
        """Count, or raise what went wrong."""
        if self._failed:
            told = [f"{_shown(name)} ({why})" for name, why in self._failed[:_TOLD]]
            if len(self._failed) > _TOLD:
                told.append(f"and {len(self._failed) - _TOLD} more")
            raise PartialFailure(
                f"{len(self._failed)} of {total} files could not be downloaded: {'; '.join(told)}",
                succeeded=[name for names in self._done.values() for name in names],
                failed=[name for name, _ in self._failed],
            )
        return FetchReport(
            **{what: len(names) for what, names in self._done.items()},
            size_bytes=self._size_bytes,
            kept_names=tuple(self._done["kept"]),
        )

    def _bring(self, item: Fetch) -> str:
        *folders, last = _segments(item.name)
        parent = _open_folders(self._target, folders)
        try:
            there = _compare(parent, last, item)
            if there is not None and (there or not self._overwrite):
                return "unchanged" if there else "kept"
            arrival = self._arrivals / secrets.token_hex(8)
            try:
                self._store.download(item.key, arrival)
                if file_digest(arrival) != item.sha256:
                    raise AdrError("its content is not what the record says: try again")
                # Readable for its owner in any case: else it could not be recognised later.
                arrival.chmod(item.mode & 0o777 | stat.S_IRUSR)
                os.rename(arrival, last, dst_dir_fd=parent)
            finally:
                arrival.unlink(missing_ok=True)
            return "fetched"
        finally:
            os.close(parent)


def _segments(name: str) -> list[bytes]:
    """Split a relative path; refuse one that may lead out of the target."""
    segments = os.fsencode(name).split(b"/")
    if any(b"\0" in each or each in (b"", b".", b"..") for each in segments):
        raise AdrError("its name could lead out of the target, so it was refused")
    # The target may be that of an `adr run`; a file system may not tell the case of letters.
    top = segments[0].decode("utf-8", "replace").casefold()
    if top == _OWN or top.startswith(ARRIVALS):
        raise AdrError("its name is one of adr's own files there, so it was refused")
    return segments


def _open_folders(target: Path, folders: Sequence[bytes], make: bool = True) -> int:
    """Return a descriptor of the last folder, making those that are missing."""
    here = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    for folder in folders:
        try:
            try:
                below = os.open(folder, flags, dir_fd=here)
            except FileNotFoundError:
                if not make:
                    raise
                with suppress(FileExistsError):
                    os.mkdir(folder, dir_fd=here)
                below = os.open(folder, flags, dir_fd=here)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise AdrError(
                    f"{_shown(os.fsdecode(folder))} on its way is a link or a file, not a folder"
                ) from error
            raise
        finally:
            os.close(here)
        here = below
    return here


def _compare(parent: int, name: bytes, item: Fetch) -> bool | None:
    """Tell whether the file that is there is the item; None where there is none."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size != item.size_bytes:
        return False
    return _has_content(parent, name, item.sha256)


def _has_content(parent: int, name: bytes, sha256: str) -> bool:
    """Tell whether there is a file of that content under a name."""
    # A pipe, on which opening would wait, may have come since.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(name, flags, dir_fd=parent)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(handle).st_mode) and _sha256(handle) == sha256
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return _sha256(file.fileno())


def _sha256(handle: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(handle, _CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _in_parallel(work: Callable[[_T], None], items: Sequence[_T], threads: int) -> None:
    """Call `work` on every item, from several threads if there are several; raise the first error.

    The threads are daemons, so Ctrl-C does not wait for files that take hours.
    """
    if len(items) == 1:
        # A thread would cost as much as the work on a small file.
        work(items[0])
        return
    waiting = iter(items)
    lock = threading.Lock()
    stopped = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        while not stopped.is_set():
            with lock:
                try:
                    item = next(waiting)
                except StopIteration:
                    return
            try:
                work(item)
            except Exception as error:
                errors.append(error)

    workers = [threading.Thread(target=run, daemon=True) for _ in range(min(threads, len(items)))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        stopped.set()
    if errors:
        raise errors[0]


def _shown(name: str) -> str:
    """Return a file name that can be printed, whatever its bytes are."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]
