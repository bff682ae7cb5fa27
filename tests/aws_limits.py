"""Refuse what AWS refuses and emulators let pass, so that no test learns to rely on it."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from typing import Any

from tests.aws_calls import Answer, Call, error_answer

ACCOUNT = "000000000000"

_RANGES = {
    "MaxNumberOfMessages": (1, 10),
    "WaitTimeSeconds": (0, 20),
    "VisibilityTimeout": (0, 43200),
    "DelaySeconds": (0, 900),
}
_LONGEST_BATCH_BYTES = 1_048_576
_WITH_CONTENT = ("s3.PutObject", "s3.UploadPart", "s3.DeleteObjects")
_CHECKSUMS = {
    "sha256": lambda body: hashlib.sha256(body).digest(),
    "sha1": lambda body: hashlib.sha1(body).digest(),
    "crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
}


def refusal(call: Call) -> Answer | None:
    """Return the error AWS answers this call with, None where it is within the limits."""
    service = call.name.partition(".")[0]
    found = _s3(call) if service == "s3" else _sqs(call) if service == "sqs" else None
    return error_answer(call, *found) if found else None


def _s3(call: Call) -> tuple[int, str, str] | None:
    owner = call.lower.get("x-amz-expected-bucket-owner", ACCOUNT)
    if owner != ACCOUNT:
        return 403, "AccessDenied", "Access Denied"
    if len(call.key.encode()) > 1024:
        return 400, "KeyTooLongError", "Your key is too long"
    for kind, digest in _CHECKSUMS.items():
        told = call.lower.get(f"x-amz-checksum-{kind}")
        if (
            told
            and call.name in _WITH_CONTENT
            and told != base64.b64encode(digest(call.body)).decode()
        ):
            message = f"The {kind.upper()} you specified did not match the calculated checksum."
            return 400, "BadDigest", message
    if call.name == "s3.DeleteObjects" and not 1 <= call.body.count(b"<Object>") <= 1000:
        return 400, "MalformedXML", "The XML you provided was not well-formed"
    if call.name == "s3.CreateBucket":
        found = re.search(rb"<LocationConstraint[^>]*>([^<]*)<", call.body)
        place = found[1].decode() if found else ""
        if place == "us-east-1":
            message = "The specified location-constraint is not valid"
            return 400, "InvalidLocationConstraint", message
        if (place or "us-east-1") != call.region and call.region != "us-east-1":
            return (
                400,
                "IllegalLocationConstraintException",
                f"The {place or 'unspecified'} location constraint is incompatible for the region "
                "specific endpoint this request was sent to.",
            )
    return None


def _sqs(call: Call) -> tuple[int, str, str] | None:
    if "x-amz-target" not in call.lower:
        return None
    data = call.json()
    entries: list[dict[str, Any]] = data.get("Entries") or []
    if call.name.endswith("Batch"):
        if not entries:
            return 400, "EmptyBatchRequest", "There should be at least one entry in the request."
        if len(entries) > 10:
            return (
                400,
                "TooManyEntriesInBatchRequest",
                f"Maximum number of entries per request are 10. You have sent {len(entries)}.",
            )
        if len({entry["Id"] for entry in entries}) < len(entries):
            return 400, "BatchEntryIdsNotDistinct", "Id repeated."
        if any(not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", entry["Id"]) for entry in entries):
            return (
                400,
                "InvalidBatchEntryId",
                "A batch entry id can only contain alphanumeric characters, hyphens and "
                "underscores. It can be at most 80 letters long.",
            )
        size = sum(len(entry.get("MessageBody", "").encode()) for entry in entries)
        if size > _LONGEST_BATCH_BYTES:
            message = f"Batch requests cannot be longer than 1048576 bytes. You have sent {size}."
            return 400, "BatchRequestTooLong", message
    for fields in (data, *entries):
        for name, (least, most) in _RANGES.items():
            value = fields.get(name)
            if value is not None and not least <= value <= most:
                message = f"Value {value} for parameter {name} is invalid."
                return 400, "InvalidParameterValue", message
    return None
