"""What adr itself has put into a folder: it is not bundled, and changes no fingerprint."""

from __future__ import annotations

import json
import os

import pytest

from adr import plan
from adr.members import choose
from adr.worker.place import Place

COMMAND = "cat {} wind.csv > out.csv"


@pytest.fixture
def shell(shell):
    shell.write({"case1.txt": "1\n", "case2.txt": "2\n", "wind.csv": "w\n"})
    return shell


def run(shell, to, *words):
    cases = ("case1.txt", "case2.txt")
    done = shell(
        "run", "--json", "--command", COMMAND, f"--to={to}", "--slots=2", *words, "--", *cases
    )
    return done.json


def test_runs_into_two_folders_of_one_root_do_not_make_each_other_new(shell):
    # given
    first = run(shell, "res1")
    second = run(shell, "deep/res2", "--timeout=60")
    assert (first["succeeded"], second["succeeded"]) == (2, 2)
    # when
    again = [run(shell, "res1"), run(shell, "deep/res2", "--timeout=60")]
    # then
    assert [(each["skipped"], each["undecided"]) for each in again] == [(2, 0), (2, 0)]


def test_what_is_adrs_own_is_not_bundled(shell):
    # given an output folder, a local runner and the folder of a worker
    before = plan([shell.folder / "case1.txt"], command=COMMAND).with_fingerprints().jobs
    run(shell, "deep/res")
    shell("create", "--local", "--dir=here")
    shell("queue", "--command=true", "case2.txt", "--runner=here")
    place = Place(shell.folder / "scratch", 4 * "0f1e")
    # when
    planned = plan([shell.folder / "case1.txt"], command=COMMAND)
    place.remove()
    # then nothing of them is taken
    taken = {member.name for member in planned.files}
    assert taken == {"case1.txt", "case2.txt", "wind.csv"}
    assert {member.name for member in planned.folders} == {"deep", "scratch"}
    # and they change no fingerprint
    assert planned.with_fingerprints().jobs == before


def test_an_input_in_an_output_folder_brings_along_what_lies_there(shell):
    # given
    run(shell, "res")
    # when
    found = choose(str(shell.folder), ["res/case1/out.csv"])
    # then only the state of the run is left out
    assert [member.name for member in found.files] == [
        "case1.txt",
        "case2.txt",
        "res/case1/out.csv",
        "res/case2/out.csv",
        "wind.csv",
    ]


def test_an_input_in_the_folder_of_a_runner_brings_along_what_is_not_the_runners(shell):
    # given
    shell("create", "--local", "--dir=here")
    shell.write({"here/a.txt": "a", "here/b.txt": "b", "here/objects.txt": "c"})
    # when
    found = choose(str(shell.folder / "here"), ["a.txt"])
    # then
    assert [member.name for member in found.files] == ["a.txt", "b.txt", "objects.txt"]
    assert found.folders == ()


def test_files_that_only_have_such_names_are_bundled(shell):
    # given
    names = ["adr-worker-notes/lock", "model/runner.json", "model/objects/a.obj", "tmp/x"]
    shell.write(dict.fromkeys(names, json.dumps({"schema": 1})))
    os.mkdir(shell.folder / "adr-worker-0123456789abcdef")
    # when
    found = choose(str(shell.folder), ["case1.txt"])
    # then
    assert {*names} < {member.name for member in found.files}
