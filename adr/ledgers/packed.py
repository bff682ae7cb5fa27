"""What the records of one journal object decide, packed: some twenty bytes a job.

Whoever counts a million jobs holds all of it at once, and keeps it for the next time on disk.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Iterator
from io import BytesIO
from itertools import repeat

from adr.decisions import Decision
from adr.models import JobState, check_schema

__all__ = ["PackedDecisions"]

_LETTERS = {
    (state, late): letter
    for state, letters in (
        (JobState.SUCCEEDED, "sS"),
        (JobState.FAILED, "fF"),
        (JobState.CANCELLED, "cC"),
    )
    for late, letter in zip((False, True), letters, strict=True)
}
_STATES = {letter: state for (state, _), letter in _LETTERS.items()}


class PackedDecisions:
    """Hold what the lines of a journal object decide, in their order."""

    def __init__(self) -> None:
        self._indices = array("q")
        self._generations = array("i")
        #: A letter a line: the state, in upper case where it was late.
        self._states = ""
        #: A line a line.
        self._attempts = ""

    def __len__(self) -> int:
        return len(self._indices)

    def with_lines(self, body: bytes, batch: str) -> PackedDecisions:
        """Return the same, followed by what more lines of the journal of a batch decide.

        Raises
        ------
        ValueError, TypeError, KeyError, OverflowError, AdrError
            If these are no records, those of another batch, or a newer adr wrote them.
        """
        added = []
        for line in BytesIO(body):
            data = json.loads(line)
            check_schema(data, "the job record")
            added.append(
                Decision.read(
                    data["batch"],
                    data["index"],
                    data["generation"],
                    data["attempt"],
                    data["state"],
                    data.get("late", False),
                )
            )
        if any(each.batch != batch or "\n" in each.attempt for each in added):
            raise ValueError("it has a record of another batch, or of no attempt")
        made = PackedDecisions()
        made._indices = self._indices + array("q", [each.index for each in added])
        made._generations = self._generations + array("i", [each.generation for each in added])
        made._states = self._states + "".join(_LETTERS[each[4:]] for each in added)
        made._attempts = self._attempts + "".join(f"{each.attempt}\n" for each in added)
        return made

    def decisions(self, batch: str) -> Iterator[Decision]:
        """Yield them all."""
        columns = (
            repeat(batch),
            self._indices,
            self._generations,
            self._attempts.split("\n"),
            map(_STATES.__getitem__, self._states),
            map(str.isupper, self._states),
        )
        return map(Decision._make, zip(*columns, strict=False))

    def lines_of(self, batch: str, records: Collection[tuple[str, int, int, str]]) -> list[int]:
        """Return the numbers of the lines that are these records, from 0."""
        found = enumerate(self.decisions(batch))
        return [number for number, each in found if each.record in records]

    def to_bytes(self) -> bytes:
        """Write them down."""
        columns = [
            self._indices.tolist(),
            self._generations.tolist(),
            self._states,
            self._attempts,
        ]
        return json.dumps(columns, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, body: bytes) -> PackedDecisions:
        """Read what `to_bytes` wrote."""
        made = cls()
        indices, generations, made._states, made._attempts = json.loads(body)
        made._indices, made._generations = array("q", indices), array("i", generations)
        return made
