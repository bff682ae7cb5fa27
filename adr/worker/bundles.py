"""The input bundles of a worker: fetched once for all slots, unpacked once for each."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

from adr.bundle import forget_bundle, has_small_files, restore_member, unpack_bundle, unpacked_bytes
from adr.errors import AdrError
from adr.keys import bundle_key
from adr.stores.base import ObjectStore
from adr.worker.baseline import Names
from adr.worker.jobuser import JobUser
from adr.worker.workspace import Workspace

__all__ = ["Bundles", "DiskTooSmall"]

#: Room that a workspace needs beside its inputs.
_SPARE_BYTES = 64 << 20


class DiskTooSmall(AdrError):
    """Refuse to unpack a bundle that would fill the disk."""


class Bundles:
    """Keep the bundles of the batches that a worker runs.

    Thread-safe.

    Parameters
    ----------
    store : ObjectStore
        Where the bundles are fetched from.
    directory : Path
        Where they are kept; see `Place.bundles`.
    user : JobUser, optional
        Whose rights are used in workspaces, and to whom all that is in them belongs.
    """

    def __init__(self, store: ObjectStore, directory: Path, user: JobUser | None = None) -> None:
        self._store = store
        self._directory = directory
        self._readable = user is not None
        self._rights = user.rights if user else nullcontext
        self._guard = threading.Lock()
        #: Held while small files are written: side by side, threads would mostly wait for Python.
        self._by_turns = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._workspaces: Counter[str] = Counter()
        #: Those in the workspaces of a batch.
        self._names: dict[str, Names] = {}

    def unpack(self, batch: str, target: Path) -> Workspace:
        """Unpack a batch into `target`, which must not exist, fetching it first if need be.

        Raises
        ------
        DiskTooSmall
            If the disk has no room for it.
        NotFound, ServiceError, AdrError
            If the bundle is missing, cannot be fetched, or is broken.
        """
        with self._guard:
            self._workspaces[batch] += 1
            names = self._names.setdefault(batch, Names())
        try:
            return self._unpacked(batch, target, names)
        except BaseException:
            self.leave(batch)
            raise

    def leave(self, batch: str) -> None:
        """Forget one workspace of a batch, and the bundle with the last one."""
        with self._guard:
            self._workspaces[batch] -= 1
            if self._workspaces[batch] <= 0:
                del self._workspaces[batch]
                self._names.pop(batch, None)
                self._path(batch).unlink(missing_ok=True)
                forget_bundle()

    def _unpacked(self, batch: str, target: Path, names: Names) -> Workspace:
        bundle = self._fetched(batch, target)
        self._check_room(unpacked_bytes(bundle), f"unpacking batch {batch}", target)
        workspace = Workspace(
            target, lambda name: restore_member(bundle, name, target), self._rights, names
        )
        with self._by_turns if has_small_files(bundle) else nullcontext():
            with self._rights():
                unpack_bundle(bundle, target)
            workspace.snapshot()
        return workspace

    def _check_room(self, size_bytes: int, purpose: str, target: Path) -> None:
        need_bytes = size_bytes + _SPARE_BYTES
        free_bytes = shutil.disk_usage(self._directory).free
        if need_bytes > free_bytes:
            raise DiskTooSmall(
                f"{purpose} needs {need_bytes / 1e9:.1f} GB and the disk of "
                f"{target.parent} has {free_bytes / 1e9:.1f} GB free"
            )

    def _path(self, batch: str) -> Path:
        return self._directory / f"{batch}.zip"

    def _fetched(self, batch: str, target: Path) -> Path:
        with self._guard:
            lock = self._locks.setdefault(batch, threading.Lock())
        path = self._path(batch)
        with lock:
            if not path.exists():
                key = bundle_key(batch)
                sizes = {entry.key: entry.size_bytes for entry in self._store.list(key)}
                self._check_room(sizes.get(key, 0), f"fetching the inputs of {batch}", target)
                partial = path.with_suffix(".part")
                partial.unlink(missing_ok=True)
                self._store.download(key, partial)
                if self._readable:
                    partial.chmod(0o644)
                partial.rename(path)
        return path
