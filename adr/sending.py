"""How the jobs of a manifest are sent: of a new batch, of one that was cut off, of a retry.

A manifest is written before its first job is sent, and sealed after the last. Whoever finds
one without its seal sends what is left of it, flagged.

A retry raises the generation of its jobs, so that neither an order that cancelled them before
nor a message of the earlier generation touches it. It is written down first, in a manifest of
its own under the next free number: of two who retry at the same moment one gets that number,
and the other looks again at what is left to retry.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adr.documents import reading
from adr.errors import Conflict, NotFound
from adr.keys import bundle_key, manifest_key, retry_name, seal_key, sent_key
from adr.manifest import manifest_bytes
from adr.models import SCHEMA, Job, new_id
from adr.orders import Orders
from adr.progress import Progress
from adr.runner import Runner
from adr.survey import Survey
from adr.views import JobView

__all__ = ["Limits", "finish_sending", "has_inputs", "queue_again", "raised", "seal"]

_NOTE_EVERY_S = 10.0

#: Returns what a job that is retried gets anew, by the names of its fields.
Limits = Callable[[Job], Mapping[str, Any]]


def finish_sending(
    runner: Runner, name: str, jobs: Sequence[Job], progress: Progress, *, again: bool = False
) -> None:
    """Send the jobs of a manifest, note now and then how far that is, and seal it.

    Parameters
    ----------
    name : str
        What stands in the key of the manifest.
    again : bool, optional
        Some may have been sent, or are being sent by somebody else: those that were for certain
        are not sent again.
    """
    before = _sent(runner, name) if again else 0
    left = jobs[before:]
    progress.start("queueing", len(left), "jobs")
    guard, told, noted_at = threading.Lock(), 0, time.monotonic()

    def sent(number: int) -> None:
        nonlocal told, noted_at
        with guard:
            if number <= told:
                return
            progress.advance(number - told)
            told = number
            if time.monotonic() - noted_at < _NOTE_EVERY_S:
                return
            noted_at = time.monotonic()
        runner.store.write(sent_key(name), _note(before + number))

    try:
        runner.ledger.send(left, again=again, sent=sent)
    finally:
        progress.finish()
    seal(runner, name, len(jobs))


def seal(runner: Runner, name: str, jobs: int) -> None:
    """Note that so many jobs, all of a manifest, were sent."""
    runner.store.write(seal_key(name), _note(jobs))


def queue_again(
    runner: Runner,
    survey: Survey,
    batch: str,
    views: Sequence[JobView],
    limits: Limits,
    progress: Progress,
) -> list[Job]:
    """Queue jobs of one batch again, but those that somebody else retries at the same moment.

    Parameters
    ----------
    views : sequence of JobView
        The jobs, as they were seen.

    Returns
    -------
    list of Job
        Each in its new generation.
    """
    while views:
        jobs = raised(views, limits)
        name = retry_name(batch, survey.retries(batch) + 1)
        # There is no root; what stands there tells our manifest from that of another.
        body = manifest_bytes(
            jobs,
            root=f"{name} {new_id()}",
            created=time.time(),
            bundle_bytes=0,
            unpacked_bytes=0,
        )
        try:
            runner.store.write(manifest_key(name), body, if_absent=True)
        except Conflict:
            # Ours after all, where the answer to an earlier try of the same write was lost.
            if runner.store.read(manifest_key(name)).body != body:
                found = survey.status(batch, records=False).jobs
                now = {view.job.id: view.state for view in found}
                views = [view for view in views if now.get(view.job.id) is view.state]
                continue
        # Whoever retries meanwhile takes this for cut off, and sends these jobs as well.
        finish_sending(runner, name, jobs, progress, again=True)
        return jobs
    return []


def raised(views: Iterable[JobView], limits: Limits) -> list[Job]:
    """Return jobs as a retry queues them."""
    return [
        replace(each.job, generation=each.job.generation + 1, **limits(each.job)) for each in views
    ]


def has_inputs(runner: Runner, batch: str, orders: Orders) -> bool:
    """Tell whether jobs of a batch can be run: whether it is not called off and has its bundle."""
    if batch in orders.destroyed_batches:
        return False
    key = bundle_key(batch)
    return any(entry.key == key for entry in runner.store.list(key))


def _sent(runner: Runner, batch: str) -> int:
    key = sent_key(batch)
    try:
        with reading(f"the note {key}"):
            return max(0, int(json.loads(runner.store.read(key).body)["sent"]))
    except NotFound:
        return 0


def _note(sent: int) -> bytes:
    return json.dumps({"schema": SCHEMA, "sent": sent}).encode()
