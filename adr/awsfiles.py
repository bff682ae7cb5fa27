"""Edit the files of the AWS CLI as text, so that all that is not changed stays as it was.

Pure functions for `adr.config`, which finds, reads and writes the files. `configparser`, with
which botocore reads them, would lose the comments and the layout of their owner when it wrote
them. So its rules are followed here line by line: a line that is indented deeper than the
option above continues it, and blank lines and comments end nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

__all__ = ["edit_section", "profile_of"]


def profile_of(header: str) -> str | None:
    """Return the profile that a section of ``~/.aws/config`` holds, None where it holds none.

    Parameters
    ----------
    header : str
        Header of the section without its brackets.
    """
    if header == "default":
        return header
    try:
        words = shlex.split(header)
    except ValueError:
        return None
    return words[1] if len(words) == 2 and words[0] == "profile" else None


def edit_section(
    text: str, header: str, wanted: Callable[[str], bool], values: Mapping[str, str | None]
) -> str:
    """Set options in a section and leave everything else as it is.

    Parameters
    ----------
    text : str
        Content of the file.
    header : str
        Header of the section that is added where there is none, without its brackets.
    wanted : callable
        Tell by the header whether a section is the one; of several the last, as for botocore.
    values : mapping
        Options and their values, free of line breaks; None removes the option.

    Returns
    -------
    str
        New content of the file.
    """
    lines = text.split("\n")
    options: dict[str, list[int]] = {}
    last, margin = -1, ""
    inside, key, level = False, "", 0
    for number, line in enumerate(lines):
        bare = line.strip()
        if not bare or bare[0] in "#;":
            continue
        indent = len(line) - len(line.lstrip())
        if not key or indent <= level:
            level = indent
            if bare[0] == "[" and "]" in bare[2:]:
                inside, key = wanted(bare[1 : bare.rindex("]")]), ""
                options = {} if inside else options
            else:
                key = bare.replace(":", "=").partition("=")[0].rstrip().lower()
            margin = line[:indent] if inside else margin
        if inside:
            last = number
            options.setdefault(key, []).append(number)
    given = {name: value for name, value in values.items() if value is not None}
    if last < 0:
        before = [text.rstrip("\n"), ""] if text.strip() else []
        new = [f"{name} = {value}" for name, value in given.items()]
        return "\n".join([*before, f"[{header}]", *new, ""])
    replaced: dict[int, list[str]] = {}
    for name in values:
        for number in options.get(name, []):
            replaced[number] = []
    missing = []
    for name, value in given.items():
        if name in options:
            first = options[name][0]
            own = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
            replaced[first] = [f"{own}{name} = {value}"]
        else:
            missing.append(f"{margin}{name} = {value}")
    replaced[last] = [*replaced.get(last, [lines[last]]), *missing]
    return "\n".join(
        each for number, line in enumerate(lines) for each in replaced.get(number, [line])
    )
