"""What a job runs: a bash script with its preprocessing, command and postprocessing in one.

A command that is nothing but a program and its arguments is started without a shell, as make
does it: bash would take longer to start than many a program takes to run. Nobody is to notice:
whatever could mean anything to bash is left to bash. Only the parent of the program is another.

Each part is handed to ``eval`` as one quoted word, so that it cannot break out of its place:
a syntax error, an open quote or a here-document of one part leaves the others alone. The
fewer processes the better: without postprocessing everything runs in one shell.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping

from adr.models import Job

__all__ = ["job_script", "plain_words", "program_environment"]

# What stands for itself; whatever else may mean something to bash.
_SAFE = r"[A-Za-z0-9_@%+=:,./-]"
# Between quotes, anything that a terminal shows. Within double ones, nothing that bash replaces.
_QUOTED = r"""'[^'\x00-\x1f\x7f]*'|"[^"$`\\\x00-\x1f\x7f-\U0010ffff]*\""""
_WORD = re.compile(rf"(?:{_SAFE}|{_QUOTED})+")
_WORDS = re.compile(rf"(?:{_SAFE}|{_QUOTED}|[ \t])+")
_PART = re.compile(rf"{_SAFE}+|{_QUOTED}")
# Words that are no programs, or others for bash than for the system; and a program that does
# something else where it leads a process group, which bash leads otherwise.
_FOR_BASH = (
    ". : [ alias bg bind break builtin caller case cd command compgen complete compopt continue "
    "coproc declare dirs disown do done echo elif else enable esac eval exec exit export fc fg fi "
    "for function getopts hash help history if in jobs kill let local logout mapfile popd printf "
    "pushd pwd read readarray readonly return select set shift shopt source suspend test then "
    "time times trap type typeset ulimit umask unalias unset until wait while"
)
_FOR_BASH_ALONE = frozenset(_FOR_BASH.split())
_LEADS = "setsid"
# As programs they do the same, unless they have options.
_ALIKE = ("true", "false")
# Variables that change what bash does, or that it sets itself.
_BASH_USES = frozenset(
    b"ENV EPOCHREALTIME EPOCHSECONDS EUID EXECIGNORE FUNCNAME GROUPS HISTCMD IFS LINENO OPTERR "
    b"OPTIND POSIXLY_CORRECT POSIX_PEDANTIC PPID PS4 RANDOM SECONDS SHELLOPTS SRANDOM UID".split()
)
_BASH_SETS = (b"PWD", b"_")

# A shell with a trap waits for the program it runs before it acts on a signal. Without one,
# TERM would end the shell at once, and with it the time that its program has to clean up.
_TERM = "trap 'exit 143' TERM\n"

_PREPROCESSING = """\
eval -- {preprocessing}
__adr_code=$?
if [ "$__adr_code" -ne 0 ]; then
  echo "adr: the preprocessing failed with exit code $__adr_code, the command was not run" >&2
fi
"""

_PLAIN = """\
if [ "$__adr_code" -ne 0 ]; then exit "$__adr_code"; fi
eval -- {command}
"""

# The inner shell may be left early, by an exit or exec in the preprocessing or by TERM; it
# tells by a signal that it has come to the postprocessing, else the outer shell does that.
# `set -e` concerns the parts and not what holds them together.
_GUARDED = """\
__adr_finish() {{
  export ADR_EXIT_CODE=$1
  ( {term}eval -- {postprocessing} )
  __adr_code=$?
  if [ "$__adr_code" -ne 0 ]; then
    echo "adr: the postprocessing failed with exit code $__adr_code" >&2
  fi
  if [ "$ADR_EXIT_CODE" -ne 0 ]; then exit "$ADR_EXIT_CODE"; fi
  exit "$__adr_code"
}}
trap : TERM
trap '__adr_finished=1' USR1
(
{term}__adr_code=0
{preprocessing}__adr_options=$-
set +e
trap : TERM
if [ "$__adr_code" -eq 0 ]; then
  (
{term}if [[ $__adr_options == *e* ]]; then set -e; fi
eval -- {command}
  )
  __adr_code=$?
fi
kill -USR1 $$
__adr_finish "$__adr_code"
)
__adr_code=$?
if [ -z "${{__adr_finished-}}" ]; then __adr_finish "$__adr_code"; fi
exit "$__adr_code"
"""


def job_script(job: Job) -> str:
    """Write what bash has to run for a job.

    The preprocessing runs in the same shell as the command, which is not run unless it
    succeeds. The postprocessing always runs, also after TERM, with the exit code so far in
    ADR_EXIT_CODE; it sees what the preprocessing has set if that came to its end. The exit
    code is that of the first part that failed; after TERM it is 143.

    Returns
    -------
    str
        The script, to be written as UTF-8 with ``surrogateescape``.

    Examples
    --------
    >>> from adr.models import Job
    >>> print(job_script(Job(batch="b", index=1, count=1, label="a", command="model a.txt")))
    trap 'exit 143' TERM
    eval -- 'model a.txt'
    <BLANKLINE>
    """
    command = shlex.quote(job.command)
    before = ""
    if job.preprocessing:
        before = _PREPROCESSING.format(preprocessing=shlex.quote(job.preprocessing))
    if job.postprocessing:
        return _GUARDED.format(
            term=_TERM,
            preprocessing=before,
            command=command,
            postprocessing=shlex.quote(job.postprocessing),
        )
    if before:
        return _TERM + before + _PLAIN.format(command=command)
    return f"{_TERM}eval -- {command}\n"


def plain_words(job: Job) -> list[bytes] | None:
    """Return program and arguments of a job that needs no shell to be run; None where it may.

    Examples
    --------
    >>> from adr.models import Job
    >>> plain_words(Job(batch="b", index=1, count=1, label="a", command="model 'my run.txt'"))
    [b'model', b'my run.txt']
    >>> plain_words(Job(batch="b", index=1, count=1, label="a", command="model < a.txt"))
    """
    if job.preprocessing or job.postprocessing or not _WORDS.fullmatch(job.command):
        return None
    words = [_unquoted(word) for word in _WORD.findall(job.command)]
    first = words[0] if words else ""
    # `%1` is a job of bash, and `a=1` says what a variable is.
    if not first or first in _FOR_BASH_ALONE or first[0] == "%" or "=" in first:
        return None
    if _LEADS in job.command and any(os.path.basename(word) == _LEADS for word in words):
        return None
    if first in _ALIKE and any(word.startswith("-") for word in words):
        return None
    return [os.fsencode(word) for word in words]


def _unquoted(word: str) -> str:
    if "'" not in word and '"' not in word:
        return word
    parts = _PART.findall(word)
    return "".join(part[1:-1] if part[0] in "'\"" else part for part in parts)


def program_environment(environment: Mapping[bytes, bytes]) -> dict[bytes, bytes] | None:
    """Return what bash makes of an environment for the programs it runs, without PWD and _.

    Returns
    -------
    dict or None
        None where something in it concerns bash: then bash has to run the program.
    """
    if not _BASH_USES.isdisjoint(environment) or any(
        name.startswith(b"BASH") for name in environment
    ):
        return None
    if not all(folder.startswith(b"/") for folder in environment.get(b"PATH", b"").split(b":")):
        return None
    changed = {name: each for name, each in environment.items() if name not in _BASH_SETS}
    level = environment.get(b"SHLVL", b"0")
    if not re.fullmatch(rb"[0-9]{1,2}", level):
        return None
    changed[b"SHLVL"] = b"%d" % (int(level) + 1)
    if b"OLDPWD" in changed and not os.path.isdir(changed[b"OLDPWD"]):
        del changed[b"OLDPWD"]
    return changed
