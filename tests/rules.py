"""What a proxy is told to do to which calls, and how a test waits until it has been done."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable

from tests.aws_calls import Answer, Call

FORWARD = None


class Dropped:
    """The type of `DROP`."""


#: An action that returns this cuts the connection: the client gets no answer.
DROP = Dropped()

Action = Callable[[Call], "Answer | Dropped | None"]
Which = str | Callable[[Call], bool]


class ActionFailed(Exception):
    """Carry what a test's own action raised."""


class Rule:
    """One action on chosen calls; `wait` until it has been run."""

    def __init__(
        self, which: Which, action: Action, key: str | None, times: int | None, p: float
    ) -> None:
        self.which = which
        self.action = action
        self.key = re.compile(key) if key is not None else None
        self.left = times
        self.p = p
        #: How often the action was run.
        self.hits = 0
        self._changed = threading.Condition()

    def takes(self, call: Call, chance: random.Random) -> bool:
        chosen = self.which(call) if callable(self.which) else self.which == call.name
        if not chosen or (self.key and not self.key.search(call.key)):
            return False
        with self._changed:
            if self.left == 0 or (self.p < 1 and chance.random() >= self.p):
                return False
            if self.left is not None:
                self.left -= 1
        return True

    def run(self, call: Call) -> Answer | Dropped | None:
        try:
            return self.action(call)
        finally:
            with self._changed:
                self.hits += 1
                self._changed.notify_all()

    def wait(self, hits: int = 1, timeout: float = 30) -> None:
        """Block until the action has been run `hits` times."""
        with self._changed:
            done = self._changed.wait_for(lambda: self.hits >= hits, timeout)
        assert done, f"rule on {self.which} was run {self.hits} times, not {hits}"

    def stop(self) -> None:
        """Let every later call pass."""
        with self._changed:
            self.left = 0


class Late:
    """Writes whose sender was cut off and that land when they are let go."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event
        self.rule: Rule | None = None
        self.answers: list[Answer] = []
        self._changed = threading.Condition()

    def landed(self, answer: Answer) -> None:
        with self._changed:
            self.answers.append(answer)
            self._changed.notify_all()

    def wait_held(self, count: int = 1, timeout: float = 30) -> None:
        """Block until `count` calls have been taken and cut off."""
        assert self.rule
        self.rule.wait(count, timeout)

    def release(self, count: int = 1, timeout: float = 30) -> list[Answer]:
        """Forward what is held, wait until `count` calls were answered; return the answers."""
        self.event.set()
        with self._changed:
            done = self._changed.wait_for(lambda: len(self.answers) >= count, timeout)
        assert done, f"{len(self.answers)} late calls landed, not {count}"
        return self.answers
