"""From the paths of inputs to the commands and the labels of their jobs.

The syntax of commands is that of GNU parallel. A command is text for bash, so every value is
quoted for the shell, and all other braces (``${HOME}``, ``awk '{print}'``) are left as they
stand. The price of quoting is that a placeholder must not itself stand within quotes.
"""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

__all__ = ["expand", "labels"]

_PLACEHOLDER = re.compile(r"\{(|\.|/|//|/\.|#)\}")
#: After one of these a value goes on a word, so that its dash cannot begin an option.
_WITHIN_A_WORD = re.compile(r"[\w./}:,@%+-]\Z")


def expand(template: str, path: str, number: int) -> str:
    """Put the path of an input into a command template.

    ===== ==========================================
    {}    the path
    {.}   the path without its extension
    {/}   its base name
    {//}  its folder, ``.`` where it has none
    {/.}  its base name without extension
    {#}   the number of the job
    ===== ==========================================

    A template without any of these gets the path appended. A value that begins with a dash
    is written as ``./-…`` where it would be taken for an option.

    Parameters
    ----------
    template : str
        Shell command.
    path : str
        Path relative to the root, as `os.fsdecode` gives it; bytes that are not UTF-8 survive.
    number : int
        Number of the job in its batch, from 1.

    Returns
    -------
    str
        Shell command.

    Examples
    --------
    >>> expand("model {} > {/.}.out", "cases/my run.txt", 3)
    "model 'cases/my run.txt' > 'my run'.out"
    """
    if not _PLACEHOLDER.search(template):
        template = template.rstrip() + " {}"
    folder, base = os.path.split(path)
    values = {
        "": path,
        ".": os.path.splitext(path)[0],
        "/": base,
        "//": folder or ".",
        "/.": os.path.splitext(base)[0],
        "#": str(number),
    }

    def value(match: re.Match[str]) -> str:
        text = values[match[1]]
        if text.startswith("-") and not _WITHIN_A_WORD.search(template[: match.start()]):
            text = "./" + text
        return shlex.quote(text)

    return _PLACEHOLDER.sub(value, template)


def labels(paths: Sequence[str]) -> list[str]:
    """Name the jobs of a batch for people.

    A label is the path without its extension; with it where two labels would be equal
    (ignoring case) or one would be a folder of another; else the number of the job. So
    it is also where the job's results can lie beside those of the others.

    Parameters
    ----------
    paths : sequence of str
        Distinct paths of the inputs relative to the root, in the order of the jobs.

    Returns
    -------
    list of str
        One label a path, distinct even where case is ignored.

    Examples
    --------
    >>> labels(["a.txt", "b.txt", "b.csv"])
    ['a', 'b.txt', 'b.csv']
    """
    shortest = [_forms(path, number)[0] for number, path in enumerate(paths, 1)]
    taken = set(map(_folded, shortest))
    if len(taken) == len(paths) and taken.isdisjoint(f for key in taken for f in _folders(key)):
        # Mostly none clashes with another, and there may be very many.
        return shortest
    return _Labels(paths).settle()


class _Labels:
    """Give every path its best form that is free, going back on forms that turn out to clash."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.forms = [_forms(path, number) for number, path in enumerate(paths, 1)]
        self.at: dict[str, set[int]] = defaultdict(set)
        self.below: dict[str, set[int]] = defaultdict(set)

    def settle(self) -> list[str]:
        for job in range(len(self.forms)):
            self._place(job)
        pending = list(reversed(range(len(self.forms))))
        while pending:
            job = pending.pop()
            yielding = self._yielding(job)
            for other in yielding:
                self._remove(other)
                self.forms[other].pop(0)
                self._place(other)
            if yielding:
                pending += [job, *yielding]
        return [forms[0] for forms in self.forms]

    def _yielding(self, job: int) -> list[int]:
        """Return who must take another form so that this job can keep its own; maybe itself."""
        key = _folded(self.forms[job][0])
        if len(self.at[key]) > 1:
            return [other for other in self.at[key] if self._can_yield(other)]
        if self.below.get(key):
            return [job] if self._can_yield(job) else list(self.below[key])
        for folder in _folders(key):
            for other in self.at.get(folder, ()):
                return [other] if self._can_yield(other) else [job]
        return []

    def _can_yield(self, job: int) -> bool:
        return len(self.forms[job]) > 1

    def _place(self, job: int) -> None:
        key = _folded(self.forms[job][0])
        self.at[key].add(job)
        for folder in _folders(key):
            self.below[folder].add(job)

    def _remove(self, job: int) -> None:
        key = _folded(self.forms[job][0])
        self.at[key].remove(job)
        for folder in _folders(key):
            self.below[folder].remove(job)


def _forms(path: str, number: int) -> list[str]:
    """Return the labels that a path may have, the best first."""
    forms = (os.path.splitext(path)[0], path)
    return [*filter(_is_presentable, forms), str(number)]


def _is_presentable(label: str) -> bool:
    """Tell whether a label can be shown and typed, and used as a folder of results."""
    return (
        label.isprintable()
        and ".." not in label
        and not label.startswith("./")
        and not _folded(label).startswith(".adr")
    )


def _folded(label: str) -> str:
    # File systems of macOS ignore case and the two ways to write an accent.
    return unicodedata.normalize("NFC", label.casefold())


def _folders(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):
        yield path
