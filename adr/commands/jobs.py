"""The commands about jobs: run, queue, process, status, logs and download."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from adr import joboutput, output, progressbar
from adr.commands.base import command, telling_if_interrupted
from adr.commands.watching import watch_status
from adr.current import address, current_runner, is_runner, runner_of
from adr.errors import UsageError
from adr.options import Arguments

if TYPE_CHECKING:
    from adr.batch import BatchPlan

__all__ = ["adr_download", "adr_logs", "adr_process", "adr_queue", "adr_run", "adr_status"]


@command
def adr_run(given: Arguments) -> int:
    """Run a batch on this machine and collect its results.

    Usage:
      adr run [options] [--store=REGEX]... [--exclude=PATTERN]... [--env=VAR]...
              --to=DIR [--] [<file>]...

    One job for each file. Run again, it does only what is not done already: a job
    is done when it succeeded with the same command, settings and inputs.

    Options:
      --to=DIR               Folder of the results: DIR/<job>/...
      <job options>
      --slots=N              Jobs at the same time; without, one per core
      --rerun                Run again what is done already
      --json                 Print the outcome as JSON
      <general options>
    """
    from adr import adr as core

    slots = given.whole("--slots")
    to = given.required("--to")
    plan = _plan(given, given.files(), avoid=[to])
    if _only_shown(given, plan):
        return 0
    try:
        with progressbar.progress(given.flag("--quiet")) as progress:
            report = core.run_plan(
                plan, to, slots=slots, rerun=given.flag("--rerun"), progress=progress
            )
    except KeyboardInterrupt:
        output.say(joboutput.INTERRUPTED)
        return 130
    for line in joboutput.failure_lines(report.failed):
        output.say(line)
    if not given.flag("--quiet"):
        for line in joboutput.run_lines(report):
            output.say(line)
    if given.flag("--json"):
        output.print_json(
            {
                "to": os.path.abspath(to),
                "succeeded": report.succeeded,
                "skipped": report.skipped,
                "kept": report.kept,
                "cancelled": report.cancelled,
                "undecided": report.undecided,
                "unpublished": report.unpublished,
                "interrupted": report.interrupted,
                "failed": [record.to_dict() for record in report.failed],
            }
        )
    if report.interrupted:
        return 130
    missed = report.failed or report.cancelled or report.undecided or report.unpublished
    return 1 if missed else 0


@command
def adr_queue(given: Arguments) -> int:
    """Queue a batch: bundle the input files, and one job for each; print the batch id.

    Usage:
      adr queue [options] [--store=REGEX]... [--exclude=PATTERN]... [--env=VAR]...
                [--] [<file>]... [<runner>]

    The last argument is the runner if it is the id of one and no file, or the
    folder of a local runner. A job that is there already is not queued again: one
    that has succeeded with the same command, settings and inputs, or waits or runs.
    One that did not succeed is queued again in its batch.

    Options:
      <job options>
      --rerun                Queue all of it again, whatever is there already
      --json                 Print the batch as JSON
      <runner options>
      <general options>
    """
    from adr import adr as core
    from adr.runner import is_runner_id

    files = given.files()
    runner = given.text("--runner")
    if runner is None:
        named = given.texts("<file>")
        if named and is_runner(named[-1]):
            runner = named[-1]
            files.pop(len(named) - 1)
    runner = address(runner) if runner else current_runner()
    plan = _plan(given, files, avoid=[] if is_runner_id(runner) else [runner])
    if _only_shown(given, plan):
        return 0
    left = "the same command finishes what it has begun to queue"
    with telling_if_interrupted(left), progressbar.progress(given.flag("--quiet")) as progress:
        report = core.queue_plan(
            runner, plan, given.text("--region"), rerun=given.flag("--rerun"), progress=progress
        )
    if not given.flag("--quiet"):
        for line in joboutput.queue_lines(report):
            output.say(line)
    if given.flag("--json"):
        output.print_json(
            {
                "runner": runner,
                "batch": report.batch,
                "jobs": report.jobs,
                "known": report.known.to_dict(),
                "resumed": bool(report.resumed),
                "retried": dict(report.retried),
                "doubled": dict(report.doubled),
                "bundle_bytes": report.new.bundle_bytes if report.new else 0,
            }
        )
    else:
        print(report.batch)
    return 0


@command
def adr_process(given: Arguments) -> int:
    """Process jobs of a runner until told to stop.

    Usage:
      adr process [options] [--] [<runner>]

    Start it on as many machines as you like, and as often. Ctrl-C or SIGTERM ends
    its jobs and gives them back.

    Options:
      --workingdir=PATH      Folder in which jobs run [default: .]
      --slots=N              Jobs at the same time; without, one per core
      --stop-on-empty        Leave once every job is decided
      --idle=MIN             Leave once every job of a batch is decided, or after
                             MIN minutes with nothing to do; a few stay while jobs
                             run
      --max-hours=H          Leave before H hours are over, whatever there is to
                             do; a job that is cut by this has failed
      --host=NAME            What lists and records call this machine; without, its
                             host name
      --alive=FILE           Write the clock of this boot into FILE with each
                             heartbeat
      --spot                 Leave when EC2 is about to take this instance away
      --job-user=USER        Run jobs as this user, without variables of AWS; needs
                             root
      --aws-for-jobs         Leave these variables to the jobs of that user
      <runner options>
      <general options>
    """
    from adr import adr as core

    if given.flag("--aws-for-jobs") and given.text("--job-user") is None:
        raise UsageError("--aws-for-jobs is for --job-user: other jobs see these variables anyway")
    report = core.process(
        runner_of(given),
        given.required("--workingdir"),
        given.text("--region"),
        given.flag("--stop-on-empty"),
        slots=given.whole("--slots"),
        host=given.text("--host"),
        idle=given.number("--idle", "minutes"),
        max_hours=given.number("--max-hours", "hours"),
        alive=given.text("--alive"),
        spot=given.flag("--spot"),
        job_user=given.text("--job-user"),
        aws_for_jobs=given.flag("--aws-for-jobs"),
    )
    if not given.flag("--quiet"):
        output.say(
            f"{output.count(report.succeeded, 'job')} succeeded, {report.failed:,} failed, "
            f"{report.cancelled:,} cancelled"
        )
    return 130 if report.interrupted else 0


@command
def adr_status(given: Arguments) -> int:
    """Show what became of every job, and who works.

    Usage:
      adr status [options]

    With --watch it goes on until Ctrl-C, which is its usual end: exit code 0.

    Options:
      --jobs                 Show each job as well
      --batch=BATCH          Only this batch
      --watch                Show it again and again, in place on a terminal
      --interval=S           With --watch, every S seconds; without, about once a
                             second for a local runner, every ten for one on AWS
      --json                 Print JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    jobs, batch = given.flag("--jobs"), given.text("--batch")
    interval_s = given.number("--interval", "seconds")
    if given.flag("--watch"):
        looks = core.watch(runner_of(given), given.text("--region"), batch=batch, jobs=jobs)
        watch_status(looks, interval_s=interval_s, jobs=jobs, as_json=given.flag("--json"))
        return 0
    if interval_s is not None:
        raise UsageError("--interval is for --watch: give that as well")
    status = core.status(runner_of(given), given.text("--region"), batch=batch, jobs=jobs)
    if given.flag("--json"):
        output.print_json(status.to_dict(jobs))
    else:
        for line in joboutput.status_lines(status, jobs):
            print(line)
    return 0


@command
def adr_logs(given: Arguments) -> int:
    """Write the output of a job to standard output, byte by byte as it was.

    Usage:
      adr logs [options] [--] [<job>]

    The job is <batch>/<job>, or <job> alone in the newest batch that has it.

    Options:
      -f, --follow           Show it while the job waits or runs, as it grows, until
                             the job is decided; Ctrl-C ends that, not the job
      --worker=HOST          Write what this host has said instead: why it could not
                             be set up, or the log of its worker
      <runner options>
      <general options>
    """
    from adr import adr as core

    worker = given.text("--worker")
    if worker is not None:
        if given.text("<job>") is not None:
            raise UsageError("name a job or a --worker, not both")
        if given.flag("--follow"):
            raise UsageError("--follow is for the output of a job: leave it out with --worker")
        said = core.host_output(runner_of(given), worker, given.text("--region"))
        chunks = (each for each in [said])
    else:
        if given.text("<job>") is None:
            raise UsageError("<job> is missing; see adr logs --help")
        chunks = core.logs(
            runner_of(given),
            given.required("<job>"),
            given.text("--region"),
            follow=given.flag("--follow"),
            tell=lambda text: None if given.flag("--quiet") else output.say(output.plain(text)),
        )
    # Where nobody reads any more, or on Ctrl-C, a worker is to hear of that.
    with closing(chunks):
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return 0


@command
def adr_download(given: Arguments) -> int:
    """Download results, only what is missing or differs.

    Usage:
      adr download [options] [--] <path> [<runner>]

    Options:
      --batch=BATCH          Only this batch
      --job=GLOB             Only jobs whose name matches
      --match=REGEX          Only files whose path in the folder of the job matches
      --flat                 <path>/<batch>/<file>, without a folder for each job
      --overwrite            Replace files that are there and differ
      --json                 Print the outcome as JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    path = given.required("<path>")
    runner = runner_of(given)
    with progressbar.progress(given.flag("--quiet")) as progress:
        report = core.download(
            runner,
            path,
            given.text("--region"),
            given.flag("--overwrite"),
            batch=given.text("--batch"),
            job=given.text("--job"),
            match=given.text("--match"),
            flat=given.flag("--flat"),
            progress=progress,
        )
    if not given.flag("--quiet"):
        output.say(joboutput.fetch_summary(report))
    if given.flag("--json"):
        output.print_json(
            {
                "runner": runner,
                "path": os.path.abspath(path),
                "fetched": report.fetched,
                "unchanged": report.unchanged,
                "kept": report.kept,
                "size_bytes": report.size_bytes,
            }
        )
    return 0


def _plan(given: Arguments, files: list[str], avoid: Sequence[str] = ()) -> BatchPlan:
    from adr import adr as core
    from adr import config

    if not files:
        raise UsageError("no input files are given: name them, or list them with --files-from=FILE")
    script = {}
    for part in ("command", "preprocessing", "postprocessing"):
        text = given.text(f"--{part}")
        script[part] = config.load_config("command", part) if text is None else text
    return core.plan(
        files,
        **script,
        store_patterns=given.texts("--store"),
        root=given.text("--root"),
        exclude=given.texts("--exclude"),
        env=given.environment(),
        timeout=given.number("--timeout", "seconds"),
        attempts=given.whole("--attempts"),
        retry_on=given.codes("--retry-on"),
        crash_limit=given.whole("--crash-limit"),
        avoid=avoid,
    )


def _only_shown(given: Arguments, plan: BatchPlan) -> bool:
    """Show the plan where that is all that was asked, or ask about one that is too large."""
    if given.flag("--dry-run"):
        if given.flag("--json"):
            output.print_json(output.plan_data(plan))
        else:
            for line in output.plan_lines(plan):
                print(line)
        return True
    if plan.too_large and not given.flag("--yes"):
        refusal = f"{plan.too_large}: choose a smaller --root, or confirm with --yes"
        if not output.confirm(f"{output.plain(plan.too_large)}. Bundle it all?", refusal):
            raise UsageError("nothing has been bundled: choose a smaller --root")
    return False
