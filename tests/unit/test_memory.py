"""What many inputs cost in memory: counted in bytes of objects for each, at a few thousand.

Not the size of a process, which depends on the allocator: what must not grow is what is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adr.batch import plan_batch
from adr.keys import bundle_key
from adr.ledgers.settled import Settled
from adr.queueing import queue_batch
from adr.runner import create_runner, open_runner
from adr.stores.directory import DirectoryStore
from adr.worker.bundles import Bundles
from adr.zipwriter import ZipWriter
from tests.contract.jobs import BATCH, a_job, outcome_of

MANY = 3000


class Used:
    """Bytes for each of many: what is kept at the end, and the most there was meanwhile."""

    kept = most = 0.0


@contextmanager
def measured() -> Iterator[Used]:
    used = Used()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield used
        now, most = tracemalloc.get_traced_memory()
        used.kept, used.most = (now - before) / MANY, (most - before) / MANY
    finally:
        tracemalloc.stop()


def test_a_workspace_and_its_bundle_keep_little_of_each_input(tmp_path: Path) -> None:
    # given a bundle of many files, and a link
    store = DirectoryStore(tmp_path / "store")
    store.create()
    with (tmp_path / "b.zip").open("wb") as file, ZipWriter(file.write, compress=False) as made:
        for number in range(MANY):
            made.add(
                f"case{number:06d}.txt",
                [b"content"],
                7,
                mtime_s=0,
                attributes=0o100644 << 16,
                extra=b"",
            )
        made.add("link", [b"case000001.txt"], 14, mtime_s=0, attributes=0o120777 << 16, extra=b"")
    store.upload(tmp_path / "b.zip", bundle_key("b"), move=True)
    (tmp_path / "bundles").mkdir()
    bundles = Bundles(store, tmp_path / "bundles")

    # when two slots unpack it
    with measured() as first:
        one = bundles.unpack("b", tmp_path / "one")
    with measured() as second:
        two = bundles.unpack("b", tmp_path / "two")

    # then the second keeps less than the names, which it shares, and neither held it all
    assert first.kept < 300
    assert second.kept < 60
    assert second.most < 150
    # and both know what is original
    for workspace in (one, two):
        (workspace.directory / "case000007.txt").write_text("changed")
        (workspace.directory / "link").unlink()
        (workspace.directory / "sub").mkdir()
        changes = workspace.changes()
        assert changes.changed == ["case000007.txt"]
        assert changes.removed == ["link"]
        workspace.restore(changes)
        assert (workspace.directory / "case000007.txt").read_text() == "content"
        assert os.readlink(workspace.directory / "link") == "case000001.txt"
        assert len(os.listdir(workspace.directory)) == MANY + 1


def test_planning_and_queueing_hold_little_of_each_job(tmp_path: Path) -> None:
    # given many inputs, and a runner
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    names = [str(inputs / f"case{number:06d}.txt") for number in range(MANY)]
    for name in names:
        Path(name).write_bytes(b"content")
    runner = create_runner(local=True, directory=str(tmp_path / "runner"), listed=False)
    # and whatever is kept once is there already
    queue_batch(runner, plan_batch(names[:1], command="other {}", exclude=["*"]))

    # when they are queued
    with measured() as planning:
        plan = plan_batch(names, command="run {}")
    with measured() as queueing:
        report = queue_batch(runner, plan)

    # then no step holds lists beside those that it returns
    assert report.jobs == MANY
    assert planning.most < 700
    assert queueing.most < 780


def test_threads_of_a_worker_share_what_they_allocate_from() -> None:
    script = """
import ctypes, sys, threading
from adr.worker.arenas import share_arenas
share_arenas()
libc = ctypes.CDLL(None)
for name in ("malloc", "fopen"):
    getattr(libc, name).restype = ctypes.c_void_p
every = threading.Barrier(8)
def allocate():
    every.wait()
    libc.malloc(100_000)
    every.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w")))
libc.fflush(None)
"""
    told = subprocess.run(
        [sys.executable, "-c", script, "/dev/stdout"], capture_output=True, text=True, check=True
    )
    assert 1 <= told.stdout.count("<heap nr=") <= 2


def test_what_decides_many_jobs_is_read_one_by_one(tmp_path: Path) -> None:
    # given jobs that are all decided
    made = create_runner(local=True, directory=str(tmp_path / "runner"), listed=False)
    ledger = open_runner(made.id, worker="w").ledger
    ledger.send([a_job(index) for index in range(1, MANY + 1)])
    leases = ledger.receive(MANY, 0)
    ledger.settle([outcome_of(lease, worker="w") for lease in leases])
    del leases

    # when they are counted
    with measured() as used:
        found = sum(1 for _ in ledger.decided([BATCH]))

    assert found == MANY
    assert used.most < 20


def test_jobs_that_were_settled_are_remembered_in_few_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a worker that remembers as many as these, and no more
    monkeypatch.setattr("adr.ledgers.settled._HALF", MANY)
    settled = Settled()

    # when it has settled them
    with measured() as used:
        for index in range(MANY):
            settled.add((BATCH, index, 2), f"{index:016x}")

    # then it knows them, and none else
    assert used.kept < 170
    assert settled.attempt_of((BATCH, 7, 2)) == f"{7:016x}"
    assert (BATCH, 7, 1) not in settled
    assert ("other", 7, 2) not in settled
    # and forgets them once there are twice as many others
    for index in range(2 * MANY):
        settled.add(("other", index, 0), f"{index:016x}")
    assert (BATCH, 7, 2) not in settled
    assert ("other", 0, 0) in settled
