"""Which jobs a worker has settled lately: their messages may come again, and are to be deleted.

A worker may run a hundred thousand jobs, so each takes about 130 bytes here. There are two
halves; once the newer one is full, the older one is forgotten.
"""

from __future__ import annotations

from adr.models import JobId

__all__ = ["Settled"]

_HALF = 50_000
_GENERATION_BITS = 32

#: Attempts, as bytes, by numbers made of index and generation; and all that by batch.
_Attempts = dict[str, dict[int, bytes]]


class Settled:
    """Remember jobs with the attempts that have settled them; whoever adds holds a lock."""

    def __init__(self) -> None:
        self._newer: _Attempts = {}
        self._older: _Attempts = {}
        self._count = 0

    def add(self, job: JobId, attempt: str) -> None:
        """Remember a job; at least 50,000 others are remembered after it."""
        if self._count >= _HALF:
            self._older, self._newer, self._count = self._newer, {}, 0
        batch, index, generation = job
        number = index << _GENERATION_BITS | generation
        self._newer.setdefault(batch, {})[number] = bytes.fromhex(attempt)
        self._count += 1

    def attempt_of(self, job: JobId) -> str | None:
        """Return the attempt that has settled a job, None where none is remembered."""
        batch, index, generation = job
        number = index << _GENERATION_BITS | generation
        for half in (self._newer, self._older):
            if batch in half and number in half[batch]:
                return half[batch][number].hex()
        return None

    def __contains__(self, job: JobId) -> bool:
        """Tell whether a job is remembered."""
        return self.attempt_of(job) is not None
