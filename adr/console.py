"""The command line: finds the command, and turns every error into a sentence and an exit status.

The commands themselves stand in `adr.commands`. Data goes to standard output, everything else
to standard error. Exit status: 0 done; 1 the operation or a job failed; 2 wrong usage; 3 not
done in time; 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from adr import output
from adr.errors import AdrError, UsageError
from adr.helptexts import complete
from adr.options import nearest, split

if TYPE_CHECKING:
    from adr.commands.base import Command
    from adr.commands.control import (
        adr_cancel,
        adr_failures,
        adr_pause,
        adr_resume,
        adr_wait,
    )
    from adr.commands.fleets import adr_launch, adr_prepare, adr_start, adr_stop
    from adr.commands.jobs import (
        adr_download,
        adr_logs,
        adr_process,
        adr_queue,
        adr_run,
        adr_status,
    )
    from adr.commands.retry import adr_retry
    from adr.commands.runners import adr_config, adr_create, adr_destroy, adr_list, adr_set

__all__ = [
    "adr_cancel",
    "adr_config",
    "adr_console",
    "adr_create",
    "adr_destroy",
    "adr_download",
    "adr_failures",
    "adr_launch",
    "adr_list",
    "adr_logs",
    "adr_pause",
    "adr_prepare",
    "adr_process",
    "adr_queue",
    "adr_resume",
    "adr_retry",
    "adr_run",
    "adr_set",
    "adr_start",
    "adr_status",
    "adr_stop",
    "adr_wait",
    "main",
]

_OBJECTS_PER_LOOK = 20_000

#: The module of each command. It is imported for that command alone, so that help is instant.
_COMMANDS = {
    "run": "jobs",
    "create": "runners",
    "queue": "jobs",
    "process": "jobs",
    "status": "jobs",
    "wait": "control",
    "failures": "control",
    "logs": "jobs",
    "retry": "retry",
    "download": "jobs",
    "destroy": "runners",
    "cancel": "control",
    "pause": "control",
    "resume": "control",
    "launch": "fleets",
    "prepare": "fleets",
    "stop": "fleets",
    "start": "fleets",
    "list": "runners",
    "set": "runners",
    "config": "runners",
}
#: Beside the commands, the modules that write to standard output.
_WRITERS = (__name__, "adr.output", "adr.hostoutput", "adr.screen")
_ISSUES = "https://github.com/openearth/amazon-distributed-runner/issues"


def __getattr__(name: str) -> Any:
    command = name.removeprefix("adr_")
    if command == name or command not in _COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"adr.commands.{_COMMANDS[command]}"), name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; every error becomes one sentence.

    Parameters
    ----------
    argv : sequence of str, optional
        Words after ``adr``, those of the process by default.
    """
    # Python looks through all objects for circles after every 700 new ones, which takes a fifth of
    # the time where there are very many, and there are hardly any circles here.
    gc.set_threshold(_OBJECTS_PER_LOOK)
    # As Python ends, it looks through all that is left for what is not used any more.
    atexit.register(gc.freeze)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Python has none for a closed descriptor, whose number the next file would get.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        # A name that the locale cannot write must not end a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = adr_console(argv)
        sys.stdout.flush()
        return status
    except AdrError as error:
        output.say(f"adr: {output.plain(error)}")
        _log_where("where this was noticed")
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
        _log_where("internal error")
        return 1


def _log_where(what: str) -> None:
    """Log the traceback of the error that is being handled."""
    import logging

    logging.getLogger(__name__).debug(what, exc_info=True)


def _is_of_output(error: OSError) -> bool:
    """Tell whether an error was raised by writing in a command or its output, not in the core."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__")) if trace else ""
    return module in _WRITERS or module.startswith("adr.commands.")


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
      adr wait       Wait until every job is decided
      adr failures   Show which jobs failed, those together that failed alike
      adr logs       Show the output of a job
      adr retry      Queue jobs again that did not succeed
      adr download   Download results
      adr destroy    Destroy a runner, keep its results

    While they run:
      adr cancel     Call jobs off
      adr pause      Let no worker begin another job
      adr resume     Let workers go on

    Fleets, which process jobs on machines that adr starts and ends:
      adr launch     Launch workers: on EC2, on hosts of your own, or here
      adr prepare    Install adr on hosts over SSH and start their workers
      adr stop       Stop workers and their instances
      adr start      Start them again

    Settings:
      adr list       List runners, or the hosts of one
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
    command: Command = __getattr__(f"adr_{name}")
    return command([*options, *rest])


adr_console.__doc__ = complete(adr_console.__doc__)
