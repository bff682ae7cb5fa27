"""Who works: the heartbeats of a runner's workers, and the one test of whether a worker lives.

Every worker rewrites one small object in the store. On AWS a heartbeat that has not been
rewritten for `DEAD_AFTER_S` means a dead worker, by the clock of the store alone. A local
worker also holds a file lock, which the kernel lets go at the very moment it dies. The last
heartbeat of a worker says that it has left; it is not deleted, since workers with limited
rights may not delete anything. Whoever may clears them away when the next worker starts.

The ledgers ask here whether the holder of a lease is alive, ``adr status`` asks for all.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from adr.documents import reading
from adr.errors import AdrError, NotFound, RunnerGone, ServiceError
from adr.keys import LIVE, heartbeat_key
from adr.stores.base import Document, ObjectInfo, ObjectStore
from adr.workerinfo import WorkerInfo

__all__ = ["DEAD_AFTER_S", "HEARTBEAT_S", "Roster", "WorkerLocks"]

_log = logging.getLogger(__name__)

#: Mean time between two heartbeats of a worker.
HEARTBEAT_S = 30.0
#: A worker whose heartbeat is older than this is dead.
DEAD_AFTER_S = 100.0
#: What a dead worker has left is kept for so long, for those who look for the reason.
_FORGET_AFTER_S = 3600.0

_READERS = 16
_SWEPT = 100
#: As many as one listing tells of.
_PAGE = 1000
#: What begins alike where there are more: ids are random.
_SHARES = [f"{number:02x}" for number in range(256)]


class WorkerLocks:
    """Keep one lock file per local worker; whoever cannot lock it knows that the worker lives.

    Rests on ``flock(2)``: a lock ends with the last descriptor of the process that opened it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mine: dict[str, int] = {}
        self._guard = threading.Lock()

    def hold(self, worker: str) -> None:
        """Take the lock of `worker` until `drop` or the end of this process; idempotent.

        Raises
        ------
        RunnerGone, ServiceError
            If it cannot be made.
        """
        with self._guard:
            if worker in self._mine:
                return
            path = self._path(worker)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError as error:
                raise RunnerGone(f"there is no runner at {self._directory.parent}") from error
            except OSError as error:
                raise ServiceError(f"cannot make {path}: {error.strerror}") from error
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._mine[worker] = handle

    def drop(self, worker: str) -> None:
        """Let go of a lock that this process holds; idempotent."""
        handle = self._mine.pop(worker, None)
        if handle is not None:
            self._path(worker).unlink(missing_ok=True)
            os.close(handle)

    def is_held(self, worker: str) -> bool:
        """Tell whether `worker` lives."""
        if worker in self._mine:
            return True
        with self._taken(worker) as taken:
            return not taken

    @contextmanager
    def if_dead(self, worker: str) -> Iterator[bool]:
        """Yield whether `worker` is dead, and keep others from asking the same meanwhile."""
        if worker in self._mine:
            yield False
            return
        with self._taken(worker) as taken:
            yield taken
            if taken:
                self._path(worker).unlink(missing_ok=True)

    def sweep(self, older_s: float) -> None:
        """Remove the files of dead workers; not new ones, which may just be about to be locked."""
        for path in self._directory.glob("*.lock"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= older_s:
                    with self.if_dead(path.stem):
                        pass

    @contextmanager
    def _taken(self, worker: str) -> Iterator[bool]:
        try:
            handle = os.open(self._path(worker), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def _path(self, worker: str) -> Path:
        return self._directory / f"{worker}.lock"


class Roster:
    """Keep the heartbeats of one runner.

    Parameters
    ----------
    store : ObjectStore
        Where the heartbeats lie.
    locks : WorkerLocks, optional
        The locks of local workers; where given, they and not the age of a heartbeat decide.
    dead_after_s : float, optional
        Age at which a heartbeat means a dead worker.
    forget_after_s : float, optional
        Age at which what a dead worker has left is removed.
    """

    def __init__(
        self,
        store: ObjectStore,
        locks: WorkerLocks | None = None,
        dead_after_s: float = DEAD_AFTER_S,
        forget_after_s: float = _FORGET_AFTER_S,
    ) -> None:
        self._store = store
        self._locks = locks
        self._dead_after_s = dead_after_s
        self._forget_after_s = forget_after_s

    def hold(self, worker: str) -> None:
        """Take the lock by which others see that a local worker lives, if it leases nothing yet."""
        if self._locks is not None:
            self._locks.hold(worker)

    def beat(self, info: WorkerInfo) -> None:
        """Write the heartbeat of a worker."""
        self._write(info)

    def leave(self, info: WorkerInfo) -> None:
        """Write the last heartbeat of a worker and let go of its lock; idempotent."""
        try:
            self._write(replace(info, running=(), left=True))
        finally:
            self._drop_lock(info.worker)

    def forget(self, worker: str) -> None:
        """Remove heartbeat and lock of a worker whose runner is gone; idempotent."""
        self._drop_lock(worker)
        self._store.delete([heartbeat_key(worker)])

    def sweep(self, worker: str = "") -> None:
        """Remove what workers have left that left, or died long ago, but for `worker`.

        Looks at a hundred of those at most that were not heard of lately, and where there are
        more heartbeats less often at any: of ten thousand workers that start together each would
        otherwise do so. For the same reason only a part of a thousand or more is listed. Raises
        nothing, since not everybody may remove anything.
        """
        try:
            self._sweep(worker)
        except AdrError as error:
            _log.debug("what other workers have left stays: %s", error)

    def is_alive(self, worker: str) -> bool:
        """Tell whether a worker lives; at most one read."""
        if self._locks is not None:
            return self._locks.is_held(worker)
        try:
            heartbeat = self._store.read(heartbeat_key(worker))
        except NotFound:
            return False
        return not _has_left(heartbeat) and self._lives(worker, heartbeat)

    def alive(self) -> list[WorkerInfo]:
        """Read the heartbeats of all living workers, in the order of their start."""
        infos = self._living(list(self._lately()))
        return sorted(infos, key=lambda info: (info.started_at, info.worker))

    def idle(self) -> tuple[int, Iterator[str]]:
        """Return how many workers live, and the ids of the idle ones.

        Some may just have left, and of more than a thousand there are a thousand or more. Ids come
        in order, and are listed and read as they are asked for: of ten thousand workers the first
        few idle ones cost little.
        """
        keys = self._lately()
        first = list(islice(keys, _PAGE))

        def idle() -> Iterator[str]:
            rest = chain(first, keys)
            while some := list(islice(rest, _READERS)):
                yield from (info.worker for info in self._living(some) if not info.running)

        return len(first), idle()

    def about(self) -> int:
        """Return how many workers live, about: of a thousand or more only a part is listed."""
        some, parts, is_silent = self._some()
        return parts * sum(not is_silent(entry) for entry in some)

    def heard_of(self) -> set[str]:
        """Return the hosts of all workers whose heartbeat is kept, also of those that left."""
        found = self._read([entry.key for entry in self._store.list(LIVE)])
        return {info.host for key, each in found.items() if (info := _told(key, each))}

    def _lately(self) -> Iterator[str]:
        """Yield the keys of those who may live, in order; lists as it goes, and reads none."""
        entries = self._store.list(LIVE)
        first = list(islice(entries, _PAGE))
        is_silent = self._silence(first)
        # On one machine there are never many, and those that are broken are to be told of.
        every = self._locks is not None
        return (entry.key for entry in chain(first, entries) if every or not is_silent(entry))

    def _some(self) -> tuple[list[ObjectInfo], int, Callable[[ObjectInfo], bool]]:
        """List heartbeats, and tell into how many parts all were divided to list one of them.

        The third tells which are of dead workers.
        """
        first = list(islice(self._store.list(LIVE), _PAGE))
        if len(first) < _PAGE:
            return first, 1, self._silence(first)
        share = list(islice(self._store.list(LIVE + random.choice(_SHARES)), _PAGE))
        # Few are in a share, and it may be that none of them lives and tells what time it is.
        return share, len(_SHARES), self._silence([*first, *share])

    def _silence(self, listed: Sequence[ObjectInfo]) -> Callable[[ObjectInfo], bool]:
        """Return what tells whether a worker is dead, by heartbeats that were listed together."""
        locks = self._locks
        if locks is not None:
            return lambda entry: not locks.is_held(_worker_of(entry.key))
        # What time it is at the store, or was: nobody is taken for dead too early.
        now = max((entry.written_at for entry in listed), default=0.0)
        return lambda entry: now - entry.written_at >= self._dead_after_s

    def _living(self, keys: Sequence[str]) -> list[WorkerInfo]:
        infos = []
        for key, document in self._read(keys).items():
            info = _told(key, document)
            if info is not None and not info.left and self._lives(info.worker, document):
                infos.append(info)
        return infos

    def _lives(self, worker: str, heartbeat: Document) -> bool:
        if self._locks is not None:
            return self._locks.is_held(worker)
        return heartbeat.age_s <= self._dead_after_s

    def _write(self, info: WorkerInfo) -> None:
        self._store.write(heartbeat_key(info.worker), json.dumps(info.to_dict()).encode())

    def _drop_lock(self, worker: str) -> None:
        if self._locks is not None:
            self._locks.drop(worker)

    def _sweep(self, worker: str) -> None:
        some, parts, is_silent = self._some()
        if random.uniform(0, parts * len(some)) > _SWEPT:
            return
        silent = filter(is_silent, some)
        keys = [entry.key for entry in silent if entry.key != heartbeat_key(worker)]
        found = self._read(random.sample(keys, min(_SWEPT, len(keys))))
        old = [
            key
            for key, document in found.items()
            if document.age_s >= self._forget_after_s or _has_left(document)
        ]
        self._store.delete(
            key for key in old if self._locks is None or not self._locks.is_held(_worker_of(key))
        )
        if self._locks is not None:
            self._locks.sweep(self._forget_after_s)

    def _read(self, keys: Sequence[str]) -> dict[str, Document]:
        """Read heartbeats side by side; those that are gone by then are left out."""

        def read(key: str) -> Document | None:
            try:
                return self._store.read(key)
            except NotFound:
                return None

        if not keys:
            return {}
        with ThreadPoolExecutor(min(_READERS, len(keys))) as pool:
            documents = zip(keys, pool.map(read, keys), strict=True)
            return {key: document for key, document in documents if document is not None}


def _worker_of(key: str) -> str:
    return key.removeprefix(LIVE).removesuffix(".json")


def _told(key: str, heartbeat: Document) -> WorkerInfo | None:
    """Return what a heartbeat tells; None where it tells nothing to this adr."""
    try:
        with reading(key):
            return WorkerInfo.from_dict(json.loads(heartbeat.body))
    except AdrError as error:
        _log.warning("passed over a worker: %s", error)
        return None


def _has_left(heartbeat: Document) -> bool:
    """Tell whether this is a last heartbeat, also one that a newer adr has written."""
    try:
        with reading("a heartbeat"):
            return bool(json.loads(heartbeat.body).get("left"))
    except AdrError as error:
        _log.debug("%s", error)
        return False
