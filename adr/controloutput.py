"""How the console shows what was waited for, what failed, and what was called off or held up."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from adr.output import clip, count, plain

if TYPE_CHECKING:
    from adr.control import CancelReport, FailureReport, PauseReport
    from adr.ledgers.base import DeadLetter
    from adr.likeness import FailureGroup
    from adr.views import Counts
    from adr.waiting import WaitReport

__all__ = [
    "cancel_line",
    "failure_summary",
    "group_lines",
    "letter_lines",
    "pause_lines",
    "wait_lines",
]

_SHOWN_NAMES = 3
#: A quotation that is shorter than this tells less than another name, or than one at all.
_LEAST_QUOTED = 30
_LEAST_QUOTED_ALONE = 10


def wait_lines(report: WaitReport) -> Iterator[str]:
    """Sum up what was waited for."""
    totals = report.totals
    counts = _counts(totals)
    if report.state.value == "timeout":
        yield f"the time is over, with {count(totals.undecided, 'job')} undecided: {counts}"
    else:
        yield f"{count(totals.jobs, 'job')}: {counts}"
    if totals.lost:
        yield _lost(totals.lost)
    if totals.failed:
        yield "adr failures shows what they failed of"


def _counts(totals: Counts) -> str:
    parts = {name: number for name, number in asdict(totals).items() if name != "jobs"}
    return ", ".join(f"{number:,} {name}" for name, number in parts.items() if number)


def _lost(number: int) -> str:
    verb, them = ("is", "it") if number == 1 else ("are", "them")
    return f"{count(number, 'job')} {verb} lost: adr retry --lost queues {them} again"


def group_lines(groups: Sequence[FailureGroup], width: int | None) -> Iterator[str]:
    """Describe groups of failed jobs, each in a line that fits a terminal of that width."""
    batches = {job.batch for group in groups for job, _ in group.failures}
    digits = max((len(f"{len(group.failures):,}") for group in groups), default=0)
    for group in groups:
        head = f"{len(group.failures):>{digits},} × {plain(_how(group))}"
        names = [plain(job.name if len(batches) > 1 else job.label) for job, _ in group.failures]
        line = ""
        for shown in range(min(_SHOWN_NAMES, len(names)), 0, -1):
            line = _group_line(head, group.output, names, shown, width)
            if line:
                break
        yield line if width is None else clip(line or f"{head} {_named(names, 1)}", width)


def _group_line(head: str, said: str, names: Sequence[str], shown: int, width: int | None) -> str:
    """Describe a group with so many names; empty where there is no room for them."""
    tail = _named(names, shown)
    if not any(map(str.isalnum, said)):
        line = f"{head} {tail}"
        return line if width is None or len(line) <= width else ""
    quoted = plain(said)
    if width is not None:
        room = width - len(head) - len(tail) - len(' "" ')
        if room < min(_LEAST_QUOTED if shown > 1 else _LEAST_QUOTED_ALONE, len(quoted)):
            return ""
        quoted = clip(quoted, room)
    return f'{head} "{quoted}" {tail}'


def _named(names: Sequence[str], shown: int) -> str:
    some = ", ".join(names[:shown])
    return f"e.g. {some} …" if len(names) > shown else f"in {some}"


def _how(group: FailureGroup) -> str:
    if group.reason or group.code is None:
        return group.reason
    try:
        return f"exit {group.code} ({signal.Signals(group.code - 128).name})"
    except ValueError:
        return f"exit {group.code}"


def failure_summary(report: FailureReport) -> Iterator[str]:
    """Say of how many jobs how many have failed, and what to do about those that are lost."""
    if report.failed:
        groups = f", in {count(len(report.groups), 'way')}" if report.failed > 1 else ""
        yield f"{report.failed:,} of {count(report.jobs, 'job')} failed{groups}"
    elif not report.jobs:
        yield "nothing has failed: there are no jobs"
    else:
        undecided = f", {report.undecided:,} not decided yet" if report.undecided else ""
        yield f"nothing has failed: {count(report.jobs, 'job')}{undecided}"
    if report.lost:
        yield _lost(report.lost)


def cancel_line(report: CancelReport, dry_run: bool) -> str:
    """Say how many jobs were called off."""
    waiting, running = len(report.waiting), len(report.running)
    decided = f"{count(report.decided, 'job')} {'was' if report.decided == 1 else 'were'}"
    if not waiting + running:
        return f"nothing to cancel: {decided} decided already"
    verb = "would cancel" if dry_run else "cancelled"
    line = f"{verb} {count(waiting + running, 'job')}: {waiting:,} waiting, {running:,} running"
    return f"{line}; {decided} decided already" if report.decided else line


def letter_lines(letters: Sequence[DeadLetter]) -> Iterator[str]:
    """Name what the queue has given up, a message a line."""
    for letter in letters:
        yield plain(letter.job.name if letter.job else f"{letter.id}: {letter.trouble}")


def pause_lines(report: PauseReport) -> Iterator[str]:
    """Say whether a runner is paused, and what it has to do."""
    state = "paused" if report.paused else "not paused"
    before = "the runner is" if report.changed else "the runner was and is"
    running = f"{count(report.running, 'job')} {'runs' if report.running == 1 else 'run'}"
    waiting = f"{report.waiting:,} {'waits' if report.waiting == 1 else 'wait'}"
    still = " still" if report.paused and report.running else ""
    yield f"{before} {state}: {running}{still}, {waiting}"
    if not report.paused and report.waiting and not report.workers:
        yield "no worker runs: adr process is one here, adr launch starts some"
