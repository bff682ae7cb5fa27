"""``adr run``: from a folder of inputs to a folder of results, and what a second run repeats."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

#: Appends to a file outside of everything, so that a test sees what was run, in any order.
COMMAND = 'echo {/.} >> "$RAN" && cat {} wind.csv > out.csv && echo done {/.}'
CASES = {"case1.txt": "1\n", "case2.txt": "2\n", "case3.txt": "3\n", "wind.csv": "w\n"}


@pytest.fixture
def ran(shell, tmp_path, monkeypatch):
    """Return a function that tells, and then forgets, which cases were run."""
    log = tmp_path / "ran"
    monkeypatch.setenv("RAN", str(log))
    shell.write(CASES)

    def cases():
        names = sorted(log.read_text().split()) if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    return cases


def run(shell, *words, cases=("case1.txt", "case2.txt", "case3.txt"), command=COMMAND, **how):
    return shell("run", "--command", command, "--to=results", *words, "--", *cases, **how)


def test_each_job_leaves_its_files_in_a_folder_of_its_own(shell, ran):
    done = run(shell, "--store", r"\.csv$")

    assert shell.tree("results") == {
        "case1/out.csv": "1\nw\n",
        "case2/out.csv": "2\nw\n",
        "case3/out.csv": "3\nw\n",
    }
    assert done.out == ""
    assert done.err == "jobs: 3 succeeded\n"
    assert ran() == ["case1", "case2", "case3"]


def test_inputs_and_files_that_do_not_match_are_no_results(shell, ran):
    run(shell, "--store", r"^keep/", command="mkdir keep; date > keep/a; date > b; date > {}")

    assert set(shell.tree("results")) == {"case1/keep/a", "case2/keep/a", "case3/keep/a"}
    assert shell.read("case1.txt") == "1\n", "the user's own file is never touched"


def test_a_failing_job_is_shown_with_its_exit_code_and_the_end_of_its_output(shell, ran):
    command = 'echo about {/.}; test {/.} != case2 || { echo "no sand" >&2; exit 3; }; touch out'

    done = run(shell, command=command, status=1)

    assert done.err.splitlines() == [
        "failed: case2 (exit code 3)",
        "    about case2",
        "    no sand",
        "jobs: 2 succeeded, 1 failed",
    ]
    assert set(shell.tree("results")) == {"case1/out", "case3/out"}


def test_a_second_run_repeats_only_what_failed(shell, ran):
    command = f'{COMMAND}; test -e "$RAN.ok" || test {{/.}} != case2'
    run(shell, command=command, status=1)
    ran()

    failed_again = run(shell, command=command, status=1)
    assert ran() == ["case2"]
    assert "2 jobs are done already" in failed_again.err

    Path(os.environ["RAN"] + ".ok").touch()
    run(shell, command=command)
    assert ran() == ["case2"]
    assert set(shell.tree("results")) == {"case1/out.csv", "case2/out.csv", "case3/out.csv"}


def test_a_second_run_does_nothing_and_says_so(shell, ran):
    run(shell)
    ran()

    done = run(shell)

    assert ran() == []
    assert done.err == "3 jobs are done already (--rerun runs them again)\n"


@pytest.mark.parametrize(
    ("files", "words", "expected"),
    [
        ({"case4.txt": "4\n"}, [], ["case4"]),
        ({"case2.txt": "two\n"}, [], ["case2"]),
        ({"wind.csv": "storm\n"}, [], ["case1", "case2", "case3"]),
        ({"more.csv": "a shared file more\n"}, [], ["case1", "case2", "case3"]),
        ({}, ["--command", COMMAND + "; :"], ["case1", "case2", "case3"]),
        ({}, ["--store", "csv"], ["case1", "case2", "case3"]),
        ({}, ["--env", "SAND=fine"], ["case1", "case2", "case3"]),
        ({}, ["--preprocessing", "true"], ["case1", "case2", "case3"]),
        ({}, ["--postprocessing", "true"], ["case1", "case2", "case3"]),
        ({}, ["--rerun"], ["case1", "case2", "case3"]),
        ({}, ["--timeout=60", "--attempts=2", "--slots=1"], []),
    ],
    ids=[
        "a case more",
        "its own input",
        "a shared file",
        "a shared file more",
        "command",
        "store",
        "env",
        "preprocessing",
        "postprocessing",
        "rerun",
        "what does not matter",
    ],
)
def test_exactly_what_has_changed_is_run_again(shell, ran, files, words, expected):
    def run_all(*words):
        words = words if "--command" in words else ("--command", COMMAND, *words)
        cases = sorted(path.name for path in shell.folder.glob("case*.txt"))
        return shell("run", "--to=results", *words, "--", *cases)

    # given
    run_all()
    assert len(ran()) == 3
    # when
    shell.write(files)
    done = run_all(*words)
    # then
    assert ran() == expected
    skipped = len(list(shell.folder.glob("case*.txt"))) - len(expected)
    assert (f"{skipped} jobs are done already" in done.err) == bool(skipped)
    for name, text in shell.tree("results").items():
        assert text == shell.read(name.split("/")[0] + ".txt") + shell.read("wind.csv")
    # and after a change of files everything is done now
    if files:
        run_all()
        assert ran() == []


def test_what_was_done_before_a_change_is_still_done_when_it_is_undone(shell, ran):
    run(shell)
    shell.write({"wind.csv": "storm\n"})
    run(shell)
    ran()

    shell.write({"wind.csv": "w\n"})
    run(shell)

    assert ran() == []
    assert shell.read("results/case1/out.csv") == "1\nw\n", "the results are those of these inputs"


def test_files_of_an_older_attempt_vanish_and_those_of_the_user_stay(shell, ran):
    run(shell, command="mkdir -p old/deep && touch old/deep/a old/b both; : {}")
    shell.write({"results/case1/old/notes.md": "mine", "results/case1/mine": "mine"})

    run(shell, command="touch both new; : {}")

    assert shell.tree("results/case1") == {
        "both": "",
        "mine": "mine",
        "new": "",
        "old/notes.md": "mine",
    }
    assert shell.tree("results/case2") == {"both": "", "new": ""}
    assert not (shell.folder / "results/case2/old").exists()


def test_a_file_of_the_user_is_never_overwritten(shell, ran):
    shell.write({"results/case1/out.csv": "mine"})

    done = run(shell)

    assert shell.read("results/case1/out.csv") == "mine"
    assert shell.read("results/case2/out.csv") == "2\nw\n"
    assert "1 result not written" in done.err


def test_deleted_results_come_back_without_a_run(shell, ran):
    run(shell)
    ran()
    shutil.rmtree(shell.folder / "results/case1")
    (shell.folder / "results/case2/out.csv").unlink()

    run(shell)

    assert ran() == []
    assert set(shell.tree("results")) == {"case1/out.csv", "case2/out.csv", "case3/out.csv"}


def test_the_output_folder_is_never_bundled(shell, ran):
    command = ": {}; touch found; find . -type f | sort > found"
    run(shell, command=command)
    before = shell.read("results/case1/found")
    shell.write({"results/junk.txt": "x", "results/case1/more": "y"})

    run(shell, "--rerun", command=command)

    assert before.split() == ["./case1.txt", "./case2.txt", "./case3.txt", "./found", "./wind.csv"]
    assert shell.read("results/case1/found") == before


def test_results_of_one_run_are_inputs_of_the_next_without_its_state(shell, ran):
    run(shell)
    second = ["run", "--to=second", "--command", "cp {} copy; find . -path '*.adr*' > state"]

    shell(*second, "results/case1/out.csv", "results/case2/out.csv", "--root=.")

    assert shell.tree("second") == {
        "results/case1/out/copy": "1\nw\n",
        "results/case1/out/state": "",
        "results/case2/out/copy": "2\nw\n",
        "results/case2/out/state": "",
    }
    # and running the first again, which changes nothing but its state, makes nothing undone
    run(shell, "--rerun")
    assert (
        "2 jobs are done already"
        in shell(*second, "results/case1/out.csv", "results/case2/out.csv", "--root=.").err
    )


def test_only_one_run_at_a_time_writes_to_a_folder(shell, ran, wait_for):
    # given a run whose job waits
    first = shell.begin(
        "run", "--to=results", "--command", 'touch "$RAN.go"; while [ ! -e "$RAN.end" ]; do '
        "sleep 0.02; done; touch out; :", "case1.txt",
    )  # fmt: skip
    wait_for(lambda: os.path.exists(os.environ["RAN"] + ".go"))
    # when
    second = run(shell, status=2)
    # then
    assert second.err == (
        f"adr: another adr run writes to {shell.folder}/results: wait for it, or choose another "
        f"folder\n"
    )
    assert ran() == []
    Path(os.environ["RAN"] + ".end").touch()
    _, said = first.communicate(timeout=30)
    assert (first.returncode, said) == (0, "jobs: 1 succeeded\n")
    # and the folder is free again
    run(shell)
    assert ran() == ["case1", "case2", "case3"]


def test_an_interrupted_run_is_taken_up_where_it_was(shell, ran, wait_for):
    # given two cases done, and one that waits when Ctrl-C comes
    command = f'{COMMAND}; test {{/.}} != case3 || test -e "$RAN.end" || sleep 60'
    words = ["run", "--to=results", "--slots=1", "--command", command]
    first = shell.begin(*words, "case1.txt", "case2.txt", "case3.txt")
    wait_for(lambda: (shell.folder / "results/case2/out.csv").exists())
    wait_for(lambda: "case3" in Path(os.environ["RAN"]).read_text())
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "interrupted: the same command picks up where it was" in said
    assert ran() == ["case1", "case2", "case3"]
    # when
    Path(os.environ["RAN"] + ".end").touch()
    done = shell(*words, "case1.txt", "case2.txt", "case3.txt")
    # then
    assert ran() == ["case3"]
    assert done.err == ("2 jobs are done already (--rerun runs them again)\njobs: 1 succeeded\n")
    assert set(shell.tree("results")) == {"case1/out.csv", "case2/out.csv", "case3/out.csv"}


def test_a_dry_run_changes_nothing(shell, ran):
    before = shell.tree(".", hidden=True)

    done = run(shell, "--dry-run", "--exclude=*.csv")

    assert shell.tree(".", hidden=True) == before
    assert not (shell.folder / "results").exists()
    assert ran() == []
    assert done.lines == [
        f"root      {shell.folder}",
        "bundle    3 files, 6 bytes",
        "left out  1 file, 2 bytes",
        "jobs      3",
        *(f"  {n}. {COMMAND.replace('{/.}', f'case{n}').replace('{}', f'case{n}.txt')}"
          for n in (1, 2, 3)),
    ]  # fmt: skip


def test_the_outcome_is_told_as_json(shell, ran):
    done = run(shell, "--json", command="test {/.} != case2", status=1)

    told = done.json
    failed = told.pop("failed")
    assert told == {
        "schema": 1,
        "to": str(shell.folder / "results"),
        "succeeded": 2,
        "cancelled": 0,
        "undecided": 0,
        "unpublished": [],
        "skipped": 0,
        "kept": 0,
        "interrupted": False,
    }
    assert [(each["label"], each["exit_code"]) for each in failed] == [("case2", 1)]
    again = run(shell, "--json", "--quiet", command="test {/.} != case2", status=1)
    assert (again.json["succeeded"], again.json["skipped"]) == (0, 2)


def test_quiet_shows_failures_only(shell, ran):
    assert run(shell, "--quiet").err == ""
    done = run(shell, "--quiet", command="false", cases=["case1.txt"], status=1)
    assert done.err == "failed: case1 (exit code 1)\n"


@pytest.mark.parametrize("nul", [True, False])
def test_input_files_are_listed_on_standard_input(shell, ran, nul):
    names = ["case1.txt", "with space.txt", "-dash.txt", *(["with\nline.txt"] if nul else [])]
    shell.write(dict.fromkeys(names, "x"))

    words = ["--to=results", "--command", "echo $ADR_JOB > out", "--files-from=-"]
    end = b"\0" if nul else b"\n"
    listed = b"".join(name.encode() + end for name in names)
    shell("run", *words, *(["-0"] if nul else []), stdin=listed)

    assert set(shell.tree("results")) == {
        "case1/out",
        "with space/out",
        "-dash/out",
        # A name that could break a line of a table is shown as the number of its job.
        *(["4/out"] if nul else []),
    }


def test_labels_that_clash_keep_what_tells_them_apart(shell):
    shell.write({"a.txt": "1", "a.dat": "2", "A.txt": "3", "b.txt": "4", "b/c.txt": "5"})

    shell("run", "--to=out", "--command", "cp {} copy", "a.txt", "a.dat", "A.txt", "b.txt",
          "b/c.txt")  # fmt: skip

    found = {name.removesuffix("/copy"): text for name, text in shell.tree("out").items()}
    assert sorted(found.values()) == ["1", "2", "3", "4", "5"]
    assert len({name.lower() for name in found}) == 5
    assert not [a for a in found for b in found if b.startswith(a + "/")]


def test_names_of_any_kind_reach_the_shell_and_come_back(shell, tmp_path):
    names = ["it's $HOME", 'a "b" `c`', "ünïcode", "{x};y", "-r"]
    shell.write({f"{name}.in": name for name in names})
    (shell.folder / os.fsdecode(b"raw\xff.in")).write_text("raw")

    command = 'cp -- {} {/.}.out && printf %s "$ADR_JOB" > label && printf %s ${HOME:+{#}} > number'
    cases = [f"{name}.in" for name in names] + [os.fsdecode(b"raw\xff.in")]
    shell("run", "--to=results", "--command", command, "--", *cases)

    for number, case in enumerate(cases, 1):
        name = case.removesuffix(".in")
        text = "raw" if number == 6 else name
        # A name that is not UTF-8 is shown as the number of its job; files keep theirs.
        label = str(number) if number == 6 else name
        tree = shell.tree(f"results/{label}")
        assert tree == {f"{name}.out": text, "label": label, "number": str(number)}


def test_failing_preprocessing_fails_the_job_before_its_command(shell, ran):
    done = run(
        shell, "--preprocessing=echo prepare; exit 4", "--postprocessing=echo code $ADR_EXIT_CODE",
        cases=["case1.txt"], status=1,
    )  # fmt: skip

    assert ran() == []
    assert done.err.splitlines()[:3] == [
        "failed: case1 (exit code 4)", "    prepare", "    code 4",
    ]  # fmt: skip


def test_postprocessing_always_runs_and_its_failure_is_that_of_the_job(shell, ran):
    post = "--postprocessing=echo code $ADR_EXIT_CODE; exit 5"

    after_success = run(shell, post, command="true", cases=["case1.txt"], status=1)
    after_failure = run(shell, post, command="exit 6; {}", cases=["case1.txt"], status=1)

    assert after_success.err.splitlines()[:2] == ["failed: case1 (exit code 5)", "    code 0"]
    assert after_failure.err.splitlines()[:2] == ["failed: case1 (exit code 6)", "    code 6"]


def test_a_job_that_fails_now_and_then_is_repeated_as_often_as_asked(shell, ran):
    command = 'echo {/.} >> "$RAN"; test $(grep -c . "$RAN") = 2'

    run(shell, "--attempts=2", command=command, cases=["case1.txt"])

    assert ran() == ["case1", "case1"]


def test_a_job_is_ended_at_its_time_limit(shell, ran):
    done = run(shell, "--timeout=0.3", command="sleep 60; {}", cases=["case1.txt"], status=1)

    assert "failed: case1 (ran longer than its time limit of 0.3 s, exit code 143)" in done.err


def test_jobs_see_who_they_are(shell, ran):
    names = "ADR_RUNNER ADR_BATCH ADR_JOB ADR_INDEX ADR_COUNT ADR_ATTEMPT ADR_SLOT SAND"
    command = "; ".join(f'echo "{name}=${name}" >> seen' for name in names.split())
    run(shell, "--env=SAND=a b", "--slots=1", command=f"{command}; : {{}}")

    seen = dict(line.split("=", 1) for line in shell.read("results/case2/seen").splitlines())
    attempt, batch = seen.pop("ADR_ATTEMPT"), seen.pop("ADR_BATCH")
    assert seen == {
        "ADR_RUNNER": f"{shell.folder}/results/.adr",
        "ADR_JOB": "case2",
        "ADR_INDEX": "2",
        "ADR_COUNT": "3",
        "ADR_SLOT": "1",
        "SAND": "a b",
    }
    assert attempt
    assert "-work-" in batch


def test_output_of_a_job_is_kept_whole_and_its_results_any_bytes(shell, ran):
    # given a run whose runner serves all other commands as well
    command = r"head -c 100000 /dev/zero | tr '\0' x; echo; echo end >&2; printf '\377' > bytes"
    run(shell, command=command, cases=["case1.txt"])

    logged = shell("logs", "--runner=results/.adr", "case1").out
    assert logged == "x" * 100_000 + "\nend\n"
    assert (shell.folder / "results/case1/bytes").read_bytes() == b"\xff"
    totals = shell("status", "--runner=results/.adr", "--json").json["totals"]
    assert (totals["jobs"], totals["succeeded"]) == (1, 1)
