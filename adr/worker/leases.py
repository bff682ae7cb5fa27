"""How a worker holds on to its leases, and gives back those that it does not use."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from adr.errors import AdrError, RunnerGone, ServiceError
from adr.ledgers.base import Ledger
from adr.models import Lease
from adr.worker.ending import Ending
from adr.worker.turns import Turns

__all__ = ["LeaseKeeper"]

_log = logging.getLogger(__name__)

_TICK_S = 0.5
#: A lease that has not begun after this long goes back to the queue.
_UNSTARTED_S = 5.0
#: One that is to run alone, which it could not, is offered again after so long.
_LATER_S = 20.0
_AFTER_TROUBLE_S = 5.0


class LeaseKeeper:
    """Extend leases and give them back.

    Parameters
    ----------
    ledger : Ledger
        Where they come from.
    turns : Turns
        Those that wait, and those that slots are at.
    waiting : callable
        Returns those whose outcomes wait to be settled.
    on_stale : callable
        Called when some did not get their turn in time.
    on_gone : callable
        Called if the runner turns out to be destroyed.
    """

    def __init__(
        self,
        ledger: Ledger,
        turns: Turns,
        waiting: Callable[[], Iterable[Lease]],
        on_stale: Callable[[], None],
        on_gone: Callable[[RunnerGone], None],
    ) -> None:
        self._ledger = ledger
        self._turns = turns
        self._waiting = waiting
        self._on_stale = on_stale
        self._on_gone = on_gone
        #: What could not be given back, to be tried again.
        self._unreleased: deque[Callable[[], None]] = deque()

    def release(
        self, leases: Sequence[Lease], delay_s: float = 0, failed: bool = False, note: str = ""
    ) -> None:
        """Give leases back, from any thread; where that fails, `keep` tries again.

        Some would end by themselves, but those of a local runner last as long as this worker.
        """
        if not leases:
            return
        step = partial(self._ledger.release, leases, delay_s=delay_s, failed=failed, note=note)
        try:
            step()
        except ServiceError as error:
            _log.warning("could not give back %d jobs yet: %s", len(leases), error)
            self._unreleased.append(step)
        except AdrError as error:
            _log.warning("%d leases end by themselves: %s", len(leases), error)

    def keep(self, ending: Ending) -> None:
        """Extend what runs or waits to be settled, give back what is stale, until all is over."""
        while not ending.over.wait(_TICK_S):
            stale = self._turns.stale(_UNSTARTED_S)
            if stale:
                self._on_stale()
            running = self._turns.leases()
            self.release([lease for lease in stale if not lease.is_suspect])
            # Others are to have their turn meanwhile.
            self.release([lease for lease in stale if lease.is_suspect], delay_s=_LATER_S)
            held = {lease.attempt: lease for lease in (*self._waiting(), *running)}
            try:
                if held:
                    kept = {each.attempt for each in self._ledger.extend(list(held.values()))}
                    for lease in running:
                        if lease.attempt not in kept:
                            self._turns.lose(lease)
                self._release_again()
            except RunnerGone as error:
                self._on_gone(error)
            except AdrError as error:
                _log.warning("could not hold on to leases, or give some back: %s", error)
                ending.over.wait(_AFTER_TROUBLE_S)
            except Exception:
                _log.exception("could not extend leases")

    def _release_again(self) -> None:
        while self._unreleased:
            step = self._unreleased.popleft()
            try:
                step()
            except ServiceError:
                self._unreleased.appendleft(step)
                raise
