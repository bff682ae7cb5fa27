"""Scenes, and chance that can be repeated: ``ADR_FAULT_SEED=7`` throws all dice the same way.

A test that fails tells its seed. It decides what is thrown and in which order, not at which
moment processes get there.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.crash.conftest import aws, local, scene
from tests.proxy import Proxy

__all__ = ["aws", "local", "scene"]

# Read now, since no test sees variables of adr.
_SEED = int(os.environ.get("ADR_FAULT_SEED", "1"))


@pytest.fixture
def seed() -> int:
    """Return the seed of this run of the suite, which is shown where a test fails."""
    print(f"repeat with ADR_FAULT_SEED={_SEED}")
    return _SEED


@pytest.fixture
def chance(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Return a generator that is the same whenever this test is run with this seed."""
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture
def proxy(proxy: Proxy, seed: int) -> Proxy:
    """Let the proxy throw its dice by the seed."""
    proxy.seed(seed)
    return proxy
