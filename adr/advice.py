"""What somebody should read who looks at the state of a runner, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from adr.views import BatchStatus, Status

__all__ = ["notes_on_all", "notes_on_batch", "notes_on_leases"]

_DAY_S = 24 * 3600.0
#: How long before a queue forgets a job we begin to say so.
_WARN_BEFORE_S = 4 * _DAY_S
#: From this part of what can be leased on, some get none; the count is approximate.
_NEARLY = 0.95


def notes_on_batch(counts: BatchStatus, age_s: float, retention_s: float) -> Iterator[str]:
    """Say what there is to do about a batch some of whose jobs are not decided.

    Parameters
    ----------
    age_s : float
        Age of the oldest of these jobs in seconds.
    retention_s : float
        At what age the queue forgets a job.
    """
    are = (f"of {counts.batch} is", f"of {counts.batch} are")
    have = (f"of {counts.batch} has", f"of {counts.batch} have")
    if not counts.sealed:
        yield (
            f"queueing {counts.batch} is not finished: if it was cut off, repeat its adr queue or "
            f"adr retry, or adr destroy --batch={counts.batch}"
        )
    if counts.unaccounted:
        yield (
            f"{_jobs(counts.unaccounted, *are)} neither decided, queued nor running, "
            f"as far as approximate counts tell: look again in two minutes"
        )
    if counts.lost:
        yield f"{_jobs(counts.lost, *are)} lost: queue again with adr retry --lost"
    if age_s > retention_s - _WARN_BEFORE_S:
        yield (
            f"{_jobs(counts.undecided, *have)} waited for {age_s / _DAY_S:.0f} days: "
            f"the queue forgets them after {retention_s / _DAY_S:.0f}"
        )


def notes_on_leases(leased: int, most: float) -> Iterator[str]:
    """Say where more workers would get nothing, by how many jobs a queue lends at most."""
    if leased > _NEARLY * most:
        yield (
            f"about {leased:,} jobs are leased, and the queue of a runner lends {most:,} at a "
            f"time: more workers, or slots, get none of those that wait; divide what is queued "
            f"next among several runners"
        )


def notes_on_all(status: Status, dead: int, *, gone: bool) -> Iterator[str]:
    """Say what there is to do about a runner, of which everything else is counted.

    Parameters
    ----------
    dead : int
        How many messages the queue has given up.
    gone : bool
        Whether it has been destroyed.
    """
    if status.ending:
        ending = (
            "that is cancelled still runs until its worker ends it",
            "that are cancelled still run until their workers end them",
        )
        yield _jobs(status.ending, *ending)
    if dead:
        yield (
            f"the queue has given up {_messages(dead)} that came back too often: "
            f"adr failures --dead lists them, adr retry --dead sends them again"
        )
    if gone:
        yield "the runner has been destroyed: only what it has done is left"
    elif status.paused:
        yield "the runner is paused, and nothing begins: adr resume"
    elif status.totals.queued and not status.workers:
        yield f"{_jobs(status.totals.queued, 'waits', 'wait')} and no worker runs"


def _messages(number: int) -> str:
    return "1 message" if number == 1 else f"{number:,} messages"


def _jobs(number: int, one: str, many: str) -> str:
    return f"1 job {one}" if number == 1 else f"{number:,} jobs {many}"
