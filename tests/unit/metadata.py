"""An instance metadata service that wants tokens, and that announces what a test tells it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from adr.times import moment_text


class Metadata:
    """Serve notices on a port of 127.0.0.1, any that is free by default."""

    def __init__(self, port: int = 0) -> None:
        service = self
        #: What it answers with 200; 404 while it is None.
        self.body: str | None = None
        #: Requests, in words.
        self.asked: list[str] = []
        self._tokens: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                valid_s = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                if self.path != "/latest/api/token" or not valid_s.isdigit():
                    return self._answer(400)
                service._tokens.append(f"token-{len(service._tokens)}")
                return self._answer(200, service._tokens[-1])

            def do_GET(self) -> None:
                if self.headers.get("X-aws-ec2-metadata-token") not in service._tokens[-1:]:
                    return self._answer(401)
                if self.path != "/latest/meta-data/spot/instance-action" or service.body is None:
                    return self._answer(404)
                return self._answer(200, service.body)

            def _answer(self, status: int, body: str = "") -> None:
                service.asked.append(f"{self.command} {status}")
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def announce(self, in_s: float, action: str = "terminate") -> float:
        """Announce the end of the instance, and return its time."""
        at = float(int(time.time() + in_s))
        self.body = json.dumps({"action": action, "time": moment_text(at)})
        return at

    def end_tokens(self) -> None:
        """Accept none of the tokens that were given so far."""
        self._tokens.append("not given to anybody")

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
