"""The cards of an AWS runner's unusual jobs: who holds one, how often it began and failed.

SQS forgets who received a message after twelve hours and counts receives, not crashes. A
job that is redelivered, repeated, long or of uncertain sending has a small object that is
changed by compare-and-swap. The ordinary short job never has one and costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from adr.documents import known_fields, reading
from adr.errors import Conflict, NotFound
from adr.keys import card_key
from adr.models import SCHEMA, Job, Lease, check_schema
from adr.stores.base import ObjectStore

__all__ = ["Card", "Cards"]

#: More attempts than end while another one waits to be told the end of its own.
_MOST_OVER = 8


@dataclass(frozen=True)
class Card:
    """Tell what is known about an unusual job, in one generation."""

    generation: int
    #: Worker that runs it, or ran it when it died; None where nobody does.
    holder: str | None = None
    #: Attempt of the holder.
    attempt: str | None = None
    #: Attempts that began and neither failed nor were given back: lost, but for the holder's.
    starts: int = 0
    #: How often its command has failed.
    failures: int = 0
    #: How often it was given back after it had begun, or with a note.
    releases: int = 0
    #: What those wrote who gave it back.
    notes: tuple[str, ...] = ()
    #: Whether the attempt of the holder has begun, and is among `starts`.
    is_begun: bool = True
    #: The last attempts that have ended, so that none of them is counted again.
    over: tuple[str, ...] = ()

    def held(self, worker: str, attempt: str) -> Card:
        """Return the card once `worker` holds the job for an attempt that has not begun."""
        return replace(self, holder=worker, attempt=attempt, is_begun=False)

    def begun(self, worker: str, attempt: str) -> Card:
        """Return the card once `worker` has begun an attempt."""
        if self.attempt == attempt and self.is_begun:
            return self
        return replace(self, holder=worker, attempt=attempt, starts=self.starts + 1, is_begun=True)

    def ended(self, lease: Lease, failed: bool, note: str) -> Card | None:
        """Return the card once an attempt has given the job back, or its command has failed.

        None where that does not concern the card, or it knows already.
        """
        if self.generation != lease.job.generation or lease.attempt in self.over:
            return None
        # An ordinary attempt begins without a card.
        is_new = self.attempt is None and (failed or note)
        if not is_new and self.attempt != lease.attempt:
            return None
        return replace(
            self,
            holder=None,
            attempt=None,
            starts=self.starts - (self.attempt is not None and self.is_begun),
            failures=self.failures + failed,
            releases=self.releases + (not failed),
            notes=(*self.notes, note) if note else self.notes,
            over=(*self.over, lease.attempt)[-_MOST_OVER:],
        )


class Cards:
    """Read and change cards.

    Parameters
    ----------
    store : ObjectStore
        Where the cards lie.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def read(self, job: Job) -> Card:
        """Return the card of a job; an empty one where it has none for this generation."""
        return self._read(job)[0]

    def change(self, job: Job, step: Callable[[Card], Card | None]) -> Card | None:
        """Replace the card of a job by ``step(card)``, whatever others do meanwhile.

        `step` is called again with the new card where another worker was faster. Where it
        returns None or an equal card nothing is written; the last return value is returned.
        """
        while True:
            card, etag = self._read(job)
            changed = step(card)
            if changed is None or changed == card:
                return changed
            body = json.dumps({"schema": SCHEMA, **asdict(changed)}).encode()
            try:
                self._store.write(
                    card_key(job.batch, job.index), body, if_absent=etag is None, if_match=etag
                )
            except Conflict:
                # The write may be our own whose answer was lost: then the card reads as wanted.
                if self._read(job)[0] == changed:
                    return changed
                continue
            return changed

    def _read(self, job: Job) -> tuple[Card, str | None]:
        try:
            document = self._store.read(card_key(job.batch, job.index))
        except NotFound:
            return Card(job.generation), None
        what = f"the card of {job.name}"
        with reading(what):
            data = json.loads(document.body)
            check_schema(data, what)
            lists = {name: tuple(data.get(name, ())) for name in ("notes", "over")}
            card = Card(**known_fields(Card, {**data, **lists}))
        if card.generation < job.generation:
            card = Card(job.generation)
        return card, document.etag
