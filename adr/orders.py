"""Orders to workers: immutable objects that each worker looks for every few seconds.

An order names what it is about in its key, so that one listing tells all of them.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from adr.keys import CONTROL, TOMBSTONE
from adr.models import SCHEMA, time_text
from adr.stores.base import ObjectStore

__all__ = ["Orders", "order_destruction", "read_orders"]

_RUNNER = CONTROL + "destroyed"
_BATCH = CONTROL + "destroyed-batch/"


@dataclass(frozen=True)
class Orders:
    """Hold the orders that stand."""

    #: The runner is being destroyed: end all jobs and write nothing more.
    destroyed: bool = False
    #: Batches whose jobs are called off.
    destroyed_batches: frozenset[str] = frozenset()


def order_destruction(store: ObjectStore, batch: str | None = None) -> None:
    """Call off the jobs of a batch, or of the whole runner; idempotent."""
    body = json.dumps({"schema": SCHEMA, "ordered_at": time_text(time.time())}).encode()
    if batch is None:
        store.write(TOMBSTONE, body)
    store.write(_RUNNER if batch is None else _BATCH + batch, body)


def read_orders(store: ObjectStore) -> Orders:
    """Read the orders that stand; one listing."""
    keys = [entry.key for entry in store.list(CONTROL)]
    return Orders(
        destroyed=_RUNNER in keys,
        destroyed_batches=frozenset(
            key.removeprefix(_BATCH) for key in keys if key.startswith(_BATCH)
        ),
    )
