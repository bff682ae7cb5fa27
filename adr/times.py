"""Times as text: to the millisecond where they are kept, to the second for people.

Everywhere else they are seconds since the epoch, in UTC.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache

__all__ = ["moment_text", "parse_time", "time_text"]


def time_text(seconds: float | None) -> str | None:
    """Write a time as ISO 8601 in UTC with milliseconds, ``2026-11-20T09:12:00.123Z``."""
    if seconds is None:
        return None
    minute, part_ms = divmod(round(seconds * 1e6) // 1000, 60_000)
    return f"{_minute_text(minute)}:{part_ms // 1000:02d}.{part_ms % 1000:03d}Z"


def moment_text(seconds: float) -> str:
    """Write a time for people, ``2026-11-20T09:12:00Z``."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str | None) -> float | None:
    """Read what `time_text` wrote."""
    if text is None:
        return None
    if len(text) == 24 and text[16::3] == ":.Z":
        # In whole milliseconds, so that it is the number that was written.
        return (_minute_s(text[:16]) * 1000 + int(text[17:19]) * 1000 + int(text[20:23])) / 1000
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


# Of a batch nearly all times lie in few minutes, and the calendar takes long.
@lru_cache(1024)
def _minute_text(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, timezone.utc).isoformat(timespec="minutes")[:16]


@lru_cache(1024)
def _minute_s(text: str) -> int:
    return int(datetime.fromisoformat(text + "+00:00").timestamp())
