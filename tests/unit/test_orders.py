"""What orders say, and what they do not say of jobs that are retried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adr.keys import CONTROL
from adr.models import Job
from adr.orders import (
    OrderBook,
    Orders,
    end_following,
    follow_key,
    order_cancelling,
    order_destruction,
    order_following,
    order_pause,
    order_resumption,
    read_orders,
)
from adr.stores.base import Document, ObjectInfo
from adr.stores.directory import DirectoryStore


class Counting(DirectoryStore):
    """A store that counts what it is asked."""

    reads = 0
    lists = 0
    #: What somebody else does once the orders were listed.
    after_list: Callable[[], None] | None = None

    def read(self, key: str) -> Document:
        self.reads += 1
        return super().read(key)

    def list(self, prefix: str, *, flat: bool = False) -> Iterator[ObjectInfo]:
        self.lists += 1
        found = list(super().list(prefix, flat=flat))
        todo, self.after_list = self.after_list, None
        if todo:
            todo()
        return iter(found)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    """Return a store without orders."""
    made = Counting(tmp_path)
    made.create()
    return made


def job(index: int, generation: int = 0, batch: str = "2026-a") -> Job:
    return Job(batch, index, 9, str(index), "true", generation=generation)


def test_exactly_the_jobs_that_were_named_are_called_off(store: Counting) -> None:
    # given an order about some jobs of two batches, in different generations
    named = [job(1), job(2), job(4), job(5, 1), job(7, batch="2026-b")]
    order_cancelling(store, reversed(named))
    # when
    orders = read_orders(store)
    # then
    assert [orders.against(each) for each in named] == ["cancelled"] * len(named)
    others = [job(3), job(6), job(7), job(1, batch="2026-b"), job(1, batch="2026")]
    assert [orders.against(each) for each in others] == [""] * len(others)


def test_a_retry_is_not_touched_until_it_is_called_off_itself(store: Counting) -> None:
    order_cancelling(store, [job(1), job(2)])
    assert read_orders(store).against(job(1, 1)) == ""
    order_cancelling(store, [job(1, 1)])
    orders = read_orders(store)
    assert [orders.against(job(1, generation)) for generation in (0, 1, 2)] == [
        "cancelled",
        "cancelled",
        "",
    ]
    assert orders.against(job(2, 1)) == ""


@given(st.sets(st.tuples(st.integers(1, 30), st.integers(0, 2)), max_size=20))
def test_whatever_is_named_is_covered_and_nothing_newer(
    tmp_path_factory: pytest.TempPathFactory, named: set[tuple[int, int]]
) -> None:
    newest: dict[int, int] = {}
    for index, generation in named:
        newest[index] = max(generation, newest.get(index, 0))
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    store.create()
    order_cancelling(store, [job(index, generation) for index, generation in newest.items()])
    orders = read_orders(store)
    covered = {
        (index, generation)
        for index in range(32)
        for generation in range(4)
        if orders.against(job(index, generation))
    }
    assert covered == {
        (index, generation) for index, last in newest.items() for generation in range(last + 1)
    }


# Each example writes files, which takes as long as the disk is busy.
@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), max_size=6),
        min_size=1,
        max_size=6,
    )
)
def test_orders_together_call_off_what_each_of_them_does(
    tmp_path_factory: pytest.TempPathFactory, ordered: list[list[tuple[int, int]]]
) -> None:
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    store.create()
    for named in ordered:
        order_cancelling(store, [job(index, generation) for index, generation in named])
    orders = read_orders(store)
    newest: dict[int, int] = {}
    for index, generation in (each for named in ordered for each in named):
        newest[index] = max(generation, newest.get(index, 0))
    for index in range(14):
        for generation in range(5):
            is_named = generation <= newest.get(index, -1)
            assert bool(orders.against(job(index, generation))) == is_named


def test_many_orders_about_neighbours_are_one(store: Counting) -> None:
    for index in range(1, 201):
        order_cancelling(store, [job(index)])
    assert read_orders(store).cancelled == {"2026-a": ((1, 200, 0),)}


def test_an_order_about_nothing_is_none(store: Counting) -> None:
    order_cancelling(store, [])
    assert list(store.list(CONTROL)) == []


def test_all_of_a_large_batch_is_one_short_order(store: Counting) -> None:
    order_cancelling(store, (job(index) for index in range(1, 100_001)))
    (entry,) = store.list(CONTROL + "cancel/")
    assert entry.size_bytes < 200
    assert read_orders(store).against(job(100_000)) == "cancelled"


def test_a_pause_holds_until_it_is_lifted(store: Counting) -> None:
    for _ in range(2):
        order_pause(store)
        assert read_orders(store).paused
    for _ in range(2):
        order_resumption(store)
        assert not read_orders(store).paused


def test_a_destroyed_batch_is_called_off_in_every_generation(store: Counting) -> None:
    order_destruction(store, "2026-a")
    orders = read_orders(store)
    assert orders.against(job(1, 7)) == "its batch was destroyed"
    assert not orders.against(job(1, batch="2026-b"))
    assert not orders.destroyed


def test_a_look_is_one_read_while_nothing_is_ordered(store: Counting) -> None:
    book = OrderBook(store)
    book.look()
    store.lists = store.reads = 0
    for _ in range(300):
        assert book.look() == Orders()
    assert store.reads == 300
    assert store.lists == 10, "for what was ordered by who could not make it known"


@pytest.mark.parametrize(
    ("order", "before"),
    [
        (lambda store: order_cancelling(store, [job(1)]), None),
        (order_destruction, None),
        (lambda store: order_destruction(store, "2026-a"), None),
        (order_pause, None),
        (order_resumption, order_pause),
        (lambda store: order_following(store, job(1), "ab"), None),
        (
            lambda store: order_following(store, job(1), "ab"),
            lambda store: order_following(store, job(1), "ab"),
        ),
        (
            lambda store: end_following(store, job(1), "ab"),
            lambda store: order_following(store, job(1), "ab"),
        ),
    ],
)
def test_each_order_is_seen_at_the_next_look(
    store: Counting, order: Callable[..., None], before: Callable[..., None] | None
) -> None:
    if before:
        before(store)
    book = OrderBook(store)
    # Right after a listing, so that none is due.
    while store.lists < 2:
        seen = book.look()
    order(store)
    assert book.look() != seen
    assert book.look() == read_orders(store)


def test_what_is_ordered_during_a_look_is_seen_at_the_next(store: Counting) -> None:
    book = OrderBook(store)
    order_cancelling(store, [job(1)])
    store.after_list = lambda: order_pause(store)
    assert [book.look().paused for _ in range(2)] == [False, True]


def test_what_calls_jobs_off_is_read_once(store: Counting) -> None:
    order_cancelling(store, [job(1)])
    book = OrderBook(store)
    book.read()
    store.lists = store.reads = 0
    assert book.read().against(job(1))
    assert (store.lists, store.reads) == (1, 0)
    order_cancelling(store, [job(2)])
    assert book.read().against(job(2))
    assert (store.lists, store.reads) == (2, 1)


def test_who_follows_is_told_by_the_key_and_changes_tell_that_they_still_do(
    store: Counting,
) -> None:
    key = follow_key(job(3), "ab12")
    store.write(key, b"1")
    (first,) = read_orders(store).follows
    assert (first.batch, first.index, first.id) == ("2026-a", 3, "ab12")
    store.write(key, b"2")
    (second,) = read_orders(store).follows
    assert replace(second, etag="") == replace(first, etag="")
    assert second.etag != first.etag
    # given something that is no order of ours
    store.write(CONTROL + "follow/nonsense", b"")
    assert len(read_orders(store).follows) == 1


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"schema": 1}', b'{"schema": 1, "batches": {"a": [[1]]}}', b"\xff"]
)
def test_a_broken_order_is_told_once_and_hides_no_other(
    store: Counting, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.write(CONTROL + "cancel/ab.json", body)
    order_cancelling(store, [job(1)])
    order_pause(store)
    book = OrderBook(store)
    for _ in range(2):
        orders = book.read()
        assert orders.paused
        assert orders.against(job(1)) == "cancelled"
    (said,) = caplog.messages
    assert "an order to cancel jobs" in said
