"""A package index on the bridge of a network: the wheels that adr needs, and nothing else."""

from __future__ import annotations

import functools
import hashlib
import http.server
import re
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

from tests.machines.rootfs import made_once
from tests.servers import require

ADR = "amazon-distributed-runner"
#: Of the root tree.
PYTHON = "3.11"


class PackageIndex:
    """Serve the wheels to whoever reaches an address; a context manager."""

    def __init__(self, address: str) -> None:
        handler = functools.partial(_Quiet, directory=str(wheels()))
        self._server = http.server.ThreadingHTTPServer((address, 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        port = self._server.server_address[1]
        #: Options with which pip installs from here only.
        self.pip_options = (
            f"--no-index --find-links http://{address}:{port}/ --trusted-host {address}"
        )

    def __enter__(self) -> PackageIndex:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def wheels() -> Path:
    """Return a folder with adr's dependencies in the versions installed here; fetched once."""
    pinned = sorted(f"{name}=={version}" for name, version in dependencies(ADR).items())
    digest = hashlib.sha256("\n".join(pinned).encode()).hexdigest()[:12]

    def fetch(folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder,
             "--only-binary=:all:", f"--python-version={PYTHON}", *pinned],
            capture_output=True,
            text=True,
        )  # fmt: skip
        require(done.returncode == 0, f"wheels of adr's dependencies: {done.stderr[-2000:]}")

    return made_once(f"wheels-{digest}", fetch)


def dependencies(package: str) -> dict[str, str]:
    """Return the installed versions of all that a package needs to run."""
    found: dict[str, str] = {}
    wanted = [package]
    while wanted:
        for line in metadata.requires(wanted.pop()) or ():
            requirement, _, marker = line.partition(";")
            name = re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]
            if "extra" in marker or name in found:
                continue
            # What a marker excludes here is not installed either.
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
            wanted.append(name)
    return found
