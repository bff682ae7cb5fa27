"""Just enough HTTP/1.1 for the proxy: whole messages, kept-alive connections, no streaming.

`http.server` and `http.client` spend most of their time in the parser of e-mail headers; this
reads the same messages several times faster, which matters where calls are counted by the 100.
"""

from __future__ import annotations

import contextlib
import select
import socket
from http import HTTPStatus
from io import BufferedReader

from tests.aws_calls import Answer, Call, Headers

_OF_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
_LONGEST_WAIT_S = 60.0


def cut(sock: socket.socket) -> None:
    """End a connection in both directions, whoever reads from it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def closed(sock: socket.socket) -> bool:
    """Tell whether the other side, or we, have ended a connection that should be silent."""
    try:
        return bool(select.select([sock], [], [], 0)[0]) and not sock.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):
        return True


def read_call(sock: socket.socket, stream: BufferedReader) -> Call | None:
    """Read one request whole; None where the client has closed."""
    line = stream.readline().split()
    if len(line) != 3:
        return None
    headers = _read_headers(stream)
    lower = {name.lower(): value for name, value in headers}
    if lower.get("expect", "").lower() == "100-continue":
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = _read_body(stream, lower, to_the_end=False)
    return Call(line[0].decode("latin-1"), line[1].decode("latin-1"), headers, body)


def answer_bytes(call: Call, answer: Answer) -> bytes:
    """Write an answer to `call`."""
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Unknown"
    headers = _end_to_end(answer.headers)
    if call.method == "HEAD":
        lengths = [item for item in answer.headers if item[0].lower() == "content-length"]
        headers += lengths or [("Content-Length", "0")]
    elif answer.status not in (204, 304):
        headers.append(("Content-Length", str(len(answer.body))))
    head = _head(f"HTTP/1.1 {answer.status} {phrase}", headers)
    return head if call.method == "HEAD" or answer.status in (204, 304) else head + answer.body


class Upstream:
    """One kept-alive connection to the emulator, for one thread."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._sock: socket.socket | None = None
        self._stream: BufferedReader | None = None

    def send(self, call: Call) -> Answer:
        """Forward a request and read its answer whole; raises OSError where there is none."""
        sock, stream = self._connect()
        headers = _end_to_end(call.headers)
        if call.body or call.method in ("PUT", "POST"):
            headers.append(("Content-Length", str(len(call.body))))
        try:
            sock.sendall(_head(f"{call.method} {call.target} HTTP/1.1", headers) + call.body)
            status = 100
            while status == 100:
                line = stream.readline().split(None, 2)
                if len(line) < 2:
                    raise ConnectionError("the upstream closed without an answer")
                status = int(line[1])
                answer_headers = _read_headers(stream)
            lower = {name.lower(): value for name, value in answer_headers}
            bodiless = call.method == "HEAD" or status in (204, 304)
            body = b"" if bodiless else _read_body(stream, lower, to_the_end=True)
        except BaseException:
            self.close()
            raise
        if lower.get("connection", "").lower() == "close":
            self.close()
        return Answer(status, body, answer_headers)

    def _connect(self) -> tuple[socket.socket, BufferedReader]:
        if self._sock is not None and select.select([self._sock], [], [], 0)[0]:
            self.close()  # closed by the other side while it was idle
        if self._sock is None or self._stream is None:
            self._sock = socket.create_connection(self._address, _LONGEST_WAIT_S)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._stream = self._sock.makefile("rb")
        return self._sock, self._stream

    def close(self) -> None:
        if self._sock is not None and self._stream is not None:
            self._stream.close()
            self._sock.close()
        self._sock = self._stream = None


def _head(first: str, headers: Headers) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _end_to_end(headers: Headers) -> Headers:
    return [item for item in headers if item[0].lower() not in _OF_ONE_HOP]


def _read_headers(stream: BufferedReader) -> Headers:
    headers = []
    while (line := stream.readline()) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name.strip(), value.strip()))
    return headers


def _read_body(stream: BufferedReader, lower: dict[str, str], *, to_the_end: bool) -> bytes:
    if "chunked" in lower.get("transfer-encoding", "").lower():
        parts = []
        while size := int(stream.readline().split(b";")[0], 16):
            parts.append(_read_exactly(stream, size))
            stream.readline()
        _read_headers(stream)
        return b"".join(parts)
    if "content-length" in lower:
        return _read_exactly(stream, int(lower["content-length"]))
    return stream.read() if to_the_end else b""


def _read_exactly(stream: BufferedReader, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ConnectionError(f"the message ended after {len(data)} of {size} bytes")
    return data
