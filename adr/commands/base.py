"""What makes a function a command: its docstring is its help and its grammar.

A command reads its words (`adr.options`), makes one call to `adr.adr` and shows the result
(`adr.output`). The core is imported inside the commands, so that help is instant.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from adr import output
from adr.helptexts import complete
from adr.options import Arguments, asks_help, parse

__all__ = ["COMMANDS", "Command", "Handler", "command", "telling_if_interrupted"]

Command = Callable[[Sequence[str] | None], int]
#: Every command by its name.
COMMANDS: dict[str, Command] = {}


class Handler(logging.Handler):
    """Write to what is standard error at the moment: a live bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            output.say(output.plain(self.format(record), keep="\n\t"))
        except Exception:
            self.handleError(record)


def command(function: Callable[[Arguments], int]) -> Command:
    """Make a function of its arguments a command of its words, and register it."""
    name = function.__name__.removeprefix("adr_")
    doc = complete(function.__doc__ or "")

    @functools.wraps(function)
    def run(argv: Sequence[str] | None = None) -> int:
        words = sys.argv[2:] if argv is None else argv
        if asks_help(words):
            print(doc.strip())
            return 0
        given = parse(f"adr {name}", doc, words)
        _log_from(given.level())
        return function(given)

    run.__doc__ = doc
    # Documentation shows the signature of the command, not of what is wrapped.
    del run.__wrapped__
    COMMANDS[name] = run
    return run


@contextmanager
def telling_if_interrupted(sentence: str) -> Iterator[None]:
    """Say what Ctrl-C leaves behind of work that goes on elsewhere."""
    try:
        yield
    except KeyboardInterrupt:
        output.say(f"adr: {sentence}")
        raise


def _log_from(level: int) -> None:
    logger = logging.getLogger("adr")
    logger.setLevel(level)
    if not any(isinstance(each, Handler) for each in logger.handlers):
        handler = Handler()
        handler.setFormatter(logging.Formatter("adr: %(levelname)s: %(message)s"))
        logger.addHandler(handler)
