"""What ``adr queue``, ``adr retry`` and ``adr failures --dead`` say and print."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import adr
from adr import config
from adr.console import main
from adr.history import Known
from adr.joboutput import queue_lines
from adr.ledgers.base import DeadLetter
from adr.models import Job, JobState
from adr.queueing import NewBatch, QueueReport
from adr.retrying import RetryReport
from adr.views import JobView

RUNNER = "0b3f7d1e-4c0d-4d5a-9a53-7d2f0a8b1c11"
JOBS = [Job("b", n, 30, f"case{n}", "m", generation=1) for n in range(1, 31)]


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand in for `adr.adr`; note how `retry` was called."""
    fake = SimpleNamespace(calls=[], report=RetryReport((), (), (), ()), letters=[])

    def retry(*words: Any, progress: Any, **options: Any) -> RetryReport:
        fake.calls.append((words, options))
        report: RetryReport = fake.report
        return report

    fake.retry = retry
    fake.dead_letters = lambda *words: fake.letters
    monkeypatch.setattr(adr, "adr", fake, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "adr.adr", fake)
    config.update_config("runner", RUNNER)
    return fake


def test_options_of_a_retry_reach_the_core(core: SimpleNamespace) -> None:
    words = [
        "retry", "--failed", "--lost", "--cancelled", "--exit-code=139", "--batch=b",
        "--attempts=2", "--timeout=1.5", "--force", "--dry-run", "--dead", "--region=r",
        "case*", "b/case2",
    ]  # fmt: skip
    assert main(words) == 0
    assert core.calls == [
        (
            (RUNNER, ["case*", "b/case2"], "r"),
            {
                "failed": True, "lost": True, "cancelled": True, "exit_code": 139, "batch": "b",
                "attempts": 2, "timeout": 1.5, "force": True, "dry_run": True, "dead": True,
            },
        )
    ]  # fmt: skip
    assert main(["retry", "--exit-code=256"]) == 2
    assert main(["retry", ""]) == 2


def test_a_retry_says_what_and_how_many_and_prints_only_json(
    core: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    # given
    kept, gone = replace(JOBS[1], batch="c"), replace(JOBS[2], batch="d\x1b")
    left = tuple(
        JobView(job, state, None)
        for job, state in zip(
            JOBS, [JobState.SUCCEEDED, JobState.QUEUED, JobState.UNACCOUNTED], strict=False
        )
    )
    letter = DeadLetter("m-1", None, "no job")
    core.report = RetryReport((kept, *JOBS), (kept,), left, (gone,), (letter,))
    # when
    assert main(["retry"]) == 0
    # then
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "went on with a retry of 1 job of c, which was not finished: case2",
        "retrying 30 jobs of b: case1, case2, case3, case4, case5, ...",
        "left out 1 job of d\\x1b, whose inputs have been removed (repeat the adr queue or adr run "
        "that has made it): case3",
        "left alone: 1 message that cannot be read as a job; adr failures --dead lists them",
        "left alone: 1 succeeded, 2 waiting; --force retries also what has succeeded",
    ]
    assert main(["retry", "--json", "--quiet", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert (found["runner"], found["dry_run"], len(found["jobs"])) == (RUNNER, True, 31)
    assert found["jobs"][0] == {"batch": "c", "index": 2, "label": "case2", "generation": 1}
    assert (found["resumed"], found["gone"]) == (1, {"d\x1b": 1})
    assert found["left"] == {"succeeded": 1, "waiting": 2, "running": 0}
    assert found["unreadable"] == [{"message": "m-1", "job": None, "trouble": "no job"}]
    core.report = RetryReport((), (), (), ())
    assert main(["retry"]) == 0
    assert capsys.readouterr().err == "nothing to retry\n"


def test_dead_letters_are_listed_by_job(
    core: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    core.letters = [DeadLetter("m-1", JOBS[0]), DeadLetter("m-2", None, "no\x1bjob")]
    assert main(["failures", "--dead"]) == 0
    assert capsys.readouterr().out == "b/case1\nm-2: no\\x1bjob\n"
    assert main(["failures", "--dead", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dead"][0] == {
        "message": "m-1",
        "job": {"batch": "b", "index": 1, "label": "case1", "generation": 1},
        "trouble": "",
    }
    assert main(["failures", "--dead", "case1"]) == 2


def test_what_is_there_already_is_counted() -> None:
    at = {(str(n), None): ("b", JobState.SUCCEEDED) for n in range(80)}
    at |= {(str(n), None): ("b", JobState.RUNNING) for n in range(80, 85)}
    report = QueueReport("b", 0, (), None, Known(at))
    assert list(queue_lines(report)) == [
        "all 85 jobs are here already (80 succeeded, 5 running): nothing queued; "
        "--rerun queues them again"
    ]
    plan = SimpleNamespace(
        root=Path("/data"), files=["a"], size_bytes=3, left_out=(), inputs_left_out=(), refused=(),
        duplicates=0,
    )  # fmt: skip
    new = NewBatch("c", plan, 99)  # type: ignore[arg-type]
    one = Known(dict(list(at.items())[:1]))
    report = QueueReport("c", 7, ("b",), new, one, {"b": 1, "a": 2}, {"b": 1, "a": 1000})
    assert list(queue_lines(report)) == [
        "went on with batch b, whose queueing was not finished",
        "1 job that had not succeeded is queued again in b",
        "2 jobs that had not succeeded are queued again in a",
        "1 job is here already (1 succeeded); --rerun queues it again",
        "1 of these waits or runs already in b, with other limits, and will run as well: "
        "adr cancel --batch=b calls off what is left there",
        "1,000 of these wait or run already in a, with other limits, and will run as well: "
        "adr cancel --batch=a calls off what is left there",
        "bundled 1 file, 3 bytes from /data",
    ]
