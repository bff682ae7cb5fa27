"""What `adr.embedded` does around the worker of ``adr run``: begin early, end at once."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from adr.batch import BatchPlan, plan_batch
from adr.embedded import run_batch
from adr.ledgers.sqlite import SqliteLedger
from adr.progress import SILENT
from adr.publish import Publisher
from tests.unit.workers import launchers


class Watching:
    """Count the launcher processes there are when each piece of work begins."""

    advance, note, finish = SILENT.advance, SILENT.note, SILENT.finish

    def __init__(self, ends_at: str = "") -> None:
        self.launchers: dict[str, int] = {}
        self._ends_at = ends_at

    def start(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.launchers[what] = launchers()
        if what == self._ends_at:
            raise KeyboardInterrupt


def planned(folder: Path, jobs: int, command: str = "true") -> BatchPlan:
    folder.mkdir()
    files = [folder / f"{number}.txt" for number in range(1, jobs + 1)]
    for path in files:
        path.write_text(path.name)
    return plan_batch(files, command=command)


def test_launchers_are_there_when_jobs_are_queued_and_gone_at_the_end(tmp_path: Path) -> None:
    # given three jobs and more slots than that
    plan, to = planned(tmp_path / "in", 3), tmp_path / "out"
    watching, again = Watching(), Watching()

    # when they are run, and run again
    first = run_batch(plan, to, slots=8, progress=watching)
    second = run_batch(plan, to, slots=8, progress=again)

    # then a launcher was started for each job that there was to run, before it was queued
    assert (first.succeeded, second.skipped) == (3, 3)
    assert watching.launchers == {"reading": 0, "bundling": 3, "queueing": 3, "running": 3}
    assert again.launchers == {"reading": 0}
    assert launchers() == 0


def test_an_interruption_while_jobs_are_queued_leaves_no_launcher(tmp_path: Path) -> None:
    watching = Watching(ends_at="bundling")

    with pytest.raises(KeyboardInterrupt):
        run_batch(planned(tmp_path / "in", 3), tmp_path / "out", slots=2, progress=watching)

    assert watching.launchers["bundling"] == 2
    assert launchers() == 0


def test_at_its_end_a_run_reads_no_record_that_it_has_dealt_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given jobs of which the second fails
    plan = planned(tmp_path / "in", 5, "cp {} copy; test {#} != 2")
    asked: list[int] = []
    records = SqliteLedger.records

    def noted(self: SqliteLedger, batches: Any, only: Collection[Any] | None = None) -> Any:
        asked.extend(each.index for each in only or ())
        return records(self, batches, only)

    monkeypatch.setattr(SqliteLedger, "records", noted)

    # when they are run
    report = run_batch(plan, tmp_path / "out", slots=2)

    # then only the failure is read, which is told, and all results are in place
    assert asked == [2]
    assert (report.succeeded, [each.index for each in report.failed]) == (4, [2])
    copies = sorted(path.parent.name for path in (tmp_path / "out").glob("*/copy"))
    assert copies == ["1", "2", "3", "4", "5"]


def test_what_could_not_be_published_during_a_run_is_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an output folder that cannot be written to at first
    publish, troubles = Publisher.publish, [["no room"]]

    def failing_once(self: Publisher, items: Any) -> list[str]:
        some = list(items)
        return troubles.pop() if some and troubles else publish(self, some)

    monkeypatch.setattr(Publisher, "publish", failing_once)

    # when jobs are run
    report = run_batch(planned(tmp_path / "in", 2, "cp {} copy"), tmp_path / "out", slots=2)

    # then their results are there all the same, and nothing is said to be missing
    assert troubles == []
    assert len(list((tmp_path / "out").glob("*/copy"))) == 2
    assert report.unpublished == ()
