"""What is said of jobs that nobody knows of."""

from __future__ import annotations

import gzip
import json
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adr import plan, queue_plan, retry
from adr.keys import manifest_key, retry_name, seal_key, unaccounted_key
from adr.ledgers.journal import Journal
from adr.manifest import manifest_bytes, read_manifest
from adr.models import Job, JobRecord, JobState
from adr.roster import Roster
from adr.runner import Runner, create_runner, open_runner
from adr.survey import Survey
from tests.proxy import Proxy


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


def test_queue_and_workers_are_asked_at_the_same_time(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a queue and a store that answer only once both are asked
    both = threading.Barrier(2, timeout=10)

    def waiting(ask: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (both.wait(), ask())[1]

    monkeypatch.setattr(runner.ledger, "depth", waiting(runner.ledger.depth))
    monkeypatch.setattr(runner.roster, "alive", waiting(runner.roster.alive))
    # then
    assert states(runner, 0) == ["queued"] * 3


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
        list(manifest.jobs()),
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


class TestDecided:
    """How workers learn that nothing is left, without each reading everything."""

    @pytest.fixture
    def done(self, proxy: Proxy) -> Runner:
        """Make a runner with a batch of three jobs that are decided, recorded by two workers."""
        made = create_runner()
        _queue(made, range(1, 4))
        for worker, indices in (("w1", (1, 2)), ("w2", (3,))):
            Journal(made.store, worker).append([_record(index) for index in indices])
        return made

    def test_one_worker_proves_it_for_all(self, done: Runner, proxy: Proxy) -> None:
        # given
        assert Survey(done).is_decided() is True
        proxy.reset()
        # then the next one reads no record
        assert Survey(done).is_decided() is True
        assert [key for _, key in proxy.calls if "/w" in key] == []

    def test_a_retry_makes_it_open_again(self, done: Runner) -> None:
        assert Survey(done).is_decided() is True
        job = Job(BATCH, 2, 3, "2", "true", generation=1)
        _write_manifest(done, retry_name(BATCH, 1), [job])
        assert Survey(done).is_decided() is False
        Journal(done.store, "w3").append([_record(2, generation=1)])
        assert Survey(done).is_decided() is True

    def test_what_was_not_decided_is_looked_at_again(self, done: Runner) -> None:
        _write_manifest(done, f"{BATCH}+4", [Job(BATCH, 4, 4, "4", "true")])
        survey = Survey(done)
        assert survey.is_decided() is False
        Journal(done.store, "w3").append([_record(4)])
        assert survey.is_decided() is True

    def test_of_very_many_jobs_not_all_read_the_records_at_once(
        self, done: Runner, proxy: Proxy
    ) -> None:
        # given a batch whose records take long to read
        _queue_many(done, 1_000_000)
        proxy.reset()
        # when workers ask, then they are to ask again later
        assert {Survey(done).is_decided() for _ in range(3)} == {None}
        assert not [key for _, key in proxy.calls if "_journal/2-many" in key]

    def test_the_more_workers_there_are_the_later_each_reads_the_records(
        self, done: Runner
    ) -> None:
        _queue_many(done, 20_000)
        crowded = replace(done, roster=Crowd(done.store))
        assert {Survey(crowded).is_decided() for _ in range(3)} == {None}
        assert Survey(done).is_decided() is False


class Crowd(Roster):
    """Very many workers."""

    def about(self) -> int:
        return 10**9


def _queue_many(runner: Runner, many: int) -> None:
    """Let there be a batch of so many jobs that are not decided."""
    body = manifest_bytes(
        [Job("2-many", 1, many, "1", "true")],
        root="r",
        created=1.0,
        bundle_bytes=0,
        unpacked_bytes=0,
    )
    header = json.loads(gzip.decompress(body).splitlines()[0])
    header |= {"count": many, "spans": [[1, many, 0]]}
    lines = json.dumps(header).encode() + b"\n" + b"x\n" * many
    runner.store.write(manifest_key("2-many"), gzip.compress(lines, 1))
    runner.store.write(seal_key("2-many"), b"")


BATCH = "20261120-0912-waves-18165f"


def _queue(runner: Runner, indices: range) -> None:
    jobs = [Job(BATCH, index, len(indices), str(index), "true") for index in indices]
    _write_manifest(runner, BATCH, jobs)


def _write_manifest(runner: Runner, name: str, jobs: list[Job]) -> None:
    body = manifest_bytes(jobs, root="r", created=1.0, bundle_bytes=0, unpacked_bytes=0)
    runner.store.write(manifest_key(name), body)
    runner.store.write(seal_key(name), b"")


def _record(index: int, generation: int = 0) -> JobRecord:
    return JobRecord(BATCH, index, str(index), generation, f"a{index}", JobState.FAILED)
