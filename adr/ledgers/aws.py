"""The ledger of an AWS runner: SQS says whose turn a job is, S3 what became of it.

SQS delivers at least once, forgets a delivery after its visibility timeout and keeps no
history. So each delivery that is not plainly the first is checked against the records and
the job's card before it is run (`adr.ledgers.cards`), and a message is deleted only after
its record is in the journal (`adr.ledgers.journal`). What comes twice is decided once.
What is held by its message alone, and until when, is kept by `adr.ledgers.holds`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial

from adr.clock import boot_time
from adr.decisions import Decision
from adr.documents import reading
from adr.errors import AdrError, RunnerGone, ServiceError
from adr.ledgers.base import DeadLetter, lost_too_often
from adr.ledgers.cards import Card, Cards
from adr.ledgers.deadletters import count_dead, look_at_dead, revive
from adr.ledgers.holds import Hold, Holds, Known
from adr.ledgers.journal import Journal, JournalReader
from adr.ledgers.pasts import look_back
from adr.ledgers.sqs import Message, MessageQueue
from adr.models import Depth, Job, JobRecord, Lease, Outcome
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
        self._holds = Holds(queue, visibility_s, ceiling_s)

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
        """Lease jobs, ten a call and by several calls where there is plenty; waits at most 20 s."""
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
                with self._holds.guard:
                    known = self._holds.meet(job, message, asked_at)
                    if known is Known.SURPLUS:
                        done.append(message.handle)
                    elif known is Known.HELD:
                        continue
                    elif message.receives > 1 or data.get("check"):
                        unusual.append((message, job))
                    else:
                        leases.append(self._holds.take(job, message, asked_at).lease)
            if unusual:
                self._look_into(unusual, asked_at, leases, done)
        except BaseException:
            # Nobody gets to know of these: they have to be free for their next delivery.
            for lease in leases:
                self._holds.drop(lease)
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
            hold = self._holds.get(lease)
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
                self._holds.drop(lease)
        return begun

    def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        """Hide the messages whose time is half over for another visibility timeout.

        A job older than `card_after_s` gets a card. At the ceiling of SQS the card alone
        holds it: the message comes back, and whoever receives it sees the holder.
        """
        holds = self._holds.all(leases)
        # First, and for all of them: trouble with a card is not to cost the others their leases.
        self._holds.hide_longer(holds)
        kept = []
        for hold in holds:
            if self._is_kept(hold):
                kept.append(hold.lease)
            else:
                self._holds.drop(hold.lease)
        return kept

    def release(
        self, leases: Sequence[Lease], *, delay_s: float = 0, failed: bool = False, note: str = ""
    ) -> None:
        """Show the messages again after `delay_s`, at most 12 hours; a note needs a card.

        Where that failed for some, another call makes up for it, if that comes in time.
        """
        # Whatever follows: nobody speaks of them again, so their next delivery has to count.
        holds = self._holds.give_up(leases)
        trouble: AdrError | None = None
        shown = {}
        left = []
        for hold in holds:
            lease = hold.lease
            is_unusual = hold.tried or ((failed or note) and boot_time() < lease.deadline)
            if is_unusual and not hold.ended:
                step = partial(Card.ended, lease=lease, failed=failed, note=note)
                try:
                    self._cards.change(lease.job, step)
                except RunnerGone:
                    raise
                except ServiceError as error:
                    # Where only the answer was lost, the card knows of this end.
                    trouble = error
                    left.append(hold)
                    continue
                except AdrError as error:
                    trouble = trouble or error
                    continue
                hold.ended = True
            if boot_time() < lease.deadline:
                shown[hold.handle] = hold
        answered = set[str]()
        try:
            refused = self._queue.hide(list(shown), min(delay_s, self._ceiling_s), answered.update)
        except ServiceError:
            # Where only the answer was lost, another call may show what somebody else has by then.
            # Then their cards see to it that one of two begins.
            left += [hold for handle, hold in shown.items() if handle not in answered]
            raise
        finally:
            self._holds.put_aside(left)
        # A handle from before the ceiling may be refused; the message then comes back by itself.
        for handle, reason in refused.items():
            _log.debug("could not show the message %s at once: %s", handle, reason)
        if trouble:
            raise trouble

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Append the records to the journal, then delete the messages."""
        fresh, settled, late = [], [], []
        for outcome in outcomes:
            lease = outcome.lease
            hold = self._holds.get(lease)
            if hold is None:
                if not self._holds.is_settled(lease):
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
            self._holds.drop(hold.lease)
        for hold in settled:
            hold.recorded = True
        handles = [hold.handle for hold in settled]
        for handle, reason in self._queue.delete(handles).items():
            _log.warning("a settled message stays until its next delivery: %s %s", handle, reason)
        for hold in settled:
            self._holds.drop(hold.lease, settled=True)

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
        # Many of them are of one worker that has died.
        is_alive = cache(self._roster.is_alive)
        pasts = look_back([job for _, job in unusual], self.decided, self._cards)
        for (message, job), past in zip(unusual, pasts, strict=True):
            if past is None:
                continue
            card = past.card
            if past.generation > job.generation:
                done.append(message.handle)
            elif self._is_others(card, is_alive):
                _log.debug("%s is held by worker %s", job.name, card.holder)
                times = min(_LONGEST_HIDING, 1 + message.receives // _RECEIVES_PER_STEP)
                if times > 1:
                    self._queue.hide([message.handle], times * self._visibility_s)
            else:
                with self._holds.guard:
                    held = self._holds.meet(job, message, asked_at)
                    if held is Known.SURPLUS:
                        done.append(message.handle)
                    if held is not Known.NEW:
                        continue
                    passed = self._holds.of(job)
                    if passed is None:
                        hold = self._holds.take(job, message, asked_at, card)
                        leases.append(hold.lease)
                if passed is not None:
                    # Whoever had it meanwhile is to come too late, if only asleep.
                    if self._write_card(passed):
                        self._holds.renew(passed, message, asked_at)
                    continue
                if card.starts >= job.crash_limit:
                    # First the card: its holder may only have slept, and is to come too late then.
                    lease = hold.lease
                    if self._write_card(hold):
                        record = lost_too_often(job, lease.attempt, card.starts, card.notes)
                        self.settle([Outcome(lease, record)])
                    else:
                        self._holds.drop(lease)
                    leases.remove(lease)

    def _is_kept(self, hold: Hold) -> bool:
        """Tell whether a lease stands, by its message or by a card that is written for it."""
        now = boot_time()
        in_time = now < hold.lease.deadline
        old = now - hold.since >= self._card_after_s
        if old and in_time and not hold.carded and not self._write_card(hold):
            return False
        if hold.lease.deadline - now > self._visibility_s / 2:
            return True
        if in_time and not self._holds.is_near_ceiling(hold, now):
            return True
        return (hold.carded or in_time) and self._rest_on_card(hold)

    def _write_card(self, hold: Hold) -> bool:
        """Make this worker the holder on the card, unless another living one is."""
        job, attempt = hold.lease.job, hold.lease.attempt

        def begin(card: Card) -> Card | None:
            if card.attempt == attempt and not hold.begun:
                return card
            if self._is_others(card, self._roster.is_alive) or card.generation > job.generation:
                return None
            step = card.begun if hold.begun else card.held
            return step(self._worker, attempt)

        hold.tried = True
        hold.carded = self._cards.change(job, begin) is not None
        return hold.carded

    def _rest_on_card(self, hold: Hold) -> bool:
        """Hold a job by its card alone, without a deadline."""
        if not (hold.carded or self._write_card(hold)) or not self._card_is_ours(hold):
            return False
        hold.lease = replace(hold.lease, deadline=math.inf)
        return True

    def _card_is_ours(self, hold: Hold) -> bool:
        try:
            return self._cards.read(hold.lease.job).attempt == hold.lease.attempt
        except (RunnerGone, ServiceError):
            raise
        except AdrError as error:
            _log.warning("%s is held by nobody any more: %s", hold.lease.job.name, error)
            return False

    def _is_others(self, card: Card, is_alive: Callable[[str], bool]) -> bool:
        """Tell whether another worker that lives holds the job."""
        return card.holder not in (None, self._worker) and is_alive(card.holder)

    def _is_ours(self, hold: Hold) -> bool:
        """Tell whether a lease is still held: by its deadline, or by the card."""
        if boot_time() < hold.lease.deadline < math.inf:
            return True
        return hold.carded and self._card_is_ours(hold)
