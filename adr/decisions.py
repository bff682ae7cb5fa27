"""What decides a job: of a record no more than that, and of several records which one.

Of a hundred thousand jobs it is read at each look, where whole records would take ten times as
long; and every reader comes to the same, whatever the clocks of workers say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from adr.models import JobState

__all__ = ["Decision", "visible"]


class Decision(NamedTuple):
    """Tell of a record what decides its job, and no more: there are very many."""

    batch: str
    # It hides the method of tuples, which nobody needs here.
    index: int  # type: ignore[assignment]
    generation: int
    attempt: str
    state: JobState
    late: bool

    @property
    def record(self) -> tuple[str, int, int, str]:
        """Return what names the record: batch, index, generation and attempt."""
        return self[:4]

    @classmethod
    def read(
        cls, batch: str, index: Any, generation: Any, attempt: Any, state: Any, late: Any
    ) -> Decision:
        """Make it of what stands in a stored record.

        Raises
        ------
        TypeError, ValueError
            If that is no record.
        """
        if not (isinstance(index, int) and isinstance(generation, int) and type(attempt) is str):
            raise TypeError(f"its job is {(index, generation, attempt)!r:.50}")
        return cls(batch, index, generation, attempt, JobState.of(state), bool(late))


_PREFERENCE = {JobState.SUCCEEDED: 0, JobState.FAILED: 1, JobState.CANCELLED: 2}


class _Ranked(Protocol):
    """What a record and a `Decision` have in common."""

    @property
    def batch(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def attempt(self) -> str: ...
    @property
    def state(self) -> JobState: ...
    @property
    def late(self) -> bool: ...


_Record = TypeVar("_Record", bound=_Ranked)


def visible(records: Iterable[_Record]) -> dict[tuple[str, int], _Record]:
    """Choose the one visible record of each job.

    The highest generation wins; then a record that is not late; then succeeded over failed
    over cancelled; then the smallest attempt id. Clocks of workers take no part, so every
    reader chooses the same, whatever order the records come in.

    Parameters
    ----------
    records : iterable of JobRecord or Decision
        Records of any jobs, in any order, duplicates included.

    Returns
    -------
    dict
        The record of each job that has one, by batch and index.
    """
    best: dict[tuple[str, int], _Record] = {}
    for record in records:
        place = (record.batch, record.index)
        known = best.get(place)
        if known is None or _rank(record) < _rank(known):
            best[place] = record
    return best


def _rank(record: _Ranked) -> tuple[int, bool, int, str]:
    return (-record.generation, record.late, _PREFERENCE[record.state], record.attempt)
