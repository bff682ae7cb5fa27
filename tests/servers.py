"""Start the emulators of AWS as real processes, on 127.0.0.1 or the address of a test network.

`ministack` is fast and constant with the depth of a queue, `moto_server` knows more services.
Both keep their state in memory, so one server serves a whole session of tests, each test
with runner ids of its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

START_WITHIN_S = 30.0

#: Settings of moto with which it refuses what does not exist, as AWS does.
STRICT_MOTO = {
    "MOTO_ENABLE_AMI_VALIDATION": "1",
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "1",
    "MOTO_ENABLE_KEYPAIR_VALIDATION": "1",
}


def require(condition: object, reason: str) -> None:
    """Skip the test with `reason` on a laptop, fail it where CI is set."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"needed in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


def _end_with_parent() -> Callable[[], None] | None:
    """Return what a child calls so that it ends with us, even where we are killed (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, signal.SIGTERM)


class Server:
    """One emulator in a process of its own."""

    def __init__(
        self,
        name: str,
        command: Callable[[int], list[str]],
        health: str,
        folder: Path,
        env: Callable[[int], Mapping[str, str]] = lambda port: {},
        address: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        for _ in range(3):
            self.port = free_port(address)
            self.url = f"http://{address}:{self.port}"
            self._start(command(self.port), folder, env(self.port))
            if self._answers(self.url + health):
                return
            self.stop()
        raise RuntimeError(f"{name} did not start:\n{self.log.read_text(errors='replace')}")

    def _start(self, command: list[str], folder: Path, env: Mapping[str, str]) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "ADR_"))}
        clean.update(HOME=str(folder), TMPDIR=str(folder), AWS_DEFAULT_REGION="eu-central-1", **env)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=clean,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent(),
            )

    def _answers(self, url: str) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                opener.open(url, timeout=5).close()
            except urllib.error.HTTPError:
                pass
            except OSError:
                time.sleep(0.05)
                continue
            return self.process.poll() is None
        return False

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(1)  # they keep nothing, and wait for open connections
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_ministack(folder: Path, address: str = "127.0.0.1") -> Server:
    """Start ministack; all it writes lies in `folder`."""
    require(importlib.util.find_spec("ministack"), "ministack is not installed")

    def env(port: int) -> dict[str, str]:
        return {
            "BIND_HOST": address,
            "GATEWAY_PORT": str(port),
            "LOG_LEVEL": "ERROR",
            "STATE_DIR": str(folder / "state"),
            "S3_DATA_DIR": str(folder / "s3"),
        }

    command = [sys.executable, "-m", "ministack"]
    return Server("ministack", lambda port: command, "/_ministack/health", folder, env, address)


def start_moto(
    folder: Path,
    address: str = "127.0.0.1",
    settings: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "moto.server"),
) -> Server:
    """Start moto_server; its queues slow with depth, keep them under 300 messages."""
    require(importlib.util.find_spec("moto"), "moto[server] is not installed")

    def command(port: int) -> list[str]:
        return [sys.executable, *program, "-H", address, "-p", str(port)]

    env = settings or {}
    return Server("moto", command, "/moto-api/", folder, lambda port: env, address)
