"""The messages of SQS that this worker holds: their receipts, and until when they are hidden.

A lease of `adr.ledgers.aws` is a message that nobody else sees. Which messages are held, under
which receipt and for how much longer, is known here; whether a job is to be run, and who holds
it beyond its message, is not.

Deadlines are kept by this machine's boot-time clock from the moment the receive was sent,
so that they end here before they end at SQS. After one, a handle is not used for hiding or
showing a message any more: the message may be another worker's by then.
"""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from adr.clock import boot_time
from adr.ledgers.cards import Card
from adr.ledgers.settled import Settled
from adr.ledgers.sqs import Message, MessageQueue
from adr.models import Job, JobId, Lease, new_id

__all__ = ["Hold", "Holds", "Known"]

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Hold:
    """What this worker knows about a lease that it holds."""

    lease: Lease
    #: The newest receipt handle.
    handle: str
    #: Boot time at which the message was last received.
    taken_at: float
    #: Boot time at which this attempt got its lease.
    since: float
    #: Whether this attempt was told to begin.
    begun: bool = False
    #: Whether the card was to name this attempt; an error leaves it open whether it does.
    tried: bool = False
    #: Whether the card names this attempt.
    carded: bool = False
    #: Whether its record is in the journal.
    recorded: bool = False
    #: Whether the card says that this attempt has ended.
    ended: bool = False


class Known(enum.Enum):
    """Say what a received message is to this worker."""

    #: Its job is not held here.
    NEW = "new"
    #: Its job is held here, and remains so.
    HELD = "held"
    #: Its job was settled here, or is held by another message: it may be deleted.
    SURPLUS = "surplus"


class Holds:
    """Keep the holds of one worker; thread-safe.

    Parameters
    ----------
    queue : MessageQueue
        Where the messages come from.
    visibility_s, ceiling_s : float
        For how long a message is hidden at a time, and at most after its receipt.
    """

    def __init__(self, queue: MessageQueue, visibility_s: float, ceiling_s: float) -> None:
        self._queue = queue
        self._visibility_s = visibility_s
        self._ceiling_s = ceiling_s
        #: For whoever does something by what he has found here.
        self.guard = threading.RLock()
        self._holds: dict[str, Hold] = {}
        self._held: dict[JobId, str] = {}
        #: Those given up that could not be shown yet, by their attempts.
        self._aside: dict[str, Hold] = {}
        #: Jobs that were settled here lately, with their attempts.
        self._settled = Settled()

    def get(self, lease: Lease) -> Hold | None:
        """Return the hold behind a lease; None where it is held no more."""
        return self._holds.get(lease.attempt)

    def all(self, leases: Iterable[Lease]) -> list[Hold]:
        """Return the holds behind leases, of those that are held."""
        return [hold for lease in leases if (hold := self.get(lease))]

    def of(self, job: Job) -> Hold | None:
        """Return the hold on a job."""
        return self._holds.get(self._held.get(job.id, ""))

    def is_settled(self, lease: Lease) -> bool:
        """Tell whether an attempt was settled here lately."""
        return self._settled.attempt_of(lease.job.id) == lease.attempt

    def meet(self, job: Job, message: Message, asked_at: float) -> Known:
        """Tell what a received message is; a newer receipt of one that is held prolongs that.

        One whose time has passed is new, since it may have been another's meanwhile. Another
        message of the same job, which a send without an answer may leave, is one too many
        while ours is hidden from all others.
        """
        with self.guard:
            hold = self.of(job)
            if hold is None:
                return Known.SURPLUS if job.id in self._settled else Known.NEW
            if message.id == hold.lease.handle:
                if boot_time() >= hold.lease.deadline:
                    return Known.NEW
                self.renew(hold, message, asked_at)
            elif boot_time() < hold.lease.deadline < math.inf:
                return Known.SURPLUS
            return Known.HELD

    def renew(self, hold: Hold, message: Message, asked_at: float) -> None:
        """Go on with a newer receipt."""
        hold.handle, hold.taken_at = message.handle, asked_at
        hold.lease = replace(hold.lease, deadline=asked_at + self._visibility_s)

    def take(self, job: Job, message: Message, asked_at: float, card: Card | None = None) -> Hold:
        """Hold a job by a message from now on."""
        lease = Lease(
            job,
            attempt=new_id(),
            handle=message.id,
            leased_at=time.time(),
            deadline=asked_at + self._visibility_s,
            failures=card.failures if card else 0,
            lost=card.starts if card else 0,
            ordinary=card is None,
            notes=card.notes if card else (),
        )
        with self.guard:
            hold = self._holds[lease.attempt] = Hold(lease, message.handle, asked_at, asked_at)
            self._held[job.id] = lease.attempt
        return hold

    def drop(self, lease: Lease, settled: bool = False) -> None:
        """Hold a job no more."""
        with self.guard:
            self._holds.pop(lease.attempt, None)
            if self._held.get(lease.job.id) == lease.attempt:
                del self._held[lease.job.id]
            if settled:
                self._settled.add(lease.job.id, lease.attempt)

    def give_up(self, leases: Iterable[Lease]) -> list[Hold]:
        """Hold these jobs no more, and return the holds, also those that were put aside."""
        with self.guard:
            found = []
            for lease in leases:
                hold = self.get(lease) or self._aside.pop(lease.attempt, None)
                if hold is not None:
                    self.drop(lease)
                    found.append(hold)
            return found

    def put_aside(self, holds: Iterable[Hold]) -> None:
        """Keep what was given up and could not be shown, to be given up again in its time.

        One whose card names its attempt for longer: while it does, nobody else has the job.
        """
        with self.guard:
            now = boot_time()
            kept = {hold.lease.attempt: hold for hold in (*self._aside.values(), *holds)}
            self._aside = {
                each: hold
                for each, hold in kept.items()
                if now < hold.lease.deadline or (hold.tried and not hold.ended)
            }

    def hide_longer(self, holds: Sequence[Hold]) -> None:
        """Extend the leases whose time is half over and that are not at the ceiling.

        And with them those of which a third is over: ten cost as much as one.
        """
        asked_at = boot_time()
        able = [
            hold
            for hold in holds
            if asked_at < hold.lease.deadline and not self.is_near_ceiling(hold, asked_at)
        ]
        first = min((hold.lease.deadline for hold in able), default=math.inf)
        if first > asked_at + self._visibility_s / 2:
            return
        latest = asked_at + self._visibility_s * 2 / 3
        due = {hold.handle: hold for hold in able if hold.lease.deadline <= latest}
        failed = self._queue.hide(list(due), self._visibility_s)
        answered_at = boot_time()
        for handle, hold in due.items():
            reason = failed.get(handle)
            if reason is None:
                # SQS answers the same where the message was visible by then.
                if answered_at < hold.lease.deadline:
                    hold.lease = replace(hold.lease, deadline=asked_at + self._visibility_s)
            elif "beyond the limit" in reason:
                hold.taken_at = -math.inf
            else:
                _log.warning("could not extend the lease of %s: %s", hold.lease.job.name, reason)

    def is_near_ceiling(self, hold: Hold, now: float) -> bool:
        """Tell whether a message cannot be hidden for its whole time any more."""
        return now - hold.taken_at + self._visibility_s > self._ceiling_s
