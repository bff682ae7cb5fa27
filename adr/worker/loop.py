"""The worker: leases jobs, hands them to its slots, holds on to its leases, and ends well.

Threads, each with one duty: ``receive`` leases (`adr.worker.receiver`), one thread per slot runs
(`adr.worker.crew`), the outbox stores and settles, ``keep`` extends leases and gives back those
that do not get their turn (`adr.worker.leases`), ``heart`` writes the heartbeat and reads the
orders (`adr.worker.heartbeat`), ``follow`` shows the output of jobs that somebody follows
(`adr.worker.following`), ``notice`` looks whether EC2 takes the machine away
(`adr.worker.notice`), ``hurry`` bounds how long the end takes. The thread that calls `Worker.run`
waits for the end, and ends jobs for which there is no time. What they share is small: the leases
at hand (`adr.worker.turns`), and whether it ends (`adr.worker.ending`).
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from adr.errors import RunnerGone, UsageError
from adr.models import JobRecord
from adr.orders import Orders, read_orders
from adr.runner import Runner
from adr.survey import Survey
from adr.version import __version__
from adr.worker.bundles import Bundles
from adr.worker.crew import Crew
from adr.worker.ending import Ending
from adr.worker.following import Following
from adr.worker.heartbeat import Heartbeat
from adr.worker.jobuser import JobUser
from adr.worker.launcher import Launcher
from adr.worker.leases import LeaseKeeper
from adr.worker.lifetime import Lifetime
from adr.worker.outbox import Outbox
from adr.worker.place import Place, cores
from adr.worker.policy import Policy
from adr.worker.receiver import Receiver
from adr.worker.slot import Limits, Slot
from adr.worker.turns import Turns
from adr.workerinfo import WorkerInfo

__all__ = ["Worker", "WorkerReport"]

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_LISTEN_S = 0.1
_PAUSED = "the runner is paused: nothing more begins until adr resume --runner=%s"


@dataclass
class WorkerReport:
    """Count the jobs that a worker has settled."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    #: Whether it was told to stop by a signal; a worker itself knows of none.
    interrupted: bool = False


class Worker:
    """Process the jobs of a runner in this process.

    Parameters
    ----------
    runner : Runner
        The runner, opened for `worker`.
    worker : str
        Id of this worker; no other process ever had it.
    workingdir : Path
        Where the worker makes its own directory.
    slots : int, optional
        How many jobs run at once; without, as many as there are cores.
    stop_on_empty : bool, optional
        Leave when the queue is proved to be empty.
    most_jobs : int, optional
        Leave after so many jobs, and when there is none to lease.
    limits : Limits, optional
        Bounds for jobs.
    on_settled : callable, optional
        Called with each record once it is durable, from another thread.
    host : str, optional
        What lists and records call this machine; without, its host name.
    idle_s : float, optional
        Leave when the jobs of at least one batch are all decided, or after so many seconds
        with nothing to do, or with nothing but refusals from the queue; see `Policy`.
    max_s : float, optional
        Seconds after which all has to be over: jobs that run by then have failed; see `Lifetime`.
    alive : Path, optional
        File that tells a timer of the system that this worker lives; see `Heartbeat`.
    watch_notice : bool, optional
        Look whether EC2 is about to take this machine away: jobs are given back then, apart from
        those that succeed in the time that is left.
    job_user : str, optional
        Name of another user, whom jobs run as; see `JobUser`.
    aws_for_jobs : bool, optional
        With `job_user`: leave ``AWS_*`` variables to the jobs.
    launchers : sequence of Launcher, optional
        Without `job_user`: what was started ahead for the first slots, who close it.
    """

    def __init__(
        self,
        runner: Runner,
        worker: str,
        workingdir: Path,
        *,
        slots: int | None = None,
        stop_on_empty: bool = False,
        most_jobs: int | None = None,
        limits: Limits | None = None,
        on_settled: Callable[[JobRecord], None] | None = None,
        host: str | None = None,
        idle_s: float | None = None,
        max_s: float | None = None,
        alive: Path | None = None,
        watch_notice: bool = False,
        job_user: str | None = None,
        aws_for_jobs: bool = False,
        launchers: Sequence[Launcher] = (),
    ) -> None:
        self._runner = runner
        self._worker = worker
        self._workingdir = workingdir
        self._limits = limits or Limits()
        self._on_settled = on_settled
        self._host = host or socket.gethostname()
        self._watch_notice = watch_notice
        self._job_user = job_user
        self._aws_for_jobs = aws_for_jobs
        self._launchers = launchers
        self._turns = Turns(lambda: self._outbox.is_empty)
        self._ending = Ending(self._host, Lifetime(max_s, self._limits.term_s))
        self._outbox = Outbox(runner, self._settled, lambda: self._turns.is_idle, self._leave)
        self._policy = Policy(
            runner.ledger,
            Survey(runner),
            stop_on_empty=stop_on_empty,
            most_jobs=most_jobs,
            idle_s=idle_s,
            worker=worker,
            idle=runner.roster.idle,
        )
        self._leases = LeaseKeeper(
            runner.ledger, self._turns, self._outbox.leases, self._policy.given_back, self._leave
        )
        self._crew = Crew(
            slots or cores(),
            runner.ledger,
            self._turns,
            self._leases,
            self._outbox,
            self._policy,
            self._ending,
            self._leave,
        )
        self._following = Following(
            runner.store, self._crew.logs, self._limits.log_bytes, runner.orders_s / 5
        )
        self._heartbeat = Heartbeat(runner, self._info, self._obey, self._leave, alive)
        self._receiver = Receiver(
            runner.ledger,
            self._turns,
            self._leases,
            self._outbox,
            self._policy,
            self._crew,
            self._ending,
            lambda: self._heartbeat.is_heard,
            self._leave,
        )
        self._started_at = time.time()
        self.report = WorkerReport()

    @property
    def running(self) -> int:
        """Return how many jobs run now."""
        return len(self._turns)

    def run(self) -> WorkerReport:
        """Work until `stop` is called, the runner is gone, or there is no reason to stay.

        Raises
        ------
        UsageError
            If the working directory or the user for jobs cannot be used, or if no job could be
            leased for `idle_s`, while the store could be used: another try would not help.
        RunnerGone, ServiceError
            If the runner cannot be reached at the start.
        """
        user = None
        if self._job_user is not None:
            user = JobUser.find(self._job_user, aws=self._aws_for_jobs)
        orders = self._crew.orders = read_orders(self._runner.store)
        if orders.destroyed:
            raise RunnerGone(f"the runner {self._runner.id} has been destroyed")
        if orders.paused:
            _log.warning(_PAUSED, self._runner.id)
        self._runner.ledger.send([])
        self._place = Place(self._workingdir, self._worker, user)
        bundles = Bundles(self._runner.store, self._place.bundles, user)
        size = self._crew.size
        slots = [
            Slot(
                number,
                self._place.path / f"slot-{number}",
                bundles,
                self._worker,
                self._runner.id,
                self._limits,
                self._host,
                user,
                launcher,
            )
            for number, launcher in zip_longest(range(1, size + 1), self._launchers[:size])
        ]
        try:
            # Before anything is leased: others must not take this worker for a dead one.
            self._heartbeat.begin()
        except BaseException:
            self._place.remove()
            raise
        self._outbox.start()
        ending = self._ending
        keepers = [
            _daemon("keep", self._leases.keep, ending),
            _daemon("heart", self._heartbeat.go_on, ending.over),
            _daemon("hurry", self._hurry),
        ]
        others = [receiver := _daemon("receive", self._receiver.receive)]
        if self._watch_notice:
            from adr.worker.notice import watch

            others.append(_daemon("notice", watch, ending.over, ending.interrupt))
        for thread in (*keepers, *others):
            thread.start()
        self._crew.start(slots, self._place.path / "outbox")
        self._following.heed(orders.follows)
        # A signal may come to another thread, which does not wake this one from a wait without
        # end, and its handler sets the event, whose lock this thread must not hold then.
        while not ending.begun.is_set():
            receiver.join(_LISTEN_S)
            ending.look(self._policy.usual_s)
        self._drain()
        self._outbox.close()
        self._following.close()
        ending.over.set()
        for thread in keepers:
            thread.join()
        # It may be in a long poll of an empty queue, which is not worth waiting for.
        receiver.join(_TICK_S)
        self._heartbeat.end(ending.gone)
        self._place.remove()
        if refusal := self._receiver.refusal:
            raise UsageError(f"no job could be leased: {refusal}") from refusal
        return self.report

    def stop(self) -> None:
        """Lease nothing more, end the jobs, give their leases back; from any thread.

        What is done is settled, if that is possible soon (`Limits.settle_s`).
        """
        self._ending.drop()

    def _leave(self, error: RunnerGone | None = None) -> None:
        """End because the runner is gone: drop everything and write nothing more."""
        if error is not None and not self._ending.gone:
            # Whoever of all threads comes upon it first.
            _log.warning("%s", error)
        self._ending.gone = True
        self._following.close(gone=True)
        self._outbox.abandon()
        self.stop()

    def _drain(self) -> None:
        """Give back what has not begun, and wait until the slots are empty."""
        unstarted = self._turns.close()
        self._stop_jobs()
        self._leases.release(unstarted)
        while self._crew.is_at_work:
            # Again and again, since a job that is about to start does not hear of it.
            self._stop_jobs()
            if self._turns:
                self._turns.wait(_TICK_S)
            else:
                self._crew.join(_LISTEN_S)

    def _stop_jobs(self) -> None:
        """End what runs, if it has to."""
        reason = self._ending.reason
        if reason is not None:
            self._turns.stop(lambda _: True, reason, self._ending.term_s(reason))

    def _settled(self, record: JobRecord) -> None:
        name = record.state.value
        setattr(self.report, name, getattr(self.report, name) + 1)
        if self._on_settled:
            self._on_settled(record)

    def _hurry(self) -> None:
        """Let the end not last for ever where the services are away, or are too slow."""
        until = math.inf
        while not self._ending.over.wait(_TICK_S):
            now = time.monotonic()
            if self._ending.dropping.is_set():
                until = min(until, now + self._limits.settle_s)
            if now >= min(until, self._ending.hurry_at) or self._ending.lifetime.is_over:
                self._outbox.hurry()
            if now >= self._ending.give_up_at:
                self._leases.release(self._outbox.give_up(), note=self._ending.job_note)
                return

    def _info(self) -> WorkerInfo:
        report = self.report
        return WorkerInfo(
            worker=self._worker,
            host=self._host,
            pid=os.getpid(),
            slots=self._crew.size,
            started_at=self._started_at,
            adr_version=__version__,
            done=report.succeeded + report.failed + report.cancelled,
            running=self._turns.infos(),
            note=self._ending.note,
        )

    def _obey(self, orders: Orders) -> None:
        if orders.paused and not self._crew.orders.paused:
            _log.warning(_PAUSED, self._runner.id)
        elif self._crew.orders.paused and not orders.paused:
            _log.warning("the runner goes on")
        self._crew.orders = orders
        self._following.heed(orders.follows)
        if orders.destroyed:
            self._leave()
        if orders.paused:
            self._leases.release(self._turns.unstarted())
        self._turns.stop(self._crew.is_called_off)


def _daemon(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
    return threading.Thread(target=target, args=args, name=name, daemon=True)
