"""A stand-in for SQS and S3 at a distance, which counts calls.

By default `ministack` (PyPI) behind `benchmarks.distance`, which adds the round trip. Another
one is named by ``ADR_BENCH_CLOUD``: a Python program that takes ``--port`` and ``--rtt-ms`` and
serves, beside SQS and S3, what `benchmarks.distance` serves below ``/__sim__``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import HERE, Failed, Missing

__all__ = ["REGION", "Cloud", "opened"]

REGION = "eu-central-1"
_START_S = 20.0


class Cloud:
    """Speak to a running stand-in."""

    def __init__(self, port: int, rtt_ms: float) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.rtt_ms = rtt_ms
        #: What makes boto3 use it.
        self.env = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def calls(self) -> dict[str, int]:
        """Return how often each operation was called since `reset`."""
        return dict(self._ask("")["calls"])

    def reset(self) -> None:
        """Count from zero."""
        self._ask("/reset", {})

    @contextmanager
    def near(self) -> Iterator[None]:
        """Do without the round trip within, to prepare things."""
        self._ask("/config", {"rtt_ms": 0})
        try:
            yield
        finally:
            self._ask("/config", {"rtt_ms": self.rtt_ms})

    def _ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/__sim__{path}", data, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def opened(rtt_ms: float = 30.0) -> Iterator[Cloud]:
    """Start a stand-in, and end it."""
    with ExitStack() as stack:
        port = _free_port()
        given = os.environ.get("ADR_BENCH_CLOUD")
        options = ["--port", str(port), "--rtt-ms", str(rtt_ms)]
        if given:
            if not Path(given).exists():
                raise Missing(f"ADR_BENCH_CLOUD names {given}, which is not there")
            _start(stack, [sys.executable, given, *options])
        else:
            if find_spec("ministack") is None or find_spec("aiohttp") is None:
                raise Missing("ministack and aiohttp: pip install -r benchmarks/requirements.txt")
            behind = _free_port()
            settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(behind)}
            _start(stack, [str(Path(sys.executable).with_name("ministack"))], settings)
            _await(f"http://127.0.0.1:{behind}/")
            url = f"http://127.0.0.1:{behind}"
            _start(stack, [sys.executable, "-m", "benchmarks.distance", url, *options])
        cloud = Cloud(port, rtt_ms)
        _await(f"{cloud.url}/__sim__")
        yield cloud


def _start(stack: ExitStack, argv: list[str], env: dict[str, str] | None = None) -> None:
    process = subprocess.Popen(
        argv,
        cwd=HERE,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)


def _await(url: str) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise Failed(f"nothing answers at {url}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
