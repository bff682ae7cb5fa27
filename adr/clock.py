"""The clock that lease deadlines are kept by."""

from __future__ import annotations

import time

__all__ = ["boot_time"]


def boot_time() -> float:
    """Return seconds on a clock that nobody can set and that goes on while the machine sleeps.

    CLOCK_BOOTTIME on Linux. Elsewhere, where no worker runs, the monotonic clock.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
