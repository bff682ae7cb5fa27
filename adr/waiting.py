"""The functions of adr that look at a runner again and again: watch, and wait.

They are part of the Python API, and to be had from `adr.adr` and from ``adr`` itself. One
`Survey` makes all looks, so that what cannot have changed is not read twice.
"""

from __future__ import annotations

import enum
import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from adr.errors import ServiceError, UsageError
from adr.progress import SILENT, Progress
from adr.runner import open_runner
from adr.survey import Survey
from adr.views import Counts, Status

__all__ = ["Look", "WaitReport", "WaitState", "wait", "watch"]

_log = logging.getLogger(__name__)

#: Between two looks is this part of the time since the first one, within bounds.
_PAUSE_PART = 0.1
_SHORTEST_S = 0.5
_LONGEST_S = (1.0, 10.0)
#: But so many times as long as a look takes, at least: others use the services as well.
_LOOKS_APART = 10
#: A number that stands alone in a sentence.
_NUMBER = re.compile(r"(?<!\S)\d[\d,]*(?!\S)")


@dataclass(frozen=True)
class Look:
    """Show the state of a runner at one of many looks."""

    status: Status
    #: Why it could not be read anew; empty where it was.
    trouble: str
    #: After how many seconds to look again.
    pause_s: float


def watch(
    runner_id: str,
    region_name: str | None = None,
    *,
    batch: str | None = None,
    jobs: bool = True,
) -> Iterator[Look]:
    """Look at a runner again and again, whenever the next is asked for.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    batch : str, optional
        Look at this batch only.
    jobs : bool, optional
        Show each job as well [default: True]

    Yields
    ------
    Look
        What `status` tells; or, where a service has failed since the first look, what the last
        one told.

    Raises
    ------
    UsageError
        If there is no such batch.
    ServiceError
        If the first look fails.
    """
    runner = open_runner(runner_id, region_name)
    survey = Survey(runner)
    longest_s = min(max(runner.ledger.poll_s, _LONGEST_S[0]), _LONGEST_S[1])
    began = before = time.monotonic()
    status = survey.status(batch, jobs=jobs)
    while True:
        now = time.monotonic()
        usual_s = min(max(_SHORTEST_S, _PAUSE_PART * (now - began)), longest_s)
        yield Look(status, "", max(usual_s, _LOOKS_APART * (now - before)))
        while True:
            before = time.monotonic()
            try:
                status = survey.status(batch, jobs=jobs)
                break
            except ServiceError as error:
                yield Look(status, str(error), longest_s)


class WaitState(str, enum.Enum):
    """How waiting has ended."""

    #: Every job has succeeded.
    SUCCEEDED = "succeeded"
    #: Every job is decided, and some did not succeed.
    FAILED = "failed"
    #: Every job that is not decided is lost: nobody will run it.
    LOST = "lost"
    #: Some jobs were not decided in time.
    TIMEOUT = "timeout"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class WaitReport:
    """Say how waiting has ended, and with what."""

    state: WaitState
    totals: Counts

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {"state": self.state.value, "totals": asdict(self.totals)}


def wait(
    runner_id: str,
    region_name: str | None = None,
    *,
    batch: str | None = None,
    timeout: float | None = None,
    progress: Progress = SILENT,
) -> WaitReport:
    """Wait until every job is decided; changes nothing, and can be interrupted at any time.

    Whatever keeps jobs from being done is logged once as a warning. Services that fail
    meanwhile are asked again.

    Parameters
    ----------
    runner_id : str
        Runner ID
    region_name : str, optional
        Amazon region identifier
    batch : str, optional
        Wait for this batch only [default: all that were not destroyed]
    timeout : float, optional
        Seconds after which to wait no longer
    progress : Progress, optional
        Told of the advance.

    Raises
    ------
    UsageError
        If there is nothing to wait for.

    See Also
    --------
    status, failures
    """
    give_up_at = math.inf if timeout is None else time.monotonic() + timeout
    advance, told, troubled = _Advance(progress), _Told(), False
    try:
        for look in watch(runner_id, region_name, batch=batch, jobs=False):
            totals = _totals(look.status, whole=batch is not None)
            if not totals.jobs:
                raise UsageError("there is nothing to wait for: queue a batch with adr queue")
            if look.trouble and not troubled:
                _log.warning("%s; asking again until it answers", look.trouble)
            troubled = bool(look.trouble)
            told.tell(look.status.notes)
            advance.show(totals)
            left_s = give_up_at - time.monotonic()
            # One that is about to be ended may still succeed.
            if not totals.undecided and (not look.status.ending or left_s <= 0):
                done = totals.succeeded == totals.jobs
                return WaitReport(WaitState.SUCCEEDED if done else WaitState.FAILED, totals)
            if 0 < totals.undecided == totals.lost:
                return WaitReport(WaitState.LOST, totals)
            if left_s <= 0:
                return WaitReport(WaitState.TIMEOUT, totals)
            time.sleep(min(look.pause_s, left_s))
    finally:
        progress.finish()
    raise AssertionError("looks do not end")


class _Told:
    """Log each sentence when it begins to be true, whatever number it names."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def tell(self, notes: Sequence[str]) -> None:
        known = {_NUMBER.sub("", note): note for note in notes}
        for note in known.keys() - self._known:
            _log.warning("%s", known[note])
        self._known = set(known)


class _Advance:
    """Show counts as progress, also where jobs are added or queued again meanwhile."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._jobs = self._decided = 0

    def show(self, totals: Counts) -> None:
        decided = totals.jobs - totals.undecided
        if totals.jobs != self._jobs or decided < self._decided:
            self._progress.start("waiting", totals.jobs, "jobs", decided)
        else:
            self._progress.advance(decided - self._decided)
        self._jobs, self._decided = totals.jobs, decided
        unusual = {name: getattr(totals, name) for name in ("cancelled", "lost")}
        self._progress.note(
            done=totals.succeeded,
            failed=totals.failed,
            running=totals.running,
            **{name: number for name, number in unusual.items() if number},
        )


def _totals(status: Status, whole: bool) -> Counts:
    """Add up what is waited for: all of it, or without batches that were destroyed."""
    parts = [asdict(each) for each in status.batches if whole or not each.destroyed]
    return Counts(*(sum(part[each.name] for part in parts) for each in fields(Counts)))
