"""A gate at which jobs wait until the test lets them go on, and say what they see."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: A job: ``python3 job.py FILE URL``. It says who runs it and what it can reach, waits at the
#: gate, and writes a result. A stubborn one does not listen to SIGTERM.
JOB = """\
import json, os, pwd, signal, sys, urllib.request
name, url = sys.argv[1:]
if "stubborn" in name:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
ask = urllib.request.Request("http://169.254.169.254/latest/api/token", method="PUT",
                             headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
try:
    metadata = urllib.request.urlopen(ask, timeout=5).status
except OSError as error:
    metadata = str(error)
seen = {
    "user": pwd.getpwuid(os.getuid()).pw_name,
    "groups": sorted(os.getgroups()),
    "aws": sorted(each for each in os.environ if each.startswith("AWS_")),
    "metadata": metadata,
    "setup": os.path.exists("/opt/model"),
}
case = os.path.splitext(os.path.basename(name))[0]
urllib.request.urlopen(url + case, json.dumps(seen).encode()).read()
with open(case + ".csv", "w") as file:
    file.write(open(name).read().upper())
"""


class Gate:
    """Hold the jobs that arrive until their case is let go; a context manager."""

    def __init__(self, address: str) -> None:
        self._changed = threading.Condition()
        self._open: set[str] = set()
        #: For each case the addresses of the machines that have run it, in order.
        self.came: dict[str, list[str]] = {}
        #: For each case what the latest job said.
        self.said: dict[str, dict[str, Any]] = {}
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                gate._wait(self.path.strip("/"), self.client_address[0], json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{address}:{self._server.server_address[1]}/"

    def __enter__(self) -> Gate:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._open = set(self.came)
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def wait_came(self, cases: Collection[str], timeout_s: float) -> None:
        """Wait until there is a job of each of these cases."""
        with self._changed:
            came = self._changed.wait_for(lambda: set(cases) <= set(self.came), timeout_s)
        assert came, f"after {timeout_s} s there are {sorted(self.came)} of {sorted(cases)}"

    def open(self, *cases: str) -> None:
        """Let the jobs of these cases go on, also those still to come."""
        with self._changed:
            self._open.update(cases)
            self._changed.notify_all()

    def _wait(self, case: str, address: str, said: dict[str, Any]) -> None:
        with self._changed:
            self.came.setdefault(case, []).append(address)
            self.said[case] = said
            self._changed.notify_all()
            self._changed.wait_for(lambda: case in self._open)
