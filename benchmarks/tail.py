"""The end of a batch with jobs of mixed lengths: the makespan against the ideal.

Plays the life of every job, event by event, and lets the `Policy` of the worker decide how many
jobs are leased when. What is leased and does not get its turn goes back, as in
`adr.worker.leases`. Nobody sits on a job while another is idle: how long that is not so, is told.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from adr.ledgers import sqs
from adr.worker import leases
from adr.worker.policy import Policy
from benchmarks.measure import Setting
from benchmarks.table import Table

__all__ = ["tables"]

_RTT_S = 0.03
#: Lengths of jobs: seconds, and how many in a thousand.
MIXES = {
    "all 0.2 s": [(0.2, 1000)],
    "0.2 s, 1 % of 20 s": [(0.2, 990), (20.0, 10)],
    "0.2 s, 2 % of 30 s, 0.2 % of 300 s": [(0.2, 978), (30.0, 20), (300.0, 2)],
    "60 s, 5 % of 600 s": [(60.0, 950), (600.0, 50)],
}


@dataclass
class _Worker:
    policy: Policy
    #: Since when each busy slot is so, by slot.
    running: dict[int, float] = field(default_factory=dict)
    #: What waits for a slot: since when, and how long it will run.
    ready: deque[tuple[float, float]] = field(default_factory=deque)
    asking: bool = False
    #: Whether its last receive has brought all that it asked for.
    plenty: bool = False


class _Play:
    """Play one batch."""

    def __init__(self, workers: int, slots: int, lengths: Sequence[float]) -> None:
        self.now = 0.0
        self._slots = slots
        self._queue = deque(lengths)
        self._left = len(lengths)
        self._events: list[tuple[float, int, str, int, float]] = []
        self._serial = count()
        self._waiting: deque[int] = deque()
        self._workers = [
            _Worker(
                Policy(
                    None,  # type: ignore[arg-type]
                    None,  # type: ignore[arg-type]
                    stop_on_empty=False,
                    clock=lambda: self.now,
                )
            )
            for _ in range(workers)
        ]
        self._idle_slots, self._ready = workers * slots, 0
        #: Slot-seconds in which a slot was idle while a job waited in another worker.
        self.wasted_s = 0.0
        self.given_back = self.receives = 0

    def run(self) -> float:
        """Return the makespan."""
        for number in range(len(self._workers)):
            self._ask(number)
        before = 0.0
        while self._left:
            at, _, what, number, extra = heapq.heappop(self._events)
            self.wasted_s += min(self._idle_slots, self._ready) * (at - before)
            self.now = before = at
            getattr(self, f"_{what}")(number, extra)
        return self.now

    def _at(self, delay_s: float, what: str, number: int, extra: float = 0.0) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._serial), what, number, extra))

    def _ask(self, number: int) -> None:
        worker = self._workers[number]
        if worker.asking or self._wanted(worker) <= 0:
            return
        worker.asking = True
        self.receives += 1
        self._at(_RTT_S, "answer", number)

    def _wanted(self, worker: _Worker) -> int:
        return worker.policy.wanted(self._slots, worker.running.values(), len(worker.ready))

    def _answer(self, number: int, _: float) -> None:
        worker = self._workers[number]
        if not self._queue:
            # A long poll: it ends when something comes back to the queue.
            self._waiting.append(number)
            return
        worker.asking = False
        # What it had wanted when it asked may have changed a little meanwhile.
        wanted = self._wanted(worker)
        calls = min(sqs._RECEIVERS, wanted // sqs._ENTRIES) if worker.plenty else 1
        most = calls * sqs._ENTRIES if calls > 1 else max(1, min(sqs._ENTRIES, wanted))
        leased = min(most, len(self._queue))
        worker.plenty = leased == most
        self.receives += max(1, calls) - 1
        worker.policy.leased(leased)
        for _ in range(leased):
            worker.ready.append((self.now, self._queue.popleft()))
            self._ready += 1
        self._at(leases._UNSTARTED_S + leases._TICK_S / 2, "look", number)
        self._start(number)
        self._ask(number)

    def _start(self, number: int) -> None:
        worker = self._workers[number]
        free = [slot for slot in range(self._slots) if slot not in worker.running]
        for slot in free:
            if not worker.ready:
                return
            _, length_s = worker.ready.popleft()
            self._ready -= 1
            self._idle_slots -= 1
            worker.running[slot] = self.now
            self._at(length_s, "end", number, float(slot))

    def _end(self, number: int, slot: float) -> None:
        worker = self._workers[number]
        worker.policy.ended(self.now - worker.running.pop(int(slot)))
        self._idle_slots += 1
        self._left -= 1
        self._start(number)
        self._ask(number)

    def _look(self, number: int, _: float) -> None:
        """Give back what has waited for too long."""
        worker = self._workers[number]
        stale = 0
        while worker.ready and self.now - worker.ready[0][0] >= leases._UNSTARTED_S:
            self._queue.append(worker.ready.popleft()[1])
            stale += 1
        if not stale:
            return
        self._ready -= stale
        self.given_back += stale
        worker.policy.given_back()
        while self._waiting and stale > 0:
            self._at(_RTT_S / 2, "answer", self._waiting.popleft())
            stale -= sqs._ENTRIES


def tables(setting: Setting) -> list[Table]:
    """Play all mixes."""
    columns = [
        "jobs", "workers x 2", "makespan s", "one queue s", "ratio", "bound s", "given back",
        "receives/job",
        "idle while jobs wait elsewhere",
    ]  # fmt: skip
    table = Table("makespan of jobs of mixed lengths, in random order", columns)
    cases = [(10, 5000), (100, 50_000), (1000, 200_000)]
    for workers, number in cases[: 2 if setting.quick else 3]:
        for name, mix in MIXES.items():
            chance = random.Random(workers)
            lengths = [length for length, many in mix for _ in range(many * number // 1000)]
            chance.shuffle(lengths)
            play = _Play(workers, 2, lengths)
            makespan_s = play.run()
            one_queue_s = _one_queue(lengths, 2 * workers)
            table.rows.append(
                [
                    f"{len(lengths):,}: {name}",
                    f"{workers:,}",
                    makespan_s,
                    one_queue_s,
                    makespan_s / one_queue_s,
                    max(sum(lengths) / workers / 2, mix[-1][0]),
                    play.given_back,
                    play.receives / len(lengths),
                    f"{play.wasted_s / (makespan_s * workers * 2):.2%}",
                ]
            )
    table.notes.append(
        "one queue: every free slot takes the next job at once, the best that can be without "
        "knowing lengths; bound: all slots busy to the end, or the longest job"
    )
    return [table]


def _one_queue(lengths: Sequence[float], slots: int) -> float:
    """Return the makespan where leasing takes no time and nothing is leased ahead."""
    free = [0.0] * slots
    for length_s in lengths:
        heapq.heapreplace(free, free[0] + length_s)
    return max(free)
