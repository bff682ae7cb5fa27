"""The seam between adr and the places that keep files.

A store is flat: text keys, bytes as content, as on S3. Its neighbours are `adr.transfer`
(many files in parallel) and the ledgers (which keep small documents in it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from adr.errors import AdrError

__all__ = [
    "LARGEST_DOCUMENT_BYTES",
    "Document",
    "ObjectInfo",
    "ObjectStore",
    "Streaming",
    "too_large",
]

#: What is read in one piece is not larger, as far as adr writes it. The largest are parts of the
#: journal with the names of very many results.
LARGEST_DOCUMENT_BYTES = 512 << 20


@dataclass(frozen=True)
class ObjectInfo:
    """Describe one object of a listing."""

    key: str
    size_bytes: int
    #: Changes whenever the content does; compare for equality only.
    etag: str
    #: When it was last written, by the clock of the store, to a second; compare with others only.
    written_at: float


@dataclass(frozen=True)
class Document:
    """Hold a small object that was read whole."""

    body: bytes
    etag: str
    #: Seconds since it was last written, by the clock of the store alone.
    age_s: float


def too_large(key: str, size_bytes: int) -> AdrError | None:
    """Return why an object is not read in one piece; None where it is."""
    if size_bytes <= LARGEST_DOCUMENT_BYTES:
        return None
    return AdrError(
        f"{key} has {size_bytes:,} bytes, far more than adr ever writes there: remove it"
    )


class ObjectStore(Protocol):
    """Keep objects under keys.

    Thread-safe. Every method blocks until the store has answered, retries what is worth
    retrying, and raises `ServiceError` where the store refuses or cannot be reached. What
    a write or an upload has returned from is durable.
    """

    def create(self) -> None:
        """Make the store; idempotent for its owner."""

    def destroy(self) -> None:
        """Remove the store and all that is in it; idempotent."""

    def upload(self, path: Path, key: str, *, move: bool = False) -> None:
        """Store a file of any size under `key`, whole or not at all; idempotent.

        Parameters
        ----------
        move : bool, optional
            The caller has no further use for `path`: a store on the same file system may
            take the file itself instead of a copy. The file may or may not be there afterwards.
        """

    def download(self, key: str, path: Path) -> None:
        """Write the object to `path`, which must not exist, streaming.

        On an error no file is left at `path`.

        Raises
        ------
        NotFound
            If there is no such object.
        """

    def read(self, key: str, start: int = 0) -> Document:
        """Return a small object.

        Parameters
        ----------
        start : int, optional
            Return only what follows so many bytes, which the object has.

        Raises
        ------
        NotFound
            If there is none.
        AdrError
            If it is larger than `LARGEST_DOCUMENT_BYTES`.
        """

    def write(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Store a small object and return its ETag.

        Parameters
        ----------
        if_absent : bool, optional
            Write only where there is no object under `key`.
        if_match : str, optional
            Write only over the object with this ETag.

        Raises
        ------
        Conflict
            If the condition does not hold. A condition may also fail because an earlier
            try of this same call was carried out and its answer lost: read back to tell.
        """

    def list(self, prefix: str, *, flat: bool = False) -> Iterator[ObjectInfo]:
        """Yield all objects whose key starts with `prefix`, in the order of their keys.

        Parameters
        ----------
        flat : bool, optional
            Only those whose key has no slash after `prefix`, at no cost for the others.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, in batches; absent ones are no error."""


@runtime_checkable
class Streaming(Protocol):
    """A capability of stores that take an object while it is being made."""

    def writing(
        self, key: str, most_bytes: int
    ) -> AbstractContextManager[Callable[[bytes], object]]:
        """Return a context whose value takes the bytes of an object in their order.

        The object appears, whole, at the end of the context; not if that raises. What takes
        the bytes blocks while too many are on their way, and is for one thread.

        Parameters
        ----------
        most_bytes : int
            What the object will not be much larger than.
        """
