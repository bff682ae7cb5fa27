"""How the console reads its command line: strict options around docopt, values as sentences.

A command's help is its grammar, and docopt matches it. Before that, `parse` goes through the
words itself, for what docopt does otherwise than adr promises: docopt-ng takes any unique
prefix of an option for the option, reads ``-0`` as a number, knows ``--`` only in front of
the first file, and answers wrong usage with the bare usage text.

Its neighbours are the commands, which ask an `Arguments` for typed values, and `adr.current`,
which knows what runner is meant. Help comes this way as well: what only values need is
imported where they are read.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from adr.errors import UsageError

__all__ = [
    "Arguments",
    "asks_help",
    "nearest",
    "parse",
    "split",
]

#: What means something else where it is left out: an unset variable of the shell is to be
#: noticed before the wrong thing is, say, destroyed.
_NAMES = (
    "--runner",
    "<runner>",
    "--region",
    "--dir",
    "--batch",
    "--job",
    "--root",
    "--hosts",
    "--worker",
)


class Arguments(NamedTuple):
    """Give the values of one command line, by the names its help uses."""

    values: Mapping[str, Any]

    def text(self, name: str) -> str | None:
        """Return a value as it was given, None where it was not."""
        value: str | None = self.values.get(name)
        return value

    def required(self, name: str) -> str:
        """Return a value that has to be there and not be empty.

        Raises
        ------
        UsageError
            If it is empty, as an unset variable of the shell would leave it.
        """
        text = self.text(name)
        if not text:
            raise UsageError(f"{name} is empty: give it a value")
        return text

    def texts(self, name: str) -> list[str]:
        """Return all values of what can be repeated."""
        return list(self.values[name])

    def jobs(self) -> list[str]:
        """Return the jobs that are named, none of them empty as an unset variable would be.

        Raises
        ------
        UsageError
            If one is.
        """
        names = self.texts("<job>")
        if not all(names):
            raise UsageError("<job> is empty: give it a value, or leave it out")
        return names

    def flag(self, name: str) -> bool:
        """Tell whether an option without a value was given."""
        return bool(self.values[name])

    def whole(self, name: str, most: int = 1000) -> int | None:
        """Return a whole number from 1 to `most`.

        Raises
        ------
        UsageError
            If it is anything else.
        """
        text = self.text(name)
        if text is None:
            return None
        # Python refuses to read numbers of thousands of digits.
        digits = text.lstrip("0") if _is_number(text) else ""
        if not digits:
            raise UsageError(f"{name} takes a whole number from 1 up, not {text!r}")
        if len(digits) > 9 or int(digits) > most:
            raise UsageError(f"{name} takes at most {most:,}, not {_shortened(digits)}")
        return int(digits)

    def number(self, name: str, unit: str) -> float | None:
        """Return a positive number of `unit`, such as ``"seconds"``.

        Raises
        ------
        UsageError
            If it is anything else.
        """
        text = self.text(name)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UsageError(f"{name} takes a number of {unit} above 0, not {text!r}")
        return value

    def listed(self, name: str) -> list[str] | None:
        """Return the parts between commas, None where the option was not given.

        Raises
        ------
        UsageError
            If one of them is empty.
        """
        text = self.text(name)
        if text is None:
            return None
        parts = [part.strip() for part in text.split(",")]
        if not all(parts):
            raise UsageError(f"{name} takes names with commas between them, not {text!r}")
        return parts

    def codes(self, name: str) -> tuple[int, ...]:
        """Return the exit codes between commas, none where the option was not given.

        Raises
        ------
        UsageError
            If one of them is none.
        """
        text = self.text(name)
        if text is None:
            return ()
        from adr.joblimits import read_codes

        return read_codes(text.split(","), name)

    def level(self) -> int:
        """Return the logging level of ``--verbose``, at least that of errors with ``--quiet``.

        Raises
        ------
        UsageError
            If it is neither a number nor the name of a level.
        """
        import logging

        text = self.text("--verbose") or ""
        level = int(text[:9]) if _is_number(text) else logging.getLevelName(text.upper())
        if not isinstance(level, int):
            raise UsageError(
                f"--verbose takes a logging level such as 10, 20, 30, DEBUG or INFO, not {text!r}"
            )
        # Level 0 would stand for that of the root logger.
        return max(level, logging.ERROR if self.flag("--quiet") else 1)

    def environment(self) -> dict[str, str]:
        """Return the variables that ``--env`` names.

        Raises
        ------
        UsageError
            If a name is none, or has no value here.
        """
        found = {}
        for text in self.texts("--env"):
            name, equals, value = text.partition("=")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise UsageError(f"--env takes NAME=VALUE or NAME, not {text!r}")
            if not equals and name not in os.environ:
                raise UsageError(f"--env={name}: {name} has no value here; give it as {name}=VALUE")
            found[name] = value if equals else os.environ[name]
        return found

    def files(self) -> list[str]:
        """Return the input files: those named and those that ``--files-from`` lists.

        Raises
        ------
        UsageError
            If the list cannot be read.
        """
        names = self.texts("<file>")
        source = self.text("--files-from")
        if source is None:
            if self.flag("--null"):
                raise UsageError("-0 says how --files-from separates files: give that as well")
            return names
        try:
            if source == "-":
                listed = sys.stdin.buffer.read()
            else:
                with open(source, "rb") as file:
                    listed = file.read()
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"--files-from={source} cannot be read: {reason}") from error
        lines = listed.split(b"\0" if self.flag("--null") else b"\n")
        return names + [os.fsdecode(line) for line in lines if line.strip()]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _shortened(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:20]}..."


def asks_help(argv: Sequence[str]) -> bool:
    """Tell whether a command line asks for help, whatever else is right or wrong with it."""
    words = list(argv)
    options = words[: words.index("--")] if "--" in words else words
    return "-h" in options or "--help" in options


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``": did you mean X?"`` for the known word that is most like `word`, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f": did you mean {close[0]}?" if close else ""


def split(
    command: str, doc: str, argv: Sequence[str], *, until_word: bool = False
) -> tuple[list[str], list[str]]:
    """Separate the options that a help text declares from the other words.

    Parameters
    ----------
    command : str
        The command as it is typed, ``adr run``.
    doc : str
        Its help.
    argv : sequence of str
        The words after it.
    until_word : bool, optional
        Leave everything from the first other word on alone.

    Returns
    -------
    tuple of list
        Options in their long form, with ``=`` before a value; and the other words.

    Raises
    ------
    UsageError
        If an option is not declared exactly so, or lacks a value, or has one too many.
    """
    takes, long_form = _declared(doc)
    options: list[str] = []
    words: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        if token == "--":
            words.extend(tokens)
        elif token == "-" or not token.startswith("-"):
            words.append(token)
            if until_word:
                words.extend(tokens)
        else:
            name, equals, value = _cut(token, takes, long_form)
            if name not in takes:
                raise _wrong(command, _unknown(name, takes))
            metavar = takes[name]
            if metavar and not equals:
                following = next(tokens, "--")
                if following == "--" or following in takes:
                    raise _wrong(command, f"{name} needs a value, {name}={metavar}")
                value = following
            elif equals and not metavar:
                raise _wrong(command, f"{name} takes no value")
            options.append(f"{name}={value}" if metavar else name)
    return options, words


def parse(command: str, doc: str, argv: Sequence[str]) -> Arguments:
    """Read the words after a command by the grammar in its help.

    Parameters
    ----------
    command : str
        The command as it is typed, ``adr run``.
    doc : str
        Its help.
    argv : sequence of str
        The words after it.

    Raises
    ------
    UsageError
        If they do not follow it; in words, with a hint to the help.
    """
    from docopt import DocoptExit, docopt

    options, words = split(command, doc, argv)
    problem = _problem(doc, options, words)
    if problem:
        raise _wrong(command, problem)
    tokens = [command.rpartition(" ")[2], *options, *(["--", *words] if words else [])]
    try:
        values = docopt(doc, tokens, default_help=False)
    except DocoptExit:
        raise _wrong(command, f"this is not how {command} is used") from None
    for name in _NAMES:
        if values.get(name) == "":
            raise UsageError(f"{name} is empty: give it a value, or leave it out")
    return Arguments(values)


def _cut(
    token: str, takes: Mapping[str, str], long_form: Mapping[str, str]
) -> tuple[str, str, str]:
    """Cut an option into its long name, the ``=`` if there is a value, and the value."""
    name, equals, value = token.partition("=")
    short = long_form.get(token[:2])
    if short and takes[short] and len(token) > 2:
        return short, "=", token[2:].removeprefix("=")
    return long_form.get(name, name), equals, value


def _declared(doc: str) -> tuple[dict[str, str], dict[str, str]]:
    takes: dict[str, str] = {}
    long_form: dict[str, str] = {}
    for short, long, metavar in re.findall(
        r"^  (?:(-\w)(?: \w+)?, )?(--[\w-]+)(?:=(\S+))?", doc, re.M
    ):
        takes[long] = metavar
        if short:
            long_form[short] = long
    return takes, long_form


def _unknown(name: str, known: Iterable[str]) -> str:
    meant = nearest(name, known)
    if not meant and not name.startswith("--"):
        meant = ", and a file whose name begins with a dash goes after --"
    return f"there is no option {name}{meant}"


def _problem(doc: str, options: list[str], words: list[str]) -> str:
    """Say in words what docopt would only refuse."""
    usage = re.split(r"\n\s*\n", doc.partition("Usage:")[2], maxsplit=1)[0]
    needed = re.sub(r"\[[^][]*\]", "", usage)
    names = [option.partition("=")[0] for option in options]
    for name in names:
        if names.count(name) > 1 and not re.search(rf"\[{name}=\w+\]\.\.\.", usage):
            return f"{name} is given {names.count(name)} times, where it counts once"
    for option in re.findall(r"--[\w-]+=\w+", needed):
        if option.partition("=")[0] not in names:
            return f"{option} is missing"
    places = re.findall(r"<\w+>", needed)
    if len(words) < len(places):
        return f"{places[len(words)]} is missing"
    most = len(re.findall(r"<\w+>", usage))
    if len(words) > most and not re.search(r"<\w+>\]?\.\.\.", usage):
        return f"{words[most]!r} is one argument too many"
    return ""


def _wrong(command: str, sentence: str) -> UsageError:
    return UsageError(f"{sentence}{'' if sentence.endswith('?') else ';'} see {command} --help")
