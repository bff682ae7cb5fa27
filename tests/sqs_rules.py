"""Make the queues of an emulator behave as those of SQS where it is stricter or simpler.

Emulators replace the receipt handle at each receive and refuse the older ones. SQS accepts
them: a delete with an older handle answers 200, an older handle still changes the visibility
of a message that is in flight, and changing one that is not answers 200 and does nothing.
SQS also leaves out empty lists of results, holds no message for more than 12 hours, and ends
a long poll with the connection it came on; an emulator goes on and gives messages to the dead.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.aws_calls import Answer, Call, error_answer

RECEIVE = "sqs.ReceiveMessage"
DELETES = ("sqs.DeleteMessage", "sqs.DeleteMessageBatch")
CHANGES = ("sqs.ChangeMessageVisibility", "sqs.ChangeMessageVisibilityBatch")

#: A receive may replace a handle while we use it: how often, and how long apart, to try anew.
_TRIES = 20
_TRY_AFTER_S = 0.01

_POLL_EVERY_S = 0.05

Forward = Callable[[Call], Answer]


@dataclass
class _Message:
    """What is known of one message that was received through the proxy."""

    #: The handle the emulator accepts.
    handle: str
    received_at: float
    hidden_until: float
    deleted: bool = False


@dataclass
class _Refusal:
    code: str
    message: str


class SqsQueues:
    """Stand between the rules of a proxy and the emulator, and follow the messages."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._lock = threading.Lock()
        self._messages: dict[str, _Message] = {}
        self._ids: dict[str, str] = {}
        self._default_visibility: dict[str, int] = {}
        #: Whether a delete with an older handle removes the message.
        self.stale_deletes = True
        #: Probability that a delivered message is delivered again, and how often it may be.
        self.duplicate_p = 0.0
        self.duplicate_times = 1
        #: How often each message, by its id, was made visible again.
        self.duplicated: Counter[str] = Counter()
        #: Longest time a message may be hidden after its receive.
        self.ceiling_s = 43200.0
        #: How many extensions the ceiling has refused.
        self.refused = 0

    def send(self, call: Call, forward: Forward) -> Answer:
        """Answer a call as SQS would, with the help of the emulator behind `forward`."""
        if "x-amz-target" not in call.lower:
            return forward(call)
        if call.name == RECEIVE:
            return self._receive(call, forward)
        if call.name in DELETES + CHANGES:
            if call.name.endswith("Batch"):
                return self._change_batch(call, forward)
            return self._change(call, forward)
        return forward(call)

    def _receive(self, call: Call, forward: Forward) -> Answer:
        visibility = call.json().get("VisibilityTimeout")
        if visibility is None:
            visibility = self._visibility_of_queue(call, forward)
        answer = self._poll(call, forward)
        if answer.status != 200:
            return answer
        now = time.monotonic()
        for message in answer.json().get("Messages") or ():
            id_, handle = message["MessageId"], message["ReceiptHandle"]
            with self._lock:
                self._ids[handle] = id_
                self._messages[id_] = _Message(handle, now, now + visibility)
                again = (
                    self.duplicated[id_] < self.duplicate_times
                    and self._chance.random() < self.duplicate_p
                )
                if again:
                    self.duplicated[id_] += 1
                    self._messages[id_].hidden_until = now
            if again:
                seen = {"ReceiptHandle": handle, "VisibilityTimeout": 0}
                forward(_sibling(call, "ChangeMessageVisibility", seen))
        return answer

    @staticmethod
    def _poll(call: Call, forward: Forward) -> Answer:
        """Wait as long as the client would, by short polls, but not for a client that has gone."""
        data = call.json()
        deadline = time.monotonic() + data.get("WaitTimeSeconds", 0)
        short = _with(call, {**data, "WaitTimeSeconds": 0})
        while True:
            if call.abandoned():
                raise ConnectionAbortedError("the client has gone")
            answer = forward(short)
            if answer.status != 200 or answer.json().get("Messages"):
                return answer
            if time.monotonic() >= deadline:
                return answer
            time.sleep(_POLL_EVERY_S)

    def _visibility_of_queue(self, call: Call, forward: Forward) -> int:
        if call.key not in self._default_visibility:
            names = {"AttributeNames": ["VisibilityTimeout"]}
            answer = forward(_sibling(call, "GetQueueAttributes", names)).json()
            # An absent queue has none; the receive itself will say so.
            default = answer.get("Attributes", {}).get("VisibilityTimeout", 30)
            self._default_visibility[call.key] = int(default)
        return self._default_visibility[call.key]

    def _change(self, call: Call, forward: Forward) -> Answer:
        data = call.json()
        for _ in range(_TRIES):
            verdict = self._judge(call, data)
            if isinstance(verdict, _Refusal):
                return error_answer(call, 400, verdict.code, verdict.message)
            if verdict is None:
                return _json_answer({})
            answer = forward(_with(call, {**data, "ReceiptHandle": verdict}))
            if answer.status == 200:
                self._note(call, data, verdict)
                break
            code = answer.json().get("__type", "").rpartition("#")[2]
            if not self._replaced(code, data):
                break
            time.sleep(_TRY_AFTER_S)
        return answer

    def _change_batch(self, call: Call, forward: Forward) -> Answer:
        data = call.json()
        entries = {entry["Id"]: entry for entry in data["Entries"]}
        done: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        pending = list(entries.values())
        used: dict[str, str] = {}
        for last in [False] * (_TRIES - 1) + [True]:
            batch = []
            for entry in pending:
                verdict = self._judge(call, entry)
                if isinstance(verdict, _Refusal):
                    failed.append(_failure(entry["Id"], verdict))
                elif verdict is None:
                    done.append({"Id": entry["Id"]})
                else:
                    used[entry["Id"]] = verdict
                    batch.append({**entry, "ReceiptHandle": verdict})
            pending = []
            if batch:
                answer = forward(_with(call, {**data, "Entries": batch}))
                if answer.status != 200:
                    return answer
                result = answer.json()
                for item in result.get("Successful") or ():
                    self._note(call, entries[item["Id"]], used[item["Id"]])
                    done.append(item)
                for item in result.get("Failed") or ():
                    if not last and self._replaced(item["Code"], entries[item["Id"]]):
                        pending.append(entries[item["Id"]])
                    else:
                        failed.append(item)
            if not pending:
                break
            time.sleep(_TRY_AFTER_S)
        lists = {"Successful": done, "Failed": failed}
        return _json_answer({name: items for name, items in lists.items() if items})

    def _judge(self, call: Call, entry: dict[str, Any]) -> str | _Refusal | None:
        """Return the handle to use, why the entry is refused, or None where SQS does nothing."""
        handle = str(entry["ReceiptHandle"])
        with self._lock:
            message = self._messages.get(self._ids.get(handle, ""))
            if message is None:
                return handle
            if call.name in DELETES:
                if message.deleted or (message.handle != handle and not self.stale_deletes):
                    return None
                return message.handle
            if message.deleted:
                return _Refusal(
                    "InvalidParameterValue",
                    f"Value {handle} for parameter ReceiptHandle is invalid. Reason: Message does "
                    "not exist or is not available for visibility timeout change.",
                )
            now = time.monotonic()
            if message.hidden_until <= now:
                return None
            timeout_s = int(entry["VisibilityTimeout"])
            if now - message.received_at + timeout_s > self.ceiling_s:
                self.refused += 1
                return _Refusal(
                    "InvalidParameterValue",
                    f"Value {timeout_s} for parameter VisibilityTimeout is invalid. Reason: Total "
                    "VisibilityTimeout for the message is beyond the limit [43200 seconds]",
                )
            return message.handle

    def _note(self, call: Call, entry: dict[str, Any], handle: str) -> None:
        """Remember what a call with `handle` has done, unless it was received again since."""
        with self._lock:
            message = self._messages.get(self._ids.get(entry["ReceiptHandle"], ""))
            if message is None:
                return
            if call.name in DELETES:
                message.deleted = True
            elif message.handle == handle:
                message.hidden_until = time.monotonic() + int(entry["VisibilityTimeout"])

    def _replaced(self, code: str, entry: dict[str, Any]) -> bool:
        """Tell whether a handle we know was refused, so that a receive has just replaced it."""
        with self._lock:
            return code == "ReceiptHandleIsInvalid" and entry["ReceiptHandle"] in self._ids


def _with(call: Call, data: dict[str, Any]) -> Call:
    return Call(call.method, call.target, call.headers, json.dumps(data).encode())


def _sibling(call: Call, action: str, data: dict[str, Any]) -> Call:
    """Return another call on the same queue."""
    headers = [
        (name, f"AmazonSQS.{action}" if name.lower() == "x-amz-target" else value)
        for name, value in call.headers
    ]
    body = json.dumps({"QueueUrl": call.json()["QueueUrl"], **data}).encode()
    return Call(call.method, call.target, headers, body)


def _failure(id_: str, refusal: _Refusal) -> dict[str, Any]:
    return {"Id": id_, "Code": refusal.code, "Message": refusal.message, "SenderFault": True}


def _json_answer(data: dict[str, Any]) -> Answer:
    return Answer(200, json.dumps(data).encode(), [("Content-Type", "application/x-amz-json-1.0")])
