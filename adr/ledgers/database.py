"""The SQLite database of a local runner as a file: opened, locked, and its errors in words.

What stands in it is the matter of `adr.ledgers.sqlite`.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from adr.errors import RunnerGone, ServiceError
from adr.models import SCHEMA, check_schema

__all__ = ["Database", "is_destroyed"]

_META = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"


class Database:
    """Give connections to one database, also after its file was replaced; thread-safe.

    Parameters
    ----------
    path : Path
        The file.
    """

    #: How long to wait for other processes that write to the database, in seconds.
    busy_s = 30.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.RLock()
        self._connections: dict[str, sqlite3.Connection] = {}
        self._inode = 0

    def create(self, tables: str) -> None:
        """Make the file and what is in it; idempotent."""
        try:
            connection = sqlite3.connect(self._path, timeout=self.busy_s, isolation_level=None)
            with self._translated():
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(_META)
                connection.executescript(tables)
                connection.execute(
                    "INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (json.dumps(SCHEMA),)
                )
            connection.close()
        except sqlite3.Error as error:
            raise ServiceError(f"cannot make the database {self._path}: {error}") from error

    @contextmanager
    def statements(self) -> Iterator[sqlite3.Connection]:
        """Run statements, each as a transaction of its own that does not wait for the disk."""
        with self._guard, self._translated():
            yield self._connection("quick")

    @contextmanager
    def transaction(
        self, kind: str, even_if_destroyed: bool = False
    ) -> Iterator[sqlite3.Connection]:
        """Run statements as one transaction: ``durable``, ``quick``, or one that only reads.

        To ``read`` works while another process writes, and on a full disk.
        """
        with self._guard, self._translated():
            db = self._connection("durable" if kind == "durable" else "quick")
            db.execute("BEGIN" if kind == "read" else "BEGIN IMMEDIATE")
            try:
                if not even_if_destroyed and is_destroyed(db):
                    raise RunnerGone(
                        f"the runner {self._path.parent} has been destroyed, "
                        f"only its results are left"
                    )
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _connection(self, kind: str) -> sqlite3.Connection:
        try:
            inode = self._path.stat().st_ino
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunnerGone(f"there is no runner at {self._path.parent}") from error
        except OSError as error:
            raise ServiceError(f"cannot open {self._path}: {error.strerror}") from error
        if inode != self._inode:
            self._connections.clear()
            self._inode = inode
        if kind not in self._connections:
            db = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=rw",
                uri=True,
                timeout=self.busy_s,
                isolation_level=None,
                check_same_thread=False,
            )
            db.execute(f"PRAGMA synchronous = {'FULL' if kind == 'durable' else 'NORMAL'}")
            row = db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
            schema = json.loads(row[0]) if row else None
            check_schema({"schema": schema}, f"the database {self._path}")
            self._connections[kind] = db
        return self._connections[kind]

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ServiceError(f"the database {self._path} refused: {self._why(error)}") from error

    def _why(self, error: sqlite3.Error) -> str:
        said = str(error)
        if said == "database is locked":
            return f"another process has been writing for {self.busy_s:g} s: fuser tells which"
        return f"{said}: make room on it" if said == "database or disk is full" else said


def is_destroyed(db: sqlite3.Connection) -> bool:
    """Tell whether the runner whose database this is has been destroyed."""
    return db.execute("SELECT 1 FROM meta WHERE name = 'destroyed'").fetchone() is not None
