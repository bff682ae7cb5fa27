"""How the console shows what became of jobs, as text."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from adr.models import JobState
from adr.output import bundle_lines, count, duration_text, plain, size_text, table_lines

if TYPE_CHECKING:
    from adr.embedded import RunReport
    from adr.models import JobRecord
    from adr.queueing import QueueReport
    from adr.transfer import FetchReport
    from adr.views import JobView, Status
    from adr.workerinfo import WorkerInfo

__all__ = [
    "INTERRUPTED",
    "batch_lines",
    "failure_lines",
    "fetch_summary",
    "job_lines",
    "queue_lines",
    "run_lines",
    "status_frame",
    "status_lines",
    "worker_lines",
]

#: What to say of a run that was interrupted.
INTERRUPTED = "interrupted: the same command picks up where it was"

_SHOWN_FAILURES = 10
_SHOWN_LINES = 10
_ALWAYS_SHOWN = (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED)
#: What somebody who looks at jobs may look for, first.
_INTERESTING = (
    JobState.RUNNING,
    JobState.FAILED,
    JobState.LOST,
    JobState.UNACCOUNTED,
    JobState.QUEUED,
    JobState.CANCELLED,
    JobState.SUCCEEDED,
)


def status_lines(status: Status, jobs: bool) -> Iterator[str]:
    """Tell what happened to the jobs of a runner, by batch or by job, and who works on them."""
    yield from batch_lines(status)
    if jobs and status.jobs:
        yield ""
        yield from job_lines(status.jobs)
    if status.workers:
        yield ""
        yield from worker_lines(status.workers)
    for note in status.notes:
        yield ""
        yield plain(note)


def status_frame(status: Status, head: Sequence[str], height: int, jobs: bool) -> list[str]:
    """Tell the same in so many lines at most: of each list a part, the most interesting one.

    Parameters
    ----------
    head : sequence of str
        Lines that stand above.
    """
    sections = [batch_lines(status)]
    if jobs and status.jobs:
        # Only those that may be shown: each line takes its time.
        first = heapq.nsmallest(height, status.jobs, key=_interest)
        sections.append(job_lines(first) + [""] * (len(status.jobs) - len(first)))
    if status.workers:
        sections.append(worker_lines(status.workers))
    frame = [*head, *map(plain, status.notes)]
    room = height - len(frame) - len(sections)
    shares = _shares([len(section) for section in sections], room)
    for number, (section, share) in enumerate(zip(sections, shares, strict=True)):
        frame += ["", *_cut(section, share, newest=number == 0)]
    return frame[:height]


def _interest(view: JobView) -> tuple[int, str, int]:
    return _INTERESTING.index(view.state), view.job.batch, view.job.index


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """Divide lines among lists: what the short ones do not need is for the long ones."""
    shares = [0] * len(lengths)
    for done, place in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        shares[place] = min(lengths[place], max(0, room) // (len(lengths) - done))
        room -= shares[place]
    return shares


def _cut(lines: Sequence[str], room: int, newest: bool) -> Iterator[str]:
    """Leave out of a table what is too much, and say how much; keep its header, and its end."""
    left_out = len(lines) - room + 1
    if left_out <= 1 or room < 2:
        yield from lines[:room]
        return
    hidden = f"… {left_out:,} more"
    if newest:
        yield from (lines[0], hidden, *lines[left_out + 1 :]) if room > 2 else (lines[0], lines[-1])
    else:
        yield from (*lines[: room - 1], hidden)


def batch_lines(status: Status) -> list[str]:
    """Count the jobs of each batch: a header, one line each, and one with all where several are."""
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
    if not rows:
        return ["no batches"]
    if len(rows) > 1:
        rows.append(["total", *(f"{getattr(status.totals, name):,}" for name in ("jobs", *states))])
    return list(table_lines(["BATCH", "JOBS", *(name.upper() for name in states)], rows))


def job_lines(views: Iterable[JobView]) -> list[str]:
    """Tell of each job: a header, and one line each."""
    rows = [_job_row(view) for view in views]
    return list(table_lines(["JOB", "STATE", "TIME", "HOST", "ENDED"], rows))


def _job_row(view: JobView) -> list[str]:
    record = view.record
    if record is None:
        return [view.job.name, view.state.value, "", "", ""]
    time_text = ""
    if record.started_at is not None and record.ended_at is not None:
        time_text = duration_text(max(record.ended_at - record.started_at, 0))
    return [view.job.name, view.state.value, time_text, record.host, _ending(record)]


def worker_lines(workers: Iterable[WorkerInfo]) -> list[str]:
    """Tell of each worker: a header, and one line each."""
    now = time.time()
    rows = [
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
    ]
    return list(table_lines(["WORKER", "HOST", "PID", "SLOTS", "RUNNING", "DONE", "UP"], rows))


def failure_lines(records: Sequence[JobRecord]) -> Iterator[str]:
    """Tell of each failed job how it ended, and of the first ones the end of their output."""
    for number, record in enumerate(records):
        yield f"failed: {plain(record.label)} ({plain(_ending(record))})"
        if number < _SHOWN_FAILURES:
            tail = plain(record.tail.replace("\r\n", "\n"), keep="\n\t").rstrip().splitlines()
            yield from ("    " + line for line in tail[-_SHOWN_LINES:])
    if len(records) > _SHOWN_FAILURES:
        yield f"(output of the first {_SHOWN_FAILURES} only)"


def _ending(record: JobRecord) -> str:
    """Say why a job did not succeed, with its exit code; nothing where it did."""
    if not record.exit_code or "exit code" in record.reason:
        return record.reason
    code = f"exit code {record.exit_code}"
    return f"{record.reason}, {code}" if record.reason else code


def queue_lines(report: QueueReport) -> Iterator[str]:
    """Say what was queued, and what was there already."""
    for batch in report.resumed:
        yield f"went on with batch {batch}, whose queueing was not finished"
    for batch, number in report.retried.items():
        verb = "is" if number == 1 else "are"
        yield f"{count(number, 'job')} that had not succeeded {verb} queued again in {batch}"
    counts = report.known.to_dict()
    known = sum(counts.values())
    if known:
        parts = ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)
        verb = "is" if known == 1 else "are"
        all_of = "all " if not report.jobs and known > 1 else ""
        nothing = "" if report.jobs else ": nothing queued"
        yield (
            f"{all_of}{count(known, 'job')} {verb} here already ({parts}){nothing}; "
            f"--rerun queues {'it' if known == 1 else 'them'} again"
        )
    for batch, number in report.doubled.items():
        yield (
            f"{number:,} of these {'waits or runs' if number == 1 else 'wait or run'} already in "
            f"{batch}, with other limits, and will run as well: adr cancel --batch={batch} "
            f"calls off what is left there"
        )
    if report.new:
        yield from bundle_lines(report.new.plan)


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
            (report.cancelled, "cancelled"),
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
