"""The clock that lease deadlines are kept by, and the pauses between tries."""

from __future__ import annotations

import time
from collections.abc import Iterator

__all__ = ["boot_time", "tries"]

_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 5.0


def boot_time() -> float:
    """Return seconds on a clock that nobody can set and that goes on while the machine sleeps.

    CLOCK_BOOTTIME on Linux. Elsewhere, where no worker runs, the monotonic clock.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def tries(within_s: float = 8.0) -> Iterator[bool]:
    """Yield for each of some tries whether it is the last one, waiting longer before each.

    Parameters
    ----------
    within_s : float, optional
        Longest that is waited for, in seconds and in all.
    """
    left_s, wait_s = within_s, _FIRST_WAIT_S
    while wait_s <= left_s:
        yield False
        time.sleep(wait_s)
        left_s, wait_s = left_s - wait_s, min(2 * wait_s, _LONGEST_WAIT_S)
    yield True
