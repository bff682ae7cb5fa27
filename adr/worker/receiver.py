"""How a worker comes to jobs: it leases them, and leaves when there are none to wait for.

When and how many is for `adr.worker.policy` to say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from adr.errors import AdrError, RunnerGone
from adr.ledgers.base import Ledger
from adr.worker.crew import Crew
from adr.worker.ending import Ending
from adr.worker.leases import LeaseKeeper
from adr.worker.outbox import Outbox
from adr.worker.policy import Policy
from adr.worker.turns import Turns

__all__ = ["Receiver"]

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_LISTEN_S = 0.1
_LOOK_S = 0.02
_LONGEST_PAUSE_S = 30.0


class Receiver:
    """Lease jobs for the slots of one worker; from one thread.

    Parameters
    ----------
    ledger : Ledger
        The queue that is leased from.
    turns : Turns
        Takes the leases.
    leases : LeaseKeeper
        Gives back those that are not wanted any more.
    outbox : Outbox
        Tells whether all is settled.
    policy : Policy
        Decides about leasing and leaving.
    crew : Crew
        Knows how many slots there are, and the orders.
    ending : Ending
        Tells whether the worker ends, and hears when it is to.
    is_heard : callable
        Tells whether the store could be used lately.
    on_gone : callable
        Called if the runner turns out to be destroyed.
    """

    def __init__(
        self,
        ledger: Ledger,
        turns: Turns,
        leases: LeaseKeeper,
        outbox: Outbox,
        policy: Policy,
        crew: Crew,
        ending: Ending,
        is_heard: Callable[[], bool],
        on_gone: Callable[[RunnerGone], None],
    ) -> None:
        self._ledger = ledger
        self._turns = turns
        self._leases = leases
        self._outbox = outbox
        self._policy = policy
        self._crew = crew
        self._ending = ending
        self._is_heard = is_heard
        self._on_gone = on_gone
        #: Why it could lease nothing for so long that the worker has left.
        self.refusal: Exception | None = None

    def receive(self) -> None:
        """Lease jobs until the worker ends, or end it where there is no reason to go on."""
        pause_s = _TICK_S
        ending = self._ending.begun
        while not ending.is_set():
            idle = self._turns.is_idle
            wanted = self._policy.wanted(self._crew.size, *self._turns.load())
            if wanted <= 0:
                if idle and self._policy.is_used_up:
                    ending.set()
                else:
                    self._turns.wait(_TICK_S)
                continue
            room_s = self._ending.lifetime.room_s(self._policy.usual_s)
            patience_s = max(0.0, min(room_s, self._policy.patience_s(idle)))
            soon = self._policy.is_soon_done(idle)
            wait_s = 0 if soon else patience_s
            try:
                paused = self._crew.orders.paused
                leases = [] if paused else self._ledger.receive(wanted, wait_s)
                if soon and not leases:
                    self._await_idleness(patience_s)
                if not leases and not ending.is_set():
                    # The ledger knows of what has just been settled before the outbox does.
                    idle = self._turns.is_idle and self._outbox.wait_until_empty(_LISTEN_S)
                    if self._policy.is_finished(idle, paused):
                        ending.set()
                pause_s = _TICK_S
            except RunnerGone as error:
                self._on_gone(error)
                return
            except Exception as error:
                if self._is_shut_out():
                    self.refusal = error
                    ending.set()
                elif isinstance(error, AdrError):
                    _log.warning("%s; trying again in %g s", error, pause_s)
                    ending.wait(pause_s)
                    pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
                else:
                    _log.exception("leasing failed; trying again in %.0f s", _LONGEST_PAUSE_S)
                    ending.wait(_LONGEST_PAUSE_S)
                continue
            if ending.is_set() or self._crew.orders.paused or not self._turns.add(leases):
                self._leases.release(leases)
                leases = []
            self._policy.leased(len(leases))
            if paused:
                self._await_resumption()

    @property
    def _is_idle(self) -> bool:
        return self._turns.is_idle and self._outbox.is_empty

    def _await_idleness(self, longest_s: float) -> None:
        until = time.monotonic() + longest_s
        while not (self._is_idle or self._ending.begun.wait(_LOOK_S)):
            if time.monotonic() >= until:
                return

    def _await_resumption(self) -> None:
        """Wait until the runner goes on, or it is time to ask again what is left to do."""
        until = time.monotonic() + self._ledger.poll_s
        while self._crew.orders.paused and not self._ending.begun.wait(_TICK_S):
            if time.monotonic() >= until:
                return

    def _is_shut_out(self) -> bool:
        # Where the store cannot be used either, credentials may be renewed, or a service come back.
        return self._policy.is_shut_out(self._is_idle and self._is_heard())
