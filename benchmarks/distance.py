"""A forwarder that lets every call take a round trip longer, and counts calls by operation.

``GET /__sim__`` tells the counts, ``POST /__sim__/reset`` clears them, ``POST
/__sim__/config`` with ``{"rtt_ms": 30}`` sets the round trip.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter

from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from yarl import URL

_OPERATIONS = {
    "GET delete": "DeleteObjects",
    "PUT uploadId": "UploadPart",
    "POST uploads": "CreateMultipartUpload",
    "POST uploadId": "CompleteMultipartUpload",
    "POST delete": "DeleteObjects",
}
_HOP = {"connection", "content-length", "expect", "keep-alive", "transfer-encoding"}


class Forwarder:
    """Forward to one server."""

    def __init__(self, upstream: str, rtt_ms: float) -> None:
        self._upstream = upstream
        self._rtt_ms = rtt_ms
        self._counts: Counter[str] = Counter()
        self._session: ClientSession | None = None

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one call."""
        if request.path.startswith("/__sim__"):
            return await self._control(request)
        if self._session is None:
            self._session = ClientSession(
                auto_decompress=False, cookie_jar=DummyCookieJar(), connector=TCPConnector(limit=0)
            )
        body = await request.read()
        self._counts[_operation(request)] += 1
        await asyncio.sleep(self._rtt_ms / 1000)
        async with self._session.request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            data=body,
            headers={key: value for key, value in request.headers.items() if _passes(key)},
            allow_redirects=False,
        ) as got:
            headers = {key: value for key, value in got.headers.items() if _passes(key)}
            if request.method == "HEAD" and "Content-Length" in got.headers:
                # Of what is not sent, so nobody else knows it.
                headers["Content-Length"] = got.headers["Content-Length"]
            return web.Response(status=got.status, body=await got.read(), headers=headers)

    async def _control(self, request: web.Request) -> web.Response:
        if request.path.endswith("/reset"):
            self._counts.clear()
        elif request.path.endswith("/config"):
            self._rtt_ms = float((await request.json())["rtt_ms"])
        return web.json_response({"calls": dict(self._counts)})


def _passes(header: str) -> bool:
    return header.lower() not in _HOP


def _operation(request: web.Request) -> str:
    target = request.headers.get("X-Amz-Target", "")
    if target:
        return "sqs." + target.partition(".")[2]
    of_object = len(request.path.strip("/").split("/", 1)) == 2
    for name in request.query:
        found = _OPERATIONS.get(f"{request.method} {name}")
        if found:
            return f"s3.{found}"
    if request.method == "GET" and not of_object:
        return "s3.ListObjects"
    return f"s3.{request.method.title()}{'Object' if of_object else 'Bucket'}"


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rtt-ms", type=float, default=30.0)
    given = parser.parse_args()
    app = web.Application(client_max_size=1 << 40)
    app.router.add_route("*", "/{tail:.*}", Forwarder(given.upstream, given.rtt_ms).answer)
    web.run_app(app, host="127.0.0.1", port=given.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
