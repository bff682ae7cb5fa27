"""The ledger of an AWS runner: SQS says whose turn a job is, S3 what became of it.

SQS delivers at least once, forgets a delivery after its visibility timeout and keeps no
history. So each delivery that is not plainly the first is checked against the records and
the job's card before it is run (`adr.ledgers.cards`), and a message is deleted only after
its record is in the journal (`adr.ledgers.journal`). What comes twice is decided once.

Deadlines are kept by this machine's boot-time clock from the moment the receive was sent,
so that they end here before they end at SQS. After one, a handle is not used for hiding or
showing a message any more: the message may be another worker's by then.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from adr.clock import boot_time
from adr.decisions import Decision
from adr.documents import reading
from adr.errors import AdrError, RunnerGone, ServiceError
from adr.ledgers.base import DeadLetter, lost_too_often
from adr.ledgers.cards import Card, Cards
from adr.ledgers.deadletters import count_dead, look_at_dead, revive
from adr.ledgers.journal import Journal, JournalReader
from adr.ledgers.settled import Settled
from adr.ledgers.sqs import Message, MessageQueue
from adr.models import Depth, Job, JobId, JobRecord, Lease, Outcome, new_id
from adr.objectcache import ObjectCache
from adr.roster import Roster
from adr.stores.base import ObjectStore

__all__ = ["AwsLedger"]

_log = logging.getLogger(__name__)

#: Nobody tunes this: leases are extended for as long as their worker lives.
VISIBILITY_S = 120.0
#: How old a running job becomes before it gets a card.
CARD_AFTER_S = 600.0
#: SQS hides a message at most this long after its receipt.
CEILING_S = 12 * 3600.0

#: A message that comes back again and again while its holder lives is hidden for longer each
#: time, up to so many visibility timeouts: receives are counted, and a limit of them ends it.
_LONGEST_HIDING = 12
_RECEIVES_PER_STEP = 16


@dataclass
class _Hold:
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


class AwsLedger:
    """Keep the jobs and records of an AWS runner; see `adr.ledgers.base.Ledger`.

    Parameters
    ----------
    queue : MessageQueue
        The queue of the runner.
    store : ObjectStore
        The store of the runner, for journal and cards.
    roster : Roster
        Tells which workers live.
    worker : str, optional
        Id of the worker that leases through this object; None where nobody does.
    cache : ObjectCache, optional
        Where other processes find what this one has read of the journal.
    visibility_s, card_after_s, ceiling_s : float, optional
        Times in seconds, which tests make small.
    """

    settle_within_s = 1.0
    poll_s = 20.0

    def __init__(
        self,
        queue: MessageQueue,
        store: ObjectStore,
        roster: Roster,
        worker: str | None = None,
        cache: ObjectCache | None = None,
        *,
        visibility_s: float = VISIBILITY_S,
        card_after_s: float = CARD_AFTER_S,
        ceiling_s: float = CEILING_S,
    ) -> None:
        self._queue = queue
        self._roster = roster
        self._worker = worker or ""
        self._visibility_s = visibility_s
        self._card_after_s = card_after_s
        self._ceiling_s = ceiling_s
        self._cards = Cards(store)
        self._journal = Journal(store, self._worker)
        self._reader = JournalReader(store, cache)
        self._guard = threading.RLock()
        self._holds: dict[str, _Hold] = {}
        self._held: dict[JobId, str] = {}
        #: Jobs that were settled here lately, with their attempts.
        self._settled = Settled()

    def create(self) -> None:
        """Make the queue and its dead-letter queue; idempotent."""
        self._queue.create(self._visibility_s)

    def destroy(self) -> None:
        """Delete the queues; the journal stays; idempotent."""
        self._queue.delete_all()

    def send(
        self, jobs: Sequence[Job], *, again: bool = False, sent: Callable[[int], None] | None = None
    ) -> None:
        """Send one message a job, ten a call, by several threads."""
        self._queue.send(jobs, again, sent)

    def receive(self, most: int, wait_s: float) -> list[Lease]:
        """Lease jobs; at most ten, and waits at most 20 s."""
        asked_at = boot_time()
        messages = self._queue.receive(most, wait_s, self._visibility_s)
        leases: list[Lease] = []
        unusual: list[tuple[Message, Job]] = []
        done: list[str] = []
        try:
            for message in messages:
                try:
                    with reading("the job message"):
                        data = json.loads(message.body)
                        job = Job.from_dict(data)
                except AdrError as error:
                    _log.warning("left a message that is not a job in the queue: %s", error)
                    continue
                with self._guard:
                    if self._is_held(job, message, asked_at, done):
                        continue
                    if job.id in self._settled:
                        done.append(message.handle)
                    elif message.receives > 1 or data.get("check"):
                        unusual.append((message, job))
                    else:
                        leases.append(self._hold(message, job, asked_at))
            if unusual:
                self._look_into(unusual, asked_at, leases, done)
        except BaseException:
            # Nobody gets to know of these: they have to be free for their next delivery.
            for lease in leases:
                self._drop(lease)
            raise
        try:
            self._queue.delete(done)
        except ServiceError as error:
            _log.warning("%d decided jobs stay until their next delivery: %s", len(done), error)
        return leases

    def start(self, leases: Sequence[Lease]) -> list[Lease]:
        """Note the start on the cards of the unusual ones; costs nothing for the others."""
        begun = []
        for lease in leases:
            hold = self._holds.get(lease.attempt)
            if hold is None:
                continue
            in_time = boot_time() < hold.lease.deadline
            hold.begun = True
            needs_card = hold.carded or not lease.ordinary
            try:
                may_begin = in_time and (not needs_card or self._write_card(hold))
            except (RunnerGone, ServiceError):
                raise
            except AdrError as error:
                _log.warning("left %s in the queue: %s", lease.job.name, error)
                may_begin = False
            if may_begin:
                begun.append(lease)
            else:
                self._drop(lease)
        return begun

    def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        """Hide the messages whose time is half over for another visibility timeout.

        A job older than `card_after_s` gets a card. At the ceiling of SQS the card alone
        holds it: the message comes back, and whoever receives it sees the holder.
        """
        holds = [self._holds[each.attempt] for each in leases if each.attempt in self._holds]
        # First, and for all of them: trouble with a card is not to cost the others their leases.
        self._hide_longer(holds)
        kept = []
        for hold in holds:
            if self._is_kept(hold):
                kept.append(hold.lease)
            else:
                self._drop(hold.lease)
        return kept

    def release(
        self, leases: Sequence[Lease], *, delay_s: float = 0, failed: bool = False, note: str = ""
    ) -> None:
        """Show the messages again after `delay_s`, at most 12 hours; a note needs a card."""
        holds = [self._holds[each.attempt] for each in leases if each.attempt in self._holds]
        for hold in holds:
            # Whatever follows: nobody speaks of it again, so its next delivery has to count.
            self._drop(hold.lease)
        trouble: AdrError | None = None
        shown = []
        for hold in holds:
            lease = hold.lease
            if hold.tried or ((failed or note) and boot_time() < lease.deadline):
                step = partial(_end, lease=lease, failed=failed, note=note)
                try:
                    self._cards.change(lease.job, step)
                except RunnerGone:
                    raise
                except AdrError as error:
                    trouble = error
                    continue
            if boot_time() < lease.deadline:
                shown.append(hold.handle)
        # A handle from before the ceiling may be refused; the message then comes back by itself.
        for handle, reason in self._queue.hide(shown, min(delay_s, self._ceiling_s)).items():
            _log.debug("could not show the message %s at once: %s", handle, reason)
        if trouble:
            raise trouble

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Append the records to the journal, then delete the messages."""
        fresh, settled, late = [], [], []
        for outcome in outcomes:
            lease = outcome.lease
            hold = self._holds.get(lease.attempt)
            if hold is None:
                if self._settled.attempt_of(lease.job.id) != lease.attempt:
                    fresh.append(outcome.marked_late().record)
            elif hold.recorded:
                settled.append(hold)
            elif self._is_ours(hold):
                settled.append(hold)
                fresh.append(outcome.record)
            else:
                late.append(hold)
                fresh.append(outcome.marked_late().record)
        self._journal.append(fresh)
        for hold in late:
            self._drop(hold.lease)
        for hold in settled:
            hold.recorded = True
        handles = [hold.handle for hold in settled]
        for handle, reason in self._queue.delete(handles).items():
            _log.warning("a settled message stays until its next delivery: %s %s", handle, reason)
        for hold in settled:
            self._drop(hold.lease, settled=True)

    def depth(self) -> Depth:
        """Count the messages, approximately."""
        return self._queue.depth()

    def count_dead(self) -> int:
        """Count the messages in the dead-letter queue, approximately."""
        return count_dead(self._queue)

    def dead_letters(self) -> list[DeadLetter]:
        """Receive all of them, and show them again."""
        return look_at_dead(self._queue)

    def revive(self) -> list[DeadLetter]:
        """Receive all of them, send the jobs again, then delete those that were sent."""
        return revive(self._queue)

    def decided(self, batches: Iterable[str]) -> Iterator[Decision]:
        """Read the journal; only what has changed since the last call is fetched."""
        return self._reader.decided(batches)

    def records(
        self, batches: Iterable[str], only: Collection[Decision] | None = None
    ) -> list[JobRecord]:
        """Fetch the parts of the journal that have them, by several threads."""
        return self._reader.records(batches, only)

    def _look_into(
        self,
        unusual: Sequence[tuple[Message, Job]],
        asked_at: float,
        leases: list[Lease],
        done: list[str],
    ) -> None:
        """Add the unusual jobs that need a run to `leases`, handles of decided ones to `done`."""
        decided: dict[str, dict[int, int]] = {}
        for message, job in unusual:
            try:
                if job.batch not in decided:
                    decided[job.batch] = self._decided(job.batch)
                card = self._cards.read(job)
            except (RunnerGone, ServiceError):
                raise
            except AdrError as error:
                _log.warning("left %s in the queue: %s", job.name, error)
                continue
            newest = max(card.generation, decided[job.batch].get(job.index, -1) + 1)
            if newest > job.generation:
                done.append(message.handle)
            elif self._is_others(card):
                _log.debug("%s is held by worker %s", job.name, card.holder)
                times = min(_LONGEST_HIDING, 1 + message.receives // _RECEIVES_PER_STEP)
                if times > 1:
                    self._queue.hide([message.handle], times * self._visibility_s)
            else:
                with self._guard:
                    if self._is_held(job, message, asked_at, done):
                        continue
                    passed = self._holds.get(self._held.get(job.id, ""))
                    if passed is None:
                        lease = self._hold(message, job, asked_at, card)
                        leases.append(lease)
                if passed is not None:
                    # Whoever had it meanwhile is to come too late, if only asleep.
                    if self._write_card(passed):
                        self._renew(passed, message, asked_at)
                    continue
                if card.starts >= job.crash_limit:
                    # First the card: its holder may only have slept, and is to come too late then.
                    if self._write_card(self._holds[lease.attempt]):
                        record = lost_too_often(job, lease.attempt, card.starts, card.notes)
                        self.settle([Outcome(lease, record)])
                    else:
                        self._drop(lease)
                    leases.remove(lease)

    def _decided(self, batch: str) -> dict[int, int]:
        """Return the newest decided generation of each job of a batch that has one."""
        decided: dict[int, int] = {}
        for each in self.decided([batch]):
            decided[each.index] = max(each.generation, decided.get(each.index, 0))
        return decided

    def _hide_longer(self, holds: Sequence[_Hold]) -> None:
        """Extend the leases whose time is half over and that are not at the ceiling.

        And with them those of which a third is over: ten cost as much as one.
        """
        asked_at = boot_time()
        able = [
            hold
            for hold in holds
            if asked_at < hold.lease.deadline and not self._is_near_ceiling(hold, asked_at)
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

    def _is_kept(self, hold: _Hold) -> bool:
        """Tell whether a lease stands, by its message or by a card that is written for it."""
        now = boot_time()
        in_time = now < hold.lease.deadline
        old = now - hold.since >= self._card_after_s
        if old and in_time and not hold.carded and not self._write_card(hold):
            return False
        if hold.lease.deadline - now > self._visibility_s / 2:
            return True
        if in_time and not self._is_near_ceiling(hold, now):
            return True
        return (hold.carded or in_time) and self._rest_on_card(hold)

    def _is_near_ceiling(self, hold: _Hold, now: float) -> bool:
        return now - hold.taken_at + self._visibility_s > self._ceiling_s

    def _is_held(self, job: Job, message: Message, asked_at: float, done: list[str]) -> bool:
        """Deal with the message of a job that this worker holds; tell whether it was one.

        A newer receipt prolongs the lease, but one that has passed may be another's by now.
        Another message of the same job, which a send without an answer may leave, is one too
        many while ours is hidden from all others.
        """
        attempt = self._held.get(job.id)
        if attempt is None:
            return False
        hold = self._holds[attempt]
        if message.id == hold.lease.handle:
            if boot_time() >= hold.lease.deadline:
                return False
            self._renew(hold, message, asked_at)
        elif boot_time() < hold.lease.deadline < math.inf:
            done.append(message.handle)
        return True

    def _renew(self, hold: _Hold, message: Message, asked_at: float) -> None:
        hold.handle, hold.taken_at = message.handle, asked_at
        hold.lease = replace(hold.lease, deadline=asked_at + self._visibility_s)

    def _hold(self, message: Message, job: Job, asked_at: float, card: Card | None = None) -> Lease:
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
        with self._guard:
            self._holds[lease.attempt] = _Hold(lease, message.handle, asked_at, asked_at)
            self._held[job.id] = lease.attempt
        return lease

    def _drop(self, lease: Lease, settled: bool = False) -> None:
        with self._guard:
            self._holds.pop(lease.attempt, None)
            if self._held.get(lease.job.id) == lease.attempt:
                del self._held[lease.job.id]
            if settled:
                self._settled.add(lease.job.id, lease.attempt)

    def _write_card(self, hold: _Hold) -> bool:
        """Make this worker the holder on the card, unless another living one is."""
        job, attempt = hold.lease.job, hold.lease.attempt

        def begin(card: Card) -> Card | None:
            if card.attempt == attempt and not hold.begun:
                return card
            if self._is_others(card) or card.generation > job.generation:
                return None
            step = card.begun if hold.begun else card.held
            return step(self._worker, attempt)

        hold.tried = True
        hold.carded = self._cards.change(job, begin) is not None
        return hold.carded

    def _rest_on_card(self, hold: _Hold) -> bool:
        """Hold a job by its card alone, without a deadline."""
        if not (hold.carded or self._write_card(hold)) or not self._card_is_ours(hold):
            return False
        hold.lease = replace(hold.lease, deadline=math.inf)
        return True

    def _card_is_ours(self, hold: _Hold) -> bool:
        try:
            return self._cards.read(hold.lease.job).attempt == hold.lease.attempt
        except (RunnerGone, ServiceError):
            raise
        except AdrError as error:
            _log.warning("%s is held by nobody any more: %s", hold.lease.job.name, error)
            return False

    def _is_others(self, card: Card) -> bool:
        """Tell whether another worker that lives holds the job."""
        if card.holder is None or card.holder == self._worker:
            return False
        return self._roster.is_alive(card.holder)

    def _is_ours(self, hold: _Hold) -> bool:
        """Tell whether a lease is still held: by its deadline, or by the card."""
        if boot_time() < hold.lease.deadline < math.inf:
            return True
        return hold.carded and self._card_is_ours(hold)


def _end(card: Card, lease: Lease, failed: bool, note: str) -> Card | None:
    """Return the card after the end of an attempt; None where that does not concern it."""
    if card.generation != lease.job.generation:
        return None
    # An ordinary attempt begins without a card.
    is_new = card.attempt is None and (failed or note)
    return card.ended(failed, note) if is_new or card.attempt == lease.attempt else None
