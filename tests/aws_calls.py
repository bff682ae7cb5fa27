"""Tell what call of AWS an HTTP request is, and word errors the way AWS does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Headers = list[tuple[str, str]]

# S3 names its calls by method and by what the query holds: "" is the plain call.
_BUCKET = {
    "PUT": {
        "publicaccessblock": "PutPublicAccessBlock",
        "lifecycle": "PutBucketLifecycleConfiguration",
        "encryption": "PutBucketEncryption",
        "tagging": "PutBucketTagging",
        "policy": "PutBucketPolicy",
        "versioning": "PutBucketVersioning",
        "acl": "PutBucketAcl",
        "ownershipcontrols": "PutBucketOwnershipControls",
        "": "CreateBucket",
    },
    "GET": {
        "publicaccessblock": "GetPublicAccessBlock",
        "lifecycle": "GetBucketLifecycleConfiguration",
        "encryption": "GetBucketEncryption",
        "tagging": "GetBucketTagging",
        "policy": "GetBucketPolicy",
        "versioning": "GetBucketVersioning",
        "acl": "GetBucketAcl",
        "ownershipcontrols": "GetBucketOwnershipControls",
        "location": "GetBucketLocation",
        "list-type": "ListObjectsV2",
        "versions": "ListObjectVersions",
        "uploads": "ListMultipartUploads",
        "": "ListObjects",
    },
    "HEAD": {"": "HeadBucket"},
    "DELETE": {
        "publicaccessblock": "DeletePublicAccessBlock",
        "lifecycle": "DeleteBucketLifecycle",
        "encryption": "DeleteBucketEncryption",
        "tagging": "DeleteBucketTagging",
        "policy": "DeleteBucketPolicy",
        "": "DeleteBucket",
    },
    "POST": {"delete": "DeleteObjects"},
}
_OBJECT = {
    "PUT": {"partnumber": "UploadPart", "tagging": "PutObjectTagging", "": "PutObject"},
    "GET": {"uploadid": "ListParts", "tagging": "GetObjectTagging", "": "GetObject"},
    "HEAD": {"": "HeadObject"},
    "DELETE": {"uploadid": "AbortMultipartUpload", "": "DeleteObject"},
    "POST": {"uploads": "CreateMultipartUpload", "uploadid": "CompleteMultipartUpload"},
}

# What SQS still writes into x-amzn-query-error, where it differs from the name of the shape.
_QUERY_CODES = {
    "QueueDoesNotExist": "AWS.SimpleQueueService.NonExistentQueue",
    "QueueNameExists": "QueueAlreadyExists",
    "QueueDeletedRecently": "AWS.SimpleQueueService.QueueDeletedRecently",
    "EmptyBatchRequest": "AWS.SimpleQueueService.EmptyBatchRequest",
    "TooManyEntriesInBatchRequest": "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
    "BatchEntryIdsNotDistinct": "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
    "InvalidBatchEntryId": "AWS.SimpleQueueService.InvalidBatchEntryId",
    "BatchRequestTooLong": "AWS.SimpleQueueService.BatchRequestTooLong",
    "MessageNotInflight": "AWS.SimpleQueueService.MessageNotInflight",
}


@dataclass
class Answer:
    """What the client gets."""

    status: int = 200
    body: bytes = b""
    headers: Headers = field(default_factory=list)
    #: How much of the body is held back when the connection is cut.
    missing_bytes: int = 0

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass(eq=False)
class Call:
    """One request; an action may change `body` before it goes on."""

    method: str
    target: str
    headers: Headers
    body: bytes
    #: ``s3.PutObject``, ``sqs.ReceiveMessage`` …
    name: str = ""
    bucket: str = ""
    #: Key of the object, or name of the queue; empty for calls on none.
    key: str = ""
    #: Region the client has signed for.
    region: str = ""
    #: What the upstream answered; None before.
    answer: Answer | None = None
    #: Tells whether the client has closed its connection meanwhile.
    abandoned: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.lower: Mapping[str, str] = {k.lower(): v for k, v in self.headers}
        signature = self.lower.get("authorization", "")
        scope = re.search(r"Credential=[^/]*/\d+/([^/]+)/([^/]+)/", signature)
        self.region, service = scope.groups() if scope else ("us-east-1", "s3")
        if service == "s3":
            self._name_s3()
        else:
            self._name_other(service)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def _name_s3(self) -> None:
        parts = urlsplit(self.target)
        self.bucket, _, self.key = unquote(parts.path.lstrip("/")).partition("/")
        query = {name.lower() for name in parse_qs(parts.query, keep_blank_values=True)}
        if not self.bucket:
            self.name = "s3.ListBuckets"
            return
        table = (_OBJECT if self.key else _BUCKET).get(self.method, {})
        name = next((table[word] for word in table if word in query), table.get("", "Unknown"))
        if "x-amz-copy-source" in self.lower:
            name = {"PutObject": "CopyObject", "UploadPart": "UploadPartCopy"}.get(name, name)
        self.name = f"s3.{name}"

    def _name_other(self, service: str) -> None:
        if target := self.lower.get("x-amz-target"):
            fields = self.json()
            action = target.rpartition(".")[2]
        else:
            query = self.body.decode("utf-8", "replace") or urlsplit(self.target).query
            fields = {name: values[0] for name, values in parse_qs(query).items()}
            action = fields.get("Action", "Unknown")
        self.name = f"{service}.{action}"
        if service == "sqs":
            url = fields.get("QueueUrl") or fields.get("QueueName") or ""
            self.key = url.rstrip("/").rpartition("/")[2]


def error_answer(call: Call, status: int, code: str, message: str) -> Answer:
    """Return an error in the words of the service that was called."""
    if call.name.startswith("s3."):
        if call.method == "HEAD":
            return Answer(status)
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{message}</Message>"
            "<RequestId>PROXY</RequestId><HostId>proxy</HostId></Error>"
        )
        return Answer(status, xml.encode(), [("Content-Type", "application/xml")])
    if "x-amz-target" in call.lower:
        fault = "Sender" if status < 500 else "Receiver"
        return Answer(
            status,
            json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message}).encode(),
            [
                ("Content-Type", "application/x-amz-json-1.0"),
                ("x-amzn-query-error", f"{_QUERY_CODES.get(code, code)};{fault}"),
            ],
        )
    xml = (
        f"<ErrorResponse><Error><Code>{_QUERY_CODES.get(code, code)}</Code>"
        f"<Message>{message}</Message></Error><RequestId>proxy</RequestId></ErrorResponse>"
    )
    return Answer(status, xml.encode(), [("Content-Type", "text/xml")])
