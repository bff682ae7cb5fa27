"""A package index on the bridge of a network: the wheels that adr needs, and nothing else."""

from __future__ import annotations

import functools
import hashlib
import http.server
import subprocess
import sys
import threading
from pathlib import Path

from adr.wheel import _constraints
from tests.machines.rootfs import made_once
from tests.servers import require

ADR = "amazon-distributed-runner"
#: Of the root tree.
PYTHON = "3.11"


class PackageIndex:
    """Serve the wheels to whoever reaches an address; a context manager."""

    def __init__(self, address: str, python: str = PYTHON) -> None:
        handler = functools.partial(_Quiet, directory=str(wheels(python)))
        self._server = http.server.ThreadingHTTPServer((address, 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        port = self._server.server_address[1]
        #: Options with which pip finds packages here and nowhere else.
        self.find_options = (
            f"--no-index --find-links http://{address}:{port}/ --trusted-host {address}"
        )
        #: Those to install with: most of what would be compiled is never imported.
        self.pip_options = f"--no-compile {self.find_options}"

    def __enter__(self) -> PackageIndex:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def wheels(python: str) -> Path:
    """Return a folder with adr's dependencies in the versions installed here; fetched once."""
    pinned = _constraints(ADR).split()
    digest = hashlib.sha256("\n".join(pinned).encode()).hexdigest()[:12]

    def fetch(folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder,
             "--only-binary=:all:", f"--python-version={python}", *pinned],
            capture_output=True,
            text=True,
        )  # fmt: skip
        require(done.returncode == 0, f"wheels of adr's dependencies: {done.stderr[-2000:]}")

    return made_once(f"wheels-{python}-{digest}", fetch)
