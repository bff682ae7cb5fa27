"""What became of jobs before they were received again: by the records and by their cards.

A worker that dies leaves all its jobs to be received again, by tens and by several workers. So
what is asked about many is asked together: one look at the journal a batch, in which only what
is new is read, and the cards side by side.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from adr.decisions import Decision
from adr.errors import AdrError, RunnerGone, ServiceError
from adr.ledgers.cards import Card, Cards
from adr.models import Job

__all__ = ["Past", "look_back"]

_log = logging.getLogger(__name__)

_READERS = 16


@dataclass(frozen=True)
class Past:
    """Tell what became of a job before."""

    card: Card
    #: Its newest generation that has a record; -1 without any.
    decided: int

    @property
    def generation(self) -> int:
        """Return the generation that is to be run: an older one is no job any more."""
        return max(self.card.generation, self.decided + 1)


def look_back(
    jobs: Sequence[Job],
    decided: Callable[[Iterable[str]], Iterator[Decision]],
    cards: Cards,
) -> list[Past | None]:
    """Return what became of each of these jobs; None, and a warning, where it cannot be read.

    Raises
    ------
    RunnerGone, ServiceError
        If the records or cards cannot be reached.
    """
    batches: dict[str, set[int]] = defaultdict(set)
    for job in jobs:
        batches[job.batch].add(job.index)
    newest: dict[tuple[str, int], int] = {}
    unreadable: dict[str, AdrError] = {}
    for batch, indexes in batches.items():
        try:
            for each in decided([batch]):
                if each.index in indexes:
                    place = (batch, each.index)
                    newest[place] = max(each.generation, newest.get(place, -1))
        except (RunnerGone, ServiceError):
            raise
        except AdrError as error:
            unreadable[batch] = error

    def look(job: Job) -> Past | None:
        try:
            if job.batch in unreadable:
                raise unreadable[job.batch]
            # After the records: meanwhile others may change it, but none of them goes away.
            return Past(cards.read(job), newest.get((job.batch, job.index), -1))
        except (RunnerGone, ServiceError):
            raise
        except AdrError as error:
            _log.warning("left %s in the queue: %s", job.name, error)
            return None

    if len(jobs) == 1:
        return [look(jobs[0])]
    with ThreadPoolExecutor(min(_READERS, len(jobs))) as pool:
        return list(pool.map(look, jobs))
