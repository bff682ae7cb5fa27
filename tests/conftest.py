"""Fixtures for all tests: isolation from the real user, the emulators, the proxy."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import botocore.session
import pytest
from botocore.loaders import create_loader

from tests.ec2_rules import publish_images, remember_tokens
from tests.proxy import Proxy
from tests.servers import STRICT_MOTO, start_ministack, start_moto

T = TypeVar("T")

# A shell that starts the tests in the background lets them ignore Ctrl-C, which some of them send.
signal.signal(signal.SIGINT, signal.default_int_handler)

REGION = "eu-central-1"


@pytest.fixture(scope="session", autouse=True)
def models_read_once() -> Iterator[None]:
    """Share the models of AWS: to find and to read them is most of what a client costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(create_loader))
        yield


@pytest.fixture(autouse=True)
def isolated_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Keep the settings, data and credentials of the real user out of every test."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "ADR_", "XDG_")):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ADR_CONFIG", str(home / "adr.json"))
    for name, folder in (
        ("XDG_CONFIG_HOME", ".config"),
        ("XDG_DATA_HOME", ".local/share"),
        ("XDG_STATE_HOME", ".local/state"),
        ("XDG_CACHE_HOME", ".cache"),
    ):
        monkeypatch.setenv(name, str(home / folder))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    return home


@pytest.fixture(scope="session")
def ministack_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve S3 and SQS; queues may be deep."""
    server = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the widest range of AWS; queues are shallow."""
    server = start_moto(tmp_path_factory.mktemp("moto"))
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def strict_moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve EC2 and its neighbours; unknown images, types and key pairs are refused."""
    server = start_moto(tmp_path_factory.mktemp("strict-moto"), settings=STRICT_MOTO)
    yield server.url
    server.stop()


def _point_to(monkeypatch: pytest.MonkeyPatch, home: Path, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "no-aws-credentials"))


@pytest.fixture
def aws_env(monkeypatch: pytest.MonkeyPatch, isolated_home: Path, ministack_url: str) -> str:
    """Let boto3, here and in child processes, find ministack; returns its address."""
    _point_to(monkeypatch, isolated_home, ministack_url)
    return ministack_url


@pytest.fixture
def moto_env(monkeypatch: pytest.MonkeyPatch, isolated_home: Path, moto_url: str) -> str:
    """Let boto3, here and in child processes, find moto; returns its address."""
    _point_to(monkeypatch, isolated_home, moto_url)
    return moto_url


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, aws_env: str) -> Iterator[Proxy]:
    """Put a proxy, with queues like those of SQS, between boto3 and ministack."""
    with Proxy(aws_env) as proxy:
        proxy.like_sqs()
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
        errors = proxy.errors
    assert not errors, "actions of the proxy raised"


@pytest.fixture
def strict_moto(
    monkeypatch: pytest.MonkeyPatch, isolated_home: Path, strict_moto_url: str
) -> Iterator[Proxy]:
    """Let boto3 find a strict moto through a proxy that knows what moto does not.

    That is: the images of Ubuntu, and that EC2 carries out a request with a token only once.
    """
    with Proxy(strict_moto_url) as proxy:
        publish_images(proxy)
        remember_tokens(proxy)
        _point_to(monkeypatch, isolated_home, proxy.url)
        # The proxy refuses what ministack's account does not own.
        for service in ("S3", "SQS"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", strict_moto_url)
        yield proxy
        errors = proxy.errors
    assert not errors, "actions of the proxy raised"


@pytest.fixture
def wait_for() -> Callable[..., T]:
    """Return a function that polls a condition and returns its first true value."""

    def wait(condition: Callable[[], T], timeout: float = 30, every: float = 0.02) -> T:
        deadline = time.monotonic() + timeout
        while True:
            began = time.monotonic()
            value = condition()
            if value:
                return value
            now = time.monotonic()
            if now > deadline:
                raise AssertionError(f"not true within {timeout} s: {condition}")
            # Looking is not to keep busy what is waited for.
            time.sleep(max(every, min(4 * (now - began), 0.3)))

    return wait


@pytest.fixture
def descendants_with_env() -> Callable[[str, str], list[int]]:
    """Return a function that lists live processes whose environment says NAME=VALUE (Linux).

    It finds the processes of a job whatever session or parent they have chosen.
    """

    def find(name: str, value: str) -> list[int]:
        wanted = f"{name}={value}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in variables:
                found.append(int(entry.name))
        return found

    return find
