"""The records of an AWS runner: appended by every worker to objects of its own.

S3 cannot append, so a worker rewrites its current object with each group of records and
begins another at about 1 MiB. The first write says If-None-Match, a rewrite If-Match: a
write that comes late, after its answer was given up, is refused by S3 and destroys nothing.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

from adr.documents import reading
from adr.errors import Conflict, NotFound
from adr.keys import journal_key, journal_prefix
from adr.models import JobRecord
from adr.stores.base import ObjectStore

__all__ = ["Journal", "JournalReader"]

_PAGE_BYTES = 1 << 20
_READERS = 16
#: So many batches are appended to at a time; one that was longer ago begins a new object.
_OPEN_PAGES = 16
#: What was read of so many batches is kept, so that it need not be read again.
_REMEMBERED_BATCHES = 16


@dataclass
class _Page:
    number: int
    etag: str | None = None
    body: bytes = b""


class Journal:
    """Append records; for one worker process, whose id no other ever had.

    Parameters
    ----------
    store : ObjectStore
        Where the journal lies.
    worker : str
        Id of the worker.
    """

    def __init__(self, store: ObjectStore, worker: str) -> None:
        self._store = store
        self._worker = worker
        self._pages: OrderedDict[str, _Page] = OrderedDict()
        self._numbers = count()
        self._guard = threading.Lock()

    def append(self, records: Sequence[JobRecord]) -> None:
        """Make records durable: one write a batch; on an error call again with the same ones."""
        lines: dict[str, list[str]] = defaultdict(list)
        for record in records:
            lines[record.batch].append(json.dumps(record.to_dict(), separators=(",", ":")) + "\n")
        with self._guard:
            for batch, texts in lines.items():
                self._append(batch, "".join(texts).encode())

    def _append(self, batch: str, added: bytes) -> None:
        while True:
            page = self._pages.get(batch) or self._turn(batch)
            if page.body and len(page.body) + len(added) > _PAGE_BYTES:
                page = self._turn(batch)
            key, body = journal_key(batch, self._worker, page.number), page.body + added
            try:
                page.etag = self._store.write(
                    key, body, if_absent=page.etag is None, if_match=page.etag
                )
            except Conflict:
                etag = self._etag_if_ours(key, body)
                if etag is None:
                    self._turn(batch)
                    continue
                page.etag = etag
            page.body = body
            self._pages.move_to_end(batch)
            return

    def _turn(self, batch: str) -> _Page:
        page = self._pages[batch] = _Page(next(self._numbers))
        if len(self._pages) > _OPEN_PAGES:
            self._pages.popitem(last=False)
        return page

    def _etag_if_ours(self, key: str, body: bytes) -> str | None:
        """Tell whether a refused write had been carried out by an earlier try."""
        try:
            found = self._store.read(key)
        except NotFound:
            return None
        return found.etag if found.body == body else None


class JournalReader:
    """Read the records of all workers; fetches an object again only when its ETag has changed.

    Remembers what it has read of the batches of its last call, and of a few before.

    Parameters
    ----------
    store : ObjectStore
        Where the journal lies.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        #: Of each batch, the ETag and the records of each object.
        self._read: OrderedDict[str, dict[str, tuple[str, list[JobRecord]]]] = OrderedDict()
        self._guard = threading.Lock()

    def records(self, batches: Iterable[str]) -> list[JobRecord]:
        """Return all records of these batches as they are now."""
        with self._guard:
            wanted = list(dict.fromkeys(batches))
            changed = []
            for batch in wanted:
                known = self._read.pop(batch, {})
                pages = self._read[batch] = {}
                for entry in self._store.list(journal_prefix(batch)):
                    pages[entry.key] = known.get(entry.key, ("", []))
                    if pages[entry.key][0] != entry.etag:
                        changed.append((batch, entry.key))
            if changed:
                with ThreadPoolExecutor(min(_READERS, len(changed))) as pool:
                    read = pool.map(lambda each: self._page(each[1]), changed)
                    for (batch, key), page in zip(changed, read, strict=True):
                        self._read[batch][key] = page
            while len(self._read) > max(_REMEMBERED_BATCHES, len(wanted)):
                self._read.popitem(last=False)
            return [
                record
                for batch in wanted
                for _, records in self._read[batch].values()
                for record in records
            ]

    def _page(self, key: str) -> tuple[str, list[JobRecord]]:
        """Read one object; one that was removed since it was listed has no records."""
        try:
            document = self._store.read(key)
        except NotFound:
            return "", []
        with reading(f"the journal {key}"):
            lines = document.body.splitlines()
            return document.etag, [JobRecord.from_dict(json.loads(line)) for line in lines]
