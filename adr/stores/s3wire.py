"""The short way to S3 for small objects: requests like the one that boto3 has sent before.

A call of boto3 takes a millisecond of CPU, which is more than all else that adr does for a short
job. Most of it goes into finding out again what was the same at the last call: where the bucket
is, what it is asked for and how that is signed. So the first call of a kind is boto3's, and what
it has sent is the pattern of those that follow, with another key, content and signature. Their
connections, proxies, certificates, time limits and credentials are those of its client.

Here nothing is tried twice, followed or translated: whatever is not answered by 200 is boto3's
to do, and for a while so is what comes after it.
"""

from __future__ import annotations

import base64
import logging
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from botocore import exceptions as core
from botocore.awsrequest import AWSRequest
from botocore.response import StreamingBody

from adr.aws import Connection

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

__all__ = ["Wire", "crc32_text"]

_log = logging.getLogger(__name__)

#: How boto3 signs where nothing is unusual.
_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=.+/\d{8}/([^/]+)/s3/aws4_request,")
_KEPT = frozenset(("user-agent", "x-amz-checksum-mode", "x-amz-expected-bucket-owner"))
#: What goes with one content, one moment or one way to send it.
_OWN = frozenset(
    (
        "amz-sdk-invocation-id",
        "amz-sdk-request",
        "authorization",
        "content-encoding",
        "content-length",
        "expect",
        "transfer-encoding",
        "x-amz-checksum-crc32",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-decoded-content-length",
        "x-amz-sdk-checksum-algorithm",
        "x-amz-security-token",
        "x-amz-trailer",
    )
)
_CHECKSUM = "x-amz-checksum-crc32"
#: Tells the signer that the body has a checksum, as it does with requests of boto3.
_CHECKED = {"request_algorithm": {"algorithm": "crc32", "in": "header", "name": _CHECKSUM}}
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class _Pattern:
    """Say what the requests of one operation have in common."""

    client: Any
    owner: str | None
    #: The URL before the key.
    above: str
    headers: Mapping[str, str]
    region: str
    #: Whether a body goes with its checksum.
    checked: bool


class Wire:
    """Put and get small objects of one bucket; thread-safe.

    Parameters
    ----------
    connection : Connection
        The runner, whose client of S3 and bucket are used.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._patterns: dict[str, _Pattern] = {}
        self._pause_s = 0.0
        self._not_before = 0.0

    def put(self, key: str, body: bytes) -> bool:
        """Store an object in one request; False where it is not known to be stored."""
        return self._send("PutObject", "PUT", key, body) is not None

    def get(self, key: str) -> GetObjectOutputTypeDef | None:
        """Ask for an object, and return what `get_object` would, as far as a download needs it."""
        response = self._send("GetObject", "GET", key)
        if response is None:
            return None
        headers = response.headers
        answer: Any = {
            "ETag": headers.get("ETag", ""),
            "ContentLength": int(headers.get("Content-Length", 0)),
            "ChecksumCRC32": headers.get(_CHECKSUM),
            "Body": StreamingBody(response.raw, headers.get("Content-Length")),
        }
        return cast("GetObjectOutputTypeDef", answer)

    def learn(self, operation: str, key: str) -> None:
        """Take what this thread has just sent through boto3, with success, as the pattern."""
        pattern = _pattern_of(self._connection, key)
        if pattern is None:
            self._patterns.pop(operation, None)
        else:
            self._patterns[operation] = pattern

    def _send(self, operation: str, method: str, key: str, body: bytes | None = None) -> Any:
        """Return the response if it is well."""
        client = self._connection.bucket_s3
        pattern = self._patterns.get(operation)
        if pattern is None or time.monotonic() < self._not_before:
            return None
        # It has turned out to lie in another region, or who owns it.
        if pattern.client is not client or pattern.owner != self._connection.owner:
            return None
        response = None
        try:
            request = _signed(pattern, method, key, body)
            event = f"before-send.s3.{operation}"
            _, response = client.meta.events.emit_until_response(event, request=request)
            if response is None:
                response = client._endpoint.http_session.send(request)
            if response.status_code == 200:
                self._pause_s = 0.0
                return response
            trouble = str(response.status_code)
            # The rest of an answer would be taken for the start of the next one.
            response.raw.close()
        except (core.BotoCoreError, RuntimeError, AttributeError, TypeError) as error:
            # The last two where another botocore has other inner parts.
            trouble = str(error)
        # boto3 knows how to be patient with a service that is in trouble.
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s or _FIRST_PAUSE_S)
        self._not_before = time.monotonic() + self._pause_s
        _log.debug("%s of %s goes through boto3, after %s", operation, key, trouble)
        return None


def crc32_text(checksum: int) -> str:
    """Return a CRC32 the way S3 writes it."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def _pattern_of(connection: Connection, key: str) -> _Pattern | None:
    """Read the pattern off the last request of this thread; None where it has anything unusual."""
    client, sent = connection.bucket_s3, connection.last_sent
    if sent is None or not hasattr(client, "_endpoint"):
        return None
    url, headers = sent
    end = quote(key, safe="/~")
    named = {
        name.lower(): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in headers.items()
    }
    signed = _SIGNED.match(named.get("authorization", ""))
    if not signed or not url.endswith("/" + end) or named.keys() - _KEPT - _OWN:
        return None
    return _Pattern(
        client,
        connection.owner,
        url[: -len(end)],
        {name: named[name] for name in _KEPT & named.keys()},
        signed[1],
        not named.keys().isdisjoint((_CHECKSUM, "x-amz-trailer")),
    )


def _signed(pattern: _Pattern, method: str, key: str, body: bytes | None) -> Any:
    request = AWSRequest(method, pattern.above + quote(key, safe="/~"), dict(pattern.headers), body)
    request.context["client_config"] = pattern.client.meta.config
    if body is None:
        request.stream_output = True
    elif pattern.checked:
        request.headers[_CHECKSUM] = crc32_text(zlib.crc32(body))
        request.headers["x-amz-sdk-checksum-algorithm"] = "CRC32"
        request.context["checksum"] = _CHECKED
        request.context["has_streaming_input"] = True
    signer = pattern.client._request_signer
    signer.get_auth_instance("s3", pattern.region, "s3v4").add_auth(request)
    return request.prepare()
