"""The slots of a worker at work: what becomes of each job that one of them is given."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from adr.errors import AdrError, NotFound, RunnerGone, ServiceError
from adr.ledgers.base import Ledger
from adr.models import JobState, Lease
from adr.orders import Orders
from adr.worker.bundles import DiskTooSmall
from adr.worker.ending import Ending
from adr.worker.leases import LeaseKeeper
from adr.worker.outbox import Outbox
from adr.worker.policy import Policy
from adr.worker.slot import Delivery, FolderGone, Slot
from adr.worker.tree import discard_tree
from adr.worker.turns import Turns

__all__ = ["Crew"]

_log = logging.getLogger(__name__)

_AFTER_TROUBLE_S = 5.0
_LONGEST_BACKOFF_S = 600.0


class Crew:
    """Let slots run what `turns` hands out, each in a thread of its own.

    Parameters
    ----------
    size : int
        How many slots there are to be.
    ledger : Ledger
        Hears of the beginning of each attempt.
    turns : Turns
        Where jobs come from.
    leases : LeaseKeeper
        Takes back what is not done here.
    outbox : Outbox
        Takes what is done.
    policy : Policy
        Hears how long jobs run.
    ending : Ending
        Tells whether the worker ends.
    on_gone : callable
        Called if the runner turns out to be destroyed.
    """

    def __init__(
        self,
        size: int,
        ledger: Ledger,
        turns: Turns,
        leases: LeaseKeeper,
        outbox: Outbox,
        policy: Policy,
        ending: Ending,
        on_gone: Callable[[RunnerGone], None],
    ) -> None:
        #: How many slots work; fewer once the disk has turned out to be too small.
        self.size = size
        #: What is not to be run any more.
        self.orders = Orders()
        self._ledger = ledger
        self._turns = turns
        self._leases = leases
        self._outbox = outbox
        self._policy = policy
        self._ending = ending
        self._on_gone = on_gone
        self._guard = threading.Lock()
        self._slots: Sequence[Slot] = ()
        self._threads: list[threading.Thread] = []

    def start(self, slots: Sequence[Slot], outbox: Path) -> None:
        """Begin to work; what jobs leave behind is put into the folder `outbox`."""
        self._slots = slots
        self._threads = [
            threading.Thread(target=self._work, args=(slot, outbox), name=f"slot-{slot.number}")
            for slot in slots
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_at_work(self) -> bool:
        """Tell whether a slot may still be at a job, take another one, or clear up after it."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self, timeout_s: float) -> None:
        """Wait until a slot has ended, for so long at most."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s)
                return

    def is_called_off(self, lease: Lease) -> bool:
        """Tell whether a job is not to be run any more."""
        return bool(self.orders.against(lease.job))

    def logs(self) -> list[tuple[Lease, Path]]:
        """Return lease and log of each job that runs; see `Slot.log`."""
        return [log for slot in self._slots if (log := slot.log)]

    def _work(self, slot: Slot, outbox: Path) -> None:
        try:
            self._run_all(slot, outbox)
        finally:
            slot.close()

    def _run_all(self, slot: Slot, outbox: Path) -> None:
        while lease := self._turns.take(slot):
            staging = outbox / lease.attempt
            retire = False
            try:
                retire = self._run(slot, lease, staging)
            except RunnerGone as error:
                self._on_gone(error)
                return
            except FolderGone as error:
                _log.warning("%s", error)
                self._leases.release([lease])
                self._ending.drop()
                return
            except ServiceError as error:
                _log.warning("%s; giving %s back", error, lease.job.name)
                self._leases.release([lease], delay_s=_AFTER_TROUBLE_S)
                self._ending.begun.wait(_AFTER_TROUBLE_S)
            except Exception as error:
                _log.exception("slot %d could not run %s", slot.number, lease.job.name)
                discard_tree(staging)
                self._outbox.settle(lease, slot.refusal(lease, f"adr failed: {error!r}"))
            finally:
                self._turns.end(slot)
            if self._turns.is_idle:
                self._outbox.look()
            if retire:
                return

    def _run(self, slot: Slot, lease: Lease, staging: Path) -> bool:
        """Run one job and hand on what it left; return whether the slot has to retire."""
        size = self.size
        try:
            if not self.is_called_off(lease):
                slot.prepare(lease)
        except DiskTooSmall as error:
            return self._make_room(slot, lease, error, size)
        except (ServiceError, FolderGone):
            raise
        except (AdrError, OSError) as error:
            if not (isinstance(error, NotFound) and self.is_called_off(lease)):
                reason = f"its inputs cannot be had: {error}"
                self._outbox.settle(lease, slot.refusal(lease, reason))
                return False
        if self._ending.reason or self.orders.paused or self.is_called_off(lease):
            self._give_up(slot, lease)
            return False
        if not self._ledger.start([lease]):
            return False
        if self.is_called_off(lease):
            # Meanwhile: who is not at a run yet does not hear of it.
            self._give_up(slot, lease)
            return False
        self._turns.begin(slot)
        began = time.monotonic()
        try:
            delivery = slot.run(lease, staging)
        except (OSError, ValueError) as error:
            discard_tree(staging)
            reason = f"it could not be run: {error}"
            self._outbox.settle(lease, slot.refusal(lease, reason))
            return False
        self._policy.ended(time.monotonic() - began)
        if delivery is None:
            self._give_up(slot, lease, self._ending.job_note)
        elif _is_to_repeat(delivery):
            discard_tree(staging)
            backoff_s = min(_LONGEST_BACKOFF_S, 2.0 ** min(lease.failures, 10))
            delay_s = backoff_s * random.uniform(0.75, 1.25)
            self._leases.release([lease], delay_s, failed=True)
        else:
            self._outbox.put(delivery)
        return False

    def _make_room(self, slot: Slot, lease: Lease, error: DiskTooSmall, size: int) -> bool:
        """Do with a slot less, or without a job; return whether this slot retires.

        Of `size` slots, as there were before, another may have retired meanwhile: try again then.
        """
        with self._guard:
            retire = self.size == size > 1
            if retire:
                self.size -= 1
        if retire:
            _log.warning("%s: going on with %d slots", error, size - 1)
            slot.close()
        if size > 1:
            self._leases.release([lease])
        else:
            self._outbox.settle(lease, slot.refusal(lease, str(error)))
        return retire

    def _give_up(self, slot: Slot, lease: Lease, note: str = "") -> None:
        """Deal with the lease of a job that was ended before it was done, or is not to begin."""
        if self._turns.is_lost(lease):
            _log.warning("the lease of %s was lost; its run is dropped", lease.job.name)
        elif reason := self.orders.against(lease.job):
            refused = slot.refusal(lease, reason)
            self._outbox.settle(lease, replace(refused, state=JobState.CANCELLED))
        else:
            self._leases.release([lease], note=note)


def _is_to_repeat(delivery: Delivery) -> bool:
    job, record = delivery.lease.job, delivery.record
    if record.state is not JobState.FAILED or delivery.final:
        return False
    is_of_those = not job.retry_on or record.code in job.retry_on
    return is_of_those and delivery.lease.failures + 1 < job.attempts
