"""The bash script that a job is: preprocessing, command and postprocessing in one.

Each part is handed to ``eval`` as one quoted word, so that it cannot break out of its place:
a syntax error, an open quote or a here-document of one part leaves the others alone. The
fewer processes the better: without postprocessing everything runs in one shell.
"""

from __future__ import annotations

import shlex

from adr.models import Job

__all__ = ["job_script"]

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
