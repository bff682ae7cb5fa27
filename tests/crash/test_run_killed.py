"""``adr run`` that is killed or interrupted picks up where it was."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.scene import Scene


def test_run_killed_half_way_runs_only_what_is_left(local: Scene) -> None:
    # given a run that is killed while its third job runs and the first two are done
    words = local.run_words(5)
    local.hold(3)
    first = local.start("adr", *words)
    local.await_run(3)
    local.wait(lambda: local.published() >= {1, 2})
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
    local.check_published()
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
    words = local.run_words(3)
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
    local.check_published()


def test_run_interrupted_by_ctrl_c_picks_up(local: Scene) -> None:
    # given a run that gets Ctrl-C while its second job runs
    words = local.run_words(3)
    local.hold(2)
    first = local.start("adr", *words)
    local.await_run(2)
    local.wait(lambda: local.published() >= {1})
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
    local.check_published()
