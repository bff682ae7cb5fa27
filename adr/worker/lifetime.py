"""How long a worker may be there at all, and what follows from that for its jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

__all__ = ["Lifetime"]

#: Of the whole time, at most so much is kept free for a job whose length nobody knows.
_LONGEST_MARGIN_S = 600.0
_MARGIN = 0.1
#: The same for the results of jobs that are ended.
_LONGEST_UPLOAD_S = 120.0
_UPLOAD = 0.05


class Lifetime:
    """Tell what there is still time for; begins when it is made.

    ::

        jobs are leased ──────▶ none is leased ──────▶ those that run are ended ──▶ all is over
                        room_s = 0               is_cut                     is_over

    Parameters
    ----------
    max_s : float or None
        The whole time in seconds; None: no limit.
    term_s : float
        How long jobs take to end, at most.
    clock : callable, optional
        Returns seconds that never run backwards.
    """

    def __init__(
        self, max_s: float | None, term_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        whole_s = math.inf if max_s is None else max_s
        self._clock = clock
        self._margin_s = min(_LONGEST_MARGIN_S, _MARGIN * whole_s)
        self._over_at = clock() + whole_s
        self._cut_at = self._over_at - term_s - min(_LONGEST_UPLOAD_S, _UPLOAD * whole_s)

    def room_s(self, usual_s: float | None) -> float:
        """Return for how long jobs may still be leased.

        Parameters
        ----------
        usual_s : float or None
            How long a job usually takes; None where nobody knows yet.
        """
        return self._cut_at - max(self._margin_s, usual_s or 0) - self._clock()

    @property
    def is_cut(self) -> bool:
        """Tell whether running jobs have to be ended."""
        return self._clock() >= self._cut_at

    @property
    def is_over(self) -> bool:
        """Tell whether all has to be over."""
        return self._clock() >= self._over_at
