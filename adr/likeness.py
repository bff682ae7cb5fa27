"""Which failures are alike: those that ended the same way and said the same in the end.

What a job said last names its case, its numbers, its paths; two of these texts are alike if
they differ in nothing else. Numbers and folders are found by their form. The names of a job are
taken out only where that makes its text more like those of others: a job may be called like a
word that all of them say.

Nothing here does I/O; `adr.control.failures` reads what is grouped here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from posixpath import basename, splitext
from typing import Any

from adr.models import Job, JobRecord

__all__ = ["FailureGroup", "group_failures", "last_line"]

#: What stands in a text for what differs.
_VARIES = "…"
#: A text that is longer is compared by this much of it.
_COMPARED = 300
#: Of those that are alike with their names in, so many are asked how they are without.
_ASKED = 20
#: What a shell says of a program that was ended by a signal.
_KILLED = re.compile(r".*: line \d+: +\d+ ([A-Z][A-Za-z ]*?)(?: {2,}.*| \(core dumped\).*)?")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
#: Ids, addresses in memory and digests; numbers with what belongs to them, also several.
_NUMBERS = re.compile(
    r"\b(?:0[xX][0-9a-fA-F]+|(?=[a-fA-F]*[0-9])[0-9a-fA-F]{6,}|"
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\b"
    r"|[-+]?\d(?:[\d.,:/_-]*\d)?(?:[eE][-+]?\d+)?"
)
#: The folders of an absolute path, up to its last part.
_FOLDERS = re.compile(r"(?<![\w.…/])/(?:[^\s/:;,'\"()<>]+/)+")
_AGAIN = re.compile(f"{_VARIES}(?:[\\s,;…]*{_VARIES})+")


@dataclass(frozen=True)
class FailureGroup:
    """Hold failed jobs that are alike."""

    #: Exit code as a shell tells it, 128 + n for signal n; None where no command has ended.
    code: int | None
    #: Why they failed, in words; what differs between them stands as an ellipsis.
    reason: str
    #: What their output ended with, likewise; empty where there was none, or it does not matter.
    output: str
    #: The jobs with their records, in the order in which they were given.
    failures: tuple[tuple[Job, JobRecord], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object, with every job."""
        return {
            "count": len(self.failures),
            "exit_code": self.code,
            "reason": self.reason,
            "output": self.output,
            "jobs": [
                {
                    **job.names(),
                    "attempt": record.attempt,
                    "exit_code": record.exit_code,
                    "signal": record.signal,
                    "reason": record.reason,
                    "output": last_line(record.tail),
                }
                for job, record in self.failures
            ],
        }


def group_failures(failures: Iterable[tuple[Job, JobRecord]]) -> list[FailureGroup]:
    """Put failed jobs together that are alike, the largest group first.

    Parameters
    ----------
    failures : iterable of (Job, JobRecord)
        Jobs and their visible records, in any order.

    Returns
    -------
    list of FailureGroup
        Every failure is in one of them. Groups of one size stand in the order of their first.
    """
    given = list(failures)
    keys = _with_names_out(given, [_signs(record) for _, record in given])
    members: dict[_Signs, list[tuple[Job, JobRecord]]] = {}
    for failure, key in zip(given, keys, strict=True):
        members.setdefault(key, []).append(failure)
    groups = [_group(key, some) for key, some in members.items()]
    return sorted(groups, key=lambda group: -len(group.failures))


def last_line(output: str) -> str:
    """Return the last line of an output that says anything, without what controls a terminal.

    Of what a shell says when a program is killed, this is the name of the signal.
    """
    text = output.rstrip()
    while text:
        cut = max(text.rfind("\n"), text.rfind("\r"))
        line = text[cut + 1 :].strip()
        if "\x1b" in line:
            line = _ESCAPES.sub("", line)
        if line and any(map(str.isalpha, line)):
            killed = _KILLED.fullmatch(line)
            return killed[1] if killed else line
        text = text[: max(cut, 0)].rstrip()
    lines = output.split()
    return lines[-1] if lines else ""


#: What alike failures have in common: exit code, reason, and last line.
_Signs = tuple[int | None, str, str]


def _signs(record: JobRecord) -> _Signs:
    code = record.code
    reason = record.reason
    if not code:
        # adr has given up a job that did not fail by itself: what it wrote is not why.
        return None, reason, ""
    if reason.startswith(("exit code ", "killed by ")):
        reason = ""
    return code, reason, last_line(record.tail)


def _with_names_out(given: Sequence[tuple[Job, JobRecord]], signs: list[_Signs]) -> list[_Signs]:
    """Return what each failure is grouped by.

    Those whose texts are alike with their names in stay together. Of the ways to take names out,
    or none, that one is chosen which makes them like the most others.
    """
    rough = [(code, _rough(reason), _rough(line)) for code, reason, line in signs]
    asked: Counter[_Signs] = Counter()
    ways: dict[_Signs, dict[_Signs, int]] = {}
    votes: Counter[_Signs] = Counter()
    for (job, _), (code, reason, line), key in zip(given, signs, rough, strict=True):
        if asked[key] == _ASKED:
            continue
        asked[key] += 1
        found = {key: 0}
        for number, names in enumerate(_names(job), start=1):
            names = [name for name in names if name in line or name in reason]
            if names:
                reason, line = _taken_out(reason, names), _taken_out(line, names)
                found.setdefault((code, _rough(reason), _rough(line)), number)
        votes.update(found.keys())
        known = ways.setdefault(key, found)
        known.update((way, min(number, known.get(way, number))) for way, number in found.items())
    chosen = {
        key: min(some, key=lambda way: (-votes[way], some[way], way[1:]))
        for key, some in ways.items()
    }
    return [chosen[key] for key in rough]


def _taken_out(text: str, names: Iterable[str]) -> str:
    """Return a text without these names, where they are not parts of words."""
    for name in names:
        at = text.find(name)
        while at >= 0:
            end = at + len(name)
            if not (text[at - 1 : at].isalnum() or text[end : end + 1].isalnum()):
                text = text[:at] + _VARIES + text[end:]
            at = text.find(name, at + 1)
    return text


def _names(job: Job) -> tuple[list[str], list[str]]:
    """Return what a job may be called in its output, the longest first.

    First come those that hardly mean anything else, such as the names of files.
    """
    names = {job.label, basename(job.label)}
    if job.input is not None:
        names |= {job.input, basename(job.input), splitext(basename(job.input))[0]}
    in_order = sorted(filter(None, names), key=lambda name: (-len(name), name))
    return [name for name in in_order if not name.isalpha()], list(filter(str.isalpha, in_order))


def _rough(text: str) -> str:
    """Return a text without what numbers and folders stand in it."""
    if len(text) > _COMPARED:
        text = text[:_COMPARED]
    if "/" in text:
        text = _FOLDERS.sub(_VARIES + "/", text)
    text = _NUMBERS.sub(_VARIES, text)
    return _AGAIN.sub(_VARIES, text) if text.count(_VARIES) > 1 else text


def _group(key: _Signs, failures: Sequence[tuple[Job, JobRecord]]) -> FailureGroup:
    """Describe a group by what its members say if they say the same, else by what they share."""
    code, reason, line = key
    said = {_signs(record) for _, record in failures}
    if len(said) == 1:
        ((_, reason, line),) = said
    return FailureGroup(code, reason, line, tuple(failures))
