"""How many jobs this machine can run at once."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cores"]


def cores() -> int:
    """Return how many cores this process may use: those of its affinity, bounded by its cgroup."""
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    try:
        # cgroups(7), version 2: quota and period in microseconds, "max" for no limit.
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else max(1, min(usable, int(quota) // int(period)))
