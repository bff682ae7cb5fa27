"""Why and when a worker ends, and what that means for its jobs.

It ends because it is told to, because its runner is gone, because it has nothing to do, because
its time is over, or because EC2 takes its machine away. In every case it leases nothing more;
the cases differ in what becomes of the jobs that run.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from adr.times import moment_text
from adr.worker.lifetime import Lifetime
from adr.worker.verdict import Stop

if TYPE_CHECKING:
    from adr.worker.notice import Notice

__all__ = ["Ending"]

_log = logging.getLogger(__name__)

#: How long before the machine is taken away nothing more is uploaded, and what is still on its
#: way then is given back.
_HURRY_S = 15.0
_GIVE_UP_S = 8.0
#: But results get so long in any case.
_LEAST_S = 10.0


class Ending:
    """Tell the threads of a worker that it ends, and how.

    Parameters
    ----------
    host : str
        What this machine is called.
    lifetime : Lifetime
        How long the worker may be there.
    """

    def __init__(self, host: str, lifetime: Lifetime) -> None:
        self._host = host
        self.lifetime = lifetime
        #: Set when no more jobs are to be leased.
        self.begun = threading.Event()
        #: Set when running jobs are dropped.
        self.dropping = threading.Event()
        #: Set when nothing is left to be kept alive.
        self.over = threading.Event()
        #: Whether the runner is no more, so that nothing is to be written.
        self.gone = False
        #: Why, in words for those who look at the heartbeat; empty where that does not matter.
        self.note = ""
        #: When to begin no upload any more, and when to give back what is not settled by then,
        #: on the monotonic clock: only where the machine is taken away.
        self.hurry_at = math.inf
        self.give_up_at = math.inf
        self._notice: Notice | None = None

    def drop(self) -> None:
        """Lease nothing more and drop what runs; may be called by a signal handler."""
        self.dropping.set()
        self.begun.set()

    def interrupt(self, notice: Notice) -> None:
        """End because EC2 takes this machine away."""
        when = moment_text(notice.at)
        _log.warning("EC2 takes this instance away at %s", when)
        self.note = f"interrupted by EC2 at {when} (spot)"
        self.hurry_at = time.monotonic() + max(_LEAST_S, notice.until_s() - _HURRY_S)
        self.give_up_at = self.hurry_at + _HURRY_S - _GIVE_UP_S
        self._notice = notice
        self.begun.set()

    def look(self, usual_s: float | None) -> None:
        """End if there is no time for another job, by how long one usually takes."""
        if self.lifetime.room_s(usual_s) <= 0:
            self.note = self.note or "draining: --max-hours"
            self.begun.set()

    @property
    def reason(self) -> Stop | None:
        """Return why running jobs are to be ended now; None where they may go on."""
        if self.dropping.is_set():
            return Stop.DROPPED
        if self._notice is not None:
            return Stop.NOTICE
        return Stop.LIMIT if self.lifetime.is_cut else None

    def term_s(self, reason: Stop) -> float | None:
        """Return how long jobs may take to end, in seconds; None: as long as usual."""
        return self._notice.left_s() if self._notice and reason is Stop.NOTICE else None

    @property
    def job_note(self) -> str:
        """Return what is to be noted about a job that was ended; empty where nothing is."""
        if self._notice is None:
            return ""
        return f"interrupted at {moment_text(time.time())} on {self._host} (spot)"
