"""The end of a runner, or of one batch: what is removed, in which order, and what stays.

Results, and the records that name them, stay unless they are purged. Everything can be
repeated where it was cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

from adr.errors import UsageError
from adr.keys import BATCHES, LIVE, bundle_key, journal_prefix
from adr.ledgers.base import Forgetting
from adr.orders import order_destruction, read_orders
from adr.progress import Progress
from adr.queueing import clear_bundles
from adr.runner import Runner
from adr.survey import Survey

__all__ = ["destroy_batch", "destroy_runner"]


def destroy_runner(runner: Runner, purge: bool, progress: Progress) -> None:
    """Remove queue and inputs of a runner, and all the rest if `purge`."""
    # The order matters: a worker that sees the tombstone writes nothing more, and whoever
    # is cut off further down finds the tombstone and can go on.
    order_destruction(runner.store)
    runner.ledger.destroy()
    if purge:
        runner.remove()
        return
    if runner.scratch is not None:
        clear_bundles(runner.scratch)
    # Also those of batches that never got a manifest.
    inputs = [each.key for each in runner.store.list("", flat=True) if each.key.endswith(".zip")]
    _delete(runner, inputs, [LIVE, "_cards/"], progress)


def destroy_batch(runner: Runner, batch: str, purge: bool, progress: Progress) -> None:
    """Call off the jobs of a batch and remove its input, and its results too if `purge`.

    A worker may write what it has at hand until it sees the order: repeating removes that.

    Raises
    ------
    UsageError
        If there is no such batch.
    """
    known = batch in Survey(runner).manifests(batch)
    if not known and batch not in read_orders(runner.store).destroyed_batches:
        raise UsageError(f"there is no batch {batch}: adr status shows those there are")
    order_destruction(runner.store, batch)
    prefixes = [f"_cards/{batch}/"]
    if purge:
        if isinstance(runner.ledger, Forgetting):
            runner.ledger.forget(batch)
        prefixes += [f"{batch}/", f"_logs/{batch}/", journal_prefix(batch)]
        prefixes += [f"{BATCHES}{batch}{end}" for end in (".", "+")]
    _delete(runner, [bundle_key(batch)], prefixes, progress)


def _delete(
    runner: Runner, keys: Sequence[str], prefixes: Sequence[str], progress: Progress
) -> None:
    found = [
        *keys,
        *(entry.key for prefix in prefixes for entry in runner.store.list(prefix)),
    ]
    progress.start("deleting", len(found), "objects")
    runner.store.delete(found)
    progress.advance(len(found))
    progress.finish()
