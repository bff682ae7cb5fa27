"""Values of options and words that mean nothing, or too much: refused before anything is done."""

from __future__ import annotations

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
