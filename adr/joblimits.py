"""How long a job may take and how often it may be tried: checked, and completed from settings.

Whoever plans a batch asks `job_limits`, whoever compares jobs of two batches `JobLimits.of`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adr import config
from adr.errors import UsageError
from adr.models import CRASH_LIMIT, Job

__all__ = ["JobLimits", "check_limit", "job_limits", "read_codes"]


@dataclass(frozen=True)
class JobLimits:
    """Hold what limits a job; see the fields of `adr.models.Job`."""

    timeout_s: float | None = None
    attempts: int = 1
    retry_on: tuple[int, ...] = ()
    crash_limit: int = CRASH_LIMIT

    @classmethod
    def of(cls, job: Job) -> JobLimits:
        """Return those of a job."""
        return cls(job.timeout_s, job.attempts, job.retry_on, job.crash_limit)

    def to_dict(self) -> dict[str, Any]:
        """Return them by the names they have in a job."""
        return asdict(self)


def job_limits(
    timeout: float | None = None,
    attempts: int | None = None,
    retry_on: Iterable[int | str] = (),
    crash_limit: int | None = None,
) -> JobLimits:
    """Return what is given, completed from the configuration and then by defaults.

    Raises
    ------
    UsageError
        If a value cannot be used; it names the parameter or the setting.
    """
    settings: Mapping[str, Any] = config.load_config("job")
    given = {"timeout": timeout, "attempts": attempts, "crash_limit": crash_limit}
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if value is not None:
            chosen[name] = check_limit(name, value)
        elif settings[name] is not None:
            chosen[name] = check_limit(name, settings[name], _setting(name))
    codes = read_codes(retry_on, "retry_on")
    codes = codes or read_codes(settings["retry_on"], _setting("retry_on"))
    return JobLimits(
        timeout_s=chosen.get("timeout"),
        attempts=chosen.get("attempts", 1),
        retry_on=codes,
        crash_limit=chosen.get("crash_limit", CRASH_LIMIT),
    )


def check_limit(name: str, value: float, called: str | None = None) -> float:
    """Return the value of ``timeout``, ``attempts`` or ``crash_limit``.

    Parameters
    ----------
    called : str, optional
        What to call it in an error.

    Raises
    ------
    UsageError
        If it is not above 0, or not whole where it counts something.
    """
    if name == "timeout":
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{called or name} is {value:g}: give a number of seconds above 0")
        return value
    if not value >= 1 or value != math.floor(value):
        raise UsageError(f"{called or name} is {value:g}: give a whole number from 1 up")
    return int(value)


def read_codes(parts: Iterable[int | str], called: str) -> tuple[int, ...]:
    """Return exit codes in order, each once.

    Parameters
    ----------
    parts : iterable of int or str
        Numbers from 1 to 255, or texts like ``75`` and ``100-110``.
    called : str
        What to call all of it in an error.

    Raises
    ------
    UsageError
        If one of them is anything else.
    """
    found: set[int] = set()
    for part in parts:
        first, dash, last = (each.strip() for each in str(part).partition("-"))
        ends = [first, last if dash else first]
        if not all(each.isascii() and each.isdigit() and len(each) <= 3 for each in ends):
            ends = ["0", "0"]
        low, high = map(int, ends)
        if not 1 <= low <= high <= 255:
            raise UsageError(
                f"{called} takes exit codes from 1 to 255, such as 1,75,100-110, not {part!r}"
            )
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def _setting(name: str) -> str:
    return f"'job.{name}' of the configuration"
