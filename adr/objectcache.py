"""Copies on this machine of what lies in the store of a runner, for the next process.

A command starts anew each time, and would read again what it read a minute ago. What is kept
here is found by its key, and used only as far as its ETag tells that it still holds. It is
nothing but a copy: private, bounded, and safe to delete at any time. Trouble with it is never an
error, since everything can be read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import zlib
from contextlib import suppress
from pathlib import Path

__all__ = ["ObjectCache"]

#: Of all runners together. The oldest makes room.
_MOST_BYTES = 256 << 20
_FILES = "*.kept"


class ObjectCache:
    """Keep copies for one runner; thread-safe, also between processes.

    Parameters
    ----------
    runner_id : str
        Id of the runner.
    folder : Path, optional
        Where they are kept [default: in the user cache directory of the platform]
    most_bytes : int, optional
        Size beyond which the oldest copies are removed.
    """

    def __init__(
        self, runner_id: str, folder: Path | None = None, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._runner_id = runner_id
        self._given = folder
        self._most_bytes = most_bytes
        self._guard = threading.Lock()
        self._is_tidy = False

    def get(self, key: str) -> tuple[str, bytes] | None:
        """Return the ETag and the copy that were kept under a key, None where none is."""
        try:
            path = self._path(key)
            with path.open("rb") as file:
                head, body = json.loads(file.readline()), file.read()
            if head["key"] != [self._runner_id, key] or head["crc32"] != zlib.crc32(body):
                return None
            os.utime(path)
            return str(head["etag"]), body
        except (OSError, ValueError, TypeError, KeyError, RuntimeError):
            return None

    def put(self, key: str, etag: str, body: bytes) -> None:
        """Keep a copy instead of the one that is there."""
        head = {"key": [self._runner_id, key], "etag": etag, "crc32": zlib.crc32(body)}
        with suppress(OSError, RuntimeError):
            path = self._path(key)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._guard:
                if not self._is_tidy:
                    self._tidy(path.parent)
                    self._is_tidy = True
            # Readable for its owner alone.
            handle, made = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
            try:
                with open(handle, "wb") as file:
                    file.write(json.dumps(head).encode("ascii") + b"\n" + body)
                os.replace(made, path)
            except BaseException:
                os.unlink(made)
                raise

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(json.dumps([self._runner_id, key]).encode("ascii")).hexdigest()
        return self._folder / (name[:40] + Path(_FILES).suffix)

    @property
    def _folder(self) -> Path:
        if self._given is None:
            from platformdirs import user_cache_path

            self._given = user_cache_path("adr") / "objects"
        return self._given

    def _tidy(self, folder: Path) -> None:
        """Remove the oldest copies, those of all runners, until the others have room enough."""
        about = [(path.stat(), path) for path in folder.glob(_FILES)]
        size_bytes = sum(status.st_size for status, _ in about)
        for status, path in sorted(about, key=lambda each: each[0].st_mtime):
            if size_bytes <= self._most_bytes:
                return
            path.unlink(missing_ok=True)
            size_bytes -= status.st_size
