"""Threads do not hinder each other over files that take longer to open than to read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import adr
from adr.progress import SILENT
from adr.runner import open_runner
from adr.worker.bundles import Bundles

SMALL, LARGE = b"small", bytes(1 << 20)


def plan_of(folder: Path, content: bytes) -> Any:
    """Plan a job for each of three inputs."""
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(content)
    return adr.plan(sorted(folder.iterdir()), command="true")


class Readers:
    """A progress that knows which threads tell it."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def advance(self, amount: int = 1) -> None:
        self.threads.append(threading.current_thread())

    def __getattr__(self, name: str) -> Any:
        return getattr(SILENT, name)


@pytest.mark.parametrize(("content", "here"), [(SMALL, True), (LARGE, False)])
def test_small_inputs_are_read_by_one_thread(tmp_path: Path, content: bytes, here: bool) -> None:
    readers = Readers()

    plan_of(tmp_path / "in", content).with_fingerprints(readers, "20261121-0000-in-000000")

    assert (readers.threads[0] is threading.current_thread()) is here


class Meeting:
    """A user of whom it is seen whether two slots write as him at the same time."""

    def __init__(self, patience_s: float) -> None:
        self._barrier = threading.Barrier(2)
        self._patience_s = patience_s
        self.met = False

    @contextmanager
    def rights(self) -> Iterator[None]:
        if not self.met and not self._barrier.broken:
            try:
                self._barrier.wait(self._patience_s)
                self.met = True
            except threading.BrokenBarrierError:
                pass
        yield


@pytest.mark.parametrize(("content", "side_by_side"), [(SMALL, False), (LARGE, True)])
def test_workspaces_of_small_files_are_made_one_after_the_other(
    tmp_path: Path, content: bytes, side_by_side: bool
) -> None:
    # given a batch, and a worker of two slots
    runner = adr.create(local=True, directory=str(tmp_path / "runner"))
    batch = adr.queue_plan(runner, plan_of(tmp_path / "in", content)).batch
    (tmp_path / "bundles").mkdir()
    user: Any = Meeting(20 if side_by_side else 0.2)
    bundles = Bundles(open_runner(runner).store, tmp_path / "bundles", user)

    # when both need it
    with ThreadPoolExecutor(2) as slots:
        targets = [tmp_path / "one", tmp_path / "two"]
        workspaces = list(slots.map(lambda target: bundles.unpack(batch, target), targets))

    # then both get it
    assert [sorted(each.name for each in target.iterdir()) for target in targets] == [[*"abc"]] * 2
    assert user.met is side_by_side
    for workspace in workspaces:
        workspace.close()
