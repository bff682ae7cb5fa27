"""How much memory threads keep after they have used it.

The allocator of glibc gives every thread an arena of its own, and an arena gives back hardly
anything: sixteen threads that have read a mebibyte each keep 50 MB. A worker lives for long, and
its threads take turns anyway.
"""

from __future__ import annotations

import ctypes

__all__ = ["share_arenas"]

# Of mallopt(3).
_ARENA_MAX = -8
_ARENAS = 2


def share_arenas() -> None:
    """Let all threads that start from now on share few arenas; does nothing without glibc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_ARENA_MAX, _ARENAS)
