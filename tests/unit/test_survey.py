"""What is said of jobs that nobody knows of."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adr import plan, queue_plan, retry
from adr.keys import manifest_key, seal_key, unaccounted_key
from adr.manifest import manifest_bytes, read_manifest
from adr.models import JobState
from adr.runner import Runner, create_runner, open_runner
from adr.survey import Survey


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """Make a runner with a batch of three jobs."""
    made = create_runner(local=True)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    queue_plan(made.id, plan(sorted(tmp_path.glob("*.txt")), command="true"))
    return made


@pytest.fixture
def database(runner: Runner) -> Callable[[str], None]:
    """Return a function that changes the database of the runner behind its back."""

    def change(statement: str) -> None:
        with sqlite3.connect(Path(runner.id, "ledger.db")) as db:
            db.execute(statement)
        db.close()

    return change


def states(runner: Runner, lost_after_s: float) -> list[str]:
    return [view.state.value for view in Survey(runner, lost_after_s).status().jobs]


def notes(runner: Runner) -> list[str]:
    return [entry.key for entry in runner.store.list("_batches/") if "unaccounted" in entry.key]


def test_jobs_are_lost_that_were_nowhere_at_two_looks_far_enough_apart(
    runner: Runner, database: Callable[[str], None]
) -> None:
    # given
    assert states(runner, 0) == ["queued"] * 3
    assert notes(runner) == []
    database("DELETE FROM jobs")
    # then the first look does not know yet, nor does one soon after it
    assert states(runner, 90) == ["unaccounted"] * 3
    assert states(runner, 90) == ["unaccounted"] * 3
    # and a later one does
    status = Survey(runner, 0).status()
    assert {view.state for view in status.jobs} == {JobState.LOST}
    assert (status.totals.lost, status.totals.unaccounted, status.totals.jobs) == (3, 0, 3)
    assert "3 jobs" in status.notes[0]
    assert "lost" in status.notes[0]


def test_a_job_that_is_found_again_begins_anew(
    runner: Runner, database: Callable[[str], None]
) -> None:
    # given
    database("CREATE TABLE kept AS SELECT * FROM jobs")
    database("DELETE FROM jobs")
    assert states(runner, 0) == ["unaccounted"] * 3
    database("INSERT INTO jobs SELECT * FROM kept")
    assert states(runner, 0) == ["queued"] * 3
    # when
    database("DELETE FROM jobs")
    # then
    assert states(runner, 0) == ["unaccounted"] * 3


def test_a_lost_job_that_is_retried_begins_anew(
    runner: Runner, database: Callable[[str], None]
) -> None:
    # given jobs that have been nowhere for long, one of which is retried
    database("DELETE FROM jobs")
    (batch,) = Survey(runner).manifests()
    note = {"schema": 1, "since": {"1": 0, "2": 0, "3": 0}}
    runner.store.write(unaccounted_key(batch), json.dumps(note).encode())
    assert [job.generation for job in retry(runner.id, "1", lost=True).jobs] == [1]
    # when a look does not find it, as may be where counts come late
    database("DELETE FROM jobs")
    # then
    assert states(runner, 90) == ["unaccounted", "lost", "lost"]


def test_a_look_whose_clock_was_ahead_counts_like_this_one(
    runner: Runner, database: Callable[[str], None]
) -> None:
    # given
    database("DELETE FROM jobs")
    assert states(runner, 0) == ["unaccounted"] * 3
    (key,) = notes(runner)
    note = json.loads(runner.store.read(key).body)
    note["since"] = {index: since + 86_400 for index, since in note["since"].items()}
    runner.store.write(key, json.dumps(note).encode())
    # then
    assert states(runner, 60) == ["unaccounted"] * 3
    assert states(runner, 0) == ["lost"] * 3


@pytest.mark.parametrize(("ahead_s", "expected"), [(0, True), (-3600, False), (86_400, False)])
def test_who_queues_is_believed_for_a_while_whatever_their_clock_says(
    runner: Runner, ahead_s: float, expected: bool
) -> None:
    # given a batch that is not sent whole, made at that time
    batch = Survey(runner).status().batches[0].batch
    key = manifest_key(batch)
    manifest = read_manifest(runner.store.read(key).body, key)
    body = manifest_bytes(
        manifest.jobs,
        root=manifest.root,
        created=manifest.created + ahead_s,
        bundle_bytes=manifest.bundle_bytes,
        unpacked_bytes=manifest.unpacked_bytes,
    )
    runner.store.write(key, body)
    runner.store.delete([seal_key(batch)])
    # then
    assert Survey(runner).is_being_queued() is expected


def test_status_says_where_more_workers_would_get_nothing(runner: Runner) -> None:
    # given a queue that lends two jobs at a time, and a third that waits
    few = replace(open_runner(runner.id, worker="ab"), most_leased=2)
    few.ledger.receive(1, 1)
    assert not [note for note in Survey(few).status().notes if "lends" in note]
    # when the second is leased
    few.ledger.receive(1, 1)
    # then
    (note,) = [note for note in Survey(few).status().notes if "lends" in note]
    assert note.startswith("about 2 jobs are leased, and the queue of a runner lends 2 at a time:")
