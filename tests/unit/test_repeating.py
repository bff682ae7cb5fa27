"""Which failures a worker repeats, and after what pause."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adr import status
from tests.unit.workers import Site, Through


class Hasty(Through):
    """A ledger that notes the pauses asked for, and makes none."""

    def __init__(self, inner: Any, pauses: dict[str, list[float]]) -> None:
        super().__init__(inner)
        self.pauses = pauses

    def release(
        self, leases: Any, *, delay_s: float = 0, failed: bool = False, **more: Any
    ) -> None:
        if failed:
            for lease in leases:
                self.pauses.setdefault(lease.job.batch, []).append(delay_s)
        self.inner.release(leases, failed=failed, **more)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.clean_up()


def test_failures_are_repeated_as_asked_after_pauses_that_double(site: Site) -> None:
    # given jobs that fail in the ways there are
    def failing(how: str, **options: Any) -> str:
        return site.queue(f"echo x >> {site.folder}/$ADR_BATCH; {how}", **options)

    kinds = {
        failing("exit 1", attempts=6): (6, "exit code 1"),
        failing("exit 3", attempts=6, retry_on=[75, 139]): (1, "exit code 3"),
        failing("kill -SEGV $$", attempts=3, retry_on=[139]): (3, "killed by SIGSEGV"),
        failing("bash -c 'kill -SEGV $$'; exit", attempts=2, retry_on=[139]): (
            2,
            "exit code 139 (SIGSEGV)",
        ),
        # a time-out counts as the signal that it ends a job with
        failing("exec sleep 60", attempts=2, retry_on=[143], timeout=0.1): (
            2,
            "ran longer than its time limit of 0.1 s",
        ),
        failing("exec sleep 60", attempts=2, retry_on=[1], timeout=0.1): (
            1,
            "ran longer than its time limit of 0.1 s",
        ),
    }
    pauses: dict[str, list[float]] = {}
    # when
    site.worker(lambda ledger: Hasty(ledger, pauses), slots=3, stop_on_empty=True).run()
    # then each is run as often as it may, and has failed
    records = {view.job.batch: view.record for view in status(site.runner).jobs}
    for batch, (runs, reason) in kinds.items():
        assert (site.folder / batch).read_text().count("x") == runs, reason
        record = records[batch]
        assert record is not None
        assert record.reason == reason
        # and each pause is about twice the one before
        assert len(pauses.get(batch, ())) == runs - 1
        for number, pause in enumerate(pauses.get(batch, ())):
            assert 0.75 * 2**number <= pause <= 1.25 * 2**number


def test_pauses_grow_to_ten_minutes_and_no_further(site: Site) -> None:
    # given a job that has failed often
    site.queue("exit 1", attempts=20)
    pauses: dict[str, list[float]] = {}
    # when
    site.worker(lambda ledger: Hasty(ledger, pauses), slots=1, stop_on_empty=True).run()
    # then
    (found,) = pauses.values()
    assert len(found) == 19
    assert all(0.75 * 600 <= pause <= 1.25 * 600 for pause in found[10:])
