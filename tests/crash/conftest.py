"""Scenes on the backends; whatever they have started has ended after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.proxy import Proxy
from tests.scene import Scene


@pytest.fixture(params=["local", "aws"])
def scene(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    descendants_with_env: Callable[[str, str], list[int]],
) -> Iterator[Scene]:
    """Return a scene on each backend in turn."""
    if request.param == "aws":
        request.getfixturevalue("proxy")
    yield from _played(request.param, tmp_path, descendants_with_env)


@pytest.fixture
def local(tmp_path: Path, descendants_with_env: Callable[[str, str], list[int]]) -> Iterator[Scene]:
    """Return a scene on a local runner."""
    yield from _played("local", tmp_path, descendants_with_env)


@pytest.fixture
def aws(
    proxy: Proxy, tmp_path: Path, descendants_with_env: Callable[[str, str], list[int]]
) -> Iterator[Scene]:
    """Return a scene on SQS and S3, behind the proxy."""
    yield from _played("aws", tmp_path, descendants_with_env)


def _played(kind: str, folder: Path, find: Callable[[str, str], list[int]]) -> Iterator[Scene]:
    scene = Scene(kind, folder, find)
    scene.create()
    try:
        yield scene
    finally:
        scene.clean_up()
