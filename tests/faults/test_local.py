"""A machine that lets a local runner down: full disks, files held or gone, wrong clocks."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.scene import Process, Scene
from tests.servers import require

DAY_S = 86_400
#: What tells that there is no room: each of the store, the database and the workspace.
NO_ROOM = (
    "No space left on device: make room there",
    "database or disk is full: make room on it",
    "is full: make room there",
)


@pytest.fixture
def runner_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small disk where the runner of a scene is going to be made."""
    with mounted(tmp_path / "runner") as place:
        yield place


@contextmanager
def mounted(place: Path, size: str = "20m") -> Iterator[Path]:
    """Mount a disk that is soon full."""
    require(os.geteuid() == 0 and shutil.which("mount"), "only root can mount a small disk")
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(place)]
    require(subprocess.run(command, capture_output=True).returncode == 0, "nothing can be mounted")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def full(place: Path) -> Iterator[None]:
    """Leave no room on the disk of a directory."""
    ballast = place / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1):
                _fill(file, size)
        yield
    finally:
        ballast.unlink()


def _fill(file: BinaryIO, size: int) -> None:
    with suppress(OSError):
        while True:
            file.write(bytes(size))


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold a database as a process does that stands still within a transaction."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


def said(process: Process, *sentences: str) -> bool:
    return all(sentence in process.output() for sentence in sentences)


def test_full_disks_are_waited_for(runner_disk: Path, local: Scene) -> None:
    with mounted(local.folder / "small", "80m") as local.workingdir:
        # given a worker with its runner on one small disk and its workspaces on another, whose
        # jobs have all but ended
        local.command = 'bash job.sh {}; while [ -e "$SIDE/late" ]; do sleep 0.05; done'
        (local.side / "late").touch()
        batch = local.queue(6)
        worker = local.worker(slots=2)
        local.await_ends(2)
        with full(runner_disk):
            # when there is no room for results and records
            (local.side / "late").unlink()
            local.wait(lambda: said(worker, NO_ROOM[0], NO_ROOM[1]))
            # then nothing is decided, and others may look, but not write
            assert local.decided(batch) == 0
            status = local.start("adr", "status", f"--runner={local.runner}")
            assert status.ended() == 0, status.output()
            more = ["queue", "--quiet", "--rerun", f"--runner={local.runner}", *local.make(6)]
            assert refusal(local, *more).startswith("adr: ")
            work_disk = full(local.workingdir)
            work_disk.__enter__()
        # and when instead there is none to begin with another job
        local.wait(lambda: said(worker, NO_ROOM[2]))
        local.wait(lambda: local.decided(batch) == 2)
        work_disk.__exit__(None, None, None)
        # then all goes on once there is room, and no job has failed or was run twice
        local.await_empty()
        worker.end()
        assert local.all_runs() == [1] * 6
        local.check(batch)


def test_a_held_database_is_waited_for(local: Scene) -> None:
    # given a worker that has leased jobs ahead, when it comes to one that takes its time
    batch = local.queue(40)
    local.hold(20)
    worker = local.worker(busy_s=0.2)
    local.await_run(20)
    local.wait(lambda: local.decided(batch) == 19)
    with locked(Path(local.runner) / "ledger.db"):
        # when somebody holds the database, so that it cannot even give them back
        local.wait(lambda: said(worker, "could not give back"))
        assert said(worker, "another process has been writing for 0.2 s: fuser tells which")
        local.let_go(20)
        local.wait(lambda: local.ends(20) == 1)
        # then others may look, but not write
        assert local.decided(batch) == 19
        assert local.start("adr", "status", f"--runner={local.runner}").ended() == 0
        more = ["queue", "--quiet", "--rerun", f"--runner={local.runner}", *local.make(40)]
        assert "fuser" in refusal(local, *more)
    # and the worker goes on when it is let go
    local.await_empty()
    worker.end()
    assert local.all_runs() == [1] * 40
    local.check(batch)


@pytest.mark.parametrize("at", ["its beginning", "nothing", "a job", "results"])
def test_a_worker_whose_runner_is_removed_ends_with_a_sentence(local: Scene, at: str) -> None:
    # given a worker at something
    if at in ("a job", "results"):
        local.hold(1)
        local.queue(3)
    words = ("process", f"--workingdir={local.workingdir}", "--slots=2", local.runner)
    worker = local.start("adr", *words)
    if at == "its beginning":
        local.wait(lambda: list(local.workingdir.iterdir()))
    elif at == "nothing":
        local.wait(local.roster.alive)
    else:
        local.await_run(1)
    if at == "results":
        local.let_go(1)
        local.await_ends(3)
    # when somebody removes its runner
    remove(Path(local.runner))
    # then it ends, says why, and leaves nothing
    assert worker.ended() in ((0, 2) if at == "its beginning" else (0,)), worker.output()
    assert_no_traceback(worker)
    assert "there is no runner" in worker.output()
    local.await_no_process()
    assert list(local.workingdir.iterdir()) == []
    assert not Path(local.runner).exists()


@pytest.mark.parametrize("gone", ["results", "results/.adr"])
def test_a_run_whose_folder_is_removed_ends_with_a_sentence(local: Scene, gone: str) -> None:
    # given a run with a job that goes on
    local.hold(2)
    run = local.start("adr", *local.run_words(3))
    local.await_run(2)
    # when somebody removes where its results go, or what it knows
    remove(local.folder / gone)
    # then it ends with a sentence and leaves no process
    assert run.ended() == 2, run.output()
    assert_no_traceback(run)
    assert "there is no runner" in run.output()
    local.await_no_process()
    # and the next one does all of it
    local.let_go(2)
    assert local.start("adr", *local.run_words(3)).ended() == 0
    local.check_published()


def test_a_clock_that_is_set_holds_up_nothing_and_takes_nobody_for_dead(local: Scene) -> None:
    # given a job that waits for its second attempt, and one that a worker runs
    local.command = 'bash job.sh {}; [ {#} = 2 ] || [ "$(wc -l < "$SIDE/runs-1")" = 2 ]'
    local.hold(2)
    words = ["queue", "--quiet", "--attempts=2", f"--runner={local.runner}", *local.make(2)]
    queue = local.start("adr", *words)
    assert queue.ended() == 0, queue.output()
    assert local.worker(options={"most_jobs": 1}).ended() == 0
    # when the clock is set back by a day
    with closing(sqlite3.connect(Path(local.runner, "ledger.db"))) as db, db:
        later = "UPDATE jobs SET ready_at = ready_at + ? WHERE ready_at > 0"
        assert db.execute(later, (DAY_S,)).rowcount == 1
    one = local.worker()
    local.await_run(2)
    # and, as it then is seen by what was written before, forth by two
    past = time.time() - 2 * DAY_S
    for path in Path(local.runner).rglob("*"):
        if path.is_file() and not path.name.startswith("ledger.db"):
            os.utime(path, (past, past))
    # then the next worker clears nothing away of the first one
    other = local.worker()
    local.wait(lambda: len(list(Path(local.runner, "workers").iterdir())) == 2)
    local.wait(lambda: len(local.roster.alive()) == 2)
    # and what waits is run at once
    local.await_run(1, 2)
    local.let_go(2)
    local.await_empty()
    one.end()
    other.end()
    assert local.all_runs() == [2, 1]
    local.check(queue.output().strip())


def refusal(scene: Scene, *words: str) -> str:
    """Run a command that has to fail; return the one sentence it says."""
    process = scene.start("adr", *words, busy_s=0.2)
    assert process.ended() == 1, process.output()
    (line,) = process.output().splitlines()
    return line


def remove(folder: Path) -> None:
    """Remove a folder in which somebody writes."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def assert_no_traceback(process: Process) -> None:
    assert "Traceback" not in process.output(), process.output()


def test_a_worker_whose_folder_is_removed_fails_no_job(local: Scene) -> None:
    # given a worker in the middle of two jobs
    batch = local.queue(6)
    local.hold(1, 2)
    worker = local.worker(slots=2)
    local.await_run(1)
    local.await_run(2)
    # when somebody, such as a cleaner of /tmp, removes the folder that it works in
    for path in local.workingdir.iterdir():
        remove(path)
    local.let_go(1)
    # then it ends at the end of a job, says so, and gives back what it had
    assert worker.ended() == 0, worker.output()
    assert said(worker, "has been removed, so this worker ends")
    assert_no_traceback(worker)
    local.await_no_process()
    local.let_go(2)
    local.finish()
    local.check(batch)
