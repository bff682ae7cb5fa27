"""SQS and S3 for one runner within this process, on a clock that stands still until it is moved.

boto3 serialises, signs and parses as ever; only the socket is left out, by the hook that botocore
has for it. Queues behave as those of SQS (`tests.sqs_rules` says how); each answer can be lost.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import formatdate
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ReadTimeoutError

from adr.aws import Connection

_CEILING = "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]"


@dataclass
class _Message:
    body: str
    visible_at: float
    received_at: float = 0.0
    receives: int = 0
    deleted: bool = False


class _Body(BytesIO):
    def stream(self, **_: object) -> list[bytes]:
        return [self.read()]


@dataclass
class Fault:
    """What happens to the next call of an operation."""

    operation: str
    #: ``before`` or ``after`` its work; ``entries``: all entries of a batch are refused.
    when: str


class SmallAws:
    """Answer the calls of clients that `serve` was told of.

    Parameters
    ----------
    runner : str
        Name of the only queue and the only bucket.
    now : callable
        Returns the time in seconds.
    ceiling_s : float
        Longest time a message may be hidden after its receipt.
    """

    def __init__(self, runner: str, now: Callable[[], float], ceiling_s: float) -> None:
        self._runner = runner
        self._now = now
        self._ceiling_s = ceiling_s
        self._lock = threading.Lock()
        self.faults: list[Fault] = []
        self.clear()

    def clear(self) -> None:
        """Begin anew with nothing in it."""
        self.messages: list[_Message] = []
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.faults.clear()

    def serve(self, client: Any) -> None:
        client.meta.events.register("before-send", self._send)

    def put(self, body: str) -> None:
        """Put anything into the queue."""
        self.messages.append(_Message(body, self._now()))

    def left(self) -> list[str]:
        """Return the bodies of the messages that are still there."""
        return [each.body for each in self.messages if not each.deleted]

    def show(self, index: int) -> None:
        """Deliver the messages of a job anew although they are in flight."""
        for message in self.messages:
            if json.loads(message.body)["index"] == index:
                message.visible_at = min(message.visible_at, self._now())

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        target = dict(request.headers).get("X-Amz-Target", b"")
        operation = (target if isinstance(target, str) else target.decode()).partition(".")[2]
        operation = operation or request.method
        with self._lock:
            fault = next((each for each in self.faults if each.operation == operation), None)
            if fault:
                self.faults.remove(fault)
                if fault.when == "before":
                    return self._answer(request, 503, b"{}")
            if request.headers.get("X-Amz-Target"):
                answer = self._sqs(request, operation, fault is not None and fault.when)
            else:
                answer = self._s3(request)
            if fault and fault.when == "after":
                raise ReadTimeoutError(endpoint_url=request.url)
            return answer

    def _answer(
        self, request: AWSPreparedRequest, status: int, body: bytes, **headers: str
    ) -> AWSResponse:
        headers = {"Date": formatdate(self._now(), usegmt=True), **headers}
        return AWSResponse(request.url, status, headers, _Body(body))

    def _sqs(self, request: AWSPreparedRequest, operation: str, refused: object) -> AWSResponse:
        data = json.loads(request.body)
        if operation == "GetQueueUrl":
            said: dict[str, Any] = {"QueueUrl": f"http://127.0.0.1/123456789012/{self._runner}"}
        elif operation == "GetQueueAttributes":
            said = {"Attributes": self._counts()}
        elif operation == "ReceiveMessage":
            said = self._receive(data)
        else:
            done: list[dict[str, str]] = []
            failed: list[dict[str, Any]] = []
            for entry in data["Entries"]:
                why = "InternalError" if refused == "entries" else self._do(operation, entry)
                if why:
                    failed.append(
                        {"Id": entry["Id"], "Code": "X", "Message": why, "SenderFault": False}
                    )
                else:
                    done.append({"Id": entry["Id"], "MessageId": "m", "MD5OfMessageBody": ""})
            lists = {"Successful": done, "Failed": failed}
            said = {name: items for name, items in lists.items() if items}
        return self._answer(request, 200, json.dumps(said).encode())

    def _counts(self) -> dict[str, str]:
        left = [each for each in self.messages if not each.deleted]
        waiting = sum(each.visible_at <= self._now() for each in left)
        return {
            "ApproximateNumberOfMessages": str(waiting),
            "ApproximateNumberOfMessagesNotVisible": str(len(left) - waiting),
            "ApproximateNumberOfMessagesDelayed": "0",
        }

    def _receive(self, data: dict[str, Any]) -> dict[str, Any]:
        found = []
        for number, message in enumerate(self.messages):
            if message.deleted or message.visible_at > self._now():
                continue
            if len(found) == data["MaxNumberOfMessages"]:
                break
            message.receives += 1
            message.received_at = self._now()
            message.visible_at = self._now() + data["VisibilityTimeout"]
            found.append(
                {
                    "MessageId": str(number),
                    "ReceiptHandle": f"{number} {message.receives}",
                    "Body": message.body,
                    "Attributes": {"ApproximateReceiveCount": str(message.receives)},
                }
            )
        return {"Messages": found} if found else {}

    def _do(self, operation: str, entry: dict[str, Any]) -> str:
        """Carry out one entry of a batch; return why not where it is refused."""
        if operation == "SendMessageBatch":
            self.put(entry["MessageBody"])
            return ""
        # Older handles do what the newest does, as on SQS.
        message = self.messages[int(entry["ReceiptHandle"].partition(" ")[0])]
        if operation == "DeleteMessageBatch":
            message.deleted = True
        elif message.deleted:
            return "Message does not exist or is not available for visibility timeout change."
        elif message.visible_at > self._now():
            until = self._now() + entry["VisibilityTimeout"]
            if until > message.received_at + self._ceiling_s:
                return _CEILING
            message.visible_at = until
        return ""

    def _s3(self, request: AWSPreparedRequest) -> AWSResponse:
        address = urlsplit(request.url)
        key = unquote(address.path).removeprefix(f"/{self._runner}").removeprefix("/")
        query = parse_qs(address.query)
        if request.method == "GET" and "list-type" in query:
            return self._answer(request, 200, self._listing(query["prefix"][0]))
        if request.method == "POST":
            body = bytes(request.body).decode()
            for part in body.split("<Key>")[1:]:
                self.objects.pop(part.partition("</Key>")[0], None)
            return self._answer(request, 200, b"<DeleteResult/>")
        old = self.objects.get(key)
        etag = _etag(old[0]) if old else None
        if request.method == "GET":
            if old is None:
                return self._refusal(request, 404, "NoSuchKey")
            written = formatdate(old[1], usegmt=True)
            size = str(len(old[0]))
            extra = {"ETag": str(etag), "Last-Modified": written, "Content-Length": size}
            return self._answer(request, 200, old[0], **extra)
        wanted = {name.lower(): value for name, value in request.headers.items()}
        if "if-none-match" in wanted and old:
            return self._refusal(request, 412, "PreconditionFailed")
        if "if-match" in wanted:
            if old is None:
                return self._refusal(request, 404, "NoSuchKey")
            if _text(wanted["if-match"]) != etag:
                return self._refusal(request, 412, "PreconditionFailed")
        body = request.body if isinstance(request.body, bytes) else request.body.read()
        self.objects[key] = body, self._now()
        return self._answer(request, 200, b"", ETag=_etag(body))

    def _listing(self, prefix: str) -> bytes:
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size>"
            f"<ETag>{escape(_etag(body))}</ETag>"
            f"<LastModified>{datetime.fromtimestamp(at, timezone.utc).isoformat()}</LastModified>"
            f"</Contents>"
            for key, (body, at) in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        whole = f"<IsTruncated>false</IsTruncated>{entries}"
        return f"<ListBucketResult>{whole}</ListBucketResult>".encode()

    def _refusal(self, request: AWSPreparedRequest, status: int, code: str) -> AWSResponse:
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        return self._answer(request, status, body)


def small_aws(
    monkeypatch: pytest.MonkeyPatch, now: Callable[[], float], ceiling_s: float
) -> tuple[Connection, SmallAws]:
    """Make a connection to a small AWS, which tries nothing again by itself."""
    variables = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    connection = Connection(str(uuid.uuid4()))
    made = SmallAws(connection.runner_id, now, ceiling_s)
    for client in (connection.sqs, connection.sqs_once, connection.s3):
        made.serve(client)
    return connection, made


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()
