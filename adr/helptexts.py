"""The options that several commands share, as their help shows them."""

from __future__ import annotations

import textwrap

__all__ = ["complete"]

_GENERAL = """\
  --quiet                Show neither progress nor summaries nor warnings
  --verbose=LEVEL        Log from this level on: DEBUG or 10, INFO or 20,
                         WARNING or 30, ERROR or 40 [default: 30]
  -h, --help             Show this help and exit"""

_RUNNER = """\
  --runner=ID            Runner: its id, or the folder of a local one; without,
                         the current one (adr set)
  --region=REGION        Amazon region"""

_JOBS = """\
  --command=CMD          Shell command of each job; in it, {} is the input file,
                         {.} without extension, {/} its base name, {//} its
                         folder, {/.} its base name without extension, {#} the
                         number of the job; without any of these, the input
                         file is appended
  --preprocessing=CMD    Shell command before it, which must succeed
  --postprocessing=CMD   Shell command after it, which always runs and sees
                         ADR_EXIT_CODE
  --store=REGEX          Keep the files whose path in the folder of the job
                         matches; repeatable; without, keep every file the job
                         made or changed
  --root=DIR             Folder to bundle; without, the deepest that holds all
                         input files
  --exclude=PATTERN      Leave out of the bundle what this line of a .gitignore
                         would ignore; repeatable
  --env=VAR              Environment variable of the jobs, NAME=VALUE, or NAME
                         for its value here; repeatable
  --timeout=S            End a job that runs longer than S seconds
  --attempts=N           Run a job that fails up to N times, with growing pauses
  --retry-on=CODES       Run again only after these exit codes, such as
                         1,75,100-110; 128+n stands for signal n
  --crash-limit=N        Give a job up that has lost N workers; without, 5
  --files-from=FILE      Read more input files from FILE, one a line; - is
                         standard input
  -0, --null             Files in FILE end with a NUL byte, not with their line
  --dry-run              Show what would be bundled and run, and stop
  --yes                  Ask nothing"""

_WORKERS = """\
  --slots=N              Jobs at the same time per host; without, one per core
  --idle=MIN             Leave after MIN minutes with nothing to do; without, 10
  --max-hours=H          Leave before H hours are over, whatever there is to do;
                         a job that is cut by this has failed
  --keep                 Never leave"""

_SSH = """\
  --user=USER            SSH user
  --password=PW          SSH password; others on this machine may see it in the
                         list of processes, so rather
  --ask-password         Ask for the SSH password
  --key=KEY              File of the SSH key"""

_LOGINS = (
    _SSH
    + """
  --hours=H              Lend credentials for H hours; without, 12
  --copy-credentials     Hand over your own keys instead: whoever is root there
                         can use them
  --timeout=S            Give a host up after S seconds; without, 600"""
)


def complete(doc: str | None) -> str:
    """Return the docstring of a command with the options it shares with others filled in."""
    first, _, others = (doc or "").partition("\n")
    text = f"{first.strip()}\n{textwrap.dedent(others)}".strip()
    for name, block in (
        ("general", _GENERAL),
        ("runner", _RUNNER),
        ("job", _JOBS),
        ("worker", _WORKERS),
        ("ssh", _SSH),
        ("login", _LOGINS),
    ):
        text = text.replace(f"  <{name} options>", block)
    return text
