"""When a worker leases how many jobs, and when it leaves: decided without a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adr.models import Depth
from adr.worker.policy import Policy
from adr.workerinfo import SlotInfo, WorkerInfo

NOTHING = Depth(0, 0, 0, exact=False)
SOMETHING = Depth(0, 1, 0, exact=False)


class Queue:
    """Stand in for a ledger: `seen` is the depth it tells."""

    poll_s = 20.0

    def __init__(self) -> None:
        self.seen = NOTHING
        self.asked = 0

    def depth(self) -> Depth:
        self.asked += 1
        return self.seen


class Batches:
    """Stand in for a survey."""

    def __init__(self) -> None:
        self.some = True
        self.names = ["batch"]
        self.decided: bool | None = False
        self.being_queued = False
        self.asked = 0

    @property
    def batches(self) -> set[str]:
        return set(self.names) if self.some else set()

    def is_decided(self) -> bool | None:
        self.asked += 1
        return self.decided if self.some else True

    def is_being_queued(self) -> bool:
        return self.being_queued


class Scene:
    """A policy with a queue, batches and a clock that stands still."""

    def __init__(
        self,
        stop_on_empty: bool = True,
        most_jobs: int | None = None,
        idle_s: float | None = None,
        worker: str = "worker",
    ) -> None:
        self.now = 1000.0
        self.queue = Queue()
        self.batches = Batches()
        self.others: list[WorkerInfo] = []
        self.roster_reads = 0
        self.heartbeat_reads = 0
        self.policy = Policy(
            self.queue,
            self.batches,
            stop_on_empty=stop_on_empty,
            most_jobs=most_jobs,
            idle_s=idle_s,
            worker=worker,
            idle=self._idle,
            clock=lambda: self.now,
        )

    def _idle(self) -> tuple[int, Iterator[str]]:
        self.roster_reads += 1
        return len(self.others), self._read()

    def _read(self) -> Iterator[str]:
        for other in self.others:
            self.heartbeat_reads += 1
            if not other.running:
                yield other.worker

    def learn(self, job_s: float) -> None:
        for _ in range(20):
            self.policy.ended(job_s)

    def looks(self, *depths: Depth, every_s: float = 20, paused: bool = False) -> list[bool]:
        """Look at the queue while it is as told, and return what each look has shown."""
        found = []
        for depth in depths:
            self.now += every_s
            self.queue.seen = depth
            found.append(self.policy.is_finished(True, paused))
        return found


class TestLeasing:
    def test_of_jobs_of_unknown_length_as_many_are_leased_as_there_are_slots(self) -> None:
        policy = Scene().policy

        assert policy.wanted(4, [], 0) == 4
        assert policy.wanted(4, [1000.0] * 3, 0) == 1
        assert policy.wanted(4, [1000.0] * 4, 0) == 0

    @pytest.mark.parametrize(("job_s", "ahead"), [(10, 0), (0.5, 8), (0.1, 40), (0.001, 100)])
    def test_of_short_jobs_a_second_is_leased_ahead(self, job_s: float, ahead: int) -> None:
        scene = Scene()
        scene.learn(job_s)

        assert scene.policy.wanted(4, [scene.now] * 4, 0) == pytest.approx(ahead, abs=1)

    def test_while_jobs_are_ahead_many_are_leased_at_once_or_none(self) -> None:
        scene = Scene()
        scene.learn(0.1)

        assert scene.policy.wanted(4, [scene.now] * 4, 38) == 0
        assert scene.policy.wanted(4, [scene.now] * 4, 20) >= 10

    def test_nothing_is_leased_ahead_for_slots_that_are_at_a_long_job(self) -> None:
        scene = Scene()
        scene.learn(0.1)
        long_ago = scene.now - 2

        assert scene.policy.wanted(1, [long_ago], 0) == 0
        assert scene.policy.wanted(4, [long_ago] * 4, 0) == 0
        assert scene.policy.wanted(4, [long_ago] * 2 + [scene.now] * 2, 0) in (19, 20)

    def test_after_jobs_were_given_back_nothing_is_leased_ahead_until_one_has_ended(self) -> None:
        scene = Scene()
        scene.learn(0.1)

        scene.policy.given_back()

        assert scene.policy.wanted(4, [scene.now] * 4, 0) == 0
        assert scene.policy.wanted(4, [scene.now] * 3, 0) == 1
        scene.policy.ended(0.1)
        assert scene.policy.wanted(4, [scene.now] * 4, 0) > 0

    def test_where_there_was_nothing_to_lease_none_is_leased_ahead_until_there_is(self) -> None:
        scene = Scene()
        scene.learn(0.1)

        scene.policy.leased(0)

        assert scene.policy.wanted(4, [scene.now] * 4, 0) == 0
        assert scene.policy.wanted(4, [scene.now] * 3, 0) == 1
        scene.policy.leased(1)
        assert scene.policy.wanted(4, [scene.now] * 4, 0) > 0

    def test_no_more_jobs_are_leased_than_were_asked_for(self) -> None:
        policy = Scene(most_jobs=3).policy

        assert policy.wanted(4, [], 0) == 3
        policy.leased(3)
        assert policy.wanted(4, [], 0) == 0
        assert policy.is_used_up


class TestWaiting:
    def test_a_worker_that_stays_waits_for_as_long_as_the_queue_is_best_polled(self) -> None:
        assert Scene(stop_on_empty=False).policy.patience_s(True) == Queue.poll_s

    def test_a_worker_that_is_to_leave_waits_no_longer_than_a_job_may_take(self) -> None:
        scene = Scene()
        scene.now += 3
        assert scene.policy.patience_s(False) == 3

        scene.learn(2)
        assert scene.policy.patience_s(False) == pytest.approx(2)
        assert scene.policy.patience_s(True) == 1

    def test_while_it_is_at_short_jobs_it_looks_once_without_waiting(self) -> None:
        scene = Scene()
        assert not scene.policy.is_soon_done(False), "it does not know yet that they are short"
        scene.learn(0.1)
        assert not scene.policy.is_soon_done(True)
        assert scene.policy.is_soon_done(False)

        scene.policy.leased(0)

        assert not scene.policy.is_soon_done(False)
        scene.policy.leased(1)
        assert scene.policy.is_soon_done(False)
        scene.learn(2)
        assert not scene.policy.is_soon_done(False)

    def test_who_stays_and_who_may_lease_so_many_waits_for_jobs_all_the_same(self) -> None:
        for scene in (Scene(stop_on_empty=False), Scene(most_jobs=5)):
            scene.learn(0.1)
            assert not scene.policy.is_soon_done(False)


class TestLeaving:
    def test_a_worker_that_stays_is_never_finished(self) -> None:
        scene = Scene(stop_on_empty=False)
        scene.batches.decided = True

        assert not scene.policy.is_finished(True)

    def test_a_worker_with_jobs_is_not_finished(self) -> None:
        scene = Scene()
        scene.batches.decided = True

        assert not scene.policy.is_finished(False)

    def test_an_exact_count_proves_it_at_once(self) -> None:
        scene = Scene()

        assert scene.looks(Depth(0, 0, 0, exact=True)) == [True]
        assert scene.looks(Depth(0, 0, 1, exact=True)) == [False]

    def test_decided_batches_prove_it_once_the_queue_seems_empty(self) -> None:
        scene = Scene()
        scene.batches.decided = True

        assert scene.looks(SOMETHING, NOTHING) == [False, True]

    def test_approximate_counts_prove_it_after_a_minute(self) -> None:
        assert Scene().looks(*[NOTHING] * 4) == [False, False, False, True]
        assert not any(Scene().looks(*[NOTHING] * 59, every_s=1))

    def test_a_look_that_finds_something_begins_the_minute_anew(self) -> None:
        depths = [NOTHING] * 3 + [SOMETHING] + [NOTHING] * 4

        assert Scene().looks(*depths) == [False] * 7 + [True]

    def test_a_job_that_comes_between_begins_the_minute_anew(self) -> None:
        scene = Scene()
        scene.looks(*[NOTHING] * 3)

        scene.policy.leased(1)

        assert scene.looks(*[NOTHING] * 4) == [False, False, False, True]

    def test_nobody_leaves_while_a_batch_is_being_queued(self) -> None:
        scene = Scene()
        scene.batches.being_queued = True

        assert not any(scene.looks(*[NOTHING] * 9))


WAITING = Depth(1, 0, 0, exact=False)
DELAYED = Depth(0, 0, 1, exact=False)


def worker(name: str, busy: bool = False) -> WorkerInfo:
    running = (SlotInfo("batch", 1, 0, "attempt", 1.0),) if busy else ()
    return WorkerInfo(name, "host", 1, 1, 1.0, "1", running=running)


class TestIdleness:
    def test_a_worker_leaves_at_once_when_all_jobs_are_decided(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=600)
        scene.batches.decided = True

        assert scene.looks(SOMETHING, NOTHING) == [False, True]

    def test_a_worker_that_comes_after_all_was_decided_waits_for_what_is_queued_next(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=600)
        scene.batches.decided = True

        assert scene.looks(*[NOTHING] * 31) == [False] * 30 + [True]

    def test_then_it_leaves_when_its_jobs_are_decided(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=600)
        scene.batches.decided = True
        assert not any(scene.looks(*[NOTHING] * 4))

        scene.policy.leased(1)

        assert scene.looks(NOTHING) == [True]

    def test_or_when_those_are_decided_that_others_have_run_meanwhile(self) -> None:
        # given a worker that has found all to be decided
        scene = Scene(stop_on_empty=False, idle_s=600)
        scene.batches.decided = True
        assert not any(scene.looks(*[NOTHING] * 4))

        # when there is one batch more, of whose jobs it has seen nothing
        scene.batches.names.append("another")

        assert any(scene.looks(*[NOTHING] * 3))

    def test_or_when_a_batch_is_decided_that_was_not_when_it_came(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=600)
        assert not any(scene.looks(*[NOTHING] * 4))

        scene.batches.decided = True

        assert any(scene.looks(*[NOTHING] * 3))

    def test_what_is_not_known_yet_is_asked_again_and_decides_nothing(self) -> None:
        # given a worker that finds all to be decided, but has to wait to be told
        scene = Scene(stop_on_empty=False, idle_s=600)
        scene.batches.decided = None
        assert not any(scene.looks(*[NOTHING] * 4))

        scene.batches.decided = True

        assert not any(scene.looks(*[NOTHING] * 4)), "there was nothing for it to do"
        scene.policy.leased(1)
        scene.batches.decided = None
        assert scene.looks(NOTHING) == [False]
        scene.batches.decided = True
        assert not scene.policy.is_finished(False)
        assert scene.policy.is_finished(True), "it asks again without a minute between"

    def test_without_a_batch_it_leaves_only_after_its_time(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100)
        scene.batches.some = False

        assert scene.looks(*[NOTHING] * 6) == [False] * 5 + [True]

    def test_an_exact_count_does_not_make_it_leave_a_runner_without_a_batch(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100)
        scene.batches.some = False

        assert scene.looks(*[Depth(0, 0, 0, exact=True)] * 6) == [False] * 5 + [True]

    @pytest.mark.parametrize("depth", [WAITING, DELAYED])
    def test_while_something_waits_it_stays(self, depth: Depth) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100)

        assert not any(scene.looks(*[depth] * 50))
        assert scene.looks(*[NOTHING] * 6) == [False] * 5 + [True], "and from then on it counts"

    def test_what_waits_does_not_keep_it_while_the_runner_is_paused(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100)

        assert scene.looks(*[WAITING] * 6, paused=True) == [False] * 5 + [True]
        assert not any(scene.looks(*[WAITING] * 50)), "it would go on after that"

    def test_while_the_runner_is_paused_none_stays_to_take_over(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100, worker="a")
        scene.others = [worker("a"), worker("0", busy=True)]

        assert scene.looks(*[SOMETHING] * 6, paused=True)[-1]

    def test_its_time_begins_anew_with_each_job(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100)
        scene.looks(*[NOTHING] * 5)

        scene.policy.leased(1)
        assert not scene.policy.is_finished(False)

        assert scene.looks(*[NOTHING] * 6) == [False] * 5 + [True]

    def test_while_others_run_jobs_two_idle_workers_stay(self) -> None:
        found = {}
        for me in "abcd":
            scene = Scene(stop_on_empty=False, idle_s=100, worker=me)
            scene.others = [worker("0", busy=True), *(worker(name) for name in "abcd")]
            found[me] = any(scene.looks(*[SOMETHING] * 20))

        assert found == {"a": False, "b": False, "c": True, "d": True}

    def test_of_many_workers_one_and_five_percent_stay(self) -> None:
        names = [f"{number:03}" for number in range(61)]
        staying = []
        for me in names:
            scene = Scene(stop_on_empty=False, idle_s=100, worker=me)
            # Its own heartbeat may still tell of the job that it has just ended.
            scene.others = [worker(name, busy=name == me) for name in names]
            if not any(scene.looks(*[SOMETHING] * 20)):
                staying.append(me)

        assert staying == names[:5]

    def test_of_ten_thousand_workers_each_looks_at_twenty_idle_ones(self) -> None:
        names = [f"{number:05}" for number in range(10_000)]
        others = [worker(name) for name in names]
        left, reads = {}, {}
        for me in ("00000", "00019", "00020", "09999"):
            scene = Scene(stop_on_empty=False, idle_s=100, worker=me)
            scene.others = others
            scene.looks(*[SOMETHING] * 5)
            left[me] = any(scene.looks(SOMETHING))
            reads[me] = scene.heartbeat_reads

        assert left == {"00000": False, "00019": False, "00020": True, "09999": True}
        assert max(reads.values()) <= 21

    def test_one_who_stays_leaves_once_those_before_it_are_too_many(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100, worker="c")
        scene.others = [worker("a"), worker("b", busy=True), worker("c")]
        assert not any(scene.looks(*[SOMETHING] * 20))

        scene.others[1] = worker("b")

        assert any(scene.looks(*[SOMETHING] * 4))

    def test_when_nothing_is_in_flight_any_more_those_who_stayed_leave(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100, worker="a")
        assert not any(scene.looks(*[SOMETHING] * 20))

        assert scene.looks(*[NOTHING] * 4) == [False, False, False, True]

    def test_refusals_count_as_idleness_where_they_follow_each_other(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100)

        def refused(*idle: bool) -> list[bool]:
            found = []
            for each in idle:
                scene.now += 50
                found.append(scene.policy.is_shut_out(each))
            return found

        assert refused(True, True, True) == [False, False, True]
        scene.policy.leased(0)
        assert refused(True, True, False, True, True, True) == [False] * 5 + [True]

    def test_a_worker_without_a_limit_to_idleness_bears_any_refusal(self) -> None:
        scene = Scene(stop_on_empty=False)
        assert not scene.policy.is_shut_out(True)
        scene.now += 1e6
        assert not scene.policy.is_shut_out(True)

    def test_idling_costs_one_call_a_poll(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=600)
        scene.batches.some = False

        assert not any(scene.looks(*[NOTHING] * 30))

        assert scene.queue.asked == 30
        assert scene.batches.asked == 10
        assert scene.roster_reads == 0

    def test_who_stays_reads_the_roster_once_a_minute(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=100)

        assert not any(scene.looks(*[SOMETHING] * 35))

        assert scene.roster_reads == 10
        assert scene.batches.asked == 0

    def test_the_longer_it_idles_the_longer_it_waits(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=600)
        patience = []
        for _ in range(8):
            patience.append(scene.policy.patience_s(True))
            scene.now += patience[-1]
            scene.policy.is_finished(True)

        assert patience == [1, 1, 1, 2, 4, 8, 16, 20]

    def test_it_waits_no_longer_than_it_is_to_idle(self) -> None:
        scene = Scene(stop_on_empty=False, idle_s=3)
        scene.looks(NOTHING)
        scene.now += 100

        assert scene.policy.patience_s(True) == 3
