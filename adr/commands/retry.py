"""The command that queues jobs again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from adr import output, progressbar
from adr.commands.base import command, telling_if_interrupted
from adr.current import runner_of
from adr.options import Arguments

if TYPE_CHECKING:
    from adr.models import Job
    from adr.retrying import RetryReport

__all__ = ["adr_retry"]

_SHOWN_JOBS = 5


@command
def adr_retry(given: Arguments) -> int:
    """Queue jobs again that did not succeed.

    Usage:
      adr retry [options] [--] [<job>...]

    Jobs that are named are retried if they have failed, are lost, or were
    cancelled; without names and kinds, those that have failed. A job is named as
    <batch>/<job> or <job>, by its number, or by a pattern of names.

    Options:
      --failed               Only jobs that have failed
      --lost                 Only jobs that are lost, see adr status
      --cancelled            Only jobs that were cancelled
      --exit-code=N          Only jobs that have failed with this exit code; 128+n
                             stands for signal n
      --batch=BATCH          Only this batch
      --attempts=N           Run a job that fails up to N times; without, as before
      --timeout=S            End a job that runs longer than S seconds; without, as
                             before
      --dead                 Send again instead what the queue has given up; see
                             adr failures --dead
      --force                Retry also jobs that are named and have succeeded
      --dry-run              Show what would be retried, and stop
      --json                 Print what is retried as JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    runner = runner_of(given)
    dry_run = given.flag("--dry-run")
    left = "the same command finishes what it has begun to queue"
    with telling_if_interrupted(left), progressbar.progress(given.flag("--quiet")) as progress:
        report = core.retry(
            runner,
            given.jobs(),
            given.text("--region"),
            failed=given.flag("--failed"),
            lost=given.flag("--lost"),
            cancelled=given.flag("--cancelled"),
            exit_code=given.whole("--exit-code", most=255),
            batch=given.text("--batch"),
            attempts=given.whole("--attempts"),
            timeout=given.number("--timeout", "seconds"),
            force=given.flag("--force"),
            dry_run=dry_run,
            dead=given.flag("--dead"),
            progress=progress,
        )
    if not given.flag("--quiet"):
        for line in _lines(report, "would retry" if dry_run else "retrying"):
            output.say(line)
    if given.flag("--json"):
        output.print_json({"runner": runner, "dry_run": dry_run, **report.to_dict()})
    return 0


def _lines(report: RetryReport, verb: str) -> Iterator[str]:
    """Say what is retried, by batch, and what is not."""
    kept = {job.id for job in report.resumed}
    fresh = [job for job in report.jobs if job.id not in kept]
    yield from _named(report.resumed, "went on with a retry of {}, which was not finished")
    yield from _named(fresh, f"{verb} {{}}")
    yield from _named(
        report.gone,
        "left out {}, whose inputs have been removed (repeat the adr queue or adr run that has "
        "made it)",
    )
    if report.unreadable:
        found = output.count(len(report.unreadable), "message")
        yield f"left alone: {found} that cannot be read as a job; adr failures --dead lists them"
    if not report.jobs:
        yield "nothing to retry"
    counts = report.count_left()
    if any(counts.values()):
        parts = ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)
        hint = "; --force retries also what has succeeded" if counts["succeeded"] else ""
        yield f"left alone: {parts}{hint}"


def _named(jobs: Iterable[Job], sentence: str) -> Iterator[str]:
    """Say something of the jobs of each batch, and name the first of them."""
    batches: dict[str, list[str]] = {}
    for job in jobs:
        batches.setdefault(job.batch, []).append(job.label)
    for batch, names in batches.items():
        said = sentence.format(f"{output.count(len(names), 'job')} of {output.plain(batch)}")
        more = ", ..." if len(names) > _SHOWN_JOBS else ""
        yield f"{said}: {output.plain(', '.join(names[:_SHOWN_JOBS]))}{more}"
