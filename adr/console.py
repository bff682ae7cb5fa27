"""The command line: one function per command, whose docstring is its help and its grammar.

A command reads its words (`adr.options`), makes one call to `adr.adr` and shows the result
(`adr.output`). The core is imported inside the commands, so that help is instant. Data goes
to standard output, everything else to standard error. Exit status: 0 done; 1 the operation
or a job failed; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from adr import output
from adr.errors import AdrError, UsageError
from adr.options import (
    Arguments,
    address,
    asks_help,
    complete,
    configured_runner,
    current_runner,
    is_runner,
    nearest,
    parse,
    runner_of,
    same_runner,
    split,
)

if TYPE_CHECKING:
    from adr.batch import BatchPlan

__all__ = [
    "adr_config",
    "adr_console",
    "adr_create",
    "adr_destroy",
    "adr_download",
    "adr_list",
    "adr_logs",
    "adr_process",
    "adr_queue",
    "adr_run",
    "adr_set",
    "adr_status",
    "main",
]

_log = logging.getLogger(__name__)

_ISSUES = "https://github.com/openearth/amazon-distributed-runner/issues"

_Command = Callable[[Sequence[str] | None], int]
_COMMANDS: dict[str, _Command] = {}


class _Handler(logging.Handler):
    """Write to what is standard error at the moment: a live bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            output.say(output.plain(self.format(record), keep="\n\t"))
        except Exception:
            self.handleError(record)


def _command(function: Callable[[Arguments], int]) -> _Command:
    """Make a function of its arguments a command of its words, and register it."""
    name = function.__name__.removeprefix("adr_")
    doc = complete(function.__doc__ or "")

    @functools.wraps(function)
    def command(argv: Sequence[str] | None = None) -> int:
        words = sys.argv[2:] if argv is None else argv
        if asks_help(words):
            print(doc.strip())
            return 0
        given = parse(f"adr {name}", doc, words)
        _log_from(given.level())
        return function(given)

    command.__doc__ = doc
    # Documentation shows the signature of the command, not of what is wrapped.
    del command.__wrapped__
    _COMMANDS[name] = command
    return command


def _log_from(level: int) -> None:
    logger = logging.getLogger("adr")
    logger.setLevel(level)
    if not any(isinstance(each, _Handler) for each in logger.handlers):
        handler = _Handler()
        handler.setFormatter(logging.Formatter("adr: %(levelname)s: %(message)s"))
        logger.addHandler(handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; every error becomes one sentence.

    Parameters
    ----------
    argv : sequence of str, optional
        Words after ``adr``, those of the process by default.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Python has none for a closed descriptor, whose number the next file would get.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the locale cannot write must not end a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = adr_console(argv)
        sys.stdout.flush()
        return status
    except AdrError as error:
        output.say(f"adr: {output.plain(error)}")
        _log.debug("where this was noticed", exc_info=True)
        return error.exit_code
    except KeyboardInterrupt:
        output.say("adr: interrupted")
        return 130
    except BrokenPipeError:
        # Whoever read our output has left.
        output.to_nowhere(sys.stdout)
        return 141
    except Exception as error:
        if isinstance(error, OSError) and _is_of_output(error):
            output.to_nowhere(sys.stdout)
            output.say(f"adr: cannot write to standard output: {error.strerror}")
            return 1
        output.say(
            f"adr: internal error, {type(error).__name__}: {output.plain(error)}; please report "
            f"it at {_ISSUES} (details with --verbose=10)"
        )
        _log.debug("internal error", exc_info=True)
        return 1


def _is_of_output(error: OSError) -> bool:
    """Tell whether an error was raised by writing here or in `adr.output`, not in the core."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__") in (__name__, output.__name__)


def adr_console(argv: Sequence[str] | None = None) -> int:
    """Run a folder of model inputs on this machine, or on any number of machines.

    Usage:
      adr <command> [options] [<argument>...]

    On this machine alone:
      adr run        Run a batch and collect its results

    Step by step, on as many machines as you like:
      adr create     Create a runner, on AWS or in a folder
      adr queue      Queue a batch
      adr process    Process jobs
      adr status     Show what became of every job
      adr logs       Show the output of a job
      adr download   Download results
      adr destroy    Destroy a runner, keep its results

    Settings:
      adr list       List runners, or the workers of one
      adr set        Choose the current runner
      adr config     Answer the questions of the configuration wizard

    Each command explains itself with --help.

    Options:
      --version              Show the version of adr and exit
      <general options>
    """
    doc = adr_console.__doc__ or ""
    options, words = split("adr", doc, sys.argv[1:] if argv is None else argv, until_word=True)
    if "--version" in options:
        from adr.version import __version__

        print(f"adr {__version__}")
        return 0
    if words[:1] == ["help"]:
        options, words = ["--help"], words[1:2]
    if "--help" in options and not words:
        print(doc)
        return 0
    if not words:
        raise UsageError("no command is given; see adr --help")
    name, *rest = words
    if name not in _COMMANDS:
        meant = nearest(name, _COMMANDS) or ";"
        raise UsageError(f"there is no command {name!r}{meant} see adr --help")
    return _COMMANDS[name]([*options, *rest])


adr_console.__doc__ = complete(adr_console.__doc__)


@_command
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
        with output.progress(given.flag("--quiet")) as progress:
            report = core.run_plan(
                plan, to, slots=slots, rerun=given.flag("--rerun"), progress=progress
            )
    except KeyboardInterrupt:
        output.say(output.INTERRUPTED)
        return 130
    for line in output.failure_lines(report.failed):
        output.say(line)
    if not given.flag("--quiet"):
        for line in output.run_lines(report):
            output.say(line)
    if given.flag("--json"):
        output.print_json(
            {
                "to": os.path.abspath(to),
                "succeeded": report.succeeded,
                "skipped": report.skipped,
                "kept": report.kept,
                "undecided": report.undecided,
                "unpublished": report.unpublished,
                "interrupted": report.interrupted,
                "failed": [record.to_dict() for record in report.failed],
            }
        )
    if report.interrupted:
        return 130
    return 1 if report.failed or report.undecided or report.unpublished else 0


@_command
def adr_create(given: Arguments) -> int:
    """Create a runner, print its id and make it the current one.

    Usage:
      adr create [options]

    Options:
      --local                A runner in a folder of this machine, not on AWS
      --dir=DIR              Its folder; without, one of its own among the data of
                             the user
      --region=REGION        Amazon region
      --json                 Print the id as JSON
      <general options>
    """
    from adr import adr as core
    from adr import config

    local, directory = given.flag("--local"), given.text("--dir")
    if directory is not None and not local:
        raise UsageError("--dir is the folder of a local runner: give --local as well")
    # A broken configuration is to be noticed before there is a runner that it cannot name.
    config.load_config()
    runner = core.create(given.text("--region"), local=local, directory=directory)
    try:
        config.update_config("runner", runner)
    except AdrError:
        core.destroy(runner, given.text("--region"), purge=True)
        raise
    if given.flag("--json"):
        output.print_json({"runner": runner})
    else:
        print(runner)
    return 0


@_command
def adr_queue(given: Arguments) -> int:
    """Queue a batch: bundle the input files, and one job for each; print the batch id.

    Usage:
      adr queue [options] [--store=REGEX]... [--exclude=PATTERN]... [--env=VAR]...
                [--] [<file>]... [<runner>]

    The last argument is the runner if it is the id of one and no file, or the
    folder of a local runner.

    Options:
      <job options>
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
    with output.progress(given.flag("--quiet")) as progress:
        report = core.queue_plan(runner, plan, given.text("--region"), progress=progress)
    if not given.flag("--quiet"):
        resumed = f"went on with batch {report.batch}, whose queueing had been cut off"
        for line in [resumed] if report.resumed else output.bundle_lines(plan):
            output.say(line)
    if given.flag("--json"):
        output.print_json(
            {
                "runner": runner,
                "batch": report.batch,
                "jobs": report.jobs,
                "resumed": report.resumed,
                "bundle_bytes": report.bundle_bytes,
            }
        )
    else:
        print(report.batch)
    return 0


@_command
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
      <runner options>
      <general options>
    """
    from adr import adr as core

    slots = given.whole("--slots")
    report = core.process(
        runner_of(given),
        given.required("--workingdir"),
        given.text("--region"),
        given.flag("--stop-on-empty"),
        slots=slots,
    )
    if not given.flag("--quiet"):
        output.say(
            f"{output.count(report.succeeded, 'job')} succeeded, {report.failed:,} failed, "
            f"{report.cancelled:,} cancelled"
        )
    return 0


@_command
def adr_status(given: Arguments) -> int:
    """Show what became of every job, and who works.

    Usage:
      adr status [options]

    Options:
      --jobs                 Show each job as well
      --batch=BATCH          Only this batch
      --json                 Print JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    jobs = given.flag("--jobs")
    status = core.status(runner_of(given), given.text("--region"), batch=given.text("--batch"))
    if given.flag("--json"):
        output.print_json(status.to_dict(jobs))
    else:
        output.print_status(status, jobs)
    return 0


@_command
def adr_logs(given: Arguments) -> int:
    """Write the output of a job to standard output, byte by byte as it was.

    Usage:
      adr logs [options] [--] <job>

    The job is <batch>/<job>, or <job> alone in the newest batch that has it.

    Options:
      <runner options>
      <general options>
    """
    from adr import adr as core

    for chunk in core.logs(runner_of(given), given.required("<job>"), given.text("--region")):
        sys.stdout.buffer.write(chunk)
    return 0


@_command
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
    with output.progress(given.flag("--quiet")) as progress:
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
        output.say(output.fetch_summary(report))
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


@_command
def adr_list(given: Arguments) -> int:
    """List runners, the current one with a star; or the workers of one runner.

    Usage:
      adr list [options] [--] [<runner>]

    Options:
      --json                 Print JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    if given.text("<runner>") or given.text("--runner"):
        status = core.status(runner_of(given), given.text("--region"))
        if given.flag("--json"):
            workers = [worker.to_dict() for worker in status.workers]
            output.print_json({"runner": status.runner, "workers": workers})
        else:
            output.print_workers(status.workers)
        return 0
    return _list_runners(given)


@_command
def adr_set(given: Arguments) -> int:
    """Choose the current runner; without one, list those there are.

    Usage:
      adr set [options] [--] [<runner>]

    Options:
      --json                 Print JSON
      <runner options>
      <general options>
    """
    from adr import config
    from adr.runner import is_local_runner, is_runner_id

    if not (given.text("<runner>") or given.text("--runner")):
        return _list_runners(given)
    runner = runner_of(given)
    if not (is_runner_id(runner) or is_local_runner(runner)):
        raise UsageError(f"{runner!r} is no runner: adr list shows those there are")
    config.update_config("runner", runner)
    if given.flag("--json"):
        output.print_json({"runner": runner})
    return 0


@_command
def adr_config(given: Arguments) -> int:
    """Answer the questions of the configuration wizard; Enter keeps a value.

    Usage:
      adr config [options]

    Options:
      <general options>
    """
    from adr import config

    config.wizard()
    return 0


@_command
def adr_destroy(given: Arguments) -> int:
    """Destroy a runner: its queue and its inputs; results and their records are kept.

    Usage:
      adr destroy [options] [--] [<runner>]

    Workers notice within seconds. What they wrote of a purged batch meanwhile is
    removed by the same command again.

    Options:
      --batch=BATCH          Only this batch
      --purge                Remove results and records as well
      --yes                  Ask nothing
      --json                 Print the outcome as JSON
      <runner options>
      <general options>
    """
    from adr import adr as core

    runner, batch, purge = runner_of(given), given.text("--batch"), given.flag("--purge")
    what = f"batch {batch} of runner {runner}" if batch else f"runner {runner}"
    if not given.flag("--yes"):
        kept = "with all its results" if purge else "but not its results"
        question = f"Destroy {output.plain(what)}, {kept}? There is no undo."
        refusal = f"not destroyed {what}, as there is no terminal to ask on: confirm with --yes"
        if not output.confirm(question, refusal):
            output.say("nothing has been destroyed")
            return 1
    with output.progress(given.flag("--quiet")) as progress:
        core.destroy(runner, given.text("--region"), batch=batch, purge=purge, progress=progress)
    before = configured_runner()
    current = before if batch else _current_after(given, runner)
    if not given.flag("--quiet"):
        output.say(f"destroyed {output.plain(what)}")
        if current != before:
            output.say(f"the current runner is now {output.plain(current or 'none')}")
    if given.flag("--json"):
        output.print_json({"runner": runner, "batch": batch, "purged": purge, "current": current})
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
        timeout=given.seconds("--timeout"),
        attempts=given.whole("--attempts") or 1,
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


def _list_runners(given: Arguments) -> int:
    from adr import adr as core

    current = configured_runner()
    runners = core.list_runners(given.text("--region"))
    stars = [current is not None and same_runner(info.runner, current) for info in runners]
    if given.flag("--json"):
        rows = zip(runners, stars, strict=True)
        output.print_json({"runners": [output.runner_data(info, star) for info, star in rows]})
        return 0
    for info, star in zip(runners, stars, strict=True):
        print(("* " if star else "  ") + output.runner_line(info))
    if not runners:
        output.say("there are no runners: adr create makes one")
    return 0


def _current_after(given: Arguments, destroyed: str) -> str | None:
    """Make another live runner the current one, where the current one was destroyed."""
    from adr import adr as core
    from adr import config
    from adr.runner import is_runner_id

    current = configured_runner()
    if current is None or not same_runner(current, destroyed):
        return current
    # Unset first: whatever happens next, the configuration must not name what is gone.
    config.update_config("runner", None)
    try:
        # After a local runner comes another local one: AWS has no part in this.
        local = not is_runner_id(destroyed)
        runners = core.list_runners(given.text("--region"), local=local)
    except AdrError as error:
        _log.warning("no other runner becomes the current one: %s", error)
        return None
    live = [info.runner for info in runners if not info.results_only]
    following = next((each for each in live if not same_runner(each, destroyed)), None)
    if following:
        config.update_config("runner", following)
    return following
