"""What a runner has done already of what is wanted now: one rule for ``adr queue`` and ``adr run``.

Jobs are the same if their fingerprints are, and if how long and how often they may run is the
same as well where they have not ended yet. What follows from that differs: `adr.queueing`
leaves alone what it finds and retries what did not succeed, `adr.embedded` also calls off what
nobody wants any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from adr.decisions import Decision, visible
from adr.joblimits import JobLimits
from adr.manifest import Manifest, jobs_of
from adr.models import Job, JobId, JobState
from adr.orders import Orders
from adr.runner import Runner
from adr.survey import Survey
from adr.views import JobView

__all__ = ["Key", "Known", "PastBatch", "Wanted", "known_jobs", "past_batches"]

#: What a job that is wanted and one of an earlier batch have in common if they do the same.
Key = str | tuple[str | None, str]


class Wanted:
    """Tell which of the jobs that are wanted, if any, a job of an earlier batch is.

    Where two of those wanted have the same fingerprint (the same content under two names, and
    a command that does not say which) the label decides as well.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._twins: set[str | None] = set()
        self.jobs: dict[Key, Job] = {}
        for job in jobs:
            if self.jobs.setdefault(self.key(job), job) is not job:
                self._twins.add(job.fingerprint)
        if self._twins:
            self.jobs = {self.key(job): job for job in jobs}

    def key(self, job: Job) -> Key:
        """Return what two jobs have in common if and only if they do the same."""
        if job.fingerprint is None or job.fingerprint in self._twins:
            return job.fingerprint, job.label
        return job.fingerprint

    def label(self, job: Job) -> str:
        """Return the label that a job, which is one of these, has among them."""
        return self.jobs[self.key(job)].label

    def includes(self, job: Job) -> bool:
        """Tell whether a job does what one of these does."""
        return self.key(job) in self.jobs

    def may_be(self, job: Job) -> bool:
        """Tell whether a job that has not ended is one of these, and may run as it was queued."""
        own = self.jobs.get(self.key(job))
        return own is not None and JobLimits.of(own) == JobLimits.of(job)


@dataclass(frozen=True)
class PastBatch:
    """Tell what became of a batch, as far as it matters to what is wanted."""

    batch: str
    #: Wanted jobs that have succeeded.
    done: dict[Key, tuple[Job, Decision]] = field(default_factory=dict)
    #: Jobs, wanted or not, that have no outcome and are not called off.
    left: list[Job] = field(default_factory=list)
    #: Wanted jobs that have failed or are called off, unless the batch was destroyed.
    over: list[JobView] = field(default_factory=list)


def past_batches(
    runner: Runner, wanted: Wanted, batches: Mapping[str, Sequence[Manifest]], orders: Orders
) -> list[PastBatch]:
    """Look at batches, in their order, for what is wanted."""
    decided = visible(runner.ledger.decided(batches))
    found = []
    for batch, parts in batches.items():
        past = PastBatch(batch)
        for job in jobs_of(parts):
            decision = decided.get((batch, job.index))
            if decision is None or decision.generation < job.generation:
                if not orders.against(job):
                    past.left.append(job)
                    continue
                view = JobView(job, JobState.CANCELLED, None)
            else:
                view = JobView(job, decision.state, None, decision)
            if not wanted.includes(job):
                continue
            if decision is not None and view.state is JobState.SUCCEEDED:
                past.done[wanted.key(job)] = job, decision
            elif batch not in orders.destroyed_batches:
                past.over.append(view)
        found.append(past)
    return found


@dataclass
class Known:
    """Tell which of the jobs that are wanted a runner has already."""

    #: The batch that has each, and whether it has succeeded, waits or runs there.
    jobs: dict[Key, tuple[str, JobState]] = field(default_factory=dict)
    #: Those of the others that did not succeed: that failed, were cancelled or are lost.
    over: dict[Key, JobView] = field(default_factory=dict)
    #: The batch where each of the others waits or runs with other limits.
    otherwise: dict[Key, str] = field(default_factory=dict)

    def without(self, keys: Container[Key]) -> Known:
        """Return what is known of all jobs but these."""
        return Known(
            {key: at for key, at in self.jobs.items() if key not in keys},
            {key: view for key, view in self.over.items() if key not in keys},
            {key: batch for key, batch in self.otherwise.items() if key not in keys},
        )

    def to_dict(self) -> dict[str, int]:
        """Count them by what became of them."""
        counts = Counter(state for _, state in self.jobs.values())
        return {name: counts[state] for name, state in _NAMES.items()}


_NAMES = {
    "succeeded": JobState.SUCCEEDED,
    "waiting": JobState.QUEUED,
    "running": JobState.RUNNING,
}


def known_jobs(
    runner: Runner,
    survey: Survey,
    wanted: Wanted,
    orders: Orders,
    batches: Mapping[str, Sequence[Manifest]],
) -> Known:
    """Find what became of the jobs that are wanted; of two that are alike, of the newer one.

    What has succeeded, waits or runs anywhere hides what did not succeed elsewhere. Reads records
    only of batches that hold one of them, and asks who works and whether the
    queue is empty only where one of these has not ended.
    """
    holding = {
        batch: parts
        for batch, parts in batches.items()
        if any(wanted.includes(job) for part in parts for job in part.jobs())
    }
    known = Known()
    if not holding:
        return known
    # Of these nobody knows whether they were sent.
    unsent = {
        (manifest.batch, index, generation)
        for manifest in survey.unsealed.values()
        for index, generation in manifest.ids()
    }
    past = past_batches(runner, wanted, holding, orders)
    views = _views(survey, [job for each in past for job in each.left if wanted.includes(job)])
    for each in past:
        for key in each.done:
            known.jobs[key] = each.batch, JobState.SUCCEEDED
        ended = list(each.over)
        for job in each.left:
            view = views.get(job.id)
            if view is None:
                continue
            state = view.state
            if state is JobState.UNACCOUNTED:
                # Counts are approximate: it waits until it is lost for certain.
                state = JobState.QUEUED
            if state not in _NAMES.values():
                ended.append(view)
            elif not (wanted.may_be(job) or state is JobState.SUCCEEDED):
                known.otherwise[wanted.key(job)] = each.batch
            elif not (state is JobState.QUEUED and job.id in unsent):
                known.jobs[wanted.key(job)] = each.batch, state
        # Of those alike in one batch the one of the same name.
        for view in sorted(ended, key=lambda view: view.job.label == wanted.label(view.job)):
            known.over[wanted.key(view.job)] = view
    known.over = {key: view for key, view in known.over.items() if key not in known.jobs}
    return known


def _views(survey: Survey, jobs: Iterable[Job]) -> dict[JobId, JobView]:
    """Look where jobs are that have not ended."""
    wanted = {job.id for job in jobs}
    batches = {batch for batch, _, _ in wanted}
    if not batches:
        return {}
    views = survey.status(batches.pop() if len(batches) == 1 else None, records=False).jobs
    return {view.job.id: view for view in views if view.job.id in wanted}
