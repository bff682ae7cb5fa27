"""The commands that wait for jobs, tell what went wrong, and call off or hold up what waits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from adr import controloutput, output, progressbar
from adr.commands.base import command, telling_if_interrupted
from adr.current import runner_of
from adr.errors import UsageError
from adr.options import Arguments

if TYPE_CHECKING:
    from adr.control import PauseReport

__all__ = ["adr_cancel", "adr_failures", "adr_pause", "adr_resume", "adr_wait"]

#: Exit codes by how waiting has ended.
_WAITED = {"succeeded": 0, "failed": 1, "lost": 1, "timeout": 3}


@command
def adr_wait(given: Arguments) -> int:
    """Wait until every job is decided.

    Usage:
      adr wait [options]

    Ends with exit code 0 if all have succeeded, 1 if some have not, 3 if the time
    is over. Ctrl-C ends the waiting and nothing else.

    Options:
      --batch=BATCH          Only for this batch; without, for all but those that
                             were destroyed
      --timeout=S            Wait no longer than S seconds
      --json                 Print the outcome as JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    runner, batch = runner_of(given), given.text("--batch")
    timeout_s = given.number("--timeout", "seconds")
    left = "the jobs go on, and the same command waits for them again"
    quiet = given.flag("--quiet")
    with telling_if_interrupted(left), progressbar.progress(quiet) as progress:
        report = core.wait(
            runner, given.text("--region"), batch=batch, timeout=timeout_s, progress=progress
        )
    if not quiet:
        for line in controloutput.wait_lines(report):
            output.say(line)
    if given.flag("--json"):
        output.print_json({"runner": runner, "batch": batch, **report.to_dict()})
    return _WAITED[report.state.value]


@command
def adr_failures(given: Arguments) -> int:
    """Show which jobs have failed, those together that failed alike.

    Usage:
      adr failures [options] [--] [<job>...]

    Alike are those with the same exit code and the same last line of output, but
    for numbers, folders and the names of their inputs. A job is named as
    <batch>/<job> or <job>, by its number, or by a pattern of names.

    Options:
      --batch=BATCH          Only this batch
      --dead                 Show instead the messages that the queue has given up
                             since they came back too often; adr retry --dead sends
                             them again
      --json                 Print JSON, with every job of each group
      <runner options>
      <general options>
    """
    from adr import adr as core

    runner, batch = runner_of(given), given.text("--batch")
    if given.flag("--dead"):
        if given.jobs() or batch:
            raise UsageError("--dead shows all that the queue has given up: choose nothing else")
        letters = core.dead_letters(runner, given.text("--region"))
        if given.flag("--json"):
            found = [letter.to_dict() for letter in letters]
            output.print_json({"runner": runner, "dead": found})
        else:
            for line in controloutput.letter_lines(letters):
                print(line)
        return 0
    report = core.failures(runner, given.jobs(), given.text("--region"), batch=batch)
    if given.flag("--json"):
        output.print_json({"runner": runner, "batch": batch, **report.to_dict()})
    else:
        import shutil

        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in controloutput.group_lines(report.groups, width):
            print(line)
    if not given.flag("--quiet"):
        for line in controloutput.failure_summary(report):
            output.say(line)
    return 0


@command
def adr_cancel(given: Arguments) -> int:
    """Call jobs off: those that wait never begin, those that run are ended.

    Usage:
      adr cancel [options] [--] [<job>...]

    What is decided already stays as it is. Running jobs get a TERM within ten
    seconds, and a KILL ten seconds later. Queued again (adr retry), a job is
    another matter. A job is named as <batch>/<job> or <job>, by its number, or by
    a pattern of names.

    Options:
      --batch=BATCH          All jobs of this batch
      --all                  All jobs of the runner
      --dry-run              Show which jobs that would be, and stop
      --json                 Print the outcome as JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    runner, dry_run = runner_of(given), given.flag("--dry-run")
    report = core.cancel(
        runner,
        given.jobs(),
        given.text("--region"),
        batch=given.text("--batch"),
        everything=given.flag("--all"),
        dry_run=dry_run,
    )
    if given.flag("--json"):
        output.print_json({"runner": runner, "dry_run": dry_run, **report.to_dict()})
    elif dry_run:
        for name in (*report.running, *report.waiting):
            print(output.plain(name))
    if not given.flag("--quiet"):
        output.say(controloutput.cancel_line(report, dry_run))
    return 0


@command
def adr_pause(given: Arguments) -> int:
    """Let no worker begin another job, until adr resume.

    Usage:
      adr pause [options]

    Jobs that run go on to their end; what workers have leased and not begun they
    give back. Workers stay, or leave as --idle says.

    Options:
      --json                 Print the outcome as JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    runner = runner_of(given)
    return _held_up(given, runner, core.pause(runner, given.text("--region")))


@command
def adr_resume(given: Arguments) -> int:
    """Let workers go on after adr pause.

    Usage:
      adr resume [options]

    Options:
      --json                 Print the outcome as JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    runner = runner_of(given)
    return _held_up(given, runner, core.resume(runner, given.text("--region")))


def _held_up(given: Arguments, runner: str, report: PauseReport) -> int:
    if given.flag("--json"):
        output.print_json({"runner": runner, **report.to_dict()})
    if not given.flag("--quiet"):
        for line in controloutput.pause_lines(report):
            output.say(line)
    return 0
