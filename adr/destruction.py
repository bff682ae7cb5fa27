"""The end of a runner, or of one batch: what is removed, in which order, and what stays.

Results, and the records that name them, stay unless they are purged. Everything can be
repeated where it was cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

from adr.errors import (
    AdrError,
    Denied,
    PartialFailure,
    RunnerGone,
    Unavailable,
    UsageError,
)
from adr.inventory import may_have_others
from adr.keys import (
    BATCHES,
    CARDS,
    FOLLOWED,
    FOLLOWS,
    INSTALL,
    LAUNCHES,
    LIVE,
    LOGS,
    SETUP,
    WORKERS,
    bundle_key,
    decided_prefix,
    journal_prefix,
)
from adr.launching import dissolve, end_all
from adr.ledgers.base import Forgetting
from adr.orders import order_destruction, read_orders
from adr.progress import Progress
from adr.queueing import clear_bundles
from adr.runner import Runner
from adr.survey import Survey

__all__ = ["destroy_batch", "destroy_runner"]


def destroy_runner(runner: Runner, purge: bool, progress: Progress) -> None:
    """Remove hosts, queue and inputs of a runner, and all the rest if `purge`.

    Raises
    ------
    RunnerGone
        If there is no such runner, and there are no hosts of it.
    PartialFailure
        If hosts, or what was made for them, are left; all else is gone.
    """
    # The order matters: a worker that sees the tombstone writes nothing more, and whoever
    # is cut off further down finds the tombstone and can go on.
    gone: RunnerGone | None = None
    try:
        order_destruction(runner.store)
    except RunnerGone as error:
        # Its hosts may well be there, and cost money.
        gone = error
    there, trouble = end_all(runner, progress)
    if gone is None:
        runner.ledger.destroy()
        _delete_inputs(runner, progress)
    # Hosts that could not be ended are to be found again, unless nothing is to be kept.
    ended = [kind for kind in runner.fleets if purge or kind not in trouble]
    left = dissolve(runner, ended, progress)
    if gone is None:
        if not may_have_others(runner.store, there):
            # Nobody has launched any, so that there is nothing to look for.
            trouble, left = _that_counts(trouble), _that_counts(left)
        if purge and not left:
            runner.remove()
        elif not trouble and not left:
            _delete_traces(runner, progress)
    if trouble or left:
        said = "; ".join(dict.fromkeys(map(str, [*trouble.values(), *left.values()])))
        again = "" if purge and not left else "; once that is mended, the same command goes on"
        raise PartialFailure(
            f"the runner {runner.id} takes no more jobs, but something of it may be left: "
            f"{said}{again}"
        )
    if gone is not None and not there:
        raise gone


def _that_counts(trouble: dict[str, AdrError]) -> dict[str, AdrError]:
    """Leave out fleets that these credentials, or this network, do not reach."""
    out_of_reach = (Denied, Unavailable)
    return {kind: error for kind, error in trouble.items() if not isinstance(error, out_of_reach)}


def _delete_inputs(runner: Runner, progress: Progress) -> None:
    if runner.scratch is not None:
        clear_bundles(runner.scratch)
    # Also those of batches that never got a manifest.
    inputs = [each.key for each in runner.store.list("", flat=True) if each.key.endswith(".zip")]
    _delete(runner, inputs, [LIVE, CARDS, FOLLOWS, FOLLOWED], progress)


def _delete_traces(runner: Runner, progress: Progress) -> None:
    """Remove what tells that hosts were launched."""
    registered = [each.key for each in runner.store.list(WORKERS, flat=True)]
    _delete(runner, registered, [SETUP, INSTALL, LAUNCHES], progress)


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
    prefixes = [f"{start}{batch}/" for start in (CARDS, FOLLOWS, FOLLOWED)]
    if purge:
        if isinstance(runner.ledger, Forgetting):
            runner.ledger.forget(batch)
        prefixes += [f"{batch}/", f"{LOGS}{batch}/", journal_prefix(batch), decided_prefix(batch)]
        prefixes += [f"{BATCHES}{batch}{end}" for end in (".", "+", "~")]
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
