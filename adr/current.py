"""Which runner a command line means: one that it names, or the current one."""

from __future__ import annotations

import os

from adr.errors import UsageError
from adr.options import Arguments

__all__ = [
    "address",
    "configured_runner",
    "current_runner",
    "is_runner",
    "runner_of",
    "same_runner",
]


def configured_runner() -> str | None:
    """Return the current runner."""
    from adr import config

    runner: str | None = config.load_config("runner")
    return runner


def current_runner() -> str:
    """Return the current runner, which there has to be.

    Raises
    ------
    UsageError
        If there is none.
    """
    runner = configured_runner()
    if runner is None:
        raise UsageError(
            "there is no current runner: make one with adr create, choose one with adr set, "
            "or name one with --runner=ID"
        )
    return runner


def runner_of(given: Arguments) -> str:
    """Return the runner that is named as an option or a word, or else the current one.

    Raises
    ------
    UsageError
        If there is none, or two are named.
    """
    option, word = given.text("--runner"), given.text("<runner>")
    if option and word and not same_runner(option, word):
        raise UsageError(f"two runners are named, {option} and {word}: name one")
    named = option or word
    return address(named) if named else current_runner()


def address(text: str) -> str:
    """Return the id that a name of a runner stands for: of a folder its absolute path."""
    from adr.runner import is_local_runner, is_runner_id

    return os.path.abspath(text) if is_local_runner(text) and not is_runner_id(text) else text


def is_runner(text: str) -> bool:
    """Tell whether a word can only be a runner: an id that is no file, or a local runner."""
    from adr.runner import is_local_runner, is_runner_id

    return is_local_runner(text) or (is_runner_id(text) and not os.path.lexists(text))


def same_runner(one: str, other: str) -> bool:
    """Tell whether two names are of one runner; a folder may be named in several ways."""
    return os.path.realpath(one) == os.path.realpath(other)
