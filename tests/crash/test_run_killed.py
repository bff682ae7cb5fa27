"""``adr run`` that is killed or interrupted picks up where it was."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.scene import Scene


def test_run_killed_half_way_runs_only_what_is_left(local: Scene) -> None:
    # given a run that is killed while its third job runs and the first two are done
    words = _words(local, 5)
    local.hold(3)
    first = local.start("adr", *words)
    local.await_run(3)
    local.wait(lambda: _published(local) >= {1, 2})
    first.kill()
    # then no process is left
    local.await_no_process()
    # when the same command is repeated
    local.let_go(3)
    again = local.start("adr", *words)
    assert again.ended() == 0, again.output()
    # then it runs what was left, and no job that was done
    assert local.all_runs() == [1, 1, 2, 1, 1]
    assert "3 succeeded" in again.output()
    _check(local)
    # and a third time there is nothing to do
    assert local.start("adr", *words).ended() == 0
    assert local.all_runs() == [1, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("die", "runs"),
    [
        ({"at": "adr.stores.directory:DirectoryStore.write", "key": r"\.seal"}, 1),
        ({"at": "adr.stores.directory:DirectoryStore.upload", "key": "proof.txt"}, 2),
        ({"at": "adr.ledgers.sqlite:SqliteLedger.settle", "after": True}, 1),
        ({"at": "adr.publish:Publisher.publish", "nth": 2}, 1),
        ({"at": "adr.transfer:_Run._bring", "after": True}, 1),
    ],
    ids=["queueing", "storing", "recorded", "publishing", "published"],
)
def test_run_killed_at_a_bad_moment(local: Scene, die: dict[str, Any], runs: int) -> None:
    # given a run that dies at such a moment of its first job
    words = _words(local, 3)
    local.hold(2)
    first = local.start("adr", *words, die=die)
    assert first.ended() == -signal.SIGKILL, first.output()
    local.await_no_process()
    # when the same command is repeated
    local.let_go(2)
    again = local.start("adr", *words)
    assert again.ended() == 0, again.output()
    # then all results are there, and a job that was recorded has not been run again
    assert local.runs(1) == runs
    _check(local)


def test_run_interrupted_by_ctrl_c_picks_up(local: Scene) -> None:
    # given a run that gets Ctrl-C while its second job runs
    words = _words(local, 3)
    local.hold(2)
    first = local.start("adr", *words)
    local.await_run(2)
    local.wait(lambda: _published(local) >= {1})
    first.signal(signal.SIGINT)
    # then it ends its job, says so and leaves
    assert first.ended() == 130
    assert "picks up" in first.output()
    assert local.ends(2) == 0
    assert local.pids() == []
    # and the same command does the rest
    local.let_go(2)
    assert local.start("adr", *words).ended() == 0
    assert local.all_runs() == [1, 2, 1]
    _check(local)


def _words(scene: Scene, jobs: int) -> list[str]:
    return ["run", f"--to={scene.folder / 'results'}", "--slots=1", *scene.make(jobs)]


def _published(scene: Scene) -> set[int]:
    found = (scene.folder / "results").glob("case-*/proof.txt")
    return {int(path.parent.name.removeprefix("case-")) for path in found}


def _check(scene: Scene) -> None:
    """Assert that the results are there, each of its job, and nothing else is."""
    results = scene.folder / "results"
    files = {str(path.relative_to(results)) for path in _files(results)}
    assert files == {f"case-{job}/proof.txt" for job in scene.jobs}
    for job in scene.jobs:
        number, secret = (results / f"case-{job}/proof.txt").read_text().splitlines()
        assert number.endswith(f" {job}")
        assert f"{secret}\n" == (scene.inputs / f"case-{job}.txt").read_text()
    scene.await_no_process()
    assert not list((results / ".adr/work").glob("*"))


def _files(results: Path) -> list[Path]:
    return [
        path
        for path in results.rglob("*")
        if path.is_file() and path.relative_to(results).parts[0] != ".adr"
    ]
