"""How the console shows things: text for people, JSON for programs, progress.

Data goes to standard output: ids, tables, JSON. What is only said to people, summaries and
progress, goes to standard error. A table is plain aligned columns, so that 100,000 jobs
print in a second and can be searched; ``rich`` draws only the live progress bar, and is
imported only for it.

Names and job output come from anywhere: `plain` shows their control characters instead of
sending them to the terminal.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from adr.models import SCHEMA, JobState
from adr.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.progress import TaskID

    from adr.batch import BatchPlan
    from adr.embedded import RunReport
    from adr.lifecycle import RunnerInfo
    from adr.models import JobRecord, WorkerInfo
    from adr.survey import JobView, Status
    from adr.transfer import FetchReport

__all__ = [
    "INTERRUPTED",
    "bundle_lines",
    "confirm",
    "count",
    "duration_text",
    "failure_lines",
    "fetch_summary",
    "need_terminal",
    "plain",
    "plan_data",
    "plan_lines",
    "print_json",
    "print_status",
    "print_table",
    "print_workers",
    "progress",
    "run_lines",
    "runner_data",
    "runner_line",
    "say",
    "size_text",
    "to_nowhere",
]

#: What to say of a run that was interrupted.
INTERRUPTED = "interrupted: the same command picks up where it was"

_SHOWN_FAILURES = 10
_SHOWN_LINES = 10
_SHOWN_NAMES = 5
_LINE_EVERY_S = 5.0
_ALWAYS_SHOWN = (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED)


def plain(text: object, keep: str = "") -> str:
    """Return text in which control characters and undecodable bytes are written as escapes.

    Parameters
    ----------
    keep : str, optional
        Control characters to leave as they are.
    """
    return "".join(
        letter if letter.isprintable() or letter in keep else _escaped(letter)
        for letter in str(text)
    )


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def count(number: int, noun: str) -> str:
    """Return a number with its noun, ``1 job`` or ``1,200 jobs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_text(size_bytes: float) -> str:
    """Return a size in decimal units, such as ``12.3 kB``."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        size_bytes /= 1000
        if size_bytes < 999.5 or unit == "TB":
            break
    return f"{size_bytes:.{1 if size_bytes < 99.95 else 0}f} {unit}"


def duration_text(seconds: float) -> str:
    """Return a duration by its two largest units, such as ``2 min 5 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for length, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // smaller} {part}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def say(text: str) -> None:
    """Tell people something, on standard error; where nothing can be written, nobody is told."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        to_nowhere(sys.stderr)


def to_nowhere(stream: TextIO) -> None:
    """Drop what is still to be written to a stream that takes nothing more.

    Python would try again, and complain, at its exit.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object, all ASCII: undecodable bytes in names stay surrogate escapes."""
    print(json.dumps({"schema": SCHEMA, **data}))


def confirm(question: str, refusal: str) -> bool:
    """Ask a question that the terminal answers with yes or no; no is the default.

    Raises
    ------
    UsageError
        With `refusal`, where no terminal could answer.
    """
    need_terminal(refusal)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def need_terminal(refusal: str) -> None:
    """Raise `UsageError` with `refusal`, where no terminal could answer a question."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        from adr.errors import UsageError

        raise UsageError(refusal)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns; numbers stand to the right."""
    lines = [[plain(cell) for cell in row] for row in rows]
    right = [bool(lines) and all(_is_number(line[n]) for line in lines) for n in range(len(header))]
    widths = [max(map(_width, column)) for column in zip(header, *lines, strict=True)]
    for line in [list(header), *lines]:
        cells = []
        for cell, width, to_right in zip(line, widths, right, strict=True):
            space = " " * (width - _width(cell))
            cells.append(space + cell if to_right else cell + space)
        print("  ".join(cells).rstrip())


def _is_number(text: str) -> bool:
    return not text or text.replace(",", "").isdigit()


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(letter)
        else 2
        if unicodedata.east_asian_width(letter) in "WF"
        else 1
        for letter in text
    )


def bundle_lines(plan: BatchPlan) -> Iterator[str]:
    """Say what a bundle takes and what it leaves out."""
    took = f"{count(len(plan.files), 'file')}, {size_text(plan.size_bytes)}"
    text = f"bundled {took} from {plain(plan.root)}"
    if plan.left_out:
        text += f"; left out {count(len(plan.left_out), 'file')} ({size_text(plan.left_out_bytes)})"
    if plan.inputs_left_out:
        names = plain(", ".join(plan.inputs_left_out[:_SHOWN_NAMES]))
        more = ", ..." if len(plan.inputs_left_out) > _SHOWN_NAMES else ""
        text += f", among them of the kind of the inputs: {names}{more}"
    yield text
    for sentence in plan.refused[:_SHOWN_NAMES]:
        yield f"left out: {plain(sentence)}"
    if len(plan.refused) > _SHOWN_NAMES:
        yield f"and {len(plan.refused) - _SHOWN_NAMES:,} more that cannot be bundled"
    if plan.duplicates:
        yield f"{count(plan.duplicates, 'file')} named more than once, each queued once"


def plan_lines(plan: BatchPlan) -> Iterator[str]:
    """Describe what would be queued."""
    yield f"root      {plain(plan.root)}"
    yield f"bundle    {count(len(plan.files), 'file')}, {size_text(plan.size_bytes)}"
    yield f"left out  {count(len(plan.left_out), 'file')}, {size_text(plan.left_out_bytes)}"
    yield f"jobs      {len(plan.jobs):,}"
    shown = plan.jobs if len(plan.jobs) <= 4 else [*plan.jobs[:2], None, *plan.jobs[-2:]]
    for job in shown:
        yield f"  {job.index}. {plain(job.command)}" if job else "  ..."


def plan_data(plan: BatchPlan) -> dict[str, Any]:
    """Return what would be queued, for JSON."""
    return {
        "root": str(plan.root),
        "files": len(plan.files),
        "size_bytes": plan.size_bytes,
        "left_out": list(plan.left_out),
        "left_out_bytes": plan.left_out_bytes,
        "jobs": [{"label": job.label, "command": job.command} for job in plan.jobs],
    }


def runner_line(info: RunnerInfo) -> str:
    """Describe a runner."""
    if info.results_only:
        return f"{plain(info.runner)}  (results only)"
    counts = [
        f"{number:,} {name}"
        for number, name in ((info.waiting, "waiting"), (info.running, "running"))
        if number is not None
    ]
    return f"{plain(info.runner)}  {', '.join(counts)}".rstrip()


def runner_data(info: RunnerInfo, current: bool) -> dict[str, Any]:
    """Return the description of a runner, for JSON."""
    return {
        "runner": info.runner,
        "kind": info.kind,
        "current": current,
        "waiting": info.waiting,
        "running": info.running,
        "results_only": info.results_only,
    }


def print_status(status: Status, jobs: bool) -> None:
    """Print what happened to the jobs of a runner, by batch or by job, and who works on them."""
    states = [
        state.value
        for state in JobState
        if state in _ALWAYS_SHOWN or getattr(status.totals, state.value)
    ]
    rows = [
        [
            batch.batch,
            *(f"{getattr(batch, name):,}" for name in ("jobs", *states)),
        ]
        for batch in status.batches
    ]
    if len(rows) > 1:
        rows.append(["total", *(f"{getattr(status.totals, name):,}" for name in ("jobs", *states))])
    if rows:
        print_table(["BATCH", "JOBS", *(name.upper() for name in states)], rows)
    else:
        print("no batches")
    if jobs and status.jobs:
        print()
        print_table(
            ["JOB", "STATE", "TIME", "HOST", "ENDED"], [_job_row(view) for view in status.jobs]
        )
    if status.workers:
        print()
        print_workers(status.workers)
    if status.paused:
        print("\nthe runner is paused")
    for note in status.notes:
        print(f"\n{plain(note)}")


def _job_row(view: JobView) -> list[str]:
    record = view.record
    if record is None:
        return [view.job.name, view.state.value, "", "", ""]
    time_text = ""
    if record.started_at is not None and record.ended_at is not None:
        time_text = duration_text(max(record.ended_at - record.started_at, 0))
    return [view.job.name, view.state.value, time_text, record.host, ending(record)]


def print_workers(workers: Iterable[WorkerInfo]) -> None:
    """Print one line per worker."""
    now = time.time()
    print_table(
        ["WORKER", "HOST", "PID", "SLOTS", "RUNNING", "DONE", "UP"],
        [
            [
                info.worker,
                info.host,
                str(info.pid),
                str(info.slots),
                str(len(info.running)),
                str(info.done),
                duration_text(max(now - info.started_at, 0)),
            ]
            for info in workers
        ],
    )


def failure_lines(records: Sequence[JobRecord]) -> Iterator[str]:
    """Tell of each failed job how it ended, and of the first ones the end of their output."""
    for number, record in enumerate(records):
        yield f"failed: {plain(record.label)} ({plain(ending(record))})"
        if number < _SHOWN_FAILURES:
            tail = plain(record.tail.replace("\r\n", "\n"), keep="\n\t").rstrip().splitlines()
            yield from ("    " + line for line in tail[-_SHOWN_LINES:])
    if len(records) > _SHOWN_FAILURES:
        yield f"(output of the first {_SHOWN_FAILURES} only)"


def ending(record: JobRecord) -> str:
    """Say why a job did not succeed, with its exit code; nothing where it did."""
    if not record.exit_code or "exit code" in record.reason:
        return record.reason
    code = f"exit code {record.exit_code}"
    return f"{record.reason}, {code}" if record.reason else code


def run_lines(report: RunReport) -> Iterator[str]:
    """Sum up a run."""
    if report.skipped:
        verb = "is" if report.skipped == 1 else "are"
        yield f"{count(report.skipped, 'job')} {verb} done already (--rerun runs them again)"
    parts = [
        f"{number:,} {name}"
        for number, name in (
            (report.succeeded, "succeeded"),
            (len(report.failed), "failed"),
        )
        if number
    ]
    if parts:
        yield f"jobs: {', '.join(parts)}"
    if report.kept:
        yield (
            f"{count(report.kept, 'result')} not written, since files that are not adr's have "
            f"those names: move them away and run the same command again"
        )
    for trouble in report.unpublished:
        yield f"{plain(trouble)}; the same command tries again"
    if report.undecided and not report.interrupted:
        yield f"{count(report.undecided, 'job')} have no outcome: the same command runs them"
    if report.interrupted:
        yield INTERRUPTED


def fetch_summary(report: FetchReport) -> str:
    """Sum up a download."""
    text = f"fetched {count(report.fetched, 'file')} ({size_text(report.size_bytes)})"
    if report.unchanged:
        text += f", {report.unchanged:,} there already"
    if report.kept:
        text += f", {report.kept:,} there that differ and were kept (--overwrite replaces them)"
    return text


class _Meter:
    """Count one piece of work and put it in words, which another thread may do meanwhile."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self.notes: dict[str, int] = {}
        self.began = time.monotonic()

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)
        in_bytes = self.unit == "bytes"
        if in_bytes:
            parts = [f"{size_text(self.done)} of {size_text(self.total)}"]
        else:
            parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
        parts += [f"{number:,} {name}" for name, number in self.notes.items()]
        if 0 < self.done < self.total:
            rate = self.done / seconds
            parts.append(f"{size_text(rate)}/s" if in_bytes else _rate_text(rate))
            parts.append(f"{duration_text((self.total - self.done) / rate)} left")
        return ", ".join(parts)


def _rate_text(per_second: float) -> str:
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


class _Lines:
    """Show progress as a line every few seconds, where no terminal can redraw one."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._lock = threading.Lock()
        self._meter: _Meter | None = None
        self._said = 0.0

    def start(self, what: str, total: int, unit: str) -> None:
        with self._lock:
            self._meter = _Meter(what, total, unit)
            self._said = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        with self._lock:
            if self._meter:
                self._meter.done += amount
                self._say_seldom(self._meter)

    def note(self, **counts: int) -> None:
        with self._lock:
            if self._meter:
                self._meter.notes = {**self._meter.notes, **counts}
                self._say_seldom(self._meter)

    def finish(self) -> None:
        with self._lock:
            self._meter = None

    def _say_seldom(self, meter: _Meter) -> None:
        now = time.monotonic()
        if now - self._said >= self._every_s:
            self._said = now
            with suppress(OSError):
                say(f"{meter.what}: {meter}")


class _Bar:
    """Show progress as a live bar on a terminal, gone when the work is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._lock = threading.Lock()
        self._meter: _Meter | None = None
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[meter]}", markup=False),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=5,
        )

    def start(self, what: str, total: int, unit: str) -> None:
        self.finish()
        with self._lock:
            self._meter = _Meter(what, total, unit)
            self._task = self._bar.add_task(what, total=total, meter=self._meter)
            self._bar.start()

    def advance(self, amount: int = 1) -> None:
        with self._lock:
            if self._meter and self._task is not None:
                self._meter.done += amount
                self._bar.update(self._task, completed=self._meter.done)

    def note(self, **counts: int) -> None:
        with self._lock:
            if self._meter:
                self._meter.notes = {**self._meter.notes, **counts}

    def finish(self) -> None:
        with self._lock:
            if self._task is not None:
                self._bar.stop()
                self._bar.remove_task(self._task)
                self._meter = self._task = None


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """Give a `Progress` that fits standard error, and take it off the screen at the end.

    Parameters
    ----------
    quiet : bool, optional
        Show nothing.
    """
    shown: Progress = SILENT
    if not quiet:
        live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        shown = _Bar() if live else _Lines(_LINE_EVERY_S)
    try:
        yield shown
    finally:
        shown.finish()
