"""What a machine may run out of, to the harm of jobs: room on a disk, and memory."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

__all__ = ["has_room", "is_full", "memory_kills"]

#: A disk with less room is full: what a job wants to say about it may be lost, too.
_FULL_BYTES = 1 << 20
_KILLS = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


def is_full(directory: Path) -> bool:
    """Tell whether the disk of a directory has hardly any room."""
    return shutil.disk_usage(directory).free < _FULL_BYTES


def has_room(directory: Path) -> bool:
    """Tell whether this process can write to the disk what a job at least needs."""
    if not is_full(directory):
        return True
    # Of the part that is kept for root, that tells nothing.
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, _FULL_BYTES)
    except OSError:
        return False
    return True


def memory_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it started."""
    try:
        found = _KILLS.search(Path("/proc/vmstat").read_bytes())
    except OSError:
        found = None
    return int(found[1]) if found else 0
