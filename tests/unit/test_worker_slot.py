"""A slot on a disk that is too small for all that it might keep."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import adr
from adr.models import Lease
from adr.runner import open_runner
from adr.worker.bundles import Bundles, DiskTooSmall
from adr.worker.slot import Limits, Slot
from tests.unit.workers import Disk, queue_jobs


@pytest.fixture
def runner(tmp_path: Path) -> str:
    return adr.create(local=True, directory=str(tmp_path / "runner"))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    made = Disk(tmp_path / "slot")
    monkeypatch.setattr(shutil, "disk_usage", made.usage)
    return made


@pytest.fixture
def slot(runner: str, tmp_path: Path) -> Iterator[Slot]:
    folder = tmp_path / "bundles"
    folder.mkdir()
    bundles = Bundles(open_runner(runner).store, folder)
    made = Slot(1, tmp_path / "slot", bundles, "worker", runner, Limits(), "host")
    yield made
    made.close()


def leases(runner: str, tmp_path: Path, batches: int) -> list[Lease]:
    """Lease one job of each of so many batches."""
    for number in range(batches):
        queue_jobs(runner, tmp_path / f"inputs-{number}", "true", 1)
    found = open_runner(runner, worker="worker").ledger.receive(batches, 1)
    assert len({lease.job.batch for lease in found}) == batches
    return found


def test_workspaces_of_other_batches_make_room_on_a_small_disk(
    runner: str, slot: Slot, disk: Disk, tmp_path: Path
) -> None:
    # given a disk that holds the workspaces of two batches
    first, second, third = leases(runner, tmp_path, 3)
    disk.room = 2
    slot.prepare(first)
    slot.prepare(second)
    assert len(disk.workspaces()) == 2

    # when a third one comes
    slot.prepare(third)

    # then it gets its room, and its job can be run
    assert disk.workspaces() == [third.job.batch]
    delivery = slot.run(third, tmp_path / "staging")
    assert delivery is not None
    assert delivery.record.reason == ""


def test_a_disk_that_is_too_small_for_one_workspace_is_refused(
    runner: str, slot: Slot, disk: Disk, tmp_path: Path
) -> None:
    (lease,) = leases(runner, tmp_path, 1)
    disk.room = 0

    with pytest.raises(DiskTooSmall, match="free"):
        slot.prepare(lease)


def test_a_workspace_that_its_job_has_moved_away_is_removed(
    runner: str, slot: Slot, disk: Disk, tmp_path: Path
) -> None:
    queue_jobs(runner, tmp_path / "inputs", 'd=$PWD; cd /; mv "$d" "$d.moved"', 2)
    first, second = open_runner(runner, worker="worker").ledger.receive(2, 1)
    slot.prepare(first)

    slot.run(first, tmp_path / "staging")

    assert disk.workspaces() == [first.job.batch]
    slot.prepare(second)
    delivery = slot.run(second, tmp_path / "staging-2")
    assert delivery is not None
    assert delivery.record.reason == ""


def test_a_closed_slot_leaves_nothing_on_the_disk(
    runner: str, slot: Slot, disk: Disk, tmp_path: Path
) -> None:
    for lease in leases(runner, tmp_path, 2):
        slot.prepare(lease)

    slot.close()

    assert disk.workspaces() == []
    assert list((tmp_path / "bundles").iterdir()) == []


def test_who_still_has_the_empty_log_of_a_job_open_reads_nothing_of_the_next(
    runner: str, slot: Slot, tmp_path: Path
) -> None:
    # given somebody who follows a job that says nothing
    queue_jobs(runner, tmp_path / "inputs", 'echo $ADR_INDEX | grep -v "1"', 3)
    silent, loud, last = open_runner(runner, worker="worker").ledger.receive(3, 1)
    log = tmp_path / "slot-1.log"
    log.touch()
    with log.open("rb") as followed:
        slot.prepare(silent)
        slot.run(silent, tmp_path / "staging-1")

        # when the next ones say something
        tails = [
            delivery.record.tail
            for each in (loud, last)
            if (delivery := slot.run(each, tmp_path / "staging-2"))
        ]

        # then each has its own, and nothing of it is heard by who follows the first
        assert tails == ["2\n", "3\n"]
        assert followed.read() == b""
