"""The records of an AWS runner: appended by every worker to objects of its own.

S3 cannot append, so a worker rewrites its current object with each group of records and
begins another at about 1 MiB. The first write says If-None-Match, a rewrite If-Match: a
write that comes late, after its answer was given up, is refused by S3 and destroys nothing.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from adr.decisions import Decision
from adr.documents import reading
from adr.errors import Conflict, NotFound
from adr.keys import JOURNAL, journal_key, journal_prefix
from adr.ledgers.packed import PackedDecisions
from adr.models import JobRecord
from adr.objectcache import ObjectCache
from adr.stores.base import ObjectInfo, ObjectStore

__all__ = ["Journal", "JournalReader"]

_PAGE_BYTES = 1 << 20
#: Enough to keep a core busy with parsing; each holds a page and what was read of it.
_READERS = 8
#: So many batches are appended to at a time; one that was longer ago begins a new object.
_OPEN_PAGES = 16
#: What was read of so many batches is kept, so that it need not be read again.
_REMEMBERED_BATCHES = 16
#: Of more batches one listing of all is cheaper than one each.
_LISTED_SINGLY = 3

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


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


@dataclass
class _ReadPage:
    etag: str
    #: How much of it was read.
    size_bytes: int
    decisions: PackedDecisions


class JournalReader:
    """Read the records of all workers; fetches an object again only when its ETag has changed.

    Remembers what the records decide that it has read of the batches of its last call, and of a
    few before. Of an object that has grown only what is new is fetched.

    Parameters
    ----------
    store : ObjectStore
        Where the journal lies.
    cache : ObjectCache, optional
        Where that is kept for other processes.
    """

    def __init__(self, store: ObjectStore, cache: ObjectCache | None = None) -> None:
        self._store = store
        self._cache = cache
        #: Of each batch the objects by their keys.
        self._read: OrderedDict[str, dict[str, _ReadPage]] = OrderedDict()
        self._guard = threading.Lock()

    def decided(self, batches: Iterable[str]) -> Iterator[Decision]:
        """Yield what all records of these batches decide as they are now."""
        wanted = list(dict.fromkeys(batches))
        with self._guard:
            self._refresh(wanted)
            found = [(batch, page) for batch in wanted for page in self._read[batch].values()]
        for batch, page in found:
            yield from page.decisions.decisions(batch)

    def records(
        self, batches: Iterable[str], only: Collection[Decision] | None = None
    ) -> list[JobRecord]:
        """Return the records of these batches, or some of them; fetches the objects they are in."""
        lines: dict[str, list[int] | None] = {}
        if only is None:
            lines = {entry.key: None for _, entry in self._listed(list(dict.fromkeys(batches)))}
        else:
            chosen = {each.record for each in only}
            with self._guard:
                self._refresh([each for each in dict.fromkeys(batches) if each not in self._read])
                for batch in {batch for batch, *_ in chosen}:
                    for key, page in self._read.get(batch, {}).items():
                        lines[key] = page.decisions.lines_of(batch, chosen)
        return [record for some in _at_once(self._records, lines.items()) for record in some]

    def _records(self, page: tuple[str, list[int] | None]) -> list[JobRecord]:
        key, numbers = page
        if numbers is not None and not numbers:
            return []
        try:
            lines = self._store.read(key).body.splitlines()
        except NotFound:
            # It was removed since it was listed.
            return []
        with reading(f"the journal {key}"):
            chosen = lines if numbers is None else [lines[number] for number in numbers]
            return [JobRecord.from_dict(json.loads(line)) for line in chosen]

    def _refresh(self, batches: Sequence[str]) -> None:
        """Read what has changed since the last time, and forget what nobody asks for any more."""
        before = {batch: self._read.get(batch, {}) for batch in batches}
        listed = self._listed(batches)
        read = _at_once(lambda each: self._page(*each, before[each[0]].get(each[1].key)), listed)
        now: dict[str, dict[str, _ReadPage]] = {batch: {} for batch in batches}
        for (batch, entry), page in zip(listed, read, strict=True):
            if page is not None:
                now[batch][entry.key] = page
        for batch, pages in now.items():
            self._read[batch] = pages
            self._read.move_to_end(batch)
        while len(self._read) > max(_REMEMBERED_BATCHES, len(batches)):
            self._read.popitem(last=False)

    def _listed(self, batches: Sequence[str]) -> list[tuple[str, ObjectInfo]]:
        if len(batches) <= _LISTED_SINGLY:
            return [
                (each, entry)
                for each in batches
                for entry in self._store.list(journal_prefix(each))
            ]
        wanted = set(batches)
        found = ((entry.key.split("/")[1], entry) for entry in self._store.list(JOURNAL))
        return [(batch, entry) for batch, entry in found if batch in wanted]

    def _page(self, batch: str, entry: ObjectInfo, known: _ReadPage | None) -> _ReadPage | None:
        """Read what is new of one object; None where it was removed since it was listed."""
        known = known or self._kept(entry.key)
        if known and known.etag == entry.etag:
            return known
        if known is None or known.size_bytes > entry.size_bytes:
            known = _ReadPage("", 0, PackedDecisions())
        try:
            found = self._store.read(entry.key, known.size_bytes)
        except NotFound:
            return None
        with reading(f"the journal {entry.key}"):
            page = _ReadPage(
                found.etag,
                known.size_bytes + len(found.body),
                known.decisions.with_lines(found.body, batch),
            )
        if self._cache:
            body = page.decisions.to_bytes()
            self._cache.put(entry.key, f"{page.size_bytes} {page.etag}", body)
        return page

    def _kept(self, key: str) -> _ReadPage | None:
        kept = self._cache.get(key) if self._cache else None
        if kept is None:
            return None
        size, _, etag = kept[0].partition(" ")
        return _ReadPage(etag, int(size), PackedDecisions.from_bytes(kept[1]))


def _at_once(work: Callable[[_Item], _Done], items: Collection[_Item]) -> list[_Done]:
    """Do something with each of them, several at a time, and return what comes of it in order."""
    if len(items) <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(_READERS, len(items))) as pool:
        return list(pool.map(work, items))
