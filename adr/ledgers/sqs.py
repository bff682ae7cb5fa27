"""The queue of an AWS runner: messages of SQS in batches, nothing about what they mean.

SQS takes ten entries and 1 MiB a call and may refuse single entries of a batch; that is dealt
with here. An answer to a send that never came leaves it open whether the messages are there:
they are sent again, flagged, so that a worker looks before it runs one of them.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from adr.aws import Connection, is_uncertain, translated
from adr.errors import AdrError, RunnerGone, ServiceError, Unavailable, UsageError
from adr.jobtext import job_text
from adr.models import Depth, Job

__all__ = ["MOST_IN_FLIGHT", "RETENTION_S", "Message", "MessageQueue"]

_log = logging.getLogger(__name__)

_ENTRIES = 10
_BATCH_BYTES = 1 << 20
_SENDERS = 32
_CALLERS = 20
#: So many receives at a time: more jobs a second than the slots of one machine can begin.
_RECEIVERS = 5
_TRIES = 6
#: The longest time that SQS keeps a message.
RETENTION_S = 14 * 24 * 3600
#: As AWS documents for a standard queue: beyond it, long polls answer that there is nothing.
MOST_IN_FLIGHT = 120_000
#: Only a message that no worker can read is received this often; the highest number SQS takes.
_RECEIVE_LIMIT = 1000
_DEAD = "-dead"


@dataclass(frozen=True)
class Message:
    """Hold one received message."""

    id: str
    handle: str
    body: str
    #: How often it has been received, this time included.
    receives: int


class MessageQueue:
    """Send, receive, hide and delete the messages of one runner.

    Parameters
    ----------
    connection : Connection
        The connection to the runner.
    dead : bool, optional
        Stand for the dead-letter queue of the runner instead.
    """

    def __init__(self, connection: Connection, dead: bool = False) -> None:
        self._connection = connection
        self._suffix = _DEAD if dead else ""
        #: Whether the last receive has brought as many messages as it asked for.
        self._plenty = False

    @property
    def dead(self) -> MessageQueue:
        """Return the dead-letter queue."""
        return MessageQueue(self._connection, dead=True)

    def create(self, visibility_s: float) -> None:
        """Make the queue and its dead-letter queue; idempotent."""
        name = self._connection.runner_id
        sqs: Any = self._connection.sqs
        common = {"MessageRetentionPeriod": str(RETENTION_S), "SqsManagedSseEnabled": "true"}
        with translated("create the queue", name):
            dead = sqs.create_queue(QueueName=name + _DEAD, Attributes=common)["QueueUrl"]
            arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
            policy = {
                "deadLetterTargetArn": arn["Attributes"]["QueueArn"],
                "maxReceiveCount": str(_RECEIVE_LIMIT),
            }
            sqs.create_queue(
                QueueName=name,
                Attributes={
                    **common,
                    "VisibilityTimeout": str(int(visibility_s)),
                    "RedrivePolicy": json.dumps(policy),
                },
            )

    def delete_all(self) -> None:
        """Delete the queue and its dead-letter queue; idempotent."""
        with suppress(RunnerGone):
            # Leads to the region of the queue, where that is another one.
            self._found()
        sqs: Any = self._connection.sqs
        for name in (self._connection.runner_id, self._connection.runner_id + _DEAD):
            with suppress(RunnerGone), translated("delete the queue", name):
                sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName=name)["QueueUrl"])

    def send(
        self, jobs: Sequence[Job], again: bool, sent: Callable[[int], None] | None = None
    ) -> None:
        """Send one message a job, several batches at a time; see `Ledger.send`."""
        self._found()
        _refuse_too_large(jobs)
        waiting = _batches(jobs, again)
        guard, stopped = threading.Lock(), threading.Event()
        begun, under_way = 0, set[int]()

        def run() -> None:
            nonlocal begun
            while not stopped.is_set():
                with guard:
                    batch = next(waiting, None)
                    if batch is None:
                        return
                    first = begun
                    begun += len(batch)
                    under_way.add(first)
                self._send_batch(batch)
                with guard:
                    under_way.remove(first)
                    if sent and (known := min(under_way, default=begun)):
                        sent(known)

        def run_or_stop() -> None:
            try:
                run()
            except BaseException:
                stopped.set()
                raise

        with ThreadPoolExecutor(_SENDERS) as pool:
            threads = min(_SENDERS, math.ceil(len(jobs) / _ENTRIES))
            futures = [pool.submit(run_or_stop) for _ in range(threads)]
            try:
                for future in futures:
                    future.result()
            finally:
                stopped.set()

    def receive(self, most: int, wait_s: float, visibility_s: float) -> list[Message]:
        """Receive up to `most` messages and hide them for `visibility_s`.

        Ten are what one call brings. Where the last one has brought all that it asked for and
        more than ten are wanted, several are made at a time. None of these waits, so that none
        keeps back what another has brought; where they bring nothing, one waits after all.
        """
        messages: list[Message] = []
        calls = min(_RECEIVERS, most // _ENTRIES) if self._plenty else 1
        if calls > 1:
            most = calls * _ENTRIES
            with ThreadPoolExecutor(calls) as pool:
                asked = [
                    pool.submit(self._receive, _ENTRIES, 0, visibility_s) for _ in range(calls)
                ]
            for each in asked:
                try:
                    messages += each.result()
                except AdrError as error:
                    # Whoever asks next hears of it; what the others brought is leased by now.
                    _log.debug("%s", error)
        if not messages:
            most = max(1, min(_ENTRIES, most))
            messages = self._receive(most, wait_s, visibility_s)
        self._plenty = len(messages) == most
        return messages

    def _receive(self, most: int, wait_s: float, visibility_s: float) -> list[Message]:
        sqs, url = self._found()
        with translated("receive from the queue", self._connection.runner_id):
            answer = sqs.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=most,
                WaitTimeSeconds=int(min(20, wait_s)),
                VisibilityTimeout=int(visibility_s),
                MessageSystemAttributeNames=["ApproximateReceiveCount"],
            )
        return [
            Message(
                each["MessageId"],
                each["ReceiptHandle"],
                each["Body"],
                int(each["Attributes"]["ApproximateReceiveCount"]),
            )
            for each in answer.get("Messages", ())
        ]

    def hide(
        self,
        handles: Sequence[str],
        visibility_s: float,
        answered: Callable[[Sequence[str]], object] | None = None,
    ) -> dict[str, str]:
        """Hide messages for so long from now; return why it failed for those where it did.

        Parameters
        ----------
        answered : callable, optional
            Called with the handles of each call that was answered, whatever becomes of others.
        """
        extra = {"VisibilityTimeout": int(visibility_s)}
        return self._in_tens("change_message_visibility_batch", handles, extra, answered)

    def delete(self, handles: Sequence[str]) -> dict[str, str]:
        """Delete messages; return why it failed for those where it did."""
        return self._in_tens("delete_message_batch", handles, {})

    def depth(self) -> Depth:
        """Count messages, approximately."""
        names = (
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        )
        sqs, url = self._found()
        with translated("look at the queue", self._connection.runner_id):
            answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(names))
        waiting, in_flight, delayed = (int(answer["Attributes"][name]) for name in names)
        return Depth(waiting, in_flight, delayed, exact=False)

    def _found(self) -> tuple[Any, str]:
        """Return the client and the URL; the queue may turn out to be in another region."""
        # The URL of a queue ends with its name.
        url = self._connection.queue_url + self._suffix
        return self._connection.sqs, url

    def _in_tens(
        self,
        operation: str,
        handles: Sequence[str],
        extra: dict[str, Any],
        answered: Callable[[Sequence[str]], object] | None = None,
    ) -> dict[str, str]:
        """Make all calls that it takes, also where some of them fail; then raise for these."""
        sqs, url = self._found()
        call = getattr(sqs, operation)

        def one(first: int) -> dict[str, str]:
            some = handles[first : first + _ENTRIES]
            entries = [
                {"Id": str(number), "ReceiptHandle": handle, **extra}
                for number, handle in enumerate(some)
            ]
            with translated(operation.replace("_", " "), self._connection.runner_id):
                answer = call(QueueUrl=url, Entries=entries)
            if answered:
                answered(some)
            return {
                some[int(each["Id"])]: f"{each['Code']}: {each.get('Message', '')}"
                for each in answer.get("Failed", ())
            }

        firsts = range(0, len(handles), _ENTRIES)
        if len(firsts) <= 1:
            return one(0) if firsts else {}
        with ThreadPoolExecutor(min(_CALLERS, len(firsts))) as pool:
            calls = [pool.submit(one, first) for first in firsts]
        failed: dict[str, str] = {}
        for each in calls:
            failed |= each.result()
        return failed

    def _send_batch(self, bodies: Sequence[str]) -> None:
        """Send up to ten messages; those refused are tried again alone."""
        left = list(bodies)
        url = self._connection.queue_url
        sqs: Any = self._connection.sqs_once
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(min(5.0, 0.1 * 2**attempt))
            entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(left)]
            try:
                with translated("send to the queue", self._connection.runner_id):
                    answer = sqs.send_message_batch(QueueUrl=url, Entries=entries)
            except Unavailable as error:
                if attempt == _TRIES - 1:
                    raise
                if is_uncertain(error):
                    left = [_flagged(body) for body in left]
                continue
            failed = answer.get("Failed", ())
            for each in failed:
                if each.get("SenderFault"):
                    raise ServiceError(
                        f"SQS refused a job: {each['Code']}: {each.get('Message', '')}"
                    )
            left = [left[int(each["Id"])] for each in failed]
            if not left:
                return
        raise ServiceError(
            f"SQS did not take {len(left)} jobs after {_TRIES} tries: repeat the same command later"
        )


def _batches(jobs: Iterable[Job], again: bool) -> Iterator[list[str]]:
    """Pack the messages of `jobs` into batches that SQS takes."""
    batch: list[str] = []
    size = 0
    for job in jobs:
        body, length = _body(job, again)
        if batch and (len(batch) == _ENTRIES or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(body)
        size += length
    if batch:
        yield batch


_FLAG = ',"check":true'


def _body(job: Job, again: bool) -> tuple[str, int]:
    """Return the message of a job, and the bytes to reckon with."""
    body = _flagged(job_text(job)) if again else job_text(job)
    # A message that has to be sent again grows by its flag.
    length = len(body) + len(_FLAG)
    if length > _BATCH_BYTES:
        raise UsageError(
            f"the job {job.label} is too large for a queue ({length} bytes, at most "
            f"{_BATCH_BYTES}): put its command into a script among the inputs"
        )
    return body, length


def _refuse_too_large(jobs: Iterable[Job]) -> None:
    """Refuse a job that no queue takes, before another one is sent."""
    for job in jobs:
        texts = (job.command, job.preprocessing or "", job.postprocessing or "", job.label)
        more = (job.input or "", *job.store, *chain.from_iterable(job.env))
        # Twelve bytes are the most that a character takes in JSON. Few jobs are put to the test.
        if 12 * sum(map(len, (*texts, *more))) > _BATCH_BYTES // 2:
            _body(job, False)


def _flagged(body: str) -> str:
    return body if body.endswith(_FLAG + "}") else f"{body[:-1]}{_FLAG}}}"
