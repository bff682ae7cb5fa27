"""What a worker has time for, with and without a limit."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from adr.runner import create_runner, open_runner
from adr.worker.lifetime import Lifetime
from adr.worker.slot import Limits

HOUR = 3600.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_without_a_limit_there_is_always_time(clock: Clock) -> None:
    lifetime = Lifetime(None, 10, clock)

    clock.now += 1e9

    assert lifetime.room_s(1e9) > 1e9
    assert not lifetime.is_cut
    assert not lifetime.is_over


@pytest.mark.parametrize(
    ("hours", "usual_s", "room_s"),
    [
        # Ten minutes for a job, ten seconds for its end, two minutes for its results.
        (12, None, 12 * HOUR - 600 - 10 - 120),
        (12, 60, 12 * HOUR - 600 - 10 - 120),
        (12, HOUR, 11 * HOUR - 10 - 120),
        # The same in proportion.
        (1, None, 0.9 * HOUR - 10 - 120),
        (0.5, None, 0.85 * 0.5 * HOUR - 10),
    ],
)
def test_there_is_room_while_a_usual_job_would_still_fit(
    clock: Clock, hours: float, usual_s: float | None, room_s: float
) -> None:
    lifetime = Lifetime(hours * HOUR, 10, clock)

    assert lifetime.room_s(usual_s) == pytest.approx(room_s)
    clock.now += room_s + 1
    assert lifetime.room_s(usual_s) < 0
    assert not lifetime.is_cut


def test_jobs_are_ended_early_enough_for_their_results(clock: Clock) -> None:
    lifetime = Lifetime(12 * HOUR, 10, clock)

    clock.now += 12 * HOUR - 131
    assert not lifetime.is_cut
    clock.now += 2
    assert lifetime.is_cut
    assert not lifetime.is_over
    clock.now += 130
    assert lifetime.is_over


@pytest.mark.parametrize("kind", ["aws", "local"])
def test_what_is_called_off_is_over_within_half_a_minute(kind: str, tmp_path: Path) -> None:
    # given a worker that looks at its orders as seldom as any, and a job that ignores TERM
    runner = (
        create_runner(local=True, directory=tmp_path / "runner")
        if kind == "local"
        else open_runner(str(uuid.uuid4()), "eu-central-1")
    )
    # then
    assert runner.orders_s + Limits().term_s <= 25
