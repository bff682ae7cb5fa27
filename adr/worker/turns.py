"""What the threads of a worker share: leases that wait for a slot, and those that slots are at."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adr.models import Lease
from adr.worker.slot import Slot
from adr.worker.verdict import Stop
from adr.workerinfo import SlotInfo

__all__ = ["Turns"]

_LOOK_S = 0.1
_MANY = 10


@dataclass
class _Turn:
    """What one slot is at: a lease, when its run began (None before), and since when at all."""

    slot: Slot
    lease: Lease
    started_at: float | None = None
    since: float = field(default_factory=time.monotonic)


class Turns:
    """Hand out leases to slots, and know who is at what; thread-safe.

    A job that may be what ends workers begins when nothing else runs and all is settled that
    has run before, and nothing begins beside it.

    Parameters
    ----------
    is_settled : callable
        Tells whether all outcomes are settled.
    """

    def __init__(self, is_settled: Callable[[], bool] = lambda: True) -> None:
        self._is_settled = is_settled
        self._guard = threading.RLock()
        #: Slots wait for leases, and the rest of the worker for what slots do.
        self._offered = threading.Condition(self._guard)
        self._changed = threading.Condition(self._guard)
        self._ready: deque[tuple[float, Lease]] = deque()
        self._turns: dict[int, _Turn] = {}
        self._lost: set[str] = set()
        self._closed = False
        #: Who waits for a change is to hear of it once no more leases than these wait.
        self._few = 0

    # Before a run

    def add(self, leases: Sequence[Lease]) -> bool:
        """Put leases in front of the slots; False where they are closed and take no more."""
        with self._changed:
            if not self._closed:
                now = time.monotonic()
                self._ready.extend((now, lease) for lease in leases)
                self._offered.notify(len(leases))
            return not self._closed

    def take(self, slot: Slot) -> Lease | None:
        """Wait for a lease and let the slot be at it; None once they are closed."""
        with self._changed:
            while (lease := self._next()) is None and not self._closed:
                # Nobody tells when all is settled.
                self._offered.wait(_LOOK_S if self._ready else None)
            if lease is None:
                return None
            self._turns[slot.number] = _Turn(slot, lease)
            if not self._ready:
                self._changed.notify_all()
            return lease

    def _next(self) -> Lease | None:
        """Take the first lease out of those that wait that may begin now."""
        if any(turn.lease.is_suspect for turn in self._turns.values()):
            return None
        for at, (_, lease) in enumerate(self._ready):
            if not lease.is_suspect or (not self._turns and self._is_settled()):
                del self._ready[at]
                return lease
        return None

    def stale(self, older_s: float) -> list[Lease]:
        """Take back the leases that have waited for so long."""
        with self._changed:
            before = time.monotonic() - older_s
            stale = [lease for since, lease in self._ready if since < before]
            for _ in stale:
                self._ready.popleft()
            return stale

    def unstarted(self) -> list[Lease]:
        """Take back all leases that wait."""
        with self._changed:
            unstarted = [lease for _, lease in self._ready]
            self._ready.clear()
            return unstarted

    def close(self) -> list[Lease]:
        """Take back all leases that wait, and let slots have no more."""
        with self._changed:
            unstarted = self.unstarted()
            self._closed = True
            self._offered.notify_all()
            self._changed.notify_all()
            return unstarted

    # During a run

    def begin(self, slot: Slot) -> None:
        """Note that the run of a slot's job begins."""
        with self._changed:
            self._turns[slot.number].started_at = time.time()

    def end(self, slot: Slot) -> None:
        """Note that a slot has done with its lease."""
        with self._changed:
            turn = self._turns.pop(slot.number)
            self._lost.discard(turn.lease.attempt)
            if self._ready:
                # For a slot that could not begin one of them beside this job.
                self._offered.notify_all()
            if self._closed or len(self._ready) <= self._few:
                self._changed.notify_all()

    def stop(
        self, which: Callable[[Lease], bool], why: Stop = Stop.DROPPED, term_s: float | None = None
    ) -> None:
        """End chosen jobs that run, see `Slot.stop`; who is about to start does not hear of it."""
        with self._changed:
            for turn in self._turns.values():
                if which(turn.lease):
                    turn.slot.stop(why, term_s)

    def lose(self, lease: Lease) -> None:
        """Kill the run of a lease that is lost, if it has not ended yet."""
        with self._changed:
            for turn in self._turns.values():
                # The slot may be at its next job by now, which is not to be ended.
                if turn.lease.attempt == lease.attempt:
                    self._lost.add(lease.attempt)
                    turn.slot.stop(term_s=0)

    def is_lost(self, lease: Lease) -> bool:
        """Tell whether the lease was lost while its slot was at it."""
        return lease.attempt in self._lost

    # A look at all of them

    def wait(self, timeout_s: float) -> None:
        """Wait for a change that makes a difference, for so long at most.

        While leases wait, that is when half of them or ten have gone: to wake a thread costs
        more than many a job does.
        """
        with self._changed:
            ready = len(self._ready)
            self._few = max(ready // 2, ready - _MANY)
            self._changed.wait(timeout_s)

    def __len__(self) -> int:
        """Return how many slots are at a lease."""
        return len(self._turns)

    @property
    def is_idle(self) -> bool:
        """Tell whether no job runs or is about to."""
        with self._changed:
            return not self._turns and not self._ready

    def leases(self) -> list[Lease]:
        """Return the leases that slots are at."""
        with self._changed:
            return [turn.lease for turn in self._turns.values()]

    def load(self) -> tuple[list[float], int]:
        """Return since when each busy slot is so, on the monotonic clock, and how many wait."""
        with self._changed:
            return [turn.since for turn in self._turns.values()], len(self._ready)

    def infos(self) -> tuple[SlotInfo, ...]:
        """Describe what runs."""
        with self._changed:
            return tuple(
                SlotInfo(*turn.lease.job.id, turn.lease.attempt, turn.started_at)
                for turn in self._turns.values()
                if turn.started_at is not None
            )
