"""What makes a function a command: its docstring is its help and its grammar.

A command reads its words (`adr.options`), makes one call to `adr.adr` and shows the result
(`adr.output`). The core is imported inside the commands, so that help is instant.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from adr import output
from adr.helptexts import complete
from adr.options import Arguments, asks_help, parse

__all__ = ["Command", "command", "telling_if_interrupted"]

Command = Callable[[Sequence[str] | None], int]


def command(function: Callable[[Arguments], int]) -> Command:
    """Make a function of its arguments a command of its words."""
    name = function.__name__.removeprefix("adr_")
    doc = complete(function.__doc__ or "")

    @functools.wraps(function)
    def run(argv: Sequence[str] | None = None) -> int:
        words = sys.argv[2:] if argv is None else argv
        if asks_help(words):
            print(doc.strip())
            return 0
        from adr.commands.logs import log_from

        given = parse(f"adr {name}", doc, words)
        log_from(given.level())
        return function(given)

    run.__doc__ = doc
    # Documentation shows the signature of the command, not of what is wrapped.
    del run.__wrapped__
    return run


@contextmanager
def telling_if_interrupted(sentence: str) -> Iterator[None]:
    """Say what Ctrl-C leaves behind of work that goes on elsewhere."""
    try:
        yield
    except KeyboardInterrupt:
        output.say(f"adr: {sentence}")
        raise
