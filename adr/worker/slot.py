"""One slot of a worker: a thread, a launcher and workspaces; runs one job after the other.

What a slot hands on is a `Delivery`: the record of an attempt so far, and the files that are
to be stored for it, moved out of the workspace. So the slot's next job computes while the
results of the last one are uploaded (`adr.worker.outbox`).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adr.errors import AdrError, Unavailable
from adr.models import Job, JobRecord, JobState, Lease
from adr.times import moment_text
from adr.worker.bundles import Bundles, DiskTooSmall
from adr.worker.environment import Environments
from adr.worker.jobuser import JobUser
from adr.worker.launcher import Ending, Launcher
from adr.worker.launcher_child import TAIL_BYTES
from adr.worker.script import job_script, plain_words
from adr.worker.shortage import has_room, is_full, memory_kills
from adr.worker.staging import stage
from adr.worker.tree import discard_tree
from adr.worker.verdict import Stop, failure, is_dropped, was_killed
from adr.worker.workspace import Workspace

__all__ = ["Delivery", "FolderGone", "Limits", "Slot"]

_log = logging.getLogger(__name__)

_KEPT_WORKSPACES = 4
_SCRIPT = "run.sh"
_CUT = "exceeded --max-hours"
#: For so long a count of what the kernel has killed is taken for that of now.
_COUNTED_S = 1.0


@dataclass(frozen=True)
class Limits:
    """Bound what a job may do to its worker, and how long a worker takes to stop."""

    #: Seconds between TERM and KILL.
    term_s: float = 10.0
    #: Largest output of one job.
    log_bytes: int = 1 << 30
    #: Seconds for which a worker that is to stop tries to settle what is done.
    settle_s: float = 30.0


class FolderGone(AdrError):
    """Report that somebody has removed the folder in which this worker works."""


@dataclass(frozen=True)
class Delivery:
    """Hold what is left to store of an attempt that has ended."""

    lease: Lease
    #: Without the files, and complete where there are none.
    record: JobRecord
    #: Folder of its own for these files, if there are any; removed once they are stored.
    folder: Path
    #: Staged file and name of each result.
    files: tuple[tuple[Path, str], ...] = ()
    #: The whole output, where it is longer than the tail in the record.
    log: Path | None = None
    #: Whether it is not to be repeated, however many attempts are left.
    final: bool = False

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing but the record."""
        return not self.files and self.log is None


class Slot:
    """Run jobs one at a time.

    Parameters
    ----------
    number : int
        Number of the slot, from 1.
    directory : Path
        Place of the slot's workspaces, made here.
    bundles : Bundles
        Where workspaces come from.
    worker : str
        Id of the worker.
    runner_id : str
        Id of the runner, for the environment of jobs.
    limits : Limits
        Bounds for jobs.
    host : str
        What records call this machine.
    user : JobUser, optional
        Whom jobs and their workspaces belong to; without, the user of the worker.
    launcher : Launcher, optional
        What runs the jobs, for that user, if it was started ahead; the slot closes it.
    """

    def __init__(
        self,
        number: int,
        directory: Path,
        bundles: Bundles,
        worker: str,
        runner_id: str,
        limits: Limits,
        host: str,
        user: JobUser | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self.number = number
        self._directory = directory
        self._user = user
        self._rights = user.rights if user else nullcontext
        #: Where the workspaces lie.
        self._inner = directory / "batches" if user else directory
        self._bundles = bundles
        self._worker = worker
        self._limits = limits
        self._host = host
        self._stops: set[Stop] = set()
        self._launcher = launcher or Launcher(user)
        self._workspaces: OrderedDict[str, Workspace] = OrderedDict()
        self._environments = Environments(runner_id, number, user)
        #: How many processes the kernel had killed for want of memory, and when.
        self._kills = (0, -math.inf)
        #: While a job runs, its lease and the file that its output goes to.
        self.log: tuple[Lease, Path] | None = None

    def prepare(self, lease: Lease) -> None:
        """Have the workspace of a job's batch ready, at the cost of others if the disk is small.

        Raises
        ------
        Unavailable
            If the disk is full, so that no job could be run.
        NotFound, ServiceError, AdrError
            See `Bundles.unpack`.
        """
        batch = lease.job.batch
        self._make_directory()
        if not has_room(self._directory):
            for other in [each for each in self._workspaces if each != batch]:
                self._forget(other)
            if not has_room(self._directory):
                raise Unavailable(f"the disk of {self._directory} is full: make room there")
        if batch in self._workspaces:
            self._workspaces.move_to_end(batch)
            return
        while len(self._workspaces) >= _KEPT_WORKSPACES:
            self._forget(next(iter(self._workspaces)))
        target = self._inner / batch
        with self._rights():
            discard_tree(target)
        try:
            workspace = self._bundles.unpack(batch, target)
        except DiskTooSmall:
            if not self._workspaces:
                raise
            self._forget_all()
            workspace = self._bundles.unpack(batch, target)
        self._workspaces[batch] = workspace

    def _make_directory(self) -> None:
        if os.path.isdir(self._inner):
            return
        try:
            self._directory.mkdir(exist_ok=True)
        except FileNotFoundError as error:
            place = self._directory.parent
            raise FolderGone(f"{place} has been removed, so this worker ends") from error
        if self._user and not self._inner.exists():
            # The script is here, which jobs may read, and they may change what lies within.
            self._directory.chmod(0o711)
            self._inner.mkdir(mode=0o700)
            self._user.give(self._inner)

    def run(self, lease: Lease, staging: Path) -> Delivery | None:
        """Run a job whose workspace is ready, and put the workspace back as it was.

        Parameters
        ----------
        staging : Path
            A folder that does not exist, for the files of the delivery.

        Returns
        -------
        Delivery or None
            None where the job was ended because `stop` was called, and has not counted; see
            `Stop`.
        """
        job = lease.job
        self._stops.clear()
        workspace = self._workspaces[job.batch]
        log = staging.with_name(f"slot-{self.number}.log")
        if time.monotonic() - self._kills[1] > _COUNTED_S:
            # Reading it takes longer than many a job.
            self._kills = (memory_kills(), time.monotonic())
        ending = self._launch(job, lease, workspace.directory, log)
        self._make_directory()
        why = next((each for each in Stop if each in self._stops), None) if self._stops else None
        cut = ending.stopped_by == "order" and why is Stop.LIMIT
        dropped = is_dropped(ending, why)
        reason = _CUT if cut else failure(job, ending, self._limits.log_bytes)
        # Before what it has written is cleared away.
        full = bool(reason) and is_full(self._directory)
        files: tuple[tuple[Path, str], ...] = ()
        try:
            changes = workspace.changes()
            if not dropped:
                files = stage(workspace.directory, staging, changes, job.store, self._user)
        except (OSError, AdrError) as error:
            full = is_full(self._directory)
            reason = reason or f"its results could not be kept: {error}"
            self._forget(job.batch)
        else:
            try:
                workspace.restore(changes)
                if "" in changes.removed:
                    self._clear_away()
            except (OSError, AdrError) as error:
                _log.warning("the workspace of %s has to be made anew: %s", job.name, error)
                self._forget(job.batch)
        if dropped:
            discard_tree(staging)
            log.unlink(missing_ok=True)
            return None
        kept = _kept(log, staging, ending)
        record = self._record(lease, ending, reason, None if files or kept else time.time())
        if why is Stop.NOTICE:
            when = moment_text(ending.ended_at)
            note = f"ended at {when} on an instance under interruption notice"
            record = replace(record, notes=(*record.notes, note))
        if record.reason and full:
            record = replace(record, reason=f"{record.reason}; the disk was full")
        if was_killed(ending) and memory_kills() > self._kills[0]:
            record = replace(record, reason=f"{record.reason}; memory had run out")
            self._kills = (0, -math.inf)
        return Delivery(lease, record, staging, files, kept, final=cut)

    def refusal(self, lease: Lease, reason: str) -> JobRecord:
        """Return the record of a job that cannot be run."""
        return self._base(lease, JobState.FAILED, reason, ended_at=time.time())

    def stop(self, why: Stop = Stop.DROPPED, term_s: float | None = None) -> None:
        """End the job that runs, from any thread.

        Parameters
        ----------
        why : Stop, optional
            Decides what becomes of the job.
        term_s : float, optional
            Seconds between TERM and KILL, without those of `Limits`; 0: KILL at once.
        """
        self._stops.add(why)
        self._launcher.stop(term_s)

    def close(self) -> None:
        """End the launcher and whatever it still runs, and give up the workspaces; idempotent."""
        self._launcher.close()
        self._forget_all()

    def _forget_all(self) -> None:
        for batch in list(self._workspaces):
            self._forget(batch)

    def _forget(self, batch: str) -> None:
        """Give up a workspace, which is not as it was or one too many."""
        workspace = self._workspaces.pop(batch)
        workspace.close()
        self._bundles.leave(batch)
        with self._rights():
            discard_tree(workspace.directory)

    def _clear_away(self) -> None:
        """Remove what lies beside the workspaces: a job may have moved its own there."""
        with self._rights():
            for path in self._inner.iterdir():
                if path.name not in self._workspaces and path.name != _SCRIPT:
                    discard_tree(path)

    def _launch(self, job: Job, lease: Lease, directory: Path, log: Path) -> Ending:
        with self._log_of_job(log) as log_path:
            run = partial(
                self._launcher.run,
                cwd=directory,
                log_path=log_path,
                timeout_s=job.timeout_s,
                term_s=self._limits.term_s,
                log_limit_bytes=self._limits.log_bytes,
            )
            self.log = (lease, log_path)
            try:
                words = plain_words(job)
                if words and (env := self._environments.for_program(lease)) is not None:
                    ending = run(words, env=env, instead_of_bash=True)
                    if ending.found:
                        return ending
                script = self._write_script(job)
                return run([b"bash", os.fsencode(script)], env=self._environments.for_bash(lease))
            finally:
                self.log = None

    def _write_script(self, job: Job) -> Path:
        path = self._directory / _SCRIPT
        body = job_script(job).encode("utf-8", "surrogateescape")
        # Not emptied first, after which ext4 writes to the disk at every close.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:
            file.write(body)
            file.truncate()
        if self._user:
            path.chmod(0o644)
        return path

    @contextmanager
    def _log_of_job(self, log: Path) -> Iterator[Path]:
        """Name the file that the launcher writes to; it is moved to `log` if it lies elsewhere."""
        if self._user is None:
            yield log
            return
        # The folder of the delivery is out of the reach of that user.
        path = self._directory / "log"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        self._user.give(path)
        yield path
        self._user.take(path)
        path.rename(log)

    def _record(
        self, lease: Lease, ending: Ending, reason: str, stored_at: float | None
    ) -> JobRecord:
        state = JobState.FAILED if reason else JobState.SUCCEEDED
        return self._base(
            lease,
            state,
            reason,
            exit_code=ending.exit_code,
            signal=ending.signal,
            started_at=ending.started_at,
            ended_at=ending.ended_at,
            stored_at=stored_at,
            peak_memory_bytes=ending.peak_memory_bytes,
            cpu_s=ending.cpu_s,
            tail=ending.tail.decode("utf-8", "surrogateescape"),
        )

    def _base(self, lease: Lease, state: JobState, reason: str, **about: Any) -> JobRecord:
        return JobRecord.of(
            lease.job,
            lease.attempt,
            state,
            reason,
            leased_at=lease.leased_at,
            host=self._host,
            worker=self._worker,
            slot=self.number,
            notes=lease.notes,
            **about,
        )


def _kept(log: Path, staging: Path, ending: Ending) -> Path | None:
    """Move a log to what is to be stored, or clear it away for that of the next job."""
    with suppress(FileNotFoundError):
        if ending.output_bytes > TAIL_BYTES:
            staging.mkdir(exist_ok=True)
            return log.rename(staging / "log")
        if ending.output_bytes:
            log.unlink()
    return None
