"""A forwarder between adr and an emulator of AWS that names, counts and disturbs calls.

Every call passes through rules. A rule chooses calls and runs an action before the call is
forwarded, or after the upstream has answered and before the client hears of it; so a test
can kill a worker at exactly the point "journal written, delete not yet sent"::

    proxy.after("s3.PutObject", lambda call: os.kill(pid, SIGKILL), key="^_journal/", times=1)

`tests.rules` holds the rules, `tests.aws_calls` knows how AWS words things, `tests.aws_limits`
what it never accepts, `tests.sqs_rules` how its queues behave, `tests.http_wire` HTTP itself.
"""

from __future__ import annotations

import random
import re
import socket
import threading
from collections import Counter
from dataclasses import replace

from tests.aws_calls import Answer, Call, error_answer
from tests.aws_limits import refusal
from tests.http_wire import Upstream, answer_bytes, closed, cut, read_call
from tests.rules import DROP, FORWARD, Action, ActionFailed, Dropped, Late, Rule, Which
from tests.sqs_rules import SqsQueues

__all__ = ["DROP", "FORWARD", "Answer", "Call", "Late", "Proxy", "Rule"]


class Proxy:
    """Forward HTTP from a port of 127.0.0.1 to `upstream`, under rules.

    Thread-safe. Rules run in the order they were added, in the thread of the client's
    connection; the first that answers or drops ends the matter.
    """

    def __init__(self, upstream: str, seed: int = 1) -> None:
        host, _, port = upstream.removeprefix("http://").rstrip("/").partition(":")
        self._upstream = (host, int(port or 80))
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._before: list[Rule] = []
        self._after: list[Rule] = []
        self._clients: set[socket.socket] = set()
        self._queues: SqsQueues | None = None
        self._closing = threading.Event()
        #: What actions raised; the fixture fails the test on it.
        self.errors: list[BaseException] = []
        self.counts: Counter[str] = Counter()
        #: Name and key of every call, in the order of arrival.
        self.calls: list[tuple[str, str]] = []
        self._listener = self._bind(0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.up()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and cut all connections; what is held late never lands."""
        self._closing.set()
        self.down()
        self._listener.close()

    def seed(self, seed: int | str) -> None:
        """Begin the generator anew from which probabilities are drawn."""
        self._chance.seed(seed)

    # Counting

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def reset(self) -> None:
        """Forget the counts; rules stay."""
        with self._lock:
            self.counts.clear()
            self.calls.clear()

    def count(self, name: str, key: str = "") -> int:
        """Count calls of `name` whose key has a match of the regular expression `key`."""
        with self._lock:
            return sum(1 for n, k in self.calls if n == name and re.search(key, k))

    # Rules

    def before(
        self,
        which: Which,
        action: Action,
        *,
        key: str | None = None,
        times: int | None = None,
        p: float = 1.0,
    ) -> Rule:
        """Run `action` on chosen calls before they are forwarded.

        Parameters
        ----------
        which : str or callable
            Name of the call, or a predicate on the `Call`.
        action : callable
            Takes the `Call`; returns FORWARD, an `Answer`, or DROP.
        key : str, optional
            Regular expression that must match in the key (or the name of the queue).
        times : int, optional
            How often at most; without limit by default.
        p : float, optional
            Probability, from the seeded generator of the proxy.
        """
        return self._add(self._before, Rule(which, action, key, times, p))

    def after(
        self,
        which: Which,
        action: Action,
        *,
        key: str | None = None,
        times: int | None = None,
        p: float = 1.0,
    ) -> Rule:
        """Run `action` when the upstream has answered (`call.answer`), before the client hears."""
        return self._add(self._after, Rule(which, action, key, times, p))

    def _add(self, rules: list[Rule], rule: Rule) -> Rule:
        with self._lock:
            rules.append(rule)
        return rule

    # Faults

    def fail(
        self,
        which: Which,
        status: int,
        code: str,
        times: int | None = None,
        *,
        message: str = "Refused by the test.",
        key: str | None = None,
        p: float = 1.0,
    ) -> Rule:
        """Answer with an error, worded as the service does, without doing the work."""
        return self.before(
            which,
            lambda call: error_answer(call, status, code, message),
            key=key,
            times=times,
            p=p,
        )

    def lose_answer(
        self, which: Which, times: int | None = None, *, key: str | None = None, p: float = 1.0
    ) -> Rule:
        """Do the work and cut the connection."""
        return self.after(which, lambda call: DROP, key=key, times=times, p=p)

    def lose_request(
        self, which: Which, times: int | None = None, *, key: str | None = None, p: float = 1.0
    ) -> Rule:
        """Cut the connection without doing the work."""
        return self.before(which, lambda call: DROP, key=key, times=times, p=p)

    def truncate(
        self, which: Which, times: int | None = None, *, key: str | None = None, p: float = 1.0
    ) -> Rule:
        """Cut the connection in the middle of a body that was promised to be longer."""

        def cut_short(call: Call) -> Answer | None:
            if not (_is_content(call) and call.answer):
                return FORWARD
            return replace(call.answer, missing_bytes=(1 + len(call.answer.body)) // 2)

        return self.after(which, cut_short, key=key, times=times, p=p)

    def corrupt(
        self, which: Which, times: int | None = None, *, key: str | None = None, p: float = 1.0
    ) -> Rule:
        """Change one byte of a body, and not its checksum."""

        def change(call: Call) -> Answer | None:
            if not (_is_content(call) and call.answer):
                return FORWARD
            body = bytearray(call.answer.body)
            body[len(body) // 2] ^= 1
            return replace(call.answer, body=bytes(body))

        return self.after(which, change, key=key, times=times, p=p)

    def delay_late(
        self,
        which: Which,
        times: int | None = 1,
        event: threading.Event | None = None,
        *,
        key: str | None = None,
    ) -> Late:
        """Cut the client off at once and do the work later, when the `Late` is released."""
        late = Late(event or threading.Event())

        def hold(call: Call) -> Dropped:
            threading.Thread(target=land, args=(call,), daemon=True).start()
            return DROP

        def land(call: Call) -> None:
            late.event.wait()
            if not self._closing.is_set():
                late.landed(self.send(call))

        late.rule = self.before(which, hold, key=key, times=times)
        return late

    def like_sqs(self, *, stale_deletes: bool = True) -> SqsQueues:
        """Let queues behave as those of SQS where the emulator is stricter; see `SqsQueues`.

        Parameters
        ----------
        stale_deletes : bool, optional
            Whether a delete with an older handle removes the message; SQS answers 200 either
            way and promises nothing.
        """
        if self._queues is None:
            self._queues = SqsQueues(self._chance)
        self._queues.stale_deletes = stale_deletes
        return self._queues

    def duplicate_deliveries(self, p: float = 1.0, *, times: int = 1) -> SqsQueues:
        """Deliver a message again at once, with probability `p` and at most `times` times.

        The first holder goes on believing in its lease; `duplicated` of what is returned tells
        which messages were chosen.
        """
        queues = self._queues or self.like_sqs()
        queues.duplicate_p, queues.duplicate_times = p, times
        return queues

    def ceiling(self, seconds: float) -> SqsQueues:
        """Refuse to hide a message longer than `seconds` after its receive, as SQS after 12 hours.

        The visibility asked for at the receive itself is not limited: scale it down as well.
        """
        queues = self._queues or self.like_sqs()
        queues.ceiling_s = seconds
        return queues

    # Being there

    def down(self) -> None:
        """Refuse connections and cut those that stand."""
        cut(self._listener)  # close alone would not wake the thread that accepts
        self._listener.close()
        # Bound and not listening: the port stays ours and connecting to it is refused.
        self._listener = self._bind(self.port)
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            cut(client)

    def up(self) -> None:
        """Accept connections."""
        self._listener.listen(256)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    @staticmethod
    def _bind(port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    # Forwarding

    def _serve(self, client: socket.socket) -> None:
        upstream = Upstream(self._upstream)
        try:
            with client.makefile("rb") as stream:
                while (call := read_call(client, stream)) is not None:
                    call.abandoned = lambda: closed(client)
                    answer = self._handle(call, upstream)
                    if isinstance(answer, Dropped):
                        return
                    data = answer_bytes(call, answer)
                    client.sendall(data[: len(data) - answer.missing_bytes])
                    if answer.missing_bytes:
                        return
                    if call.lower.get("connection", "").lower() == "close":
                        return
        except (OSError, ValueError):
            pass  # the client has gone, or was cut off
        finally:
            upstream.close()
            with self._lock:
                self._clients.discard(client)
            cut(client)
            client.close()

    def _handle(self, call: Call, upstream: Upstream) -> Answer | Dropped:
        with self._lock:
            self.counts[call.name] += 1
            self.calls.append((call.name, call.key))
        try:
            result = self._apply(self._before, call)
            if result is not FORWARD:
                return result
            call.answer = self._forward(call, upstream)
            return self._apply(self._after, call) or call.answer
        except OSError:
            return DROP  # no answer from the upstream
        except ActionFailed as error:
            self.errors.append(error)
            return error_answer(call, 500, "InternalError", str(error))

    def _apply(self, rules: list[Rule], call: Call) -> Answer | Dropped | None:
        with self._lock:
            rules = list(rules)
        for rule in rules:
            try:
                result = rule.run(call) if rule.takes(call, self._chance) else FORWARD
            except Exception as error:
                raise ActionFailed(f"an action on {call.name} raised {error!r}") from error
            if result is not FORWARD:
                return result
        return FORWARD

    def _forward(self, call: Call, upstream: Upstream) -> Answer:
        if refused := refusal(call):
            return refused
        if self._queues is None:
            return upstream.send(call)
        return self._queues.send(call, upstream.send)

    def send(self, call: Call) -> Answer:
        """Send a call upstream past all rules, on a connection of its own."""
        upstream = Upstream(self._upstream)
        try:
            return self._forward(call, upstream)
        finally:
            upstream.close()


def _is_content(call: Call) -> bool:
    """Tell whether a call was answered with what it asked for, and not with an error or nothing."""
    return call.answer is not None and call.answer.status in (200, 206) and bool(call.answer.body)
