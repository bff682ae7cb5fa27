"""A store in a directory of this machine: one file per object, no server.

::

    <path>/objects/<key>     the objects
    <path>/tmp/<random>      those being written

An object is written beside, synced and renamed, so a reader finds it whole or not at all,
and finds it still after a power failure. Publishing and removing hold a lock on
``objects``, which makes conditions and the pruning of empty directories safe between
processes; the slow part, writing the content, happens before and in parallel.

Locks and renames must be those of one machine: the directory cannot lie on a network file
system, which `adr.runner` refuses.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adr.errors import Conflict, NotFound, RunnerGone, ServiceError, UsageError
from adr.stores.base import Document, ObjectInfo, too_large
from adr.stores.files import copy_contents, naming, new_file, open_regular, write_all

__all__ = ["DirectoryStore"]


class DirectoryStore:
    """Keep objects as files; see `adr.stores.base.ObjectStore` for the contract.

    Safe between threads and processes. Keys must do as relative paths, so a key that is
    another one followed by ``/`` and more cannot be stored beside it, unlike on S3.

    Parameters
    ----------
    path : Path
        Directory of the store. `create` makes it; nothing else ever does, so that a worker
        that outlives its runner cannot bring it back.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._objects = path / "objects"
        self._tmp = path / "tmp"
        self._swept = False

    def create(self) -> None:
        """Make the directories, mode 0700; idempotent."""
        with naming("create", self._path):
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tmp.mkdir(mode=0o700, exist_ok=True)
            self._objects.mkdir(mode=0o700, exist_ok=True)

    def destroy(self) -> None:
        """Remove all objects, and the directory if nothing else lies in it; idempotent."""
        import shutil

        if not self._path.is_dir():
            return
        with naming("remove", self._path):
            # Renamed first, so that nobody sees half of a store, or writes to what is removed.
            doomed = self._path / f"destroyed-{os.urandom(8).hex()}"
            doomed.mkdir(mode=0o700)
            with suppress(RunnerGone), self._locked():
                self._objects.rename(doomed / "objects")
            with suppress(FileNotFoundError):
                self._tmp.rename(doomed / "tmp")
            for left in self._path.glob("destroyed-" + 16 * "[0-9a-f]"):
                with suppress(FileNotFoundError):
                    shutil.rmtree(left)
            try:
                self._path.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def upload(self, path: Path, key: str, *, move: bool = False) -> None:
        """Store a copy of the file, or with `move` the file itself if it can be had."""
        target = self._file(key)
        if move and self._take(path, target):
            return
        with naming("read", path):
            source = open_regular(path)
        with source, self._prepared() as (ready, file):
            copy_contents(source, file)
            os.fsync(file.fileno())
            with naming("write", target):
                self._publish(ready, target)

    def download(self, key: str, path: Path) -> None:
        """Copy the object to `path`."""
        with self._found(key) as source, new_file(path) as file:
            copy_contents(source, file)

    def read(self, key: str, start: int = 0) -> Document:
        """Return a small object, or its end."""
        with self._found(key) as file:
            status = os.fstat(file.fileno())
            if problem := too_large(key, status.st_size):
                raise problem
            age_s = max(0.0, time.time() - status.st_mtime)
            file.seek(start)
            return Document(file.read(), _etag(status), age_s)

    def write(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Store a small object and return its ETag."""
        target = self._file(key)
        with self._prepared() as (ready, file):
            write_all(file, body)
            os.fsync(file.fileno())
            with naming("write", target):
                return self._publish(ready, target, if_absent=if_absent, if_match=if_match)

    def list(self, prefix: str, *, flat: bool = False) -> Iterator[ObjectInfo]:
        """Yield the objects in the order S3 has: that of the bytes of their keys.

        Objects written or removed meanwhile may or may not be seen. Holds the names of one
        directory per level in memory.
        """
        folder = prefix.rpartition("/")[0]
        start = self._file(folder) if folder else self._objects
        with naming("list", start):
            if not self._objects.is_dir():
                raise self._gone()
            stack: list[tuple[str, ObjectInfo | None]] = []
            if start.is_dir():
                stack.append((folder and folder + "/", None))
        while stack:
            key, entry = stack.pop()
            if entry is not None:
                yield entry
                continue
            with naming("list", self._objects / key):
                found = reversed(self._entries(key, prefix))
            stack.extend(each for each in found if each[1] is not None or not flat)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects and the directories that become empty; absent ones are no error."""
        for key in keys:
            target = self._file(key)
            with naming("remove", target), suppress(RunnerGone), self._locked():
                with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    target.unlink()
                with suppress(OSError):
                    for parent in self._parents(target):
                        parent.rmdir()

    def _entries(self, folder: str, prefix: str) -> Sequence[tuple[str, ObjectInfo | None]]:
        """Return objects and directories (without info) of one level, in the order of keys."""
        found: list[tuple[str, ObjectInfo | None]] = []
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(self._objects / folder) as entries,
        ):
            for entry in entries:
                is_dir = entry.is_dir(follow_symlinks=False)
                key = folder + entry.name + ("/" if is_dir else "")
                if not key.startswith(prefix):
                    continue
                if is_dir:
                    found.append((key, None))
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    info = ObjectInfo(key, status.st_size, _etag(status), status.st_mtime)
                    found.append((key, info))
        return sorted(found, key=lambda each: os.fsencode(each[0]))

    def _file(self, key: str) -> Path:
        segments = key.split("/")
        if "\0" in key or any(segment in ("", ".", "..") for segment in segments):
            raise UsageError(
                f"{key!r} cannot be a key in {self._path}: "
                f"give a relative path without empty, '.' or '..' segments"
            )
        return self._objects.joinpath(*segments)

    def _parents(self, target: Path) -> Sequence[Path]:
        """Return the directories between `target` and ``objects``, innermost first."""
        parents = list(target.parents)
        return parents[: parents.index(self._objects)]

    def _gone(self) -> RunnerGone:
        return RunnerGone(
            f"there is no runner in {self._path}, or it has been destroyed: "
            f"adr list shows those there are"
        )

    @contextmanager
    def _found(self, key: str) -> Iterator[BinaryIO]:
        target = self._file(key)
        with naming("read", target):
            try:
                file = open_regular(target)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                if not self._objects.is_dir():
                    raise self._gone() from None
                raise NotFound(f"there is no {key} in {self._path}") from None
        with file:
            yield file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        while True:
            try:
                handle = os.open(self._objects, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise self._gone() from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if self._is_current(handle):
                    yield
                    return
            finally:
                os.close(handle)

    def _is_current(self, handle: int) -> bool:
        """Tell whether the store was not destroyed while its lock was waited for."""
        try:
            return os.path.samestat(os.fstat(handle), self._objects.stat())
        except FileNotFoundError:
            return False

    @contextmanager
    def _prepared(self) -> Iterator[tuple[Path, BinaryIO]]:
        """Yield a new file to be published; what is still there afterwards is removed.

        It is locked meanwhile, by which others know that its process lives.
        """
        with naming("write to", self._tmp):
            if not self._tmp.is_dir():
                raise self._gone()
        self._sweep()
        try:
            with ExitStack() as files:
                while True:
                    ready = self._tmp / os.urandom(16).hex()
                    file = files.enter_context(new_file(ready))
                    fcntl.flock(file, fcntl.LOCK_SH)
                    # Others may have removed it before it was locked.
                    if os.fstat(file.fileno()).st_nlink:
                        break
                try:
                    yield ready, file
                finally:
                    ready.unlink(missing_ok=True)
        except ServiceError:
            if not self._tmp.is_dir():
                raise self._gone() from None
            raise

    def _sweep(self) -> None:
        """Remove, once, what killed processes left behind."""
        if self._swept:
            return
        self._swept = True
        for left in self._tmp.glob(32 * "[0-9a-f]"):
            with suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()

    def _take(self, path: Path, target: Path) -> bool:
        """Rename the caller's file into the store; False where only a copy will do."""
        with naming("store", path):
            status = path.lstat()
            # A link would move instead of what it names; another hard link could change the object.
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                return False
            try:
                path.chmod(0o600)
                with open_regular(path) as file:
                    os.fsync(file.fileno())
                self._publish(path, target)
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.EPERM, errno.EACCES):
                    return False
                raise
            return True

    def _publish(
        self, ready: Path, target: Path, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        parents = self._parents(target)
        with self._locked():
            try:
                old = target.lstat()
            except (FileNotFoundError, NotADirectoryError):
                old = None
            key = target.relative_to(self._objects)
            if if_absent and old is not None:
                raise Conflict(f"{key} in {self._path} exists already")
            if if_match is not None and (old is None or _etag(old) != if_match):
                raise Conflict(f"{key} in {self._path} has been changed meanwhile")
            for parent in reversed(parents):
                with suppress(FileExistsError):
                    parent.mkdir(mode=0o700)
            # An inode may be used again within one tick of the file system's clock, so the ETag
            # rests on a time of our own that rises with every version.
            now = max(time.time_ns(), old.st_mtime_ns + 1 if old else 0)
            os.utime(ready, ns=(now, now))
            ready.rename(target)
            etag = _etag(target.lstat())
        # All of them each time: one that was there may have been made, not yet synced, by another.
        for directory in (*parents, self._objects):
            _sync_directory(directory)
        return etag


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"


def _sync_directory(path: Path) -> None:
    """Make the entries of a directory durable; one that is no more needs nothing."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
