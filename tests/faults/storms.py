"""Bad weather: SQS or S3 with all of their faults at once, each with a small probability."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.proxy import FORWARD, Answer, Call, Proxy
from tests.rules import Rule


class Storm:
    """Rules that come and go together."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules

    @property
    def hits(self) -> list[int]:
        """Return how often each of the faults has happened."""
        return [rule.hits for rule in self._rules]

    def stop(self) -> None:
        for rule in self._rules:
            rule.stop()


def over_sqs(proxy: Proxy, chance: random.Random, p: float) -> Storm:
    """Deliver twice, shuffle, throttle, fail before the work and after it, in whole and in part.

    A delete with an older receipt handle answers that it was done, and removes nothing.
    """
    queues = proxy.duplicate_deliveries(p, times=2)
    queues.stale_deletes = False
    rules = [
        proxy.fail(_any_of("sqs."), 400, "RequestThrottled", p=p),
        proxy.fail(_any_of("sqs."), 500, "InternalError", p=p),
        proxy.lose_request(_any_of("sqs."), p=p),
        proxy.lose_answer(_any_of("sqs."), p=p),
        proxy.before("sqs.SendMessageBatch", lambda call: _disorder(call, chance)),
        proxy.after("sqs.ReceiveMessage", lambda call: _shuffle(call, chance)),
    ]
    for name in ("SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
        rules += fail_in_part(proxy, f"sqs.{name}", lambda: chance.random() < 2 * p)
    return Storm(rules)


def over_s3(proxy: Proxy, p: float) -> Storm:
    """Slow down, fail before the work and after it, cut bodies short and change them."""
    return Storm(
        [
            proxy.fail(_any_of("s3."), 503, "SlowDown", p=p),
            proxy.fail(_any_of("s3."), 500, "InternalError", p=p),
            proxy.lose_request(_any_of("s3."), p=p),
            proxy.lose_answer("s3.PutObject", p=p),
            proxy.truncate("s3.GetObject", p=p),
            proxy.corrupt("s3.GetObject", p=p),
        ]
    )


def fail_in_part(
    proxy: Proxy, name: str, chosen: Callable[[], bool], times: int | None = None
) -> list[Rule]:
    """Refuse the chosen ones among the entries of batches, and let the others be done."""
    refused: dict[Call, list[dict[str, object]]] = {}

    def take_out(call: Call) -> Answer | None:
        data = call.json()
        out = [entry for entry in data["Entries"] if chosen()]
        if not out:
            return FORWARD
        refused[call] = [
            {"Id": each["Id"], "Code": "InternalError", "Message": "Later.", "SenderFault": False}
            for each in out
        ]
        left = [entry for entry in data["Entries"] if entry not in out]
        if not left:
            return Answer(
                200,
                json.dumps({"Failed": refused.pop(call)}).encode(),
                [("Content-Type", "application/x-amz-json-1.0")],
            )
        call.body = json.dumps({**data, "Entries": left}).encode()
        return FORWARD

    def put_back(call: Call) -> Answer | None:
        failed = refused.pop(call, None)
        if failed is None or call.answer is None or call.answer.status != 200:
            return FORWARD
        data = call.answer.json()
        data["Failed"] = [*data.get("Failed", ()), *failed]
        return replace(call.answer, body=json.dumps(data).encode())

    return [proxy.before(name, take_out, times=times), proxy.after(name, put_back)]


def _any_of(service: str) -> Callable[[Call], bool]:
    """Choose all calls of a service."""

    def chosen(call: Call) -> bool:
        return call.name.startswith(service)

    return chosen


def _disorder(call: Call, chance: random.Random) -> None:
    """Let messages arrive in another order, some of them a little later."""
    data = call.json()
    chance.shuffle(data["Entries"])
    for entry in data["Entries"]:
        entry["DelaySeconds"] = chance.choice((0, 0, 0, 1))
    call.body = json.dumps(data).encode()


def _shuffle(call: Call, chance: random.Random) -> Answer | None:
    data = call.answer.json() if call.answer else {}
    if not data.get("Messages"):
        return FORWARD
    chance.shuffle(data["Messages"])
    return replace(call.answer, body=json.dumps(data).encode())
