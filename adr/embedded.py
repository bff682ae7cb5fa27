"""``adr run``: a local runner inside the output folder, worked on by this very process.

The runner lies in ``<to>/.adr`` and keeps everything that was ever run into that folder. A
job whose fingerprint has succeeded there is not run again. What an earlier call left waiting
is gone on with if all of it is still wanted, and called off if not.

Results are published from the store into ``<to>/<label>/`` as soon as their record is
durable; ``<to>/.adr/published.jsonl`` says which attempt lies under which label, so that a
call that was cut off between the two is made good by the next.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adr.batch import BatchPlan
from adr.errors import AdrError, PartialFailure, UsageError
from adr.keys import bundle_key, result_key
from adr.models import Job, JobRecord, JobState, new_id, visible
from adr.orders import order_destruction, read_orders
from adr.progress import SILENT, Progress
from adr.queueing import queue_batch
from adr.runner import Runner, create_runner, is_local_runner, open_runner
from adr.survey import Survey
from adr.transfer import Fetch, fetch
from adr.worker.loop import Worker
from adr.worker.signals import stopping
from adr.worker.tree import discard_tree

__all__ = ["RUNNER_FOLDER", "RunReport", "fetches", "run_batch"]

_log = logging.getLogger(__name__)

#: Where in the output folder the runner lies.
RUNNER_FOLDER = ".adr"
_NOTE_EVERY_S = 0.5


@dataclass(frozen=True)
class RunReport:
    """Say what a run did."""

    succeeded: int
    #: Jobs that were done already.
    skipped: int
    failed: tuple[JobRecord, ...]
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
    workingdir = folder / RUNNER_FOLDER / "work"
    with _opened(folder, worker) as runner:
        # Whatever lies there was left by a run that was killed, and this one may need no worker.
        discard_tree(workingdir)
        plan = plan.with_fingerprints(progress)
        same = _Sameness(plan.jobs)
        labels = {same.key(job): job.label for job in plan.jobs}
        history = _History(runner, same, set(labels), rerun)
        todo = [job for job in plan.jobs if same.key(job) not in history.known]
        if todo:
            queue_batch(runner, plan.only(job.index for job in todo), progress)
        publisher = _Publisher(runner, folder)
        publisher.publish((job, labels[same.key(job)], record) for job, record in history.done)
        follower = _Follower(runner, publisher, lambda job: labels.get(same.key(job)), progress)
        work = Worker(
            runner,
            worker,
            workingdir,
            slots=slots,
            stop_on_empty=True,
            on_settled=follower.settled.put,
        )
        wanted = len(todo) + len(history.waiting)
        interrupted = False
        if wanted:
            progress.start("running", wanted, "jobs")
            with follower.following(work), stopping(work.stop) as was_interrupted:
                work.run()
                interrupted = was_interrupted()
            progress.finish()
            _forget_bundles(runner)
        return RunReport(
            succeeded=follower.succeeded,
            skipped=len(plan.jobs) - wanted,
            failed=tuple(sorted(follower.failed, key=lambda record: (record.batch, record.index))),
            interrupted=interrupted and follower.succeeded + len(follower.failed) < wanted,
            kept=publisher.kept,
            unpublished=tuple(publisher.failures),
        )


@contextmanager
def _opened(folder: Path, worker: str) -> Iterator[Runner]:
    """Open the runner of an output folder, for one process at a time."""
    directory = folder / RUNNER_FOLDER
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        yield open_runner(str(directory), worker=worker)
    finally:
        os.close(lock)


#: What a job of this run and one of an earlier run have in common if they do the same.
_Key = tuple[str | None, str | None]


class _Sameness:
    """Tell whether a job of an earlier run is one of these: by its fingerprint.

    Where two of them have the same fingerprint (the same content under two names, and a
    command that does not say which) the label decides as well.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        counts = Counter(job.fingerprint for job in jobs)
        self._twins = {print_ for print_, number in counts.items() if number > 1}

    def key(self, job: Job) -> _Key:
        """Return what two jobs have in common if and only if they do the same."""
        return job.fingerprint, job.label if job.fingerprint in self._twins else None


class _History:
    """Tell what earlier runs have done and left, of what is wanted now."""

    def __init__(self, runner: Runner, same: _Sameness, wanted: set[_Key], rerun: bool) -> None:
        #: Wanted jobs that have succeeded, with their records.
        self.done: list[tuple[Job, JobRecord]] = []
        #: Wanted jobs that wait in the runner.
        self.waiting: set[_Key] = set()
        called_off = read_orders(runner.store).destroyed_batches
        survey = Survey(runner)
        done: dict[_Key, tuple[Job, JobRecord]] = {}
        for batch, parts in survey.manifests().items():
            records = visible(runner.ledger.records([batch]))
            left: set[_Key] = set()
            for job in (job for manifest in parts for job in manifest.jobs):
                record = records.get((batch, job.index))
                if record is None:
                    left.add(same.key(job))
                elif record.state is JobState.SUCCEEDED and not rerun:
                    done[same.key(job)] = job, record
            if not left or batch in called_off:
                continue
            if rerun or not survey.is_sealed(batch) or not left <= wanted - self.waiting:
                order_destruction(runner.store, batch)
            else:
                self.waiting |= left
        self.done = [each for key, each in done.items() if key in wanted]
        self.known = self.waiting | {same.key(job) for job, _ in self.done}


class _Follower:
    """Publish results and tell the progress while a worker works."""

    def __init__(
        self,
        runner: Runner,
        publisher: _Publisher,
        label_of: Callable[[Job], str | None],
        progress: Progress,
    ) -> None:
        self._publisher = publisher
        self._label_of = label_of
        self._progress = progress
        self._jobs = {
            (job.batch, job.index): job
            for parts in Survey(runner).manifests().values()
            for manifest in parts
            for job in manifest.jobs
        }
        #: Where the worker puts its records; None ends the following.
        self.settled: queue.SimpleQueue[JobRecord | None] = queue.SimpleQueue()
        self.succeeded = 0
        self.failed: list[JobRecord] = []

    @contextmanager
    def following(self, work: Worker) -> Iterator[None]:
        """Follow within, in a thread of its own; everything is published at the end."""
        thread = threading.Thread(target=self._follow, args=(work,), name="publish")
        thread.start()
        try:
            yield
        finally:
            self.settled.put(None)
            thread.join()

    def _follow(self, work: Worker) -> None:
        for records in _groups(self.settled):
            todo = []
            for record in records:
                job = self._jobs[record.batch, record.index]
                label = self._label_of(job)
                # Jobs of earlier runs that nobody wants any more are called off.
                if record.state is JobState.CANCELLED or label is None:
                    continue
                todo.append((job, label, record))
                if record.state is JobState.FAILED:
                    self.failed.append(record)
                else:
                    self.succeeded += 1
                self._progress.advance()
            self._publisher.publish(todo)
            self._progress.note(done=self.succeeded, failed=len(self.failed), running=work.running)


class _Publisher:
    """Put results from the store where people look for them."""

    def __init__(self, runner: Runner, folder: Path) -> None:
        self._runner = runner
        self._folder = folder
        self._notes = folder / RUNNER_FOLDER / "published.jsonl"
        self._published: dict[str, dict[str, Any]] = {}
        self.kept = 0
        self.failures: list[str] = []
        if self._notes.exists():
            for line in self._notes.read_bytes().splitlines():
                try:
                    note = json.loads(line)
                    self._published[note["label"]] = note
                except (ValueError, KeyError):
                    _log.debug("a note was cut off: what it was about is published again")

    def publish(self, items: Iterable[tuple[Job, str, JobRecord]]) -> None:
        """Make the files under each label those of this record, and none else of adr's."""
        todo = [each for each in items if not self._is_there(each[1], each[2])]
        if not todo:
            return
        try:
            for _, label, record in todo:
                self._remove_older(label, record)
            wanted = [
                each for job, label, record in todo for each in fetches(job, record, f"{label}/")
            ]
            report = fetch(self._runner.store, wanted, self._folder)
            self.kept += report.kept
        except PartialFailure as error:
            self.failures += error.failed
            return
        except AdrError as error:
            self.failures.append(str(error))
            return
        with self._notes.open("a", encoding="ascii") as file:
            for _, label, record in todo:
                files = {each.name: each.size_bytes for each in record.results}
                note = {"label": label, "attempt": record.attempt, "files": files}
                self._published[label] = note
                file.write(json.dumps(note) + "\n")

    def _is_there(self, label: str, record: JobRecord) -> bool:
        note = self._published.get(label)
        if note is None or note["attempt"] != record.attempt:
            return False
        return all(os.path.lexists(self._folder / label / each.name) for each in record.results)

    def _remove_older(self, label: str, record: JobRecord) -> None:
        """Remove what an earlier attempt has left under a label."""
        note = self._published.get(label)
        if note is None or note["attempt"] == record.attempt:
            return
        top = self._folder / label
        for name in note["files"]:
            path = top / name
            if path.is_file() and path.resolve().is_relative_to(top.resolve()):
                path.unlink()
                for folder in path.relative_to(top).parents:
                    try:
                        (top / folder).rmdir()
                    except OSError:
                        break


def fetches(job: Job, record: JobRecord, before: str) -> list[Fetch]:
    """Say where the results of a record lie, and where they go: below `before`."""
    return [
        Fetch(
            key=result_key(job.batch, job.index, record.attempt, each.name),
            name=before + each.name,
            size_bytes=each.size_bytes,
            sha256=each.sha256,
            mode=each.mode,
        )
        for each in record.results
    ]


def _groups(settled: queue.SimpleQueue[JobRecord | None]) -> Iterator[Sequence[JobRecord]]:
    """Yield what has been settled, some at a time, also when that is nothing; end at None."""
    while True:
        group: list[JobRecord] = []
        try:
            item = settled.get(timeout=_NOTE_EVERY_S)
            while item is not None:
                group.append(item)
                item = settled.get_nowait()
            yield group
            return
        except queue.Empty:
            yield group


def _forget_bundles(runner: Runner) -> None:
    """Remove the bundles of batches that have nothing left to run."""
    survey = Survey(runner)
    batches = survey.manifests()
    records = visible(runner.ledger.records(batches))
    over = [
        batch
        for batch, parts in batches.items()
        if all((batch, job.index) in records for manifest in parts for job in manifest.jobs)
    ]
    runner.store.delete([bundle_key(batch) for batch in over])
