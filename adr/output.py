"""How the console shows things: text for people, JSON for programs.

Data goes to standard output: ids, tables, JSON. What is only said to people, summaries and
progress, goes to standard error. A table is plain aligned columns, so that 100,000 jobs
print in a second and can be searched.

Beside it: `adr.joboutput` shows what became of jobs, `adr.hostoutput` shows hosts,
`adr.progressbar` how far work is, `adr.screen` redraws.

Names and job output come from anywhere: `plain` shows their control characters instead of
sending them to the terminal.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from adr.batch import BatchPlan
    from adr.lifecycle import RunnerInfo

__all__ = [
    "bundle_lines",
    "clip",
    "confirm",
    "count",
    "duration_text",
    "need_terminal",
    "plain",
    "plan_data",
    "plan_lines",
    "print_json",
    "print_table",
    "runner_data",
    "runner_line",
    "say",
    "size_text",
    "table_lines",
    "to_nowhere",
]

_SHOWN_NAMES = 5


def plain(text: object, keep: str = "") -> str:
    """Return text in which control characters and undecodable bytes are written as escapes.

    Parameters
    ----------
    keep : str, optional
        Control characters to leave as they are.
    """
    return "".join(
        letter if letter.isprintable() or letter in keep else _escaped(letter)
        for letter in str(text)
    )


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def count(number: int, noun: str) -> str:
    """Return a number with its noun, ``1 job`` or ``1,200 jobs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_text(size_bytes: float) -> str:
    """Return a size in decimal units, such as ``12.3 kB``."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        size_bytes /= 1000
        if size_bytes < 999.5 or unit == "TB":
            break
    return f"{size_bytes:.{1 if size_bytes < 99.95 else 0}f} {unit}"


def duration_text(seconds: float) -> str:
    """Return a duration by its two largest units, such as ``2 min 5 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for length, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // smaller} {part}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def say(text: str) -> None:
    """Tell people something, on standard error; where nothing can be written, nobody is told."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        to_nowhere(sys.stderr)


def to_nowhere(stream: TextIO) -> None:
    """Drop what is still to be written to a stream that takes nothing more.

    Python would try again, and complain, at its exit.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object, all ASCII: undecodable bytes in names stay surrogate escapes."""
    # Imported only here: most of what is shown is not JSON, and help has to be instant.
    import json

    from adr.models import SCHEMA

    print(json.dumps({"schema": SCHEMA, **data}))


def confirm(question: str, refusal: str) -> bool:
    """Ask a question that the terminal answers with yes or no; no is the default.

    Raises
    ------
    UsageError
        With `refusal`, where no terminal could answer.
    """
    need_terminal(refusal)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def need_terminal(refusal: str) -> None:
    """Raise `UsageError` with `refusal`, where no terminal could answer a question."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        from adr.errors import UsageError

        raise UsageError(refusal)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns; numbers stand to the right."""
    for line in table_lines(header, rows):
        print(line)


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Align columns; numbers stand to the right."""
    lines = [[plain(cell) for cell in row] for row in rows]
    right = [bool(lines) and all(_is_number(line[n]) for line in lines) for n in range(len(header))]
    widths = [max(map(_width, column)) for column in zip(header, *lines, strict=True)]
    for line in [list(header), *lines]:
        cells = []
        for cell, width, to_right in zip(line, widths, right, strict=True):
            space = " " * (width - _width(cell))
            cells.append(space + cell if to_right else cell + space)
        yield "  ".join(cells).rstrip()


def clip(text: str, width: int) -> str:
    """Cut text to so many columns of a terminal, and show that by its last one."""
    if _width(text) <= width:
        return text
    kept, used = "", 0
    for letter in text:
        used += _width(letter)
        if used > width - 1:
            break
        kept += letter
    return kept + "…" if width > 0 else ""


def _is_number(text: str) -> bool:
    return not text or text.replace(",", "").isdigit()


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(letter)
        else 2
        if unicodedata.east_asian_width(letter) in "WF"
        else 1
        for letter in text
    )


def bundle_lines(plan: BatchPlan) -> Iterator[str]:
    """Say what a bundle takes and what it leaves out."""
    took = f"{count(len(plan.files), 'file')}, {size_text(plan.size_bytes)}"
    text = f"bundled {took} from {plain(plan.root)}"
    if plan.left_out:
        text += f"; left out {count(len(plan.left_out), 'file')} ({size_text(plan.left_out_bytes)})"
    if plan.inputs_left_out:
        names = plain(", ".join(plan.inputs_left_out[:_SHOWN_NAMES]))
        more = ", ..." if len(plan.inputs_left_out) > _SHOWN_NAMES else ""
        text += f", among them of the kind of the inputs: {names}{more}"
    yield text
    for sentence in plan.refused[:_SHOWN_NAMES]:
        yield f"left out: {plain(sentence)}"
    if len(plan.refused) > _SHOWN_NAMES:
        yield f"and {len(plan.refused) - _SHOWN_NAMES:,} more that cannot be bundled"
    if plan.duplicates:
        yield f"{count(plan.duplicates, 'file')} named more than once, each queued once"


def plan_lines(plan: BatchPlan) -> Iterator[str]:
    """Describe what would be queued."""
    yield f"root      {plain(plan.root)}"
    yield f"bundle    {count(len(plan.files), 'file')}, {size_text(plan.size_bytes)}"
    yield f"left out  {count(len(plan.left_out), 'file')}, {size_text(plan.left_out_bytes)}"
    yield f"jobs      {len(plan.jobs):,}"
    shown = plan.jobs if len(plan.jobs) <= 4 else [*plan.jobs[:2], None, *plan.jobs[-2:]]
    for job in shown:
        yield f"  {job.index}. {plain(job.command)}" if job else "  ..."


def plan_data(plan: BatchPlan) -> dict[str, Any]:
    """Return what would be queued, for JSON."""
    return {
        "root": str(plan.root),
        "files": len(plan.files),
        "size_bytes": plan.size_bytes,
        "left_out": list(plan.left_out),
        "left_out_bytes": plan.left_out_bytes,
        "jobs": [{"label": job.label, "command": job.command} for job in plan.jobs],
    }


def runner_line(info: RunnerInfo) -> str:
    """Describe a runner."""
    if info.results_only:
        return f"{plain(info.runner)}  (results only)"
    counts = [
        f"{number:,} {name}"
        for number, name in ((info.waiting, "waiting"), (info.running, "running"))
        if number is not None
    ]
    return f"{plain(info.runner)}  {', '.join(counts)}".rstrip()


def runner_data(info: RunnerInfo, current: bool) -> dict[str, Any]:
    """Return the description of a runner, for JSON."""
    return {
        "runner": info.runner,
        "kind": info.kind,
        "current": current,
        "waiting": info.waiting,
        "running": info.running,
        "results_only": info.results_only,
    }
