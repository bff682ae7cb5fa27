"""Which failures are alike, whatever numbers, names and folders their output tells of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adr.likeness import group_failures, last_line
from adr.models import Job, JobRecord, JobState

Failure = tuple[Job, JobRecord]


def failure(index: int, label: str, tail: str, code: int = 1, **about: Any) -> Failure:
    job = Job("batch", index, 99, label, "model", input=f"{label}.inp")
    about = {"exit_code": code, "reason": f"exit code {code}", **about}
    record = JobRecord.of(job, f"{index:016x}", JobState.FAILED, tail=tail, **about)
    return job, record


def sizes(failures: Sequence[Failure]) -> list[int]:
    return [len(group.failures) for group in group_failures(failures)]


LIKE = {
    "the same": lambda n, name: "Segmentation fault\n",
    "its number": lambda n, name: f"reading\nerror in step {n} of {n * 7}",
    "its input": lambda n, name: f"cannot open {name}.inp: no such file",
    "its name": lambda n, name: f"Error: {name}_out.nc is too large",
    "an address": lambda n, name: f"free(): invalid pointer: 0x{n * 7919:012x}",
    "a process": lambda n, name: f"bash: line {n}: {n * 31} Aborted   ./model {name}.inp",
    "an id": lambda n, name: f"lost {n * 2654435761 % 2**64:016x}-slot",
    "a folder": lambda n, name: f"cannot write /tmp/adr-{n}/{name}/slot-{n % 4}/out.csv",
    "a list": lambda n, name: "bad depths: " + ", ".join(["1.5"] * (n % 5 + 1)),
    "a time": lambda n, name: f"[2026-11-{n % 27 + 1:02} 10:{n % 60:02}:00.123] gave up",
    "a bar": lambda n, name: f"10 %\r20 %\r\x1b[31mfailed at {n} %\x1b[0m\r\n\n",
    "a ruler": lambda n, name: f"no convergence after {n} steps\n{'=' * n}\n",
}
WORDS = ["dune", "tide", "wind", "surge", "beach", "error", "model", "a", "b", "fault", "file"]


@pytest.mark.parametrize("text", LIKE.values(), ids=LIKE)
@pytest.mark.parametrize("named", [lambda n: f"case_{n:04}", lambda n: WORDS[n % len(WORDS)]])
def test_texts_that_differ_in_what_each_job_has_of_its_own_are_alike(text, named):
    names = [named(n) for n in range(1, 12)]

    groups = group_failures(
        [failure(n, name, text(n, name)) for n, name in enumerate(names, start=1)]
    )

    assert [len(group.failures) for group in groups] == [11], groups


NEVER_RAN = {"tail": "", "exit_code": None}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"tail": "Segmentation fault", "code": 139}, {"tail": "Segmentation fault", "code": 1}),
        ({"tail": "cannot open wind.nc"}, {"tail": "cannot open tide.nc"}),
        ({"tail": "no /data/wind.nc"}, {"tail": "no /data/tide.nc"}),
        ({"tail": ""}, {"tail": "killed"}),
        (
            {**NEVER_RAN, "reason": "lost its worker 5 times"},
            {**NEVER_RAN, "reason": "its inputs cannot be had: no bundle"},
        ),
        (
            {**NEVER_RAN, "signal": 15, "reason": "ran longer than its time limit of 5 s"},
            {"tail": "", "exit_code": 143, "reason": "exit code 143 (SIGTERM)"},
        ),
    ],
)
def test_what_has_another_cause_is_not_alike(one, other):
    assert sizes([failure(1, "case_1", **one), failure(2, "case_2", **other)]) == [1, 1]


def test_a_signal_is_the_same_as_its_exit_code():
    failures = [
        failure(1, "x", "gone", exit_code=None, signal=11, reason="killed by SIGSEGV"),
        failure(2, "y", "gone", code=139, reason="exit code 139 (SIGSEGV)"),
    ]

    (group,) = group_failures(failures)

    assert (group.code, group.reason, group.output) == (139, "", "gone")


def test_what_a_job_wrote_does_not_matter_where_it_did_not_fail_by_itself():
    reason = "its results could not be stored: no room"
    failures = [
        failure(n, f"case_{n}", f"all of {word} is well", exit_code=0, reason=reason)
        for n, word in enumerate(WORDS)
    ]

    (group,) = group_failures(failures)

    assert (group.code, group.reason, group.output) == (None, reason, "")


def test_a_group_says_what_all_said_or_what_they_have_in_common():
    same = group_failures([failure(n, f"case_{n}", "step 7 of 9") for n in (1, 2)])
    differing = group_failures([failure(n, f"case_{n}", f"step {n} of 9") for n in (1, 2)])

    assert same[0].output == "step 7 of 9"
    assert differing[0].output == "step … of …"


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("", ""),
        ("\n\n", ""),
        ("one\ntwo  \n\n", "two"),
        ("one\n-----\n", "one"),
        ("42\n", "42"),
        ("a\r\nb\r\n", "b"),
        ("\x1b]0;title\x07\x1b[1;31merror\x1b[0m", "error"),
    ],
)
def test_the_last_line_is_the_last_that_says_anything(output, line):
    assert last_line(output) == line


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2, 139]),
            st.text(alphabet="ab1 /.\n\r\x1b[mé", max_size=20),
            st.sampled_from(["a", "b1", "a/b", "1"]),
        ),
        max_size=15,
    ),
    st.randoms(use_true_random=False),
)
def test_every_failure_is_in_one_group_whatever_their_order(some, chance):
    failures = [failure(n, label, tail, code) for n, (code, tail, label) in enumerate(some)]
    mixed = list(failures)
    chance.shuffle(mixed)

    groups, again = group_failures(failures), group_failures(mixed)

    # every job once, with those of its exit code
    members = sorted(job.index for group in groups for job, _ in group.failures)
    assert members == list(range(len(failures)))
    assert all(record.code == group.code for group in groups for _, record in group.failures)
    # the largest first, each once, and in each the order that was given
    assert [len(each.failures) for each in groups] == sorted(
        (len(each.failures) for each in groups), reverse=True
    )
    assert all(list(each.failures) == sorted(each.failures, key=lambda f: f[0].index)
               for each in groups)  # fmt: skip
    # and the same groups from any order
    assert {frozenset(job.index for job, _ in each.failures) for each in groups} == {
        frozenset(job.index for job, _ in each.failures) for each in again
    }


def test_many_failures_of_jobs_named_by_words_are_grouped():
    chance = random.Random(1)
    failures = [
        failure(
            n,
            f"cases/{'-'.join(chance.choices(WORDS, k=5))}",
            f"ValueError: {chance.random()} in /tmp/{n}/{chance.choice(WORDS)}",
        )
        for n in range(10_000)
    ]

    assert len(group_failures(failures)) == len(WORDS)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "step 3\n/w/slot-1/run.sh: line 2:  4711 Segmentation fault      bash job.sh a.txt\n",
            "Segmentation fault",
        ),
        (
            "run.sh: line 12: 9 Floating point exception (core dumped) ./model b.txt",
            "Floating point exception",
        ),
        ("x: line 1: 77 Killed                  ./model", "Killed"),
        ("run.sh: line 2: 12 is not a number", "run.sh: line 2: 12 is not a number"),
    ],
)
def test_of_what_a_shell_says_of_a_killed_program_the_name_of_the_signal_is_kept(
    said: str, shown: str
) -> None:
    assert last_line(said) == shown
