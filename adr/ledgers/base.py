"""The seam between adr and the places that keep jobs.

A ledger is a queue and the records of what came out of it, in one, because "remove the job
after its record is durable" is a property of both together. Its verbs, in the life of a job::

    send → receive → start → (extend …) → settle            the ordinary way
                           → release                        given back, or failed and to be repeated

Eleven methods, three over our limit: creating and destroying are here since the queue and its
records come and go together, `start` since only the ledger can say that an attempt has begun in
a way that outlives the worker, and `decided` since of a hundred thousand records hardly anybody
wants to know more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from adr.decisions import Decision
from adr.models import Depth, Job, JobRecord, JobState, Lease, Outcome

__all__ = [
    "LONGEST_DELAY_S",
    "DeadLetter",
    "DeadLetters",
    "Forgetting",
    "Ledger",
    "lost_too_often",
]

#: Longest time in seconds for which a job that is given back may be held back.
LONGEST_DELAY_S = 900.0


def lost_too_often(job: Job, attempt: str, lost: int, notes: tuple[str, ...]) -> JobRecord:
    """Make the record of a job that has lost as many workers as its crash limit says."""
    reason = f"lost its worker {lost} time{'' if lost == 1 else 's'}"
    return JobRecord.of(job, attempt, JobState.FAILED, reason, notes=notes)


class Ledger(Protocol):
    """Keep jobs, lease them to workers, and keep what became of them.

    Thread-safe. Methods block until the service has answered and raise `ServiceError` where
    it refuses or cannot be reached, `RunnerGone` where the queue is no more.
    """

    #: Longest time in seconds that outcomes may wait to be settled together with others.
    settle_within_s: float
    #: How long one `receive` had best wait in seconds: what looking costs, in money or work.
    poll_s: float

    def create(self) -> None:
        """Make the ledger; idempotent for its owner."""

    def destroy(self) -> None:
        """Remove the queue and every job in it, keep the records; idempotent."""

    def send(
        self, jobs: Sequence[Job], *, again: bool = False, sent: Callable[[int], None] | None = None
    ) -> None:
        """Queue jobs; with none, only make sure that the ledger would take some.

        Parameters
        ----------
        again : bool, optional
            Some of these jobs may have been queued by an earlier call that was cut off.
            Such a job is nevertheless decided once.
        sent : callable, optional
            Called with n once the first n jobs are known to be queued; n grows.
        """

    def receive(self, most: int, wait_s: float) -> list[Lease]:
        """Lease up to `most` jobs, at least one if possible within `wait_s` seconds.

        Jobs that need no run (already decided, held by a live worker, lost too often) are
        dealt with here and not returned. An empty list may come sooner, where this worker has
        settled the last job; it does not prove an empty queue.
        """

    def start(self, leases: Sequence[Lease]) -> list[Lease]:
        """Note that these attempts begin now, and return those that may.

        An attempt that was started and neither settled nor released counts as lost.
        """

    def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        """Hold on to leases, and return them with their new deadlines; those missing are lost."""

    def release(
        self, leases: Sequence[Lease], *, delay_s: float = 0, failed: bool = False, note: str = ""
    ) -> None:
        """Give jobs back, to be leased again after `delay_s`, at most `LONGEST_DELAY_S`.

        Leases that have passed are left alone.

        Parameters
        ----------
        failed : bool, optional
            Their commands failed and are to be repeated; without, nothing is counted.
        note : str, optional
            A sentence that is added to the notes of their next leases.
        """

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Make the records durable, then remove the jobs; idempotent.

        Outcomes whose lease has passed are recorded as late and their jobs left alone.
        On an error call again with the same outcomes.
        """

    def depth(self) -> Depth:
        """Count the jobs that wait, are leased, and are delayed."""

    def decided(self, batches: Iterable[str]) -> Iterator[Decision]:
        """Yield of every record of these batches what decides its job; in no order, some twice.

        Costs a fraction of what `records` does, in time and memory. Is to be read to its end at
        once, with no call of the ledger meanwhile: some keep a lock until then.
        """

    def records(
        self, batches: Iterable[str], only: Collection[Decision] | None = None
    ) -> list[JobRecord]:
        """Return every record of these batches, in no order, possibly some twice.

        Parameters
        ----------
        only : collection of Decision, optional
            Return only the records from which `decided` has read these.
        """


@runtime_checkable
class Forgetting(Protocol):
    """A capability of ledgers that keep what they know of a batch outside the store."""

    def forget(self, batch: str) -> None:
        """Remove jobs and records of a batch, and take none of it any more; idempotent.

        Leases on its jobs are lost, and outcomes of them dropped.
        """


@dataclass(frozen=True)
class DeadLetter:
    """Show a message that the queue has given up, since it came back too often."""

    #: Id of the message.
    id: str
    #: The job; None where the message cannot be read.
    job: Job | None
    #: Why it cannot be read; empty where it can.
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        names = self.job.names() if self.job else None
        return {"message": self.id, "job": names, "trouble": self.trouble}


@runtime_checkable
class DeadLetters(Protocol):
    """A capability of ledgers whose queue gives up what comes back too often."""

    def count_dead(self) -> int:
        """Count the messages that were given up, approximately; at most one call."""

    def dead_letters(self) -> list[DeadLetter]:
        """Return the messages that were given up, and leave them where they are."""

    def revive(self) -> list[DeadLetter]:
        """Queue the jobs among them again, as ``send(again=True)`` does, and remove those.

        Returns all that were found. May be cut off and repeated.
        """
