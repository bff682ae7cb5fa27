"""``adr run``: a local runner inside the output folder, worked on by this very process.

The runner lies in ``<to>/.adr`` and keeps everything that was ever run into that folder. A
job whose fingerprint has succeeded there is not run again. What an earlier call left waiting
is gone on with if all of it is still wanted, and called off if not.

Results are published (`adr.publish`) as soon as their record is durable, and again at the
end, from what the ledger says.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adr.batch import BatchPlan, new_batch_id
from adr.cores import cores
from adr.decisions import Decision, visible
from adr.errors import RunnerGone, UsageError
from adr.history import Key, Wanted, past_batches
from adr.keys import bundle_key
from adr.manifest import Manifest, job_ids
from adr.models import Job, JobRecord, JobState, new_id
from adr.orders import order_destruction, read_orders
from adr.progress import SILENT, Progress
from adr.publish import Publisher
from adr.queueing import queue_new
from adr.runner import Runner, create_runner, is_local_runner, open_runner
from adr.survey import Survey
from adr.worker.launcher import Launcher
from adr.worker.loop import Worker
from adr.worker.signals import stopping
from adr.worker.tree import discard_tree

__all__ = ["RUNNER_FOLDER", "RunReport", "output_folder", "run_batch"]

_log = logging.getLogger(__name__)

#: Where in the output folder the runner lies.
RUNNER_FOLDER = ".adr"
_LOCK = "run.lock"
_NOTE_EVERY_S = 0.5
_TOGETHER_S = 0.05

#: A job, its label among those that are wanted, and its record.
_Decided = tuple[Job, str, JobRecord]


@dataclass(frozen=True)
class RunReport:
    """Say what a run did."""

    succeeded: int
    #: Jobs that were done already.
    skipped: int
    failed: tuple[JobRecord, ...]
    #: Jobs that were called off meanwhile, from elsewhere.
    cancelled: int
    #: Jobs that have no outcome, because the run was interrupted or its runner destroyed.
    undecided: int
    #: Whether Ctrl-C or SIGTERM ended it before all jobs were decided.
    interrupted: bool
    #: Files in the output folder that are not adr's and stood in the way of results.
    kept: int
    #: Why results could not be put into the output folder; the next run tries again.
    unpublished: tuple[str, ...]


def run_batch(
    plan: BatchPlan,
    to: str | os.PathLike[str],
    *,
    slots: int | None = None,
    rerun: bool = False,
    progress: Progress = SILENT,
) -> RunReport:
    """Run the jobs of a plan here that are not done already, and publish their results.

    Parameters
    ----------
    plan : BatchPlan
        The jobs.
    to : path
        Output folder, made where missing.
    slots : int, optional
        How many jobs run at once; without, as many as there are cores.
    rerun : bool, optional
        Run also what is done.

    Raises
    ------
    UsageError
        If the output folder cannot be used.
    """
    folder = Path(os.path.abspath(to))
    worker = new_id()
    with _opened(folder, worker) as runner:
        # Whatever lies there was left by a run that was killed, and this one may need no worker.
        workingdir = folder / RUNNER_FOLDER / "work"
        discard_tree(workingdir)
        plan = plan.with_fingerprints(progress, new_batch_id(plan.root))
        wanted = Wanted(plan.jobs)
        survey = Survey(runner)
        history = _History(runner, survey, wanted, rerun)
        todo = plan.only(history.missing)
        publisher = Publisher(runner.store, folder, folder / RUNNER_FOLDER / "published.jsonl")
        interrupted = False
        pending = history.waiting
        published: set[str] = set()
        with _started(min(slots or cores(), len(pending) + len(todo.jobs))) as launchers:
            if todo.jobs:
                pending = [*pending, *queue_new(runner, todo, progress).plan.jobs]
            unpublished = publisher.publish(history.done)
            if pending:
                follower = _Follower(publisher, pending, wanted, progress)
                published = follower.published
                work = Worker(
                    runner,
                    worker,
                    workingdir,
                    slots=slots,
                    stop_on_empty=True,
                    on_settled=follower.settled.put,
                    launchers=launchers,
                )
                with follower.following(work), stopping(work.stop) as was_interrupted:
                    work.run()
                    interrupted = was_interrupted()
        # What the ledger says counts, whatever this process has seen of it.
        batches = survey.manifests() if pending else {}
        found = visible(runner.ledger.decided({*batches, *(job.batch for job in pending)}))
        _forget_bundles(runner, batches, found)
        ended = [
            (job, decision)
            for job in pending
            if (decision := found.get((job.batch, job.index)))
            and decision.generation == job.generation
        ]
        left = _with_records(
            runner,
            wanted,
            [
                (job, decision)
                for job, decision in ended
                if decision.state is JobState.FAILED or decision.attempt not in published
            ],
        )
        unpublished += publisher.publish(_with_results(left))
        counts = Counter(decision.state for _, decision in ended)
        known = {job.id for job, _ in ended}
        undecided = [job for job in pending if job.id not in known]
        if undecided:
            # Of what was called off before it began there may be no record.
            orders = read_orders(runner.store)
            counts[JobState.CANCELLED] += sum(bool(orders.against(job)) for job in undecided)
        return RunReport(
            succeeded=counts[JobState.SUCCEEDED],
            skipped=len(plan.jobs) - len(pending),
            failed=tuple(each for _, _, each in left if each.state is JobState.FAILED),
            cancelled=counts[JobState.CANCELLED],
            undecided=len(pending) - counts.total(),
            interrupted=interrupted and counts.total() < len(pending),
            kept=len(publisher.kept),
            unpublished=tuple(unpublished),
        )


@contextmanager
def _opened(folder: Path, worker: str) -> Iterator[Runner]:
    """Open the runner of an output folder, for one process at a time."""
    directory = folder / RUNNER_FOLDER
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"cannot write results to {folder}: {error.strerror}: choose another folder"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another adr run writes to {folder}: wait for it, or choose another folder"
            ) from error
        if not is_local_runner(directory):
            create_runner(local=True, directory=directory, listed=False)
        runner = open_runner(str(directory), worker=worker)
        try:
            runner.ledger.send([])
        except RunnerGone as error:
            raise UsageError(
                f"what adr knew of {folder} has been destroyed: remove {directory}, "
                f"or choose another folder"
            ) from error
        yield runner
    finally:
        os.close(lock)


def output_folder(runner: Runner) -> Path | None:
    """Return the output folder whose runner this is, None where it was not made by a run."""
    directory = Path(runner.id)
    if runner.kind == "local" and directory.name == RUNNER_FOLDER and (directory / _LOCK).exists():
        return directory.parent
    return None


@contextmanager
def _started(number: int) -> Iterator[list[Launcher]]:
    """Start so many launchers, which takes about as long as to queue; end them in any case."""
    launchers = [Launcher() for _ in range(number)]
    try:
        # A job that needs one tells what is wrong.
        with suppress(OSError):
            for each in launchers:
                each.start()
        yield launchers
    finally:
        for each in launchers:
            each.leave()
        for each in launchers:
            each.close()


class _History:
    """Tell what earlier runs have done and left, of what is wanted now.

    Batches that were left with anything else are called off.
    """

    def __init__(self, runner: Runner, survey: Survey, wanted: Wanted, rerun: bool) -> None:
        done: dict[Key, tuple[Job, Decision]] = {}
        waiting: dict[Key, Job] = {}
        orders = read_orders(runner.store)
        for past in past_batches(runner, wanted, survey.manifests(), orders):
            if not rerun:
                done |= past.done
            left = {wanted.key(job): job for job in past.left}
            if not left:
                continue
            usable = survey.is_sealed(past.batch) and all(map(wanted.may_be, past.left))
            if rerun or not usable or left.keys() & waiting.keys():
                order_destruction(runner.store, past.batch)
            else:
                waiting.update(left)
        #: Wanted jobs that have succeeded, with their labels and records.
        self.done = _with_records(
            runner, wanted, [each for key, each in done.items() if key not in waiting]
        )
        #: Wanted jobs that wait in the runner.
        self.waiting = list(waiting.values())
        #: Indices of the wanted jobs that are neither.
        self.missing = [
            job.index for key, job in wanted.jobs.items() if key not in done and key not in waiting
        ]


def _with_records(
    runner: Runner, wanted: Wanted, done: Sequence[tuple[Job, Decision]]
) -> list[tuple[Job, str, JobRecord]]:
    decisions = [decision for _, decision in done]
    found = runner.ledger.records({each.batch for each in decisions}, decisions)
    records = {(*record.id, record.attempt): record for record in found}
    return [(job, wanted.label(job), records[decision.record]) for job, decision in done]


class _Follower:
    """Publish results and tell the progress while a worker works."""

    def __init__(
        self, publisher: Publisher, pending: Sequence[Job], wanted: Wanted, progress: Progress
    ) -> None:
        self._publisher = publisher
        self._pending = {job.id: (job, wanted.label(job)) for job in pending}
        self._progress = progress
        #: Attempts whose results are in place.
        self.published: set[str] = set()
        #: Where the worker puts its records; None ends the following.
        self.settled: queue.SimpleQueue[JobRecord | None] = queue.SimpleQueue()
        self._ended = threading.Event()

    @contextmanager
    def following(self, work: Worker) -> Iterator[None]:
        """Follow within, in a thread of its own."""
        thread = threading.Thread(target=self._follow, args=(work,), name="publish")
        self._progress.start("running", len(self._pending), "jobs")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self.settled.put(None)
            thread.join()
            self._progress.finish()

    def _follow(self, work: Worker) -> None:
        counts: Counter[JobState] = Counter()
        for records in _groups(self.settled, self._ended):
            # Jobs of earlier runs that nobody wants any more are called off.
            ours = [
                (*self._pending[record.id], record)
                for record in records
                if record.id in self._pending
            ]
            counts.update(record.state for _, _, record in ours)
            self._progress.advance(len(ours))
            done = _with_results(ours)
            troubles = self._publisher.publish(done)
            for trouble in troubles:
                _log.warning("%s", trouble)
            if not troubles:
                self.published.update(record.attempt for _, _, record in done)
            seldom = {"cancelled": counts[JobState.CANCELLED]} if counts[JobState.CANCELLED] else {}
            self._progress.note(
                done=counts[JobState.SUCCEEDED],
                failed=counts[JobState.FAILED],
                **seldom,
                running=work.running,
            )


def _with_results(decided: Sequence[_Decided]) -> list[_Decided]:
    """Leave out what was called off: its results are not wanted, nor are older ones taken away."""
    return [each for each in decided if each[2].state is not JobState.CANCELLED]


def _groups(
    settled: queue.SimpleQueue[JobRecord | None], ended: threading.Event
) -> Iterator[Sequence[JobRecord]]:
    """Yield what has been settled, some at a time, also when that is nothing; end at None."""
    while True:
        group: list[JobRecord] = []
        try:
            item = settled.get(timeout=_NOTE_EVERY_S)
            # To be woken by each costs more than to put some into place at once.
            ended.wait(_TOGETHER_S)
            while item is not None:
                group.append(item)
                item = settled.get_nowait()
            yield group
            return
        except queue.Empty:
            yield group


def _forget_bundles(
    runner: Runner,
    batches: Mapping[str, Sequence[Manifest]],
    decided: Mapping[tuple[str, int], Decision],
) -> None:
    """Remove the bundles of batches that have nothing left to run."""
    over = [
        batch
        for batch, parts in batches.items()
        if all(
            (decision := decided.get((batch, index))) and decision.generation >= generation
            for index, generation, _ in job_ids(parts)
        )
    ]
    if over:
        runner.store.delete([bundle_key(batch) for batch in over])
