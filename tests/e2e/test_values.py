"""Values of options and words that mean nothing, or too much: refused before anything is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def shell(shell):
    """Make a local runner the current one; commands run in this process."""
    shell.inside = True
    shell.write({"a.txt": "a"})
    shell("create", "--local")
    return shell


@pytest.fixture
def current(shell):
    """Return the folder of the current runner."""
    return Path(shell("list").lines[0].removeprefix("* ").rpartition("  ")[0])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["destroy", "--yes", "--purge", "--runner="], "--runner"),
        (["destroy", "--yes", "--purge", "--runner", ""], "--runner"),
        (["destroy", "--yes", "--purge", ""], "<runner>"),
        (["destroy", "--yes", "--purge", "--batch="], "--batch"),
        (["destroy", "--yes", "--region="], "--region"),
        (["queue", "--command=true", "--runner=", "a.txt"], "--runner"),
        (["queue", "--command=true", "--root=", "a.txt"], "--root"),
        (["status", "--runner="], "--runner"),
        (["status", "--batch="], "--batch"),
        (["download", "--batch=", "d"], "--batch"),
        (["download", "--job=", "d"], "--job"),
        (["download", "d", ""], "<runner>"),
        (["process", ""], "<runner>"),
        (["set", ""], "<runner>"),
        (["list", "--runner="], "--runner"),
        (["create", "--local", "--dir="], "--dir"),
        (["create", "--region="], "--region"),
    ],
)
def test_an_empty_name_does_not_stand_for_what_is_meant_without_it(shell, current, words, name):
    # when
    done = shell(*words, status=2)
    # then
    assert done.err == f"adr: {name} is empty: give it a value, or leave it out\n"
    assert current.is_dir()
    assert shell("list").lines == [f"* {current}  0 waiting, 0 running"]


def test_an_empty_word_after_the_files_is_no_runner(shell, current):
    # when
    done = shell("queue", "--command=true", "a.txt", "", status=2)
    # then
    assert done.err.count("\n") == 1
    assert shell("list").lines == [f"* {current}  0 waiting, 0 running"]


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("--slots", "1001", "1001"),
        ("--slots", 5000 * "9", 20 * "9" + "..."),
        ("--attempts", "20000", "20000"),
        ("--attempts", 5000 * "1", 20 * "1" + "..."),
    ],
)
def test_a_number_that_is_too_large_is_refused(shell, option, value, shown):
    # when
    done = shell("run", "--to=out", "--command=true", f"{option}={value}", "a.txt", status=2)
    # then
    assert done.err == f"adr: {option} takes at most 1,000, not {shown}\n"
    assert not (shell.folder / "out").exists()


def test_numbers_may_have_zeros_in_front_and_levels_any_length(shell):
    words = ["--command=true", "--attempts=0001000", f"--verbose={5000 * '9'}"]
    shell("run", "--to=out", "--slots=01", *words, "a.txt")


#: What a shell may make of the standard streams.
STREAMS = {
    "no output": (">&-", 0),
    "no errors": ("2>&-", 0),
    "no input": ("<&-", 0),
    "none at all": ("<&- >&- 2>&-", 0),
    "full output": (">/dev/full", 1),
    "full errors": ("2>/dev/full", 0),
}


@pytest.mark.parametrize("words", ["--version", "status", "run --to=out --command=true a.txt"])
@pytest.mark.parametrize(("streams", "status"), STREAMS.values(), ids=STREAMS)
def test_closed_and_full_streams_are_no_internal_error(shell, words, streams, status):
    # when
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m adr {words} {streams}"],
        cwd=shell.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # then a run says nothing on standard output, and so does not notice
    writes = not words.startswith("run")
    assert done.returncode == (status if writes else 0), done.stderr
    if status and writes:
        assert done.stderr == "adr: cannot write to standard output: No space left on device\n"
    else:
        assert "rror" not in done.stderr
